"""Reads image files of any kind as 8-bit RGB, and checks many of them before work begins."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import io
import os
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError

from ...utils.errors import SHOWN, DataError, listed
from ...utils.terminal import progress, say

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "FileFinder",
    "ImageFacts",
    "ImageProblem",
    "inspect_images",
    "load_image",
]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
"""Of the files that are taken for images in a folder, in lower case."""

MAX_PIXELS = 178_956_970
"""Pixels of the largest image that is read, where Pillow has its limit too."""

_SMALL = 32  # pixels; a side below is hardly a picture
_COMPARED = 10_000  # names in a folder up to which misspelt ones are looked for
_SIXTEEN_BITS = ("I", "I;16", "I;16B", "I;16L", "I;16N")
_ANIMATED = ("GIF", "PNG", "WEBP", "AVIF", "TIFF")  # the frames of an MPO are one photograph
_COLOURS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV")

# Pillow warns at half of its limit. What is allowed is checked below, and a filter that is set for
# each image would be no use: filters are shared by all threads.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

ImageSource = str | os.PathLike[str] | bytes | IO[bytes] | Image.Image
"""What an image is read from."""


class ImageProblem(DataError):
    """An image that cannot be read: missing, damaged, cut off, too large or no image at all."""


@dataclass(frozen=True)
class ImageFacts:
    """What is known of an image file once it was checked.

    Attributes:
        sha256 (str): Of the file's bytes, in hexadecimal.
        width, height (int): Pixels, after the rotation that its EXIF data ask for.
        mode (str): Pillow's name of what a pixel is in the file, such as ``"RGB"`` or ``"I;16"``.
        animated (bool): Whether there are more frames or pages than the first, which counts.
    """

    sha256: str
    width: int
    height: int
    mode: str
    animated: bool


def load_image(source: ImageSource, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Reads an image as 8-bit RGB, upright.

    - It is turned as its EXIF orientation asks for.
    - What is transparent (RGBA, LA, a palette with transparency) lies on white.
    - Grey values of 16 bits are divided by 257, so that black stays black and white white.
    - Of an animation or of several pages the first counts.
    - CMYK is converted by Pillow, which takes JPEGs in CMYK to be inverted, as Adobe's are.
    - Colour profiles are not applied: numbers are taken as sRGB, as in torchvision.
    - Grey values in floating point, or of 32 bits where they exceed 16, are refused: their range is
      not known.

    Args:
        source (path, bytes, binary file or PIL.Image.Image): A file stays open, and the bytes that
            it is read from are its beginning. A PIL image that is right already comes back itself.
        max_pixels (int): Width times height at the most, checked before anything is decoded.
            Pillow's own limit, 178,956,970, holds too. Defaults to that.

    Returns:
        PIL.Image.Image: In mode ``"RGB"``.

    Raises:
        ImageProblem: If it cannot be read to its end; the text says what was found.
    """
    if isinstance(source, Image.Image):
        return _upright_rgb(source, "the image")
    name = _name(source)
    with _problems_of(name), contextlib.ExitStack() as stack:
        if isinstance(source, (bytes, bytearray)):
            source = io.BytesIO(source)
        elif isinstance(source, (str, os.PathLike)):
            source = stack.enter_context(open(source, "rb"))
        image = _opened(source, name, max_pixels)
        rgb = _upright_rgb(image, name)
        # What has more frames would go on to read them from the file, which is closed.
        return rgb.copy() if rgb is image and _is_animated(image) else rgb


def inspect_images(
    paths: Sequence[str | os.PathLike[str]], *, workers: int | None = None
) -> list[ImageFacts]:
    """Checks that images can be read, all of them, and says what they are.

    Each file is read once and decoded to its end, JPEGs at an eighth of their size.

    Args:
        paths (sequence of path): The files.
        workers (int, *optional*): Threads, each of which holds one image in memory. Defaults to
            one a CPU, at most 8.

    Returns:
        list of ImageFacts: In the order of ``paths``.

    Raises:
        DataError: With all images that are missing or cannot be read.
    """
    pool = ThreadPoolExecutor(workers or min(os.cpu_count() or 1, 8))
    results: list[ImageFacts | ImageProblem] = []
    try:
        with progress(len(paths), "Checking images", "images") as bar:
            for result in pool.map(_inspected, paths):
                results.append(result)
                bar.update()
    finally:
        pool.shutdown(cancel_futures=True)
    facts = [result for result in results if isinstance(result, ImageFacts)]
    if len(facts) < len(results):
        raise DataError(_report(paths, results))
    _say_oddities(paths, facts)
    return facts


