"""Images and pairs of images as data sets: decoded in workers, or features that were kept."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from ...training.augmentation import AugmentedDataset
from ...utils.errors import ConfigurationError, DataError
from ...utils.seeds import derive_seed
from .augmentation_ranking import Augmentation
from .image_files import load_image
from .pairs_ranking import PairIndex, hashed, least_gap
from .tables_ranking import Comparisons, ImageTable, read_images, require_pairs

if TYPE_CHECKING:
    import pandas as pd

    from .feature_cache import CachedFeatures

__all__ = [
    "FeatureImages",
    "ImageCollator",
    "PairCollator",
    "PairwiseDataset",
    "PixelImages",
    "TrainingPairs",
]


class PixelImages(Dataset):
    """Images that are decoded, changed at random and made pixels when they are asked for.

    Args:
        paths (sequence of path): ``N`` files.
        transform (callable): Makes a float tensor ``[3, H, W]`` of a PIL image, such as
            :meth:`~.image_processing_ranking.RankingImageProcessor.process`.
        targets (float array ``[N]``, *optional*): Tiers counted from the worst, or scores.
        augmentation (Augmentation, *optional*): Random changes, anew in each epoch. Defaults to
            none.
        seed (int): Of these. Defaults to 0.
        load (callable): Reads a file as a PIL image. Defaults to
            :func:`~.image_files.load_image`.
    """

    def __init__(
        self,
        paths: Sequence[str | os.PathLike[str]],
        transform: Callable[[Image.Image], torch.Tensor],
        targets: np.ndarray | None = None,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        load: Callable[[Any], Image.Image] = load_image,
    ) -> None:
        self.paths, self.transform, self.targets = list(paths), transform, targets
        self.augmentation, self.load = augmentation or Augmentation(), load
        self._pixels = AugmentedDataset(range(len(paths)), self._read, seed)

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of random changes, for all workers too."""
        self._pixels.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> dict[str, Any]:
        sample: dict[str, Any] = {"pixel_values": self._pixels[row]}
        if self.targets is not None:
            sample["target"] = float(self.targets[row])
        return sample

    def __getitems__(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        return [self[row] for row in rows]

    def _read(self, row: int, rng: np.random.Generator) -> torch.Tensor:
        image = self.load(self.paths[row])
        return self.transform(self.augmentation.augment(image, rng))


class FeatureImages(Dataset):
    """Features of images that a frozen backbone has made before.

    Args:
        features (CachedFeatures): Of ``N`` images, in one or more views.
        targets (float array ``[N]``, *optional*): Tiers counted from the worst, or scores.
        draw_views (bool): Whether each epoch draws one of the views of an image, or always takes
            the first, the image as it is. Defaults to False.
        seed (int): Of the draws. Defaults to 0.
    """

    def __init__(
        self,
        features: CachedFeatures,
        targets: np.ndarray | None = None,
        draw_views: bool = False,
        seed: int = 0,
    ) -> None:
        self.features, self.targets = features, targets
        self._draws, self._seed = draw_views, seed
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # workers see it

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the draws, for all workers too."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        chosen = np.asarray(rows, np.int64)
        views = np.zeros(len(chosen), np.int64)
        if self._draws:
            key = derive_seed(self._seed, "views", self._epoch.item())
            views = (hashed(chosen % len(self), key) % self.features.views).astype(np.int64)
        values = torch.from_numpy(self.features.read(chosen, views))
        samples: list[dict[str, Any]] = [{"features": value} for value in values]
        if self.targets is not None:
            for sample, row in zip(samples, rows, strict=True):
                sample["target"] = float(self.targets[row])
        return samples


class TrainingPairs(Dataset):
    """Pairs for training, by their numbers: of images whose targets differ, or of comparisons.

    A sample is two rows of images and the votes for each; :class:`PairCollator` reads the images.

    Args:
        pairs (PairIndex or Comparisons): The pairs.
    """

    def __init__(self, pairs: PairIndex | Comparisons) -> None:
        self.source = pairs

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        return self.__getitems__([range(len(self))[number]])[0]

    def __getitems__(self, numbers: Sequence[int]) -> list[tuple[np.ndarray, np.ndarray]]:
        numbers = np.asarray(numbers, np.int64)
        if isinstance(self.source, PairIndex):
            pairs = self.source.pairs(numbers)
            votes = np.tile([1.0, 0.0], (len(pairs), 1))
        else:
            pairs, votes = self.source.images[numbers], self.source.votes[numbers]
        return list(zip(pairs, votes, strict=True))


class ImageCollator:
    """Makes a batch of images, whose pairs are all compared.

    Args:
        weights (float array ``[K, K]``, *optional*): Of
            :func:`~.pairs_ranking.tier_pair_matrix`, where the targets are tiers.
        min_gap (float): Least difference of the targets of a pair, where they are scores. Defaults
            to 0: any.

    Example:
        >>> batch = ImageCollator()([images[0], images[3]])
        >>> batch["pixel_values"].shape, batch["targets"]
        (torch.Size([2, 3, 518, 518]), tensor([3., 0.]))
    """

    def __init__(self, weights: np.ndarray | None = None, min_gap: float = 0.0) -> None:
        self.weights, self.min_gap = weights, min_gap

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = {}
        for name in ("pixel_values", "features"):
            if name in samples[0]:
                values = [sample[name] for sample in samples]
                same = all(value.shape == values[0].shape for value in values)
                batch[name] = torch.stack(values) if same else values
        if "target" in samples[0]:
            targets = np.array([sample["target"] for sample in samples])
            batch["targets"] = torch.from_numpy(targets).float()
            if self.weights is not None:
                tiers = targets.astype(np.int64)
                weights = self.weights[tiers[:, None], tiers[None, :]]
                batch["pair_weights"] = torch.from_numpy(weights).float()
            elif self.min_gap > 0:
                far = targets[:, None] - targets[None, :] >= least_gap(self.min_gap)
                batch["pair_weights"] = torch.from_numpy(far).float()
        return batch


class PairCollator:
    """Makes a batch of pairs; an image that is in several of them is read and scored once.

    Args:
        images (torch.utils.data.Dataset): :class:`PixelImages` or :class:`FeatureImages`.
    """

    def __init__(self, images: PixelImages | FeatureImages) -> None:
        self.images = images
        self._collate = ImageCollator()

    def __call__(self, samples: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
        pairs = np.stack([pair for pair, _ in samples])
        rows, places = np.unique(pairs, return_inverse=True)
        batch = self._collate(self.images.__getitems__(rows.tolist()))
        batch["pairs"] = torch.from_numpy(places.reshape(pairs.shape))
        batch["votes"] = torch.from_numpy(np.stack([votes for _, votes in samples])).float()
        return batch


class PairwiseDataset(Dataset):
    """All pairs of images of different tiers, each once, found by their number.

    Nothing is listed: 10,000 images are 37 million pairs and need a few megabytes. Which image of
    a pair comes first is drawn for each pair, so that labels are balanced.

    NOTE: For ``DataLoader(dataset, shuffle=True)`` torch lists the numbers of all pairs in each
    epoch: 40 bytes a pair, 1.5 GB for 37 million. A :class:`~.pairs_ranking.PairSampler` finds
    them one by one; it takes a part of them an epoch, and weights for pairs of tiers.

    Args:
        metadata (DataFrame, path or ImageTable): ``image_id``, ``filename``, ``tier``; see
            :func:`~.tables_ranking.read_images`.
        image_dir (path): Folder of the images. Not needed for an `ImageTable`.
        transform (callable, *optional*): Makes a tensor of a PIL image. Defaults to none: samples
            have PIL images.
        tiers (sequence of str, *optional*): Names of the tiers, best first. Defaults to S, A, B, C,
            ...
        min_tier_gap (int): Least number of tiers between two images of a pair; 1 for neighbours.
            Defaults to 1.
        seed (int): Of the order of the two images. Defaults to 0.

    Attributes:
        table (ImageTable): The images.
        index (PairIndex): The pairs.

    Raises:
        ConfigurationError: If there is a ``min_tier_gap`` and the images have scores.
        DataError: With all problems of the table, or if there is no pair.

    Example:
        >>> dataset = PairwiseDataset(train_df, "data/images", transform)
        >>> len(dataset)
        1536
        >>> image_1, image_2, label = dataset[0]  # label 1: the first image is the better one
        >>> sampler = PairSampler(dataset.index, seed=42, pairs_per_epoch=50_000)
        >>> loader = DataLoader(dataset, batch_size=32, sampler=sampler)
    """

    def __init__(
        self,
        metadata: pd.DataFrame | str | os.PathLike[str] | ImageTable,
        image_dir: str | os.PathLike[str] | None = None,
        transform: Callable[[Image.Image], torch.Tensor] | None = None,
        *,
        tiers: Sequence[str] | None = None,
        min_tier_gap: int = 1,
        seed: int = 0,
    ) -> None:
        if isinstance(metadata, ImageTable):
            self.table = metadata
        else:
            self.table = read_images(metadata, image_dir, tiers=tiers)
        require_pairs(self.table, "the table")
        if min_tier_gap > 1 and not self.table.tiers:
            raise ConfigurationError(
                f"min_tier_gap {min_tier_gap} is for tiers, and these images have scores"
            )
        self.transform, self.seed, self.min_tier_gap = transform, seed, min_tier_gap
        # A score has no tiers between: any difference makes a pair.
        self.index = PairIndex(self.table.targets, min_tier_gap if self.table.tiers else 0)
        if not len(self.index):
            counts = ", ".join(f"{tier} {n:,}" for tier, n in self.table.counts().items() if n)
            raise DataError(
                f"the table has no pairs: no two images are min_tier_gap {min_tier_gap} tiers "
                f"apart; there are {counts} of {' > '.join(self.table.tiers)}."
            )
        self._key = derive_seed(seed, "sides")

    def __len__(self) -> int:
        return len(self.index)

    def pairs(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns pairs by number, without their images.

        Args:
            numbers (int64 array ``[P]``): From 0 to ``len(dataset) - 1``.

        Returns:
            int64 ``[P, 2]``, rows of the first and the second image; float32 ``[P]``, 1 where the
            first is the better one, else -1.
        """
        numbers = np.asarray(numbers, np.int64)
        found = self.index.pairs(numbers)
        swapped = hashed(numbers, self._key) % 2 == 1
        found[swapped] = found[swapped, ::-1]
        return found, np.where(swapped, np.float32(-1), np.float32(1))

    def __getitem__(self, number: int) -> tuple[Any, Any, torch.Tensor]:
        number = range(len(self))[number]  # also from the end, and an IndexError beyond it
        (rows,), (label,) = self.pairs(np.array([number]))
        first, second = (self._image(self.table.paths[row]) for row in rows)
        return first, second, torch.tensor(label)

    def _image(self, path: Path) -> Any:
        image = self._load_image(path)
        return image if self.transform is None else self.transform(image)

    def _load_image(self, path: Path) -> Image.Image:
        """Reads an image; subclasses may keep what was read."""
        return load_image(path)
