"""Runs that ran out of memory: knowing it, a smaller batch, giving memory back."""

from __future__ import annotations

import ctypes
import errno
import sys

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

__all__ = ["halve_batch", "is_out_of_memory", "release_memory"]

# Of RuntimeErrors, in lower case; beside those that accelerate knows.
_TEXTS = (
    "out of memory",  # CUDA, HIP, XPU, MPS, also where a library of theirs says so
    "can't allocate memory",  # DefaultCPUAllocator, as it says so on Linux
    "not enough memory",  # ... and elsewhere
    "cannot allocate memory",  # the operating system, of a file that is to be mapped
    "cublas_status_alloc_failed",
    "cusolver_status_alloc_failed",
    "cusparse_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "allocation_failed",  # CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED and its like
    "std::bad_alloc",
    "caught memoryerror",  # of a data worker, where numpy raised it
)


def is_out_of_memory(error: BaseException) -> bool:
    """Says whether an error is one of too little memory, of a device or of the machine.

    Args:
        error (BaseException): As it was caught. Errors that it came from count too (``raise ...
            from``, or raised while another was handled), and those of data workers.

    Example:
        >>> try:
        ...     trainer.train()
        ... except Exception as error:
        ...     if not is_out_of_memory(error):
        ...         raise
    """
    seen: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in seen:
        if _says_so(current):
            return True
        seen.append(current)
        hidden = current.__suppress_context__
        current = current.__cause__ or (None if hidden else current.__context__)
    return False


def _says_so(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, RuntimeError) and should_reduce_batch_size(error):
        return True
    text = str(error).lower() if isinstance(error, RuntimeError) else ""
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or any(part in text for part in _TEXTS)


def halve_batch(micro: int, accumulation: int) -> tuple[int, int] | None:
    """Finds the next smaller batch that makes the same optimizer step from more pieces.

    Args:
        micro (int): Samples of a process in one forward pass.
        accumulation (int): Forward passes of an optimizer step.

    Returns:
        Both, with the same product, or None where a batch has one sample already. The batch is the
        largest that divides ``micro``: half of an even one, a third of 9, 1 of a prime number.

    Example:
        >>> halve_batch(16, 2)
        (8, 4)
        >>> halve_batch(15, 2)
        (5, 6)
    """
    if micro == 1:
        return None
    factor = next(n for n in range(2, micro + 1) if micro % n == 0)
    return micro // factor, accumulation * factor


def release_memory() -> None:
    """Gives back what nothing holds any more: objects, the device's cache, pages of this process.

    An error that is being handled holds the tensors of the calls that it came through: leave the
    ``except`` block first.
    """
    clear_device_cache(garbage_collection=True)
    if sys.platform == "linux":
        # What was freed stays with the process, in pieces that are kept for the next allocation.
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):  # of glibc
            libc.malloc_trim(0)
