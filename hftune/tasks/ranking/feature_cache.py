"""A frozen backbone's features of images: computed once, kept on the disk, read from there.

What decides the features is the key of a space (:func:`features_space`), and an image's bytes are
the key of its row: images may be renamed or copied, data sets may grow, and other runs may use the
same backbone, without an image passing it again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xxhash
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedConfig

from ...training.first_process import in_first_process, process_group
from ...utils.errors import ConfigurationError, DataError, HftuneError, did_you_mean, listed
from ...utils.files import free_bytes, human_bytes
from ...utils.modules import evaluating, parameter_name
from ...utils.seeds import derive_seed
from ...utils.terminal import progress as progress_bar
from ...utils.terminal import say
from .feature_store import FeatureCache, RowKey
from .image_files import load_image

if TYPE_CHECKING:
    from .augmentation_ranking import Augmentation
    from .image_processing_ranking import RankingImageProcessor
    from .modeling_ranking import PairwiseRankingModel

__all__ = [
    "CachedFeatures",
    "FeatureCache",
    "compute_features",
    "features_space",
    "kept_features",
    "row_keys",
    "weights_digest",
]

FORMAT = 1
"""Goes up when the same settings give other features: no older row serves then."""

COMPUTE_DTYPES = ("float32", "bfloat16")
STORED_DTYPES = ("float32", "float16")
_APPEND_SECONDS = 2.0
_WAITING_BATCHES = 4  # how many batches' images may wait for others of their shape
_Sample = tuple[int, RowKey, torch.Tensor]


# What decides the features


def features_space(
    model: PairwiseRankingModel,
    processor: RankingImageProcessor,
    *,
    stored_dtype: str = "float32",
    compute_dtype: str = "float32",
) -> dict[str, Any]:
    """Says everything that decides a model's features, for :meth:`FeatureCache.open`.

    The kind of device is a part of it, for CPUs and GPUs differ in the last bits. What changes them
    less than that is not: the batch size, the number of threads, the version of torch, TF32, which
    counts as float32. The head is no part of it.

    Args:
        model (PairwiseRankingModel): With a frozen backbone.
        processor (RankingImageProcessor): Makes its pixels.
        stored_dtype (str): ``"float32"``, or ``"float16"`` for half the disk. Defaults to float32.
        compute_dtype (str): ``"float32"``, or ``"bfloat16"`` for autocast. Defaults to float32.

    Returns:
        Plain JSON values.

    Raises:
        ConfigurationError: If parameters of the backbone train, or a dtype is unknown.
    """
    problems = []
    for name, value, known in (
        ("stored_dtype", stored_dtype, STORED_DTYPES),
        ("compute_dtype", compute_dtype, COMPUTE_DTYPES),
    ):
        if value not in known:
            near = did_you_mean(value, known)
            problems.append(f"{name}: found {value!r}, expected {' or '.join(known)}.{near}")
    backbone = model.backbone
    training = [
        f"backbone.{parameter_name(name)}"
        for name, parameter in backbone.named_parameters()
        if parameter.requires_grad
    ]
    if training:
        more = f", ... ({len(training)} in all)" if len(training) > 3 else ""
        problems.append(
            "the feature cache needs a frozen backbone, but these train: "
            f"{', '.join(training[:3])}{more}: freeze the backbone, or have its features computed "
            "in each step with --feature_cache off"
        )
    if problems:
        raise ConfigurationError(problems)
    return {
        "format": FORMAT,
        "weights": weights_digest(backbone.state_dict()),
        "backbone": _settings_of(model.config.backbone_config),
        "processor": processor.settings(),
        "pooling": model.config.pooling,
        "feature_size": model.config.feature_size,
        "compute_dtype": compute_dtype,
        "stored_dtype": stored_dtype,
        "device": next(backbone.parameters()).device.type,
    }


def weights_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """Returns a hash of tensors and their names; 1.2 GB take a tenth of a second.

    Args:
        tensors (mapping): Tensors by name, such as a ``state_dict``.
    """
    digest = xxhash.xxh3_128()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{parameter_name(name)} {tensor.dtype} {[*tensor.shape]}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _settings_of(config: PreTrainedConfig) -> dict[str, Any]:
    """What makes a backbone; not names, versions and labels, which any configuration has."""
    common = PreTrainedConfig().to_dict().keys() - {"model_type"}
    return {name: value for name, value in config.to_dict().items() if name not in common}


def row_keys(
    hashes: Sequence[str], views: int = 1, augmentation: Augmentation | None = None, seed: int = 0
) -> list[RowKey]:
    """Returns the keys of images' rows, all views of an image one after another.

    View 0 is the image as it is: its key is the same for all augmentations and seeds.

    Args:
        hashes (sequence of str): SHA-256 of the images' bytes, in hexadecimal.
        views (int): Views of an image. Defaults to 1.
        augmentation (Augmentation, *optional*): What makes the views from the second on.
        seed (int): Their randomness. Defaults to 0.
    """
    how = json.dumps(augmentation and augmentation.settings(), sort_keys=True)
    keys = []
    for sha256 in hashes:
        keys.append(bytes.fromhex(sha256))
        for view in range(1, views):
            text = f"{sha256} {view} {derive_seed(seed, 'view', sha256, view)} {how}"
            keys.append(hashlib.sha256(text.encode()).digest())
    return keys


# Reading


class CachedFeatures:
    """The features of images, read from the disk where they are needed.

    Made by :func:`compute_features`. Takes no memory of its own for features, also in the workers
    of a ``DataLoader``.

    Args:
        cache (FeatureCache): Where they lie.
        places (int64 array ``[N, views]``): Their rows there.

    Attributes:
        feature_size (int): Numbers ``D`` of a view.
        views (int): Views of an image.

    Example:
        >>> features.read([3, 7], 0)  # float32 [2, D]: two images as they are
        >>> features.read([3, 3], [1, 2])  # two views of one image
    """

    def __init__(self, cache: FeatureCache, places: np.ndarray) -> None:
        self._cache, self._places = cache, places
        self.views = places.shape[1]
        self.feature_size = cache.feature_size

    def __len__(self) -> int:
        return len(self._places)

    def read(
        self, rows: Sequence[int] | np.ndarray, views: int | Sequence[int] | np.ndarray = 0
    ) -> np.ndarray:
        """Reads features.

        Args:
            rows (sequence of int): Numbers of images, ``n`` of them.
            views (int or sequence of int): One view for all, or one for each. Defaults to 0, the
                images as they are.

        Returns:
            Float32 ``[n, D]``, a copy.
        """
        places = self._places[rows, views]
        return np.asarray(self._cache.array)[places].astype(np.float32, copy=False)


# Computing


def compute_features(
    model: PairwiseRankingModel,
    cache: FeatureCache,
    paths: Sequence[Path],
    hashes: Sequence[str],
    processor: RankingImageProcessor,
    *,
    views: int = 1,
    augmentation: Augmentation | None = None,
    seed: int = 0,
    batch_size: int = 32,
    num_workers: int = 0,
    encode: Callable[[torch.Tensor], torch.Tensor] | None = None,
    progress: bool = True,
) -> CachedFeatures:
    """Computes the features of images that the cache does not have, and keeps them there.

    An image passes the backbone once a view. What was computed is kept every two seconds: a run
    that was killed goes on from there. In a process group each process takes its share, and all of
    them return when all is there; the model must not be sharded.

    Args:
        model (PairwiseRankingModel): On the device that shall compute.
        cache (FeatureCache): Of :func:`features_space` of this model and processor.
        paths (sequence of Path): Files of ``N`` images.
        hashes (sequence of str): SHA-256 of their bytes, in hexadecimal. Images with the same
            bytes share their rows.
        processor (RankingImageProcessor): Makes their pixels.
        views (int): Views of an image: view 0 is the image as it is, the others are augmented.
            Defaults to 1.
        augmentation (Augmentation, *optional*): Makes the other views.
        seed (int): Their randomness, which depends on the image's bytes and the view besides.
            Defaults to 0.
        batch_size (int): Views that pass the backbone at a time. Defaults to 32.
        num_workers (int): Processes that decode images. Defaults to 0: this one.
        encode (callable, *optional*): ``encode(pixel_values [B, 3, H, W])`` gives features
            ``[B, D]``. Defaults to ``model.encode``.
        progress (bool): Whether to show a progress bar. Defaults to True.

    Raises:
        ConfigurationError: If there are views and nothing that makes them, or the model has moved
            to another kind of device since the cache was opened.
        DataError: With all images that cannot be read, once the others are kept; if the disk is
            too small.
    """
    if views < 1:
        raise ConfigurationError(f"views: found {views}, expected 1 or more")
    if views > 1 and (augmentation is None or augmentation.is_off):
        raise ConfigurationError(
            f"views: found {views} and no augmentation, so that all views would be the same: give "
            "an augmentation or 1 view"
        )
    device = next(model.backbone.parameters()).device.type
    if device != cache.space["device"]:
        raise ConfigurationError(
            f"the feature cache was opened for {cache.space['device']}, but the model is on "
            f"{device} now: move it before features_space"
        )
    keys = row_keys(hashes, views, augmentation, seed)
    places = _sound_rows(cache, keys)
    first = {key: number for number, key in reversed(list(enumerate(keys)))}
    looked = sorted(number for key, number in first.items() if places[number] < 0)
    # Another run may append while processes look, each a bit later.
    missing = in_first_process(lambda: looked)
    if missing:
        jobs: dict[int, list[tuple[int, RowKey]]] = {}
        for number in missing:
            jobs.setdefault(number // views, []).append((number % views, keys[number]))
        rank, world = process_group()
        pixels = _Pixels(
            paths, hashes, list(jobs.items())[rank::world], processor, augmentation, seed
        )
        _together(
            lambda: _fill(
                model, cache, pixels, encode or model.encode, batch_size, num_workers, progress
            )
        )
    if (places < 0).any():  # computed here, or by another process meanwhile
        places = _sound_rows(cache, keys)
    if (places < 0).any():
        raise DataError(
            f"{(places < 0).sum()} features are not in {cache.folder} though they were computed: "
            "all processes need one HFTUNE_HOME that they share."
        )
    return CachedFeatures(cache, places.reshape(-1, views))


def kept_features(
    model: PairwiseRankingModel,
    processor: RankingImageProcessor,
    paths: Sequence[Path],
    hashes: Sequence[str],
    *,
    stored_dtype: str = "float32",
    compute_dtype: str = "float32",
    **options: Any,
) -> CachedFeatures:
    """Returns images' features from the cache in the hftune home; what is missing is computed.

    Args:
        model, processor, stored_dtype, compute_dtype: As for :func:`features_space`.
        paths, hashes: As for :func:`compute_features`.
        **options: The others of :func:`compute_features`.
    """
    space = features_space(model, processor, stored_dtype=stored_dtype, compute_dtype=compute_dtype)
    cache = FeatureCache.open(None, space)
    return compute_features(model, cache, paths, hashes, processor, **options)


def _sound_rows(cache: FeatureCache, keys: Sequence[RowKey]) -> np.ndarray:
    """Numbers of the rows that are there and as they were written, -1 for others."""
    rows = cache.rows(keys)
    there = np.unique(rows[rows >= 0])
    sound = cache.verify(there)
    if sound.all():
        return rows
    say(
        f"{(~sound).sum()} of {len(there)} features in {cache.folder} are damaged: they are "
        "computed anew.",
        markup=False,
        soft_wrap=True,
    )
    return _sound_rows(cache, keys)  # an older row of the same key may be sound


class _Pixels(Dataset):
    """Images with the views of each that are missing, read and processed in a loader's workers."""

    def __init__(
        self,
        paths: Sequence[Path],
        hashes: Sequence[str],
        jobs: list[tuple[int, list[tuple[int, RowKey]]]],
        processor: RankingImageProcessor,
        augmentation: Augmentation | None,
        seed: int,
    ) -> None:
        self.paths = {image: paths[image] for image, _ in jobs}
        self._hashes = {image: hashes[image] for image, _ in jobs}
        self.jobs, self._processor = jobs, processor
        self._augmentation, self._seed = augmentation, seed

    def __len__(self) -> int:
        return len(self.jobs)

    def __getitem__(self, index: int) -> list[_Sample] | str:
        """The samples of an image, or why there are none."""
        number, views = self.jobs[index]
        path, sha256 = self.paths[number], self._hashes[number]
        try:
            content = Path(path).read_bytes()
            if hashlib.sha256(content).hexdigest() != sha256:
                return f"{path}: has changed since the run began"
            image = load_image(content)
        except (HftuneError, OSError) as error:
            return f"{path}: {error}"
        samples = []
        for view, key in views:
            seen = image
            if view:
                rng = np.random.default_rng(derive_seed(self._seed, "view", sha256, view))
                seen = self._augmentation.augment(image, rng)
            samples.append((number, key, self._processor.process(seen)))
        return samples


