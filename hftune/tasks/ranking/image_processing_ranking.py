"""Makes a ranking model's input of images: one size, or theirs, and normalised colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature

from ...utils.errors import ConfigurationError, DataError, did_you_mean
from ...utils.terminal import say
from .configuration_ranking import PairwiseRankingConfig
from .image_files import ImageSource, load_image

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "RESIZE_MODES", "RankingImageProcessor"]

RESIZE_MODES = ("letterbox", "squash", "crop", "native")
"""Ways in which images come to their size."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Mean red, green and blue of ImageNet, of colours in [0, 1]."""

IMAGENET_STD = (0.229, 0.224, 0.225)
"""Their standard deviations."""

_RESAMPLING = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}

_ALGORITHM = 1
"""Version of this code and of `image_files`: one more where the same file gives other pixels."""


class _Settings(TypedDict, total=False):
    size: int
    resize_mode: str
    resample: str
    patch_size: int
    image_mean: Sequence[float]
    image_std: Sequence[float]
    background: Sequence[int] | None


class RankingImageProcessor(BaseImageProcessor):
    """Resizes images as a judgement of their quality needs it, and normalises their colours.

    Saved as ``preprocessor_config.json``, and loaded by its own ``from_pretrained`` or that of
    ``AutoImageProcessor``. Resizing is antialiased where it shrinks.

    Args:
        size (int): Side in pixels. One that is no multiple of ``patch_size`` is rounded down to
            one, which is said. Defaults to 518, which DINOv2 was trained at.
        resize_mode (str): How an image gets that size. Defaults to ``"letterbox"``.

            - ``"letterbox"``: the whole image in its aspect ratio, on a square of ``background``.
            - ``"squash"``: the whole image, made a square; it distorts the aspect ratio.
            - ``"crop"``: the square in the middle; what lies beside it is lost.
            - ``"native"``: each image keeps its own size, unless its longer side is above
              ``size``: then it shrinks to that. Sides become the nearest multiple of
              ``patch_size``, one patch at least.
        patch_size (int): Of the backbone; 1 for convolutions. Defaults to 14.
        image_mean, image_std (sequence of float): Three each, of colours in [0, 1]. Default to
            those of ImageNet.
        background (sequence of int, *optional*): Red, green and blue in [0, 255] around a
            letterboxed image. Defaults to ``image_mean``, which becomes 0.
        resample (str): How pixels between pixels are found: ``"bicubic"`` or ``"bilinear"``, as
            torchvision's ``Resize`` has it. Defaults to ``"bicubic"``.
        **kwargs: What ``preprocessor_config.json`` holds besides.

    Raises:
        ConfigurationError: With all that is wrong.

    Example:
        >>> processor = RankingImageProcessor(size=756, resize_mode="squash")
        >>> processor(["a.jpg", "b.jpg"])["pixel_values"].shape
        torch.Size([2, 3, 756, 756])
    """

    valid_kwargs = _Settings  # what from_pretrained lets its caller change

    def __init__(
        self,
        size: int = 518,
        resize_mode: str = "letterbox",
        patch_size: int = 14,
        image_mean: Sequence[float] = IMAGENET_MEAN,
        image_std: Sequence[float] = IMAGENET_STD,
        background: Sequence[int] | None = None,
        resample: str = "bicubic",
        **kwargs: Any,
    ) -> None:
        super().__init__()
        kwargs.pop("image_processor_type", None)
        problems = [
            f"{name} is not a setting of images.{did_you_mean(name, _Settings.__annotations__)}"
            for name in kwargs
        ]
        problems += _problems(size, resize_mode, patch_size, image_mean, image_std, background)
        if resample not in _RESAMPLING:
            known = " or ".join(map(repr, _RESAMPLING))
            problems.append(f"resample is {resample!r}, expected {known}")
        if problems:
            raise ConfigurationError(problems)
        self.size = size - size % patch_size
        self.resize_mode = resize_mode
        self.resample = resample
        self.patch_size = patch_size
        self.image_mean = [float(value) for value in image_mean]
        self.image_std = [float(value) for value in image_std]
        if background is None:
            background = [round(255 * min(max(value, 0.0), 1.0)) for value in self.image_mean]
        self.background = [int(value) for value in background]
        if self.size != size:
            say(
                f"warning: {size} is not a multiple of the patch size {patch_size}: images are "
                f"{self.size} pixels instead; the backbone would silently ignore the last "
                f"{size - self.size} rows and columns",
                style="yellow",
                markup=False,
                soft_wrap=True,
            )

    def __call__(
        self,
        images: ImageSource | np.ndarray | Sequence[ImageSource | np.ndarray],
        return_tensors: str | None = "pt",
    ) -> BatchFeature:
        """Makes a batch of images.

        Args:
            images (path, bytes, binary file, PIL.Image.Image, uint8 array, or a sequence of them):
                Arrays are ``[height, width]`` or ``[height, width, channels]``, with three channels
                or, for transparency, four.
            return_tensors (str): ``"pt"``; there is nothing else.

        Returns:
            BatchFeature: ``pixel_values``, float32 ``[images, 3, height, width]``; where sizes
            differ a list of ``[3, height, width]``.

        Raises:
            ImageProblem: If an image cannot be read.
        """
        if return_tensors not in ("pt", None):
            raise ConfigurationError(f"return_tensors is {return_tensors!r}, expected 'pt'")
        if isinstance(images, (list, tuple)):
            if not images:
                raise DataError("found no images to process, expected at least one")
        else:
            images = [images]
        pixels = [self.process(_image(image)) for image in images]
        same = all(image.shape == pixels[0].shape for image in pixels)
        return BatchFeature({"pixel_values": torch.stack(pixels) if same else pixels})

    def process(self, image: Image.Image) -> torch.Tensor:
        """Makes the pixels of one image.

        Args:
            image (PIL.Image.Image): In mode RGB, as :func:`~.image_files.load_image` gives it.

        Returns:
            float32 tensor ``[3, height, width]``.
        """
        resized = self.resize(image)
        pixels = np.empty((3, resized.height, resized.width), np.float32)
        # A channel has 256 values: looking them up is the exact result, and as fast as computing.
        values = np.arange(256) / 255
        for channel, band in enumerate(resized.split()):
            table = (values - self.image_mean[channel]) / self.image_std[channel]
            # No index is out of range; "clip" only spares the check.
            np.take(table.astype(np.float32), np.asarray(band), out=pixels[channel], mode="clip")
        return torch.from_numpy(pixels)

    def resize(self, image: Image.Image) -> Image.Image:
        """Returns an image in its size for the model, its colours as they are.

        Args:
            image (PIL.Image.Image): In mode RGB.
        """
        width, height = image.size
        size = (self.size, self.size)
        resample = _RESAMPLING[self.resample]
        if self.resize_mode == "squash":
            return image.resize(size, resample)
        if self.resize_mode == "crop":
            side = min(width, height)
            left, top = (width - side) / 2, (height - side) / 2
            box = (left, top, left + side, top + side)
            return image.resize(size, resample, box=box)
        if self.resize_mode == "native":
            shrink = min(1.0, self.size / max(width, height))
            patch = self.patch_size
            sides = [max(1, round(side * shrink / patch)) * patch for side in (width, height)]
            return image.resize((sides[0], sides[1]), resample)
        scale = self.size / max(width, height)
        inner = (max(1, round(width * scale)), max(1, round(height * scale)))
        square = Image.new("RGB", size, tuple(self.background))
        place = ((self.size - inner[0]) // 2, (self.size - inner[1]) // 2)
        square.paste(image.resize(inner, resample), place)
        return square

    def settings(self) -> dict[str, Any]:
        """Returns all that decides the pixels of a file, to be written as JSON or hashed."""
        return {
            "algorithm": _ALGORITHM,
            **{name: getattr(self, name) for name in _Settings.__annotations__},
        }


def _image(image: ImageSource | np.ndarray) -> Image.Image:
    if not isinstance(image, np.ndarray):
        return load_image(image)
    channels = image.shape[2] if image.ndim == 3 else 1
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or channels not in (1, 3, 4):
        raise DataError(
            f"found an array {list(image.shape)} of {image.dtype} as an image, expected "
            "[height, width] or [height, width, 3] of uint8"
        )
    return load_image(Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image))


