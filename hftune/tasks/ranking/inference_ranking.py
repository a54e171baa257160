"""Scores, comparisons and rankings of image files by a saved model."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.special import expit
from torch.utils.data import DataLoader, Dataset

from ...utils.errors import (
    CheckpointError,
    ConfigurationError,
    DataError,
    HftuneError,
    did_you_mean,
    listed,
)
from ...utils.modules import best_device, evaluating
from ...utils.terminal import progress
from .feature_cache import COMPUTE_DTYPES, kept_features
from .image_files import IMAGE_SUFFIXES, inspect_images, load_image
from .modeling_ranking import PairwiseRankingModel
from .ranked_images import RankedImage, contested, rank_by_scores, win_probabilities

__all__ = [
    "RankedImage",
    "RankingPipeline",
    "batch_compare",
    "contested",
    "find_images",
    "load_ranking_model",
    "model_folder",
    "rank_by_scores",
    "win_probabilities",
]

_HELD = 1 << 12  # images whose features are held at a time
_MANY = 64  # images from which on processes that decode are worth their start
_PICKLES = (".pt", ".pth", ".ckpt", ".bin")

ImageLike = str | os.PathLike[str] | Image.Image
"""An image as a file or in memory."""


# Models


def load_ranking_model(source: str | os.PathLike[str]) -> PairwiseRankingModel:
    """Loads a saved ranking model.

    Args:
        source (str or path): Its folder, the folder of a run with ``model/`` in it, or a repository
            on the Hub. For ``best_model.pt``, as the guide has it, the folder ``best_model`` is
            taken where there is no such file.

    Returns:
        PairwiseRankingModel: In evaluation mode, on the CPU.

    Raises:
        CheckpointError: If there is none, or it is of another kind, damaged or a part of one.
    """
    path = model_folder(source)
    if path.is_dir():
        source = path
        if not (path / "config.json").is_file():
            raise CheckpointError(
                f"{path} has no config.json, and no model/ with one: it is no saved model. Give "
                "the folder that the recipe or save_pretrained wrote, such as runs/art/model."
            )
    elif not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        raise CheckpointError(
            f"{source}: there is no such folder. Give the folder of a saved model, such as "
            "runs/art/model, or a repository on the Hub."
        )
    try:
        return PairwiseRankingModel.from_pretrained(source).eval()
    except OSError as error:  # no weights beside the configuration
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(f"{source} cannot be loaded: {reason}") from error


def model_folder(path: str | os.PathLike[str]) -> Path:
    """Returns the folder of a saved model or checkpoint that is meant by a path.

    Args:
        path (path): The folder; that of a run with ``model/`` in it; or, as the guide has it, the
            folder's name with ``.pt`` behind it.

    Returns:
        The folder, or the path itself where there is no such folder.

    Raises:
        CheckpointError: If it is a file of ``torch.save``, or its name without the ending no
            folder.
    """
    path = Path(path)
    if path.suffix in _PICKLES:
        if path.is_file():
            raise CheckpointError(
                f"{path} is a pickle, which can run any program as it is read, so hftune does not. "
                "If you trust it, read its weights once with torch.load(path, weights_only=True), "
                'give them to the model (model.load_state_dict(weights["model_state_dict"])) and '
                "save that with model.save_pretrained(folder)."
            )
        folder = path.with_suffix("")
        if not folder.is_dir() and folder.name == "best_model":  # a recipe's is model/
            folder = folder.with_name("model")
        if not folder.is_dir():
            raise CheckpointError(
                f"there is neither a file {path} nor a folder {folder} of a saved model"
            )
        path = folder
    if (path / "model" / "config.json").is_file() and not (path / "config.json").is_file():
        return path / "model"
    return path


# Files


def find_images(folder: str | os.PathLike[str], recursive: bool = False) -> list[Path]:
    """Returns the images in a folder, by their names; hidden files are none.

    Args:
        folder (path): Where to look.
        recursive (bool): Whether to look in its subfolders too. Defaults to False.

    Raises:
        DataError: If there is no image, or a name that is not UTF-8.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder")

    def images(pattern: str) -> list[Path]:
        return sorted(
            path
            for path in folder.glob(pattern)
            if path.suffix.lower() in IMAGE_SUFFIXES
            and not any(part.startswith(".") for part in path.relative_to(folder).parts)
            and path.is_file()
        )

    found = images("**/*" if recursive else "*")
    if not found:
        below = 0 if recursive else len(images("**/*"))
        advice = f". Its subfolders have {below:,}: look there too (--recursive)" if below else ""
        raise DataError(f"{folder} has no images ({', '.join(IMAGE_SUFFIXES)}){advice}")
    if wrong := [path for path in found if _is_not_utf8(path)]:
        raise DataError(
            f"{len(wrong):,} of {len(found):,} names are not UTF-8, such as "
            f"{os.fsencode(wrong[0].name)!r}: rename them (convmv -f cp949 -t utf8 does that)"
        )
    return found


