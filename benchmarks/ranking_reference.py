"""The guide's way of training on pairs, for ``benchmarks/ranking_pairs.py`` and ``ranking_gpu.py``.

A plain PyTorch loop as the guide has it: a list of all ordered pairs of images of different tiers,
both images of a pair decoded, transformed and passed through the backbone in each step, though the
backbone does not train; ``MarginRankingLoss`` with labels of 1 and -1, AdamW, clipped gradients, a
cosine by epochs, loss and accuracy read after each step. Nothing is kept but, in
:class:`CachedReferencePairs`, the decoded images, as the guide's tips have it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset


class ReferencePairs(Dataset):
    """All ordered pairs of images of different tiers, listed.

    Args:
        paths (sequence of Path): ``N`` images.
        targets (sequence of float): Their tiers, counted from the worst.
        transform (callable, *optional*): Makes a tensor of a PIL image.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        targets: Sequence[float],
        transform: Callable[[Image.Image], torch.Tensor] | None = None,
    ) -> None:
        self.transform = transform
        images = list(zip(paths, targets, strict=True))
        self.pairs = [
            (path1, path2, 1.0 if target1 > target2 else -1.0)
            for path1, target1 in images
            for path2, target2 in images
            if target1 != target2
        ]

    def _load_image(self, path: Path) -> Image.Image:
        return Image.open(path).convert("RGB")

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        path1, path2, label = self.pairs[number]
        image1, image2 = (self.transform(self._load_image(path)) for path in (path1, path2))
        return image1, image2, torch.tensor(label)


class CachedReferencePairs(ReferencePairs):
    """The same, with all images decoded before the first step."""

    def __init__(self, paths: Sequence[Path], *args, **kwargs) -> None:
        super().__init__(paths, *args, **kwargs)
        self.cache = {path: super(CachedReferencePairs, self)._load_image(path) for path in paths}

    def _load_image(self, path: Path) -> Image.Image:
        return self.cache[path]


def guide_transform(size: int) -> Callable[[Image.Image], torch.Tensor]:
    """The guide's transform, at a size."""
    from torchvision import transforms

    return transforms.Compose(
        [
            transforms.Resize((size, size)),
            transforms.ToTensor(),
            transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
        ]
    )


def pair_loss(score1: torch.Tensor, score2: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The guide's loss of pairs, of scores ``[P, 1]`` and labels ``[P]``."""
    return nn.MarginRankingLoss(margin=1.0)(score1.squeeze(1), score2.squeeze(1), labels)


class ReferenceTrainer:
    """The guide's loop.

    Args:
        model (nn.Module): ``model(img1, img2)`` gives two scores ``[P, 1]``.
        dataset (ReferencePairs): The pairs.
        epochs (int): How many.
        batch_size (int): Pairs. Defaults to 32.
        learning_rate (float): Defaults to 1e-4.
        seed (int): Of the order of the pairs. Defaults to 0.

    Attributes:
        pair_updates (int): Pairs of all steps that were made.
    """

    def __init__(
        self,
        model: nn.Module,
        dataset: ReferencePairs,
        epochs: int,
        batch_size: int = 32,
        learning_rate: float = 1e-4,
        seed: int = 0,
    ) -> None:
        self.model, self.epochs, self.pair_updates = model, epochs, 0
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=learning_rate, weight_decay=0.01)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(
            self.optimizer, T_max=epochs, eta_min=1e-6
        )
        self.loader = DataLoader(
            dataset, batch_size, shuffle=True, generator=torch.Generator().manual_seed(seed)
        )

    def __len__(self) -> int:
        return self.epochs * len(self.loader)

    def steps(self) -> Iterator[float]:
        """Makes the steps of all epochs; gives the loss of each."""
        self.model.train()
        correct = 0
        for _ in range(self.epochs):
            for image1, image2, labels in self.loader:
                self.optimizer.zero_grad()
                score1, score2 = self.model(image1, image2)
                loss = pair_loss(score1, score2, labels)
                loss.backward()
                nn.utils.clip_grad_norm_(self.parameters, 1.0)
                self.optimizer.step()
                correct += ((score1 > score2).squeeze(1) == (labels > 0)).sum().item()
                self.pair_updates += len(labels)
                yield loss.item()
            self.scheduler.step()
