"""Memory and processor time of a training and of its data workers, with a limit to warn at."""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import TrainerCallback

from ..utils.errors import ConfigurationError
from ..utils.files import human_bytes
from ..utils.terminal import console

__all__ = ["ResourceMonitor"]

_GROWTH = 1.1  # a further warning where memory has grown by this factor since the last one
_SHARE = 0.01  # of the time, which measuring may take


class ResourceMonitor(TrainerCallback):
    """Follows what a training needs, in any Trainer, and warns where it is too much memory.

    Each log of the loss gets, for the time since the last one:

    - ``memory_peak_bytes``: the most memory of this process and its children together;
    - ``children_memory_bytes``: the most of its children, data workers above all: what they have
      beside the pages that they share with this process or one another. (Where the system does not
      say what is shared, which Linux does, all of it counts.)
    - ``cpu_percent``: processor time of them all; 100 is one core.

    and on a GPU ``gpu_memory_bytes`` and ``gpu_memory_reserved_bytes``, the most that PyTorch had
    allocated and reserved since the stage, or the training, began. A tracking callback that comes
    after this one records them. A log gets nothing where nothing was measured since the last one.

    In a distributed run each process watches itself and its children, and holds the limit against
    that: it is one for a process, not for a machine.

    NOTE: The peak counters of this process (``VmHWM`` of Linux, PyTorch's of the GPU) are reset, so
    that each stage has a peak of its own.

    Args:
        max_memory_mb (float, *optional*): Memory of the process and its children, in MiB (2**20
            bytes: 4096 are 4 GiB), above which there is a warning, and again each time that it
            has grown by 10 %. Training goes on. Defaults to no limit.
        interval_seconds (float): The least time between two measurements, which becomes longer
            where they would take more than a hundredth of the time; 0 measures at each step,
            whatever that takes. Defaults to 1.

    Raises:
        ConfigurationError: If a number is out of range.

    Example:
        >>> monitor = ResourceMonitor(max_memory_mb=4000)
        >>> Trainer(model, args, train_dataset=data, callbacks=[monitor]).train()
        >>> monitor.peak["memory_bytes"]
    """

    def __init__(self, max_memory_mb: float | None = None, interval_seconds: float = 1.0) -> None:
        problems = []
        if max_memory_mb is not None and not 0 < max_memory_mb < math.inf:
            problems.append(f"max_memory_mb: found {max_memory_mb}, expected more than 0 MiB")
        if not 0 <= interval_seconds < math.inf:
            problems.append(f"interval_seconds: found {interval_seconds}, expected 0 s or more")
        if problems:
            raise ConfigurationError(problems)
        self.max_memory_mb = max_memory_mb
        self.interval_seconds = interval_seconds
        self._device: torch.device | None = None
        self._in_stage = False
        self._begin()

    @property
    def peak(self) -> dict[str, Any]:
        """What was needed since the stage, or the training, began; measured once more for this.

        ``process_memory_bytes``, ``children_memory_bytes`` and ``memory_bytes`` (of both together)
        at their most; ``gpu_memory_bytes``, None without a GPU; ``cpu_percent``, the mean;
        ``max_memory_mb``, and whether it was ``exceeded``.
        """
        self._measure()
        span = self._since_begin
        return {
            "process_memory_bytes": span.process,
            "children_memory_bytes": span.children,
            "memory_bytes": span.memory,
            "gpu_memory_bytes": span.gpu,
            "cpu_percent": self._cpu_percent(span),
            "max_memory_mb": self.max_memory_mb,
            "exceeded": span.memory > self._limit,
        }

    # Events of the trainer

    def on_stage_begin(self, args, state, control, **kwargs):
        self._in_stage = True
        self._device = args.device
        self._begin()

    def on_stage_end(self, args, state, control, **kwargs):
        self._in_stage = False

    def on_train_begin(self, args, state, control, **kwargs):
        if not self._in_stage:
            self._device = args.device
            self._begin()

    def on_step_end(self, args, state, control, **kwargs):
        self._watch(args, state)

    def on_prediction_step(self, args, state, control, **kwargs):
        self._watch(args, state)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" not in (logs or {}):
            return
        self._watch(args, state)
        span = self._since_log
        if not span.measured:
            return
        logs["memory_peak_bytes"] = span.memory
        logs["children_memory_bytes"] = span.children
        logs["cpu_percent"] = self._cpu_percent(span)
        if span.gpu is not None:
            logs["gpu_memory_bytes"] = span.gpu
            logs["gpu_memory_reserved_bytes"] = span.gpu_reserved
        self._since_log = _Span(*self._latest)

    # Measuring

    @property
    def _limit(self) -> float:
        return math.inf if self.max_memory_mb is None else self.max_memory_mb * 2**20

    def _begin(self) -> None:
        """Forgets what was before."""
        self._process = psutil.Process()
        if self._device is not None and self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        self._latest = (time.monotonic(), 0.0)
        self._since_begin = self._since_log = _Span(*self._latest)
        self._measure()
        self._since_begin, self._since_log = _Span(*self._latest), _Span(*self._latest)
        self._due = -math.inf
        self._warned_at: float | None = None

    def _watch(self, args: Any, state: Any) -> None:
        if time.monotonic() < self._due:
            return
        memory = self._measure()
        if memory > self._limit:
            if self._warned_at is None or memory > _GROWTH * self._warned_at:
                self._warned_at = memory
                self._warn(memory, args, state)
        elif memory < self._limit / _GROWTH:  # not where it goes up and down about the limit
            self._warned_at = None

    def _measure(self) -> int:
        """Returns the most memory, in bytes, since the last measurement; 0 where it failed."""
        began = time.monotonic()
        try:
            family = [self._process, *self._process.children(recursive=True)]
            process = _own_memory(self._process)
            children = _children_memory(family)
            self._latest = (began, _cpu_seconds(family))
        except (psutil.Error, OSError):
            return 0
        finally:
            if self.interval_seconds:
                took = time.monotonic() - began
                self._due = began + max(self.interval_seconds, took / _SHARE)
        gpu = _gpu_memory(self._device)
        for span in (self._since_begin, self._since_log):
            span.add(process, children, gpu)
        return process + children

    def _cpu_percent(self, span: _Span) -> float:
        now, cpu_seconds = self._latest
        if now == span.began:
            return 0.0
        return round(100 * max(0.0, cpu_seconds - span.cpu_seconds) / (now - span.began), 1)

    def _warn(self, memory: int, args: Any, state: Any) -> None:
        if not state.is_local_process_zero:
            return
        message = (
            f"memory: found {human_bytes(memory)} in this process and its children at step "
            f"{state.global_step}, expected at most {human_bytes(self._limit)} (max_memory_mb "
            f"{self.max_memory_mb:g}). Training goes on. Less is needed with a smaller "
            "--per_device_train_batch_size and more --gradient_accumulation_steps, fewer "
            "--dataloader_num_workers, a shorter --max_length, or --isolate_stages"
        )
        console().print(message, style="yellow", markup=False, soft_wrap=True)
        from .tracking import record_of  # not needed by those who do not track

        record = record_of(args.output_dir)
        if record is not None:
            limit = {"memory_bytes": memory, "max_memory_mb": self.max_memory_mb}
            record.log_event("warning", state.global_step, message=message, **limit)