def _is_not_utf8(path: Path) -> bool:
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        return True
    return False


class _Pictures(Dataset):
    """Images as pixels, or what is wrong with them."""

    def __init__(
        self, sources: Sequence[ImageLike], process: Callable[[Image.Image], torch.Tensor]
    ) -> None:
        self.sources, self.process = sources, process

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, row: int) -> torch.Tensor | str:
        try:
            image = load_image(self.sources[row])
        except HftuneError as error:
            return str(error)
        return self.process(image)


def _score(
    model: PairwiseRankingModel,
    sources: Sequence[ImageLike],
    process: Callable[[Image.Image], torch.Tensor],
    *,
    batch_size: int,
    num_workers: int = 0,
    dtype: str = "float32",
) -> np.ndarray:
    """Scores images, each of which passes the backbone once; float64 ``[N]``.

    One that is listed more than once does so, too.
    """
    rows = {_identity(source): row for row, source in enumerate(sources)}
    images = [sources[row] for row in rows.values()]
    device = model.head.mean.device
    loader = DataLoader(
        _Pictures(images, process),
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=list,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # else one global random number is drawn
    )
    problems: list[str] = []
    scores = [np.zeros(0)]
    with contextlib.ExitStack() as stack:
        bar = None
        if len(images) > batch_size:  # a few are done before a bar is seen
            bar = stack.enter_context(progress(len(images), "Scoring images", "images"))
        stack.enter_context(evaluating(model))
        stack.enter_context(torch.inference_mode())
        for batch in loader:
            problems += [image for image in batch if isinstance(image, str)]
            if not problems:  # else the others are only read, for a list of all that is wrong
                with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
                    features = model.encode([x.to(device, non_blocking=True) for x in batch])
                # Not in bfloat16: images that differ would have the same score.
                scores.append(_head(model, features))
            if bar is not None:
                bar.update(len(batch))
    if problems:
        raise DataError(
            f"{len(problems):,} of {len(images):,} images cannot be used:{listed(problems)}"
        )
    score_of = dict(zip(rows, _finite(np.concatenate(scores)), strict=True))
    return np.array([score_of[_identity(source)] for source in sources])