class FileFinder:
    """Finds files by names that people wrote, in whatever normal form of Unicode.

    A Hangul name that a Mac wrote is decomposed (NFD) on disk, and composed (NFC) in most tables.
    A folder is listed once at the most, when a name is not there as it is written.

    Args:
        folder (path): Where names begin.

    Example:
        >>> finder = FileFinder("data/images")
        >>> finder.find("화가/꽃.jpg")
        PosixPath('data/images/화가/꽃.jpg')
        >>> finder.near("image_01.jpeg")
        ['image_01.jpg']
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._listings: dict[Path, dict[str, str]] = {}

    def find(self, name: str | os.PathLike[str]) -> Path | None:
        """Returns the path of a file, or None if there is none.

        Args:
            name (str or path): Below the folder, with subfolders or without, or an absolute path.
        """
        path = self.folder / name
        # os.path takes any text for a name; pathlib raises where it is too long to be one.
        if os.path.isfile(path):
            return path
        place = self.folder
        for part in Path(name).parts:
            exact = place / part
            if os.path.exists(exact):
                place = exact
                continue
            found = self._listing(place).get(unicodedata.normalize("NFC", part))
            if found is None:
                return None
            place = place / found
        return place if os.path.isfile(place) else None

    def near(self, name: str | os.PathLike[str]) -> list[str]:
        """Returns names of files that may have been meant, at most three.

        They are those that differ in the case of letters or the suffix, else those that are
        spelt alike, unless the folder is too large to compare with all of it.

        Args:
            name (str or path): As for :meth:`find`.
        """
        missing = Path(unicodedata.normalize("NFC", os.fspath(name)))
        listing = self._listing(self.folder / missing.parent)
        stem = missing.stem.casefold()
        near = sorted(found for found in listing if Path(found).stem.casefold() == stem)
        if not near and len(listing) <= _COMPARED:
            near = difflib.get_close_matches(missing.name, sorted(listing), n=3, cutoff=0.7)
        return [str(missing.parent / found) for found in near[:3]]

    def _listing(self, folder: Path) -> dict[str, str]:
        """Names in a folder by their composed form."""
        if folder not in self._listings:
            try:
                names = sorted(os.listdir(folder))
            except OSError:
                names = []
            self._listings[folder] = {unicodedata.normalize("NFC", name): name for name in names}
        return self._listings[folder]


# Opening and decoding


def _name(source: str | os.PathLike[str] | bytes | IO[bytes]) -> str:
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    return str(getattr(source, "name", "the image"))  # bytes in memory have none


@contextlib.contextmanager
def _problems_of(name: str) -> Iterator[None]:
    """Says what is wrong with an image as an :class:`ImageProblem`."""
    try:
        yield
    except (ImageProblem, MemoryError):
        raise
    except FileNotFoundError as error:
        raise _Missing(f"{name}: there is no such file") from error
    except IsADirectoryError as error:
        raise ImageProblem(f"{name} is a folder, not an image") from error
    except Image.DecompressionBombError as error:
        raise ImageProblem(f"{name} is too large: {error}") from error
    except Exception as error:  # decoders of damaged data raise whatever comes
        if isinstance(error, OSError) and error.strerror:
            raise ImageProblem(f"{name} cannot be read: {error.strerror}") from error
        raise ImageProblem(
            f"{name} is damaged or cut off: {error}; copy or download it again"
        ) from error


class _Missing(ImageProblem):
    """A file that is not there, for which there may be one of a similar name."""


def _opened(stream: IO[bytes], name: str, max_pixels: int) -> ImageFile.ImageFile:
    """Reads the header of an image and checks what it says."""
    try:
        image = Image.open(stream)
    except UnidentifiedImageError as error:
        stream.seek(0)
        raise ImageProblem(_no_image(stream.read(24), name)) from error
    pixels = image.width * image.height
    if pixels > max_pixels:
        raise ImageProblem(
            f"{name} is too large: {image.width}x{image.height} = {pixels:,} pixels, "
            f"more than {max_pixels:,}"
        )
    if image.format == "EPS":
        raise ImageProblem(f"{name} is EPS, a program that draws: save it as PNG or JPEG")
    return image


def _no_image(start: bytes, name: str) -> str:
    if not start:
        return f"{name} is empty"
    if start[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1"):
        return f"{name} is a HEIC photograph, which Pillow does not read: save it as JPEG or PNG"
    return f"{name} is no image that Pillow can read: it begins with {start!r}"


def _is_animated(image: ImageFile.ImageFile) -> bool:
    """Whether there is a second frame or page; to be asked once the first is loaded."""
    try:
        return image.format in _ANIMATED and image.is_animated
    except Exception:  # there is one, which is damaged and does not count
        return True


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 where there is none; to be asked once the image is loaded."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # EXIF data that are damaged turn nothing, as in other programs
        return 1
    return orientation if orientation in range(2, 9) else 1


def _check_values(image: Image.Image, name: str) -> None:
    """Refuses pixels whose range is not known."""
    advice = "save it with 8 or 16 bits a channel"
    if image.mode not in (*_COLOURS, *_SIXTEEN_BITS):
        raise ImageProblem(f"{name} has pixels of mode {image.mode}, whose range varies: {advice}")
    if image.mode == "I":
        low, high = image.getextrema()
        if low < 0 or high > 65535:
            raise ImageProblem(
                f"{name} has grey values from {low} to {high} in 32 bits, expected 0 to 65535: "
                f"{advice}"
            )


def _upright_rgb(image: Image.Image, name: str) -> Image.Image:
    with _problems_of(name):
        image.load()
    _check_values(image, name)
    if _orientation(image) != 1:
        image = ImageOps.exif_transpose(image)  # which also forgets the orientation
    if image.mode in _SIXTEEN_BITS:
        # Pillow would clip them at 255, to white.
        grey = (np.asarray(image).astype(np.uint32) + 128) // 257
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image)
        return white
    return image if image.mode == "RGB" else image.convert("RGB")


# Checking many


def _inspected(path: str | os.PathLike[str]) -> ImageFacts | ImageProblem:
    name = os.fspath(path)
    try:
        with _problems_of(name):
            data = Path(path).read_bytes()
            image = _opened(io.BytesIO(data), name, MAX_PIXELS)
            width, height = image.size
            drafted = image.draft(None, (1, 1)) is not None  # only JPEGs can
            image.load()
            _check_values(image, name)
            animated = _is_animated(image)
            if not drafted:
                width, height = image.size  # of a TIFF known now: it turns itself
    except ImageProblem as problem:
        return type(problem)(str(problem))  # without a traceback, which would keep the bytes
    if _orientation(image) >= 5:
        width, height = height, width
    return ImageFacts(hashlib.sha256(data).hexdigest(), width, height, image.mode, animated)


def _report(
    paths: Sequence[str | os.PathLike[str]], results: Sequence[ImageFacts | ImageProblem]
) -> str:
    """The problems of all images as one text."""
    finders: dict[Path, FileFinder] = {}
    problems = [(p, r) for p, r in zip(paths, results, strict=True) if isinstance(r, ImageProblem)]
    lines = []
    for path, problem in problems:
        line = str(problem)
        if isinstance(problem, _Missing) and len(lines) < SHOWN:
            folder = Path(path).parent
            near = finders.setdefault(folder, FileFinder(folder)).near(Path(path).name)
            if near:
                line += ". Did you mean " + " or ".join(f"'{name}'" for name in near) + "?"
        lines.append(line)
    return f"{len(problems):,} of {len(paths):,} images cannot be used:{listed(lines)}"


def _say_oddities(paths: Sequence[str | os.PathLike[str]], facts: Sequence[ImageFacts]) -> None:
    animated = [path for path, fact in zip(paths, facts, strict=True) if fact.animated]
    small = [
        path
        for path, fact in zip(paths, facts, strict=True)
        if min(fact.width, fact.height) < _SMALL
    ]
    for found, text in (
        (animated, "more than one frame or page, of which the first counts"),
        (small, f"a side of less than {_SMALL} pixels"),
    ):
        if found:
            say(
                f"warning: {len(found):,} of {len(facts):,} images have {text}, "
                f"such as {os.fspath(found[0])}",
                style="yellow",
                markup=False,
                soft_wrap=True,
            )