def _problems(
    size: Any, resize_mode: Any, patch_size: Any, image_mean: Any, image_std: Any, background: Any
) -> list[str]:
    """What is wrong with settings."""
    problems = []
    for name, value in (("size", size), ("patch_size", patch_size)):
        if not _is_count(value):
            problems.append(f"{name} is {value!r}, expected a number of pixels")
    if _is_count(size) and _is_count(patch_size) and size < patch_size:
        problems.append(f"size is {size}, less than one patch of {patch_size} pixels")
    if resize_mode not in RESIZE_MODES:
        problems.append(
            f"resize_mode is {resize_mode!r}, expected one of {', '.join(RESIZE_MODES)}."
            + did_you_mean(str(resize_mode), RESIZE_MODES)
        )
    if not _are_three(image_mean) or not all(math.isfinite(value) for value in image_mean):
        problems.append(f"image_mean is {image_mean!r}, expected three numbers")
    if not _are_three(image_std) or not all(0 < value < math.inf for value in image_std):
        problems.append(f"image_std is {image_std!r}, expected three numbers above 0")
    if background is not None and (
        not _are_three(background) or not all(value in range(256) for value in background)
    ):
        problems.append(f"background is {background!r}, expected three integers from 0 to 255")
    return problems


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _are_three(values: Any) -> bool:
    return (
        isinstance(values, (list, tuple))
        and len(values) == 3
        and all(isinstance(value, (int, float)) for value in values)
    )


# Both names: transformers asks for the one where torchvision is installed, else for the other.
AutoImageProcessor.register(
    PairwiseRankingConfig,
    image_processor_classes={"torchvision": RankingImageProcessor, "pil": RankingImageProcessor},
    exist_ok=True,
)
