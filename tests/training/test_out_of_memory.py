"""Errors of too little memory, as torch, Python and the system raise them."""

from __future__ import annotations

import gc
import json
import mmap
import resource
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from processes import run_alone
from torch.utils.data import DataLoader, Dataset

from hftune.training.out_of_memory import halve_batch, is_out_of_memory, release_memory

torch.set_num_threads(1)

HUGE = 2**37  # float32: half a terabyte


class Big(torch.nn.Module):
    """Needs much more memory in its forward pass than its input has."""

    def forward(self, x):
        return (x[:, None] - x[None, :]).square().sum()


class Hungry(Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        return np.zeros(HUGE, dtype=np.float32)


def forward():
    x = torch.randn(2**17, requires_grad=True)
    Big()(x).backward()


def in_worker():
    list(DataLoader(Hungry(), num_workers=1))


def in_python():
    return bytearray(HUGE)


def by_the_system():
    mmap.mmap(-1, HUGE)


def wrapped():
    try:
        forward()
    except RuntimeError as error:
        raise ValueError("the stage failed") from error


def other():
    torch.zeros(3) + torch.zeros(4)


def with_little_memory(work, path: Path) -> None:
    """Runs it where 2 GB more than now cannot be had, and writes down what was raised."""
    limit = psutil.Process().memory_info().vms + 2 * 2**30
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        work()
    except Exception as error:
        path.write_text(json.dumps([type(error).__name__, is_out_of_memory(error), str(error)]))


@pytest.mark.parametrize(
    "work, kind, expected",
    [
        (forward, "RuntimeError", True),
        (in_worker, "RuntimeError", True),
        (in_python, "MemoryError", True),
        (by_the_system, "OSError", True),
        (wrapped, "ValueError", True),
        (other, "RuntimeError", False),
    ],
)
def test_real_errors(tmp_path, work, kind, expected):
    path = tmp_path / "error.json"
    assert run_alone(lambda: with_little_memory(work, path)) == 0
    found, recognised, text = json.loads(path.read_text())
    assert recognised is expected, text
    assert found == kind


@pytest.mark.parametrize(
    "error, expected",
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."), True),
        (torch.OutOfMemoryError("anything"), True),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB)"), True),
        (RuntimeError("XPU out of memory. Tried to allocate 20.00 MiB."), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory: you "
                      "tried to allocate 8 bytes."), True),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"), False),
        (RuntimeError("expected scalar type Float but found Half"), False),
        (RuntimeError(), False),
        (ValueError("the text 'out of memory' was found in a label"), False),
        (OSError(28, "No space left on device"), False),
        (KeyboardInterrupt(), False),
    ],
)  # fmt: skip
def test_what_libraries_say(error, expected):
    assert is_out_of_memory(error) is expected


def test_errors_that_come_from_one_another():
    memory, later = MemoryError(), ValueError("later")
    later.__context__ = KeyError("between")
    later.__context__.__context__ = memory
    assert is_out_of_memory(later)
    later.__suppress_context__ = True  # raise ... from None
    assert not is_out_of_memory(later)
    later.__cause__ = RuntimeError("out of memory")
    assert is_out_of_memory(later)

    loop = RuntimeError("first")
    loop.__cause__ = ValueError("second")
    loop.__cause__.__context__ = loop
    assert not is_out_of_memory(loop)


def test_smaller_batches_make_the_same_step():
    assert halve_batch(16, 1) == (8, 2)
    assert halve_batch(12, 3) == (6, 6)
    assert halve_batch(15, 2) == (5, 6)
    assert halve_batch(7, 2) == (1, 14)
    assert halve_batch(1, 32) is None
    for micro in range(2, 65):
        smaller, accumulation = halve_batch(micro, 3)
        assert smaller * accumulation == 3 * micro
        assert smaller == max(n for n in range(1, micro) if micro % n == 0)


def test_memory_goes_back_to_the_system(tmp_path):
    def work():
        process = psutil.Process()
        kept: list[torch.Tensor] = []
        pieces: list = []
        # Small pieces below the size that malloc maps: freed, they stay with the process.
        for number in range(40_000):
            pieces.append(torch.zeros(1024))
            if number % 1000 == 0:
                kept.append(torch.zeros(16))
        pieces.append(pieces)  # only the collector frees this
        full = process.memory_info().rss
        gc.disable()  # not before it is asked to
        del pieces
        before = process.memory_info().rss
        release_memory()
        (tmp_path / "rss.json").write_text(
            json.dumps([full, before, process.memory_info().rss, len(kept)])
        )

    assert run_alone(work) == 0
    full, before, after, _ = json.loads((tmp_path / "rss.json").read_text())
    assert before > full - 20e6
    assert after < full - 120e6
