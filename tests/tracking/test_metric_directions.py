"""Whether higher is better: known, declared, or an error."""

from __future__ import annotations

import pytest

from hftune.tracking.metric_directions import bare_metric, greater_is_better, known_direction
from hftune.utils.errors import ConfigurationError

LOWER = [
    "loss", "eval_loss", "eval/loss", "train_loss", "best_eval_loss", "final_loss", "perplexity",
    "test_rmse", "mae", "mse", "wer", "CER", "crps", "rmse_to_persistence",
    "eval_rmse_to_persistence_24h", "mean_squared_error", "rmse_6h", "brier_score", "error",
]  # fmt: skip
HIGHER = [
    "accuracy", "eval_accuracy", "f1", "macro_f1", "f1_macro", "precision", "recall", "recall@5",
    "rouge1", "rouge1_f1", "eval_rougeL", "eval/rougeLsum_f1", "rouge_combined_f1", "bleu", "auc",
    "acc_24h", "ndcg@10", "ndcg_at_10", "eval_cosine_ndcg@10", "spearman_cosine", "kendall_tau",
    "validation_pairwise_accuracy", "best_rouge_combined_f1", "exact_match", "mean_iou",
    "rmse_skill", "rewards/accuracies", "pass@1", "rouge2_recall",
]  # fmt: skip
UNKNOWN = [
    "my_score", "eval_runtime", "learning_rate", "loss_scale", "accuracy_gap", "imdb_accuracy",
    "not_loss", "loss_accuracy", "f1_loss_ratio", "bias", "eval_mean_error", "step", "eval_", "",
    "mean_", "@5", "grad_norm", "rouge1_std", "rmse_to_mars",
]  # fmt: skip


def test_what_the_field_agrees_on():
    assert {name: known_direction(name) for name in LOWER} == dict.fromkeys(LOWER, False)
    assert {name: known_direction(name) for name in HIGHER} == dict.fromkeys(HIGHER, True)


def test_nothing_is_guessed():
    assert {name: known_direction(name) for name in UNKNOWN} == dict.fromkeys(UNKNOWN)
    for name in UNKNOWN:
        with pytest.raises(ConfigurationError, match="greater_is_better=True or False"):
            greater_is_better(name)


def test_the_error_says_how_to_declare_and_what_is_near():
    with pytest.raises(ConfigurationError) as caught:
        greater_is_better("eval_acuracy")
    assert str(caught.value) == (
        "metric 'eval_acuracy': it is not known whether a higher or a lower value is better. Say "
        "so: greater_is_better=True or False in the call, --greater_is_better or "
        "--smaller_is_better on the command line. Did you mean 'accuracy'?"
    )
    with pytest.raises(ConfigurationError, match="best near 0"):
        greater_is_better("eval_bias")


def test_declared_directions_hold_under_every_prefix():
    declared = {"eval_my_score": False, "loss": True}
    assert greater_is_better("my_score", declared) is False
    assert greater_is_better("test/my_score", declared) is False
    assert greater_is_better("eval_loss", declared) is True
    assert greater_is_better("loss", {"eval_loss": True, "loss": False}) is False
    with pytest.raises(ConfigurationError, match=r"Did you mean 'my_score'\?"):
        greater_is_better("my_scores", declared)


def test_bare_names():
    names = ["eval_loss", "eval/rouge1_f1", "best_eval_f1", "test_eval_f1", "eval_", "best", "f1"]
    assert [bare_metric(name) for name in names] == [
        "loss", "rouge1_f1", "f1", "f1", "eval_", "best", "f1",
    ]  # fmt: skip
