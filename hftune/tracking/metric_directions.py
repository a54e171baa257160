"""Whether a higher value of a metric is better: known from a table, declared, never guessed."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ..utils.errors import ConfigurationError, did_you_mean

__all__ = ["bare_metric", "greater_is_better", "known_direction"]

_LOWER = frozenset("""
    loss nll negative_log_likelihood log_loss logloss cross_entropy hinge_loss hamming_loss
    zero_one_loss perplexity ppl bits_per_byte bpb bits_per_character bpc
    error error_rate abs_error abs_bias eer fpr fnr
    mean_absolute_error mean_squared_error root_mean_squared_error mean_absolute_percentage_error
    mae mse rmse msle rmsle mape smape wmape mase medae nrmse crps brier brier_score ece mce
    wer cer mer ter edit_distance fid kid lpips far
""".split())  # fmt: skip

_HIGHER = frozenset("""
    accuracy accuracy_score acc balanced_accuracy exact_match em pairwise_accuracy win_rate pass
    f1 f1_score precision recall sensitivity specificity tpr tnr
    adjacent_accuracy votes_accuracy srcc krcc plcc
    auc roc_auc auroc pr_auc auprc average_precision ap map mrr ndcg hit_rate hits
    mcc matthews_correlation kappa cohen_kappa
    bleu sacrebleu chrf meteor bertscore bleurt comet spice cider
    rouge rouge1 rouge2 rouge3 rougel rougelsum rouge_combined
    pearson pearsonr spearman spearmanr spearman_rho kendall kendalltau kendall_tau
    correlation anomaly_correlation r2 r2_score explained_variance nse kge
    iou miou mean_iou dice jaccard psnr ssim
    csi ets pod skill skill_score rmse_skill mse_skill crps_skill crpss
    reward rewards/accuracies rewards/margins
""".split())  # fmt: skip

_NEITHER = frozenset("bias mean_bias mean_error me".split())

_PREFIX = re.compile(r"(?:eval|test|train|validation|valid|val|dev|predict)[_/]|(?:best|final)_")
_AVERAGE = r"(?:macro|micro|weighted|mean|average)"
_SIMILARITY = r"(?:cosine|dot|euclidean|manhattan)"  # of sentence-transformers
# What a name may say beside the metric: "ndcg@10", "rmse_to_persistence_24h", "f1_macro".
_QUALIFIERS = (
    re.compile(r"(?:@|_at_)\d+$"),
    re.compile(r"_\d+h$"),
    re.compile(r"_to_(?:persistence|climatology|untuned|baseline)$"),
    re.compile(rf"_{_AVERAGE}$"),
    re.compile(rf"^{_AVERAGE}_"),
    re.compile(rf"_{_SIMILARITY}$"),
    re.compile(rf"^{_SIMILARITY}_"),
)
_SCORE_PARTS = re.compile(
    r"(rouge(?:\d|l|lsum|_combined)|bertscore)_(?:f1|fmeasure|precision|recall)"
)


def bare_metric(name: str) -> str:
    """Returns a metric's name without the split or the choice that it is of.

    ``eval_rouge1_f1``, ``eval/rouge1_f1`` and ``best_rouge1_f1`` are all ``rouge1_f1``.
    """
    while (match := _PREFIX.match(name)) and match.end() < len(name):
        name = name[match.end() :]
    return name


def known_direction(metric: str) -> bool | None:
    """Returns whether higher is better where the field agrees on it, None for any other name.

    Args:
        metric (str): With or without a prefix such as ``eval_``; in any case. Beside the metric's
            own name only ``@k``, a lead time (``_24h``), a reference (``_to_persistence``), an
            average (``_macro``) or a similarity (``cosine_``) may stand, and ``_f1``,
            ``_precision`` and ``_recall`` after ROUGE and BERTScore.
    """
    name = bare_metric(metric.casefold()).replace("-", "_").replace(" ", "_")
    if _SCORE_PARTS.fullmatch(name):
        return True
    while name not in _LOWER and name not in _HIGHER:
        if name in _NEITHER:
            return None
        shorter = name
        for qualifier in _QUALIFIERS:
            shorter = qualifier.sub("", shorter)
        if shorter in (name, ""):
            return None
        name = shorter
    return name in _HIGHER


def greater_is_better(metric: str, declared: Mapping[str, bool] | None = None) -> bool:
    """Returns whether higher is better.

    Args:
        metric (str): Its name.
        declared (mapping, *optional*): Directions of metrics that no table knows, or that differ
            from it; with or without a prefix such as ``eval_``.

    Raises:
        ConfigurationError: If nobody says so.
    """
    declared = declared or {}
    if metric in declared:
        return declared[metric]
    bare = {bare_metric(name): direction for name, direction in declared.items()}
    if bare_metric(metric) in bare:
        return bare[bare_metric(metric)]
    known = known_direction(metric)
    if known is not None:
        return known
    why = "it is not known whether a higher or a lower value is better"
    if bare_metric(metric.casefold()) in _NEITHER:
        why = "neither a higher nor a lower value is better, it is best near 0 (log its size too)"
    raise ConfigurationError(
        f"metric '{metric}': {why}. Say so: greater_is_better=True or False in the call, "
        "--greater_is_better or --smaller_is_better on the command line."
        f"{did_you_mean(bare_metric(metric), [*_LOWER, *_HIGHER, *bare])}"
    )