def _score_cached(
    model: PairwiseRankingModel,
    paths: Sequence[str | os.PathLike[str]],
    *,
    batch_size: int,
    num_workers: int = 0,
    dtype: str = "float32",
) -> np.ndarray:
    """As :func:`_score`, of features that are kept: known images do not pass the backbone."""
    hashes = [facts.sha256 for facts in inspect_images(paths)]
    features = kept_features(
        model,
        model.image_processor,
        [Path(path) for path in paths],
        hashes,
        compute_dtype=dtype,
        batch_size=batch_size,
        num_workers=num_workers,
        progress=len(paths) > batch_size,
    )
    device = model.head.mean.device
    with evaluating(model), torch.inference_mode():
        scores = [
            _head(model, torch.from_numpy(features.read(rows)).to(device))
            for rows in np.array_split(np.arange(len(paths)), 1 + len(paths) // _HELD)
        ]
    return _finite(np.concatenate(scores))


def _head(model: PairwiseRankingModel, features: torch.Tensor) -> np.ndarray:
    return model.head(features.float())[:, 0].double().cpu().numpy()


def _finite(scores: np.ndarray) -> np.ndarray:
    if wrong := int((~np.isfinite(scores)).sum()):
        raise DataError(
            f"the model's score of {wrong:,} of {len(scores):,} images is NaN or infinite: its "
            "training has diverged"
        )
    return scores


# Comparisons


def batch_compare(
    model: PairwiseRankingModel,
    image_pairs: Sequence[tuple[ImageLike, ImageLike]],
    transform: Callable[[Image.Image], torch.Tensor] | None = None,
    device: str | torch.device | None = None,
    batch_size: int = 32,
) -> list[dict[str, Any]]:
    """Compares the two images of each pair; an image passes the backbone once, however many pairs
    it is in.

    Args:
        model (PairwiseRankingModel): Its mode is restored afterwards.
        image_pairs (sequence of pairs): Files or PIL images.
        transform (callable, *optional*): Makes a float tensor ``[3, H, W]`` of a PIL image.
            Defaults to the model's own image processor.
        device (str, *optional*): Where to compute; the model stays there. Defaults to where it is.
        batch_size (int): Images at a time. Defaults to 32.

    Returns:
        A dictionary a pair: ``image1`` and ``image2`` as they were given, ``score1``, ``score2``,
        ``winner`` (``"image1"``, ``"image2"``, or ``"tie"`` where the scores are equal),
        ``confidence`` (the difference of the scores, 0 or more, on no scale that people know) and
        ``probability`` (that the winner is the better one, from 0.5; None where the model has no
        temperature).

    Raises:
        ConfigurationError: If there is no transform and the model has no image processor.
        DataError: With all images that cannot be read.

    Example:
        >>> batch_compare(model, [("a.jpg", "b.jpg")])
        [{'image1': 'a.jpg', 'image2': 'b.jpg', 'score1': 0.8, 'score2': -0.3, 'winner': 'image1',
          'confidence': 1.1, 'probability': 0.84}]
    """
    for number, pair in enumerate(image_pairs):
        if isinstance(pair, (str, os.PathLike)) or len(pair) != 2:
            raise ConfigurationError(
                f"image_pairs[{number}] is {pair!r}, expected two images: [(first, second), ...]"
            )
    if device is not None:
        model.to(device)
    process = _process_of(model) if transform is None else transform
    images = [image for pair in image_pairs for image in pair]
    scores = _score(model, images, process, batch_size=batch_size).reshape(-1, 2).tolist()
    return [
        _compared(*pair, *both, model.config.score_temperature)
        for pair, both in zip(image_pairs, scores, strict=True)
    ]


def _process_of(model: PairwiseRankingModel) -> Callable[[Image.Image], torch.Tensor]:
    if model.image_processor is None:
        raise ConfigurationError(
            "the model has no image processor: set model.image_processor, or give a transform"
        )
    return model.image_processor.process


def _identity(image: ImageLike) -> str | int:
    return os.fspath(image) if isinstance(image, (str, os.PathLike)) else id(image)


def _compared(
    first: ImageLike, second: ImageLike, score1: float, score2: float, temperature: float | None
) -> dict[str, Any]:
    confidence = abs(score1 - score2)
    winner = "tie" if score1 == score2 else "image1" if score1 > score2 else "image2"
    return {
        "image1": first,
        "image2": second,
        "score1": score1,
        "score2": score2,
        "winner": winner,
        "confidence": confidence,
        "probability": None if temperature is None else float(expit(confidence / temperature)),
    }


# Rankings


class RankingPipeline:
    """Scores, ranks and compares images, as the pipelines of transformers do for other tasks.

    Args:
        model (str, path or PairwiseRankingModel): As for :func:`load_ranking_model`, or a model.
        device (str, *optional*): Where to compute. Defaults to the GPU if there is one; a model
            that was given stays where it is.
        dtype (str): What the backbone computes in: ``"float32"``, or ``"bfloat16"`` for autocast,
            which GPUs are several times faster in. Defaults to ``"float32"``.
        batch_size (int): Images at a time. Defaults to 32.
        num_workers (int, *optional*): Processes that decode images; None for up to 4 where there
            are many of them. Defaults to 0: this one.
        cache (bool): Whether features of files are kept on the disk, so that no image passes the
            same backbone twice, with this head or another. For a backbone that does not train.
            Defaults to False.

    Attributes:
        model (PairwiseRankingModel): The model.

    Raises:
        CheckpointError: If there is no such model.
        ConfigurationError: If the dtype is unknown, or the model has no image processor.

    Example:
        >>> pipeline = RankingPipeline("runs/art/model")
        >>> pipeline(["a.jpg", "b.jpg"])
        [{'image': 'a.jpg', 'score': 0.8}, {'image': 'b.jpg', 'score': -0.3}]
        >>> pipeline.rank("photos")[0]
        RankedImage(rank=1, path=PosixPath('photos/c.jpg'), score=1.9, win_probability=0.93)
        >>> pipeline.compare("a.jpg", "b.jpg")["probability"]
        0.84
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | PairwiseRankingModel,
        device: str | torch.device | None = None,
        *,
        dtype: str = "float32",
        batch_size: int = 32,
        num_workers: int | None = 0,
        cache: bool = False,
    ) -> None:
        if dtype not in COMPUTE_DTYPES:
            raise ConfigurationError(
                f"dtype: found {dtype!r}, expected {' or '.join(COMPUTE_DTYPES)}."
                f"{did_you_mean(dtype, COMPUTE_DTYPES)}"
            )
        if isinstance(model, (str, os.PathLike)):
            model = load_ranking_model(model)
            device = best_device() if device is None else device
        self.model = model if device is None else model.to(device)
        _process_of(self.model)
        self.dtype, self.cache = dtype, cache
        self.batch_size, self.num_workers = batch_size, num_workers

    def __call__(self, images: ImageLike | Sequence[ImageLike]) -> list[dict[str, Any]]:
        """Scores images.

        Args:
            images: A file, a PIL image, a folder, or a list of files and PIL images.

        Returns:
            A dictionary an image, in their order: ``image`` as it was given and ``score``.
        """
        all_images = self._all(images)
        scores = self.scores(all_images).tolist()
        return [{"image": i, "score": s} for i, s in zip(all_images, scores, strict=True)]

    def scores(self, images: Sequence[ImageLike]) -> np.ndarray:
        """Scores images.

        Args:
            images (sequence): Files and PIL images, ``N`` of them.

        Returns:
            float64 ``[N]``, larger is better.

        Raises:
            DataError: With all images that cannot be read; if a score is not finite.
        """
        num_workers = self.num_workers
        if num_workers is None:
            num_workers = min(4, os.cpu_count() or 1) if len(images) >= _MANY else 0
        how = {"batch_size": self.batch_size, "num_workers": num_workers, "dtype": self.dtype}
        files = all(isinstance(image, (str, os.PathLike)) for image in images)
        if self.cache and files:
            return _score_cached(self.model, images, **how)
        return _score(self.model, images, _process_of(self.model), **how)

    def rank(
        self,
        images: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        recursive: bool = False,
    ) -> list[RankedImage]:
        """Ranks image files, best first.

        Args:
            images (path or sequence of paths): A folder, or files.
            recursive (bool): Whether subfolders count too. Defaults to False.

        Raises:
            DataError: If a folder has no images; with all images that cannot be read.
        """
        paths = self._all(images, recursive)
        return rank_by_scores(paths, self.scores(paths), self.model.config.score_temperature)

    def compare(self, image1: ImageLike, image2: ImageLike) -> dict[str, Any]:
        """Compares two images.

        Args:
            image1, image2: Files or PIL images.

        Returns:
            As one of :func:`batch_compare`.
        """
        score1, score2 = self.scores([image1, image2]).tolist()
        return _compared(image1, image2, score1, score2, self.model.config.score_temperature)

    @staticmethod
    def _all(images: Any, recursive: bool = False) -> list[Any]:
        if isinstance(images, (str, os.PathLike)) and Path(images).is_dir():
            return find_images(images, recursive)
        one = isinstance(images, (str, os.PathLike, Image.Image))
        return [images] if one else list(images)