@dataclasses.dataclass
class _Span:
    """The most of what was measured in a time."""

    began: float
    cpu_seconds: float  # of the processes, when it began
    process: int = 0
    children: int = 0
    memory: int = 0
    gpu: int | None = None
    gpu_reserved: int | None = None
    measured: bool = False

    def add(self, process: int, children: int, gpu: tuple[int, int] | None) -> None:
        self.measured = True
        self.process = max(self.process, process)
        self.children = max(self.children, children)
        self.memory = max(self.memory, process + children)
        if gpu is not None:
            self.gpu = max(self.gpu or 0, gpu[0])
            self.gpu_reserved = max(self.gpu_reserved or 0, gpu[1])


def _own_memory(process: psutil.Process) -> int:
    """The most resident memory since the last call, or what it is now where Linux does not tell."""
    now = process.memory_info().rss
    try:
        most = _kibibytes(Path("/proc/self/status"), "VmHWM")
        Path("/proc/self/clear_refs").write_text("5")  # from here on anew
    except (OSError, KeyError):
        return now
    return max(now, most)


def _children_memory(family: list[psutil.Process]) -> int:
    """What the children of the first process have beside the pages that they share with it."""
    process, *children = family
    if not children:
        return 0
    try:
        own = _kibibytes(Path("/proc/self/status"), "RssAnon", "RssShmem")
        # A page that n processes have is counted as 1/n of a page by each of them. Those of files
        # are left out: the system has them once, and takes them back when it needs to.
        own_share = _kibibytes(Path("/proc/self/smaps_rollup"), "Pss_Anon", "Pss_Shmem")
    except (OSError, KeyError):
        return sum(_of_a_child(lambda c=c: c.memory_info().rss) for c in children)
    shares = sum(
        _of_a_child(
            lambda c=c: _kibibytes(Path(f"/proc/{c.pid}/smaps_rollup"), "Pss_Anon", "Pss_Shmem")
        )
        for c in children
    )
    return max(0, shares - (own - own_share))


def _of_a_child(measure: Any) -> Any:
    """What is measured of a child, 0 if it has ended or is not ours to see."""
    try:
        return measure()
    except (psutil.Error, OSError):
        return 0


def _kibibytes(path: Path, *names: str) -> int:
    """The sum of lines such as ``VmHWM:   1720 kB``, in bytes."""
    lines = (line.split() for line in path.read_text().splitlines())
    sizes = {line[0].rstrip(":"): line[1] for line in lines if line[-1:] == ["kB"]}
    return sum(int(sizes[name]) * 1024 for name in names)


def _cpu_seconds(family: list[psutil.Process]) -> float:
    """Processor time of processes, of their children that have ended too."""

    def seconds(process: psutil.Process) -> float:
        times = process.cpu_times()
        return times.user + times.system + times.children_user + times.children_system

    return sum(_of_a_child(lambda p=p: seconds(p)) for p in family)


def _gpu_memory(device: torch.device | None) -> tuple[int, int] | None:
    """Allocated and reserved: on CUDA the most since the reset, on MPS what is now."""
    if device is None or device.type not in ("cuda", "mps"):
        return None
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
    return torch.mps.current_allocated_memory(), torch.mps.driver_allocated_memory()
