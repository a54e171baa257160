"""Random changes of images that leave their quality as it is."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance

from ...utils.errors import ConfigurationError

__all__ = ["Augmentation"]

_ALGORITHM = 1
"""Version of this code: one more where the same numbers give another image."""

_UPPER = {"flip": 1.0, "rotation": 180.0, "brightness": 1.0, "contrast": 1.0, "crop": 0.9}


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """How much images change at random, each time that a model sees them; all off by default.

    The changes come in the order of the arguments. Each has random numbers of its own: switching
    one off, or making it larger, leaves the others as they are.

    Args:
        flip (float): Probability that left and right change places. Defaults to 0.
        rotation (float): Largest angle in degrees, either way. What would be empty corners mirrors
            the image, so that no model learns from edges that are not the picture's. Defaults to 0.
        brightness (float): Colours are multiplied by a factor in ``[1 - x, 1 + x]``. Defaults to 0.
        contrast (float): Colours move away from the image's mean grey, or towards it, by a factor
            in ``[1 - x, 1 + x]``. Defaults to 0.
        crop (float): Largest share of width and height, the same of both, that is cut off.
            Defaults to 0.

    Raises:
        ConfigurationError: With all that is wrong.

    Example:
        >>> augmentation = Augmentation(flip=0.5, rotation=10, brightness=0.1, contrast=0.1)
        >>> rng = np.random.default_rng(derive_seed(42, "augmentation", epoch, row))
        >>> image = augmentation.augment(load_image("a.jpg"), rng)
    """

    flip: float = 0.0
    rotation: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    crop: float = 0.0

    def __post_init__(self) -> None:
        problems = [
            f"{name} is {getattr(self, name)!r}, expected a number from 0 to {upper:g}"
            for name, upper in _UPPER.items()
            if not 0 <= getattr(self, name) <= upper
        ]
        if problems:
            raise ConfigurationError(problems)

    @property
    def is_off(self) -> bool:
        """Whether images stay as they are."""
        return not any(dataclasses.astuple(self))

    def settings(self) -> dict[str, Any]:
        """Returns all that decides what is made of an image and a generator, as JSON has it."""
        return {"algorithm": _ALGORITHM, **dataclasses.asdict(self)}

    def augment(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """Changes an image.

        Args:
            image (PIL.Image.Image): In mode RGB; it stays as it is.
            rng (numpy.random.Generator): Gives seven numbers, whatever is on.

        Returns:
            PIL.Image.Image: In mode RGB, of the same size unless ``crop`` is on.
        """
        flip, angle, brightness, contrast, cut, left, top = rng.random(7)
        if flip < self.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.rotation:
            image = _rotate(image, self.rotation * (2 * angle - 1))
        if self.brightness:
            factor = 1 + self.brightness * (2 * brightness - 1)
            image = ImageEnhance.Brightness(image).enhance(factor)
        if self.contrast:
            image = ImageEnhance.Contrast(image).enhance(1 + self.contrast * (2 * contrast - 1))
        if self.crop:
            image = _crop(image, self.crop * cut, left, top)
        return image


def _rotate(image: Image.Image, degrees: float) -> Image.Image:
    """Rotates an image about its centre within its size."""
    width, height = image.size
    sine, cosine = abs(math.sin(math.radians(degrees))), abs(math.cos(math.radians(degrees)))
    # How far the turned corners reach beyond the image, and two pixels for the interpolation.
    beyond_x = math.ceil(max(0.0, width * (cosine - 1) + height * sine) / 2) + 2
    beyond_y = math.ceil(max(0.0, height * (cosine - 1) + width * sine) / 2) + 2
    around = ((beyond_y, beyond_y), (beyond_x, beyond_x), (0, 0))
    mirrored = Image.fromarray(np.pad(np.asarray(image), around, mode="symmetric"))
    rotated = mirrored.rotate(degrees, Image.Resampling.BICUBIC)
    return rotated.crop((beyond_x, beyond_y, beyond_x + width, beyond_y + height))


def _crop(image: Image.Image, share: float, left: float, top: float) -> Image.Image:
    """Cuts a share of width and height off; the rest begins at parts of what there is to choose."""
    width = max(1, round(image.width * (1 - share)))
    height = max(1, round(image.height * (1 - share)))
    x, y = round(left * (image.width - width)), round(top * (image.height - height))
    return image.crop((x, y, x + width, y + height))
