"""A progressive training of sharded weights on CPU; under torchrun, `fsdp` or `ddp` as argument.

accelerate leaves FSDP out where there is no accelerator. The lines before the imports of hftune put
it back; nothing else differs from a run on GPUs.
"""

from __future__ import annotations

import sys

from accelerate import state
from accelerate.utils import DistributedType

_init = state.AcceleratorState.__init__


def _with_fsdp(self, *args, **kwargs):
    _init(self, *args, **kwargs)
    plugin = kwargs.get("fsdp_plugin")
    if plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.FSDP
        self.fsdp_plugin = plugin
        state.PartialState._shared_state["distributed_type"] = DistributedType.FSDP


state.AcceleratorState.__init__ = _with_fsdp

import torch  # noqa: E402
from torch.distributed.tensor import DTensor  # noqa: E402
from transformers import AutoModelForSequenceClassification, BertConfig  # noqa: E402

from hftune.configuration.stage_arguments import (  # noqa: E402
    ProgressiveArguments,
    StageArguments,
)
from hftune.configuration.staged_training_arguments import StagedTrainingArguments  # noqa: E402
from hftune.training.progressive import ProgressiveTrainer  # noqa: E402
from hftune.utils.recipes import run_recipe  # noqa: E402


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
