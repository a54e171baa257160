"""Measures what a ranking model needs, against the targets that its users set."""

from __future__ import annotations

import contextlib
import math
import platform
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import psutil
import torch

from ...utils.errors import ConfigurationError, HftuneError
from ...utils.modules import evaluating
from ...utils.seeds import seed_everything as set_seed
from .modeling_ranking import DEFAULT_IMAGE_SIZE, PairwiseRankingModel

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["PerformanceBenchmarks", "render", "set_seed"]

INFERENCE_MS, MEMORY_GB, TRAINING_HOURS = 100.0, 12.0, 6.0
"""Targets: less than this for a pair, for a batch, for a training."""

TRAINING_IMAGES, TRAINING_EPOCHS = 10_000, 100
"""The training that is projected."""

_GB = 1 << 30
_WARM_UPS, _REPEATS, _SECONDS = 2, 5, 10.0  # the repeats end after so many seconds
_LOOK_SECONDS = 0.005


class PerformanceBenchmarks:
    """Measures a model's time and memory on random pixels; nothing is assumed.

    Times are medians of up to 5 repeats after 2 that do not count, of the device alone: reading
    and decoding files comes on top, in workers beside it. The weights stay as they are.

    Args:
        model (PairwiseRankingModel): The model.
        device (str, *optional*): Where to compute; the model stays there. Defaults to where it is.
        image_size (int, *optional*): Side of the square images, in pixels. Defaults to that of the
            model's image processor.
        batch_size (int): Images of a batch. Defaults to 32.
        dtype (str): ``"float32"``, or ``"bfloat16"`` for autocast. Defaults to ``"float32"``.

    Example:
        >>> set_seed(42)
        >>> report = PerformanceBenchmarks(model=model, device="cuda").run_full_benchmark()
        >>> report["inference_time_ms"], report["meets_inference_requirement"]
        (14.2, True)
    """

    def __init__(
        self,
        model: PairwiseRankingModel,
        device: str | torch.device | None = None,
        image_size: int | None = None,
        batch_size: int = 32,
        dtype: str = "float32",
    ) -> None:
        if batch_size < 2:
            raise ConfigurationError(f"batch_size: found {batch_size}, expected 2 or more")
        self.model = model if device is None else model.to(device)
        self.device = model.head.mean.device
        processor = model.image_processor
        default = DEFAULT_IMAGE_SIZE if processor is None else processor.size
        self.image_size = default if image_size is None else image_size
        self.batch_size, self.dtype = batch_size, dtype

    def run_full_benchmark(self) -> dict[str, Any]:
        """Measures everything.

        Returns:
            - ``inference_time_ms``: of ``model(img1, img2)`` with one image each.
            - ``memory_usage_gb``: the most (GiB) while a batch of pairs is scored and while a step
              of training is done, each with ``batch_size`` images; ``memory_kind`` says of what.
            - ``images_per_second``: scored in batches.
            - ``backbone_ms_per_image`` and ``training_step_ms``: what the next one is made of. The
              step is that of the head alone where the backbone does not train.
            - ``training_hours_10k``: a projection of these two to 10,000 images and 100 epochs of
              batches of ``batch_size``, where images pass a backbone that does not train once;
              without decoding and evaluation.
            - ``meets_inference_requirement`` (below 100 ms), ``meets_memory_requirement`` (below 12
              GB), ``meets_training_requirement`` (below 6 hours).
            - ``device``, ``device_name``, ``dtype``, ``image_size``, ``batch_size``,
              ``trains_backbone`` and ``parameters``.

        Raises:
            HftuneError: If the device has too little memory.
        """
        try:
            return self._measure()
        except torch.OutOfMemoryError as error:
            raise HftuneError(
                f"{self._device_name()} has too little memory for {self.batch_size} images of "
                f"{self.image_size} pixels in {self.dtype}: try a smaller batch_size"
            ) from error

    def _measure(self) -> dict[str, Any]:
        model, size = self.model, self.image_size
        trains_backbone = model.config.trains_backbone
        pixels = torch.randn(self.batch_size, 3, size, size, device=self.device)
        targets = torch.arange(self.batch_size, device=self.device).float()
        one = pixels[:1]

        def pair() -> None:
            model(one, one)

        def pairs() -> None:
            model(pixels, pixels)

        def encode() -> None:
            model.encode(pixels)

        def score() -> None:
            model(pixels)

        with self._memory() as memory:
            with evaluating(model), torch.inference_mode(), self._autocast():
                pairs()
            with self._training() as step:
                step(pixel_values=pixels, targets=targets)
        with evaluating(model), torch.inference_mode(), self._autocast():
            pair_ms, encode_ms, score_ms = map(self._milliseconds, (pair, encode, score))
            features = model.encode(pixels).float()
        inputs = {"pixel_values": pixels} if trains_backbone else {"features": features.clone()}
        with self._training() as step:
            step_ms = self._milliseconds(lambda: step(**inputs, targets=targets))
        encode_ms /= self.batch_size
        hours = TRAINING_EPOCHS * math.ceil(TRAINING_IMAGES / self.batch_size) * step_ms / 3.6e6
        if not trains_backbone:
            hours += TRAINING_IMAGES * encode_ms / 3.6e6
        gigabytes = memory["bytes"] / _GB
        return {
            "inference_time_ms": pair_ms,
            "memory_usage_gb": gigabytes,
            "memory_kind": memory["kind"],
            "images_per_second": 1000 * self.batch_size / score_ms,
            "backbone_ms_per_image": encode_ms,
            "training_step_ms": step_ms,
            "training_hours_10k": hours,
            "meets_inference_requirement": pair_ms < INFERENCE_MS,
            "meets_memory_requirement": gigabytes < MEMORY_GB,
            "meets_training_requirement": hours < TRAINING_HOURS,
            "device": self.device.type,
            "device_name": self._device_name(),
            "dtype": self.dtype,
            "image_size": size,
            "batch_size": self.batch_size,
            "trains_backbone": trains_backbone,
            "parameters": sum(p.numel() for p in model.parameters()),
        }

    def _autocast(self) -> torch.autocast:
        enabled = self.dtype == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    @contextlib.contextmanager
    def _training(self) -> Iterator[Callable[..., None]]:
        """A step of training that takes as long as any and changes nothing."""
        model, training = self.model, self.model.training
        parameters = [p for p in model.parameters() if p.requires_grad]
        # Its rates are 0: what it adds to the weights is 0.
        optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.0)
        gradients = [p.grad for p in parameters]
        buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]  # as of batch norms

        def step(**inputs: torch.Tensor) -> None:
            with self._autocast():
                loss = model(**inputs).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()

        model.train()
        try:
            yield step
        finally:
            model.train(training)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            for buffer, value in buffers:
                buffer.copy_(value)

    def _milliseconds(self, work: Callable[[], None]) -> float:
        for _ in range(_WARM_UPS):
            work()
        times: list[float] = []
        while len(times) < _REPEATS and (not times or sum(times) < _SECONDS):
            self._synchronize()
            started = time.perf_counter()
            work()
            self._synchronize()
            times.append(time.perf_counter() - started)
        return 1000 * statistics.median(times)

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()

    @contextlib.contextmanager
    def _memory(self) -> Iterator[dict[str, Any]]:
        """The most memory that was used inside, weights included."""
        measured: dict[str, Any] = {}
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            yield measured
            measured["bytes"] = torch.cuda.max_memory_allocated(self.device)
            measured["kind"] = "allocated on the GPU"
            return
        with _Resident() as resident:
            yield measured
        tensors = [*self.model.parameters(), *self.model.buffers()]
        weights = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        measured["bytes"] = weights + resident.growth
        measured["kind"] = "weights, and growth of the process's resident memory"

    def _device_name(self) -> str:
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        name = platform.processor() or platform.machine()
        if self.device.type != "cpu":
            return name
        threads = torch.get_num_threads()
        return f"{name}, {threads} thread{'s' if threads > 1 else ''}"


