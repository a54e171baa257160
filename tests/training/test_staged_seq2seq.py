"""Stages over another Trainer class, and what users do with a trainer beside training it."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import torch
from transformers import BartConfig, BartForConditionalGeneration, Seq2SeqTrainer
from transformers import Seq2SeqTrainingArguments as TransformersArguments

sys.path.insert(0, str(Path(__file__).parent))
import staged_run

from hftune.configuration.arguments import HFTuneArguments
from hftune.training.stages import StagedMixin, StageSpec

torch.set_num_threads(1)


@dataclasses.dataclass
class Arguments(HFTuneArguments, TransformersArguments):
    pass


class StagedSeq2SeqTrainer(StagedMixin, Seq2SeqTrainer):
    pass


def rows(count: int) -> list[dict]:
    return [{"input_ids": [2, i % 20 + 4, 3], "labels": [i % 20 + 4, 3]} for i in range(count)]


def generated(prediction) -> dict[str, float]:
    """Tokens that are not padding (1), of the longest text."""
    return {"length": float((prediction.predictions != 1).sum(1).max())}


def make_trainer(output_dir, **settings):
    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=30,
        d_model=8,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=8,
        decoder_ffn_dim=8,
        max_position_embeddings=16,
        decoder_start_token_id=3,
    )
    args = Arguments(
        output_dir=str(output_dir),
        num_train_epochs=1,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="length",
        predict_with_generate=True,
        generation_max_length=5,
        disable_tqdm=True,
        use_cpu=True,
        **settings,
    )
    return StagedSeq2SeqTrainer(
        BartForConditionalGeneration(config),
        args,
        stages=[
            StageSpec("part_{number}", rows(16), "some"),
            StageSpec("part_{number}", rows(32), "all", {"learning_rate": 1e-3}, key="all"),
        ],
        eval_dataset=rows(8),
        compute_metrics=generated,
    )


def test_over_a_seq2seq_trainer(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.train(resume_from_checkpoint=True)  # there is none: a new run
    assert [r["metrics"]["length"] for r in trainer.results] == [5.0, 5.0]
    assert [r["title"] for r in trainer.results] == ["some", "all"]
    assert trainer.evaluate()["eval_length"] == 5.0
    for name in ("part_1", "part_2"):
        BartForConditionalGeneration.from_pretrained(tmp_path / name / "checkpoints/best_model")
    assert trainer.args.learning_rate == 5e-5  # that of stage 2 was its own


def test_the_hub_gets_the_model_and_no_stage(tmp_path, monkeypatch):
    """The hub is outside of this machine: what would be sent to it is looked at."""
    sent = {}

    class Hub:
        def create_repo(self, name, **kwargs):
            return type("Repository", (), {"repo_id": f"me/{name}"})()

        def upload_folder(self, *, repo_id, folder_path, **kwargs):
            sent[repo_id] = {
                str(p.relative_to(folder_path)) for p in Path(folder_path).rglob("*") if p.is_file()
            }

    monkeypatch.setattr("transformers.trainer.hf_api", Hub)
    trainer = make_trainer(tmp_path / "summaries")
    trainer.train()
    trainer.push_to_hub()
    ((name, files),) = sent.items()
    assert name == "me/summaries"
    assert {"model.safetensors", "config.json", "README.md"} <= files
    assert not any("part_" in file or "checkpoint" in file for file in files)
    assert trainer.args.output_dir == str(tmp_path / "summaries")


def test_predictions_after_stages(tmp_path):
    trainer = staged_run.make_trainer(tmp_path, staged_run.specs((20,)))
    trainer.train()
    trainer.save_model(str(tmp_path / "model"))
    assert (tmp_path / "model/model.safetensors").is_file()
    assert trainer.state.best_metric == trainer.results[0]["best_metric"]
