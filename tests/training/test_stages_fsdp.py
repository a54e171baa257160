"""Stages of weights that are shared out over processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).parent / "fsdp_stages.py"


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [
            Path(sys.executable).parent / "torchrun",
            *("--nproc_per_node", "2", SCRIPT, folder, *arguments),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[2])},
        capture_output=True,
        text=True,
        timeout=300,
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "stage_2_100pct/checkpoints/best_model/model.safetensors")


def test_stages_of_sharded_weights(tmp_path):
    for kind in ("fsdp", "ddp"):
        finished = run(tmp_path / kind, kind, "isolated")
        assert finished.returncode == 0, finished.stderr
    sharded, whole = weights(tmp_path / "fsdp"), weights(tmp_path / "ddp")
    assert sharded.keys() == whole.keys()
    for name, value in whole.items():
        torch.testing.assert_close(sharded[name], value, rtol=0, atol=1e-5)


def test_sharded_stages_need_processes_of_their_own(tmp_path):
    refused = run(tmp_path, "fsdp", "together")
    assert refused.returncode == 1
    said = " ".join(refused.stderr.split())
    assert "isolate_stages: weights that FSDP or DeepSpeed have taken apart cannot be given" in said
