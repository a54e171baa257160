"""A progressive training of sharded weights on CPU; under torchrun, `fsdp` or `ddp` as argument.

See fsdp_on_cpu.py.
"""

from __future__ import annotations

import sys

import fsdp_on_cpu  # noqa: F401, I001  (before hftune)
import torch
from torch.distributed.tensor import DTensor
from transformers import AutoModelForSequenceClassification, BertConfig

from hftune.configuration.stage_arguments import (
    ProgressiveArguments,
    StageArguments,
)
from hftune.configuration.staged_training_arguments import StagedTrainingArguments
from hftune.training.progressive import ProgressiveTrainer
from hftune.utils.recipes import run_recipe


def main() -> None:
    output_dir, kind, isolate = sys.argv[1:]
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=8,
        num_labels=2,
    )
    rows = [{"input_ids": [i % 30, 3, 4], "labels": i % 2} for i in range(40)]
    fsdp = {"version": 2, "transformer_layer_cls_to_wrap": ["BertLayer"]}
    trainer = ProgressiveTrainer(
        AutoModelForSequenceClassification.from_config(config),
        StagedTrainingArguments(
            output_dir=output_dir,
            disable_tqdm=True,
            use_cpu=True,
            learning_rate=1e-2,
            per_device_train_batch_size=4,
            **(dict(fsdp=True, fsdp_config=fsdp) if kind == "fsdp" else {}),
        ),
        train_dataset=rows,
        eval_dataset=rows[:8],
        progressive=ProgressiveArguments(start_ratio=0.5, step_size=0.5, epochs_per_stage=1),
        staging=StageArguments(isolate_stages=isolate == "isolated"),
    )
    trainer.train()
    sharded = sum(isinstance(p, DTensor) for p in trainer.model.parameters())
    assert bool(sharded) == (kind == "fsdp")
    trainer.end()


if __name__ == "__main__":
    run_recipe(main)
