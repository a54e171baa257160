"""A chain of two lead times with sharded weights on CPU; under torchrun, the folder as argument.

Its initial states have to be there: each process would write them.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2] / "training")]
import fsdp_on_cpu  # noqa: E402, F401, I001  (before hftune)
import chain_run  # noqa: E402
import torch  # noqa: E402
from torch.distributed.tensor import DTensor  # noqa: E402

from hftune.utils.recipes import run_recipe  # noqa: E402


def main():
    torch.set_num_threads(1)
    trainer = chain_run.make_trainer(
        sys.argv[1],
        {"lead_times": 2},
        {"isolate_stages": True},
        num_train_epochs=1,
        per_device_train_batch_size=8,
        fsdp=True,
        fsdp_config={"version": 2, "transformer_layer_cls_to_wrap": ["TransformerBlock"]},
    )
    trainer.train()
    assert any(isinstance(p, DTensor) for p in trainer.model.parameters())
    return trainer


if __name__ == "__main__":
    run_recipe(main)