class _Resident(threading.Thread):
    """Looks at the process's resident memory, often, while something is done."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._process, self._over = psutil.Process(), threading.Event()
        self._before = self._most = self._process.memory_info().rss

    @property
    def growth(self) -> int:
        """By how many bytes it was larger than at first."""
        return self._most - self._before

    def run(self) -> None:
        while not self._over.wait(_LOOK_SECONDS):
            self._look()

    def _look(self) -> None:
        self._most = max(self._most, self._process.memory_info().rss)

    def __enter__(self) -> _Resident:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self.join()
        self._look()


def render(report: Mapping[str, Any]) -> RenderableType:
    """Makes a table of a report, with its targets and whether they are met.

    Args:
        report (mapping): Of :meth:`PerformanceBenchmarks.run_full_benchmark`.
    """
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("what")
    table.add_column("measured", justify="right", no_wrap=True)
    table.add_column("target", justify="right", no_wrap=True)
    table.add_column("")
    batch = f"batches of {report['batch_size']}"
    rows = [
        ("time of a pair", "inference_time_ms", ".2f", "ms", INFERENCE_MS, "inference"),
        (f"memory, {batch}", "memory_usage_gb", ".2f", "GB", MEMORY_GB, "memory"),
        (
            f"training, {TRAINING_IMAGES:,} images, {TRAINING_EPOCHS} epochs (projected)",
            "training_hours_10k",
            ".2f",
            "h",
            TRAINING_HOURS,
            "training",
        ),
    ]
    for text, key, form, unit, target, name in rows:
        met = report[f"meets_{name}_requirement"]
        mark = Text("✓", style="green") if met else Text("✗ not met", style="red")
        table.add_row(text, f"{report[key]:{form}} {unit}", f"< {target:g} {unit}", mark)
    of_what = "of all" if report["trains_backbone"] else "of the head"
    for text, value in (
        (f"images scored a second, {batch}", f"{report['images_per_second']:,.1f}"),
        ("backbone, an image", f"{report['backbone_ms_per_image']:.2f} ms"),
        (f"step of training {of_what}", f"{report['training_step_ms']:.2f} ms"),
    ):
        table.add_row(text, value, "", "")
    size = report["image_size"]
    notes = (
        f"{report['device_name']}, {report['dtype']}, {size} x {size} pixels, "
        f"{report['parameters']:,} parameters. Memory is {report['memory_kind']}. "
        "Decoding of files comes on top."
    )
    if report["device"] == "cpu":
        notes += " The targets are meant for a GPU."
    return Group(table, Text(), Text(notes, style="dim"))