def _fill(
    model: PairwiseRankingModel,
    cache: FeatureCache,
    pixels: _Pixels,
    encode: Callable[[torch.Tensor], torch.Tensor],
    batch_size: int,
    num_workers: int,
    progress: bool,
) -> list[str]:
    """Computes this process's share; returns what is wrong with images."""
    if not pixels.jobs:
        return []
    count = sum(len(views) for _, views in pixels.jobs)
    most = max(len(views) for _, views in pixels.jobs)
    need, free = count * cache.row_bytes, free_bytes(cache.folder)
    if need > free:
        raise DataError(
            f"the features of {len(pixels)} images need {human_bytes(need)}, but the disk of "
            f"{cache.folder} has {human_bytes(free)} free: make room, or set HFTUNE_HOME to a "
            "larger disk."
        )
    device = next(model.backbone.parameters()).device
    autocast = torch.autocast(
        device.type, torch.bfloat16, enabled=cache.space["compute_dtype"] == "bfloat16"
    )
    loader = DataLoader(
        pixels,
        batch_size=max(1, batch_size // most),
        num_workers=num_workers,
        collate_fn=list,
        pin_memory=device.type == "cuda",
        # Training must not depend on whether something was missing here.
        generator=torch.Generator(),
    )
    problems: list[str] = []
    kept = _Kept(cache)
    bar = progress_bar(count, "Computing features", "views" if count > len(pixels) else "images")
    with evaluating(model), torch.inference_mode(), autocast, kept, contextlib.ExitStack() as stack:
        if progress:
            stack.enter_context(bar)
        for batch in _by_shape(_samples(loader, problems), batch_size):
            images, keys, tensors = zip(*batch, strict=True)
            values = encode(torch.stack(tensors).to(device, non_blocking=True))
            with np.errstate(over="ignore"):  # said below, with the image's name
                values = values.float().cpu().numpy().astype(cache.dtype)
            finite = np.isfinite(values).all(1)
            for image in sorted({images[row] for row in np.flatnonzero(~finite)}):
                problems.append(_not_finite(pixels.paths[image], cache))
            kept.add([keys[row] for row in np.flatnonzero(finite)], values[finite])
            if progress:
                bar.update(len(batch))
    return problems


def _not_finite(path: Path, cache: FeatureCache) -> str:
    advice = " (try --feature_dtype float32)" if cache.dtype.itemsize == 2 else ""
    return f"{path}: its features are not finite{advice}"


def _samples(loader: Iterable[list], problems: list[str]) -> Iterator[_Sample]:
    for batch in loader:
        for image in batch:
            if isinstance(image, str):
                problems.append(image)
            else:
                yield from image


def _by_shape(samples: Iterable[_Sample], batch_size: int) -> Iterator[list[_Sample]]:
    """Makes batches of images of one shape, without holding more than some batches of others."""
    waiting: dict[torch.Size, list[_Sample]] = {}
    count = 0
    for sample in samples:
        group = waiting.setdefault(sample[2].shape, [])
        group.append(sample)
        count += 1
        if len(group) == batch_size or count >= _WAITING_BATCHES * batch_size:
            fullest = max(waiting, key=lambda shape: len(waiting[shape]))
            count -= len(waiting[fullest])
            yield waiting.pop(fullest)
    yield from waiting.values()


class _Kept:
    """Appends features to a cache every two seconds, and the last ones whatever happens."""

    def __init__(self, cache: FeatureCache) -> None:
        self._cache = cache
        self._keys: list[RowKey] = []
        self._values: list[np.ndarray] = []
        self._since = time.monotonic()

    def __enter__(self) -> _Kept:
        return self

    def __exit__(self, *error: object) -> None:
        self._append()

    def add(self, keys: Sequence[RowKey], values: np.ndarray) -> None:
        self._keys.extend(keys)
        self._values.append(values)
        if time.monotonic() - self._since >= _APPEND_SECONDS:
            self._append()

    def _append(self) -> None:
        keys, values = self._keys, self._values
        self._keys, self._values, self._since = [], [], time.monotonic()
        if keys:
            self._cache.append(keys, np.concatenate(values))


# Several processes


def _together(work: Callable[[], list[str]]) -> None:
    """Does work in all processes and waits for all; what went wrong in one ends all of them."""
    rank, world = process_group()
    problems: list[str] = []
    failure: Exception | None = None
    try:
        problems = work()
    except Exception as error:
        if world == 1:
            raise
        failure = error
    told = [(problems, failure and f"{type(failure).__name__}: {failure}")] * world
    if world > 1:
        torch.distributed.all_gather_object(told, told[rank])
    if failure is not None:
        raise failure
    for other, (_, failed) in enumerate(told):
        if failed:
            raise DataError(f"process {other} could not compute its features: {failed}")
    problems = [problem for found, _ in told for problem in found]
    if problems:
        raise DataError(
            f"{len(problems):,} images have no features, those of the others are kept:"
            f"{listed(sorted(problems))}"
        )
