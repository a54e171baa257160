"""A set of images whose order is known, for those who have none at hand.

Code draws scenes that look somewhat like photographs: landscapes, seas, towns, still lifes, meadows
and walls, each with colours, light and fine detail of its own. Each is then made worse in steps, as
cheap cameras and careless copies do it: blur, then noise, then compression. The tier says how much,
and what is in the picture says nothing about it. What it is not: beauty that people judged.
"""

from __future__ import annotations

import colorsys
import csv
import io
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from ...utils.errors import ConfigurationError
from ...utils.files import sync_folder
from ...utils.terminal import progress

__all__ = ["TIERS", "draw_scene", "write_example"]

TIERS = ("S", "A", "B", "C")

FORMAT = 2  # number of the way in which the images are made; a new one makes them anew
_QUALITY = 92  # of every file, so that compression of the worse ones is in the picture alone
_OVERSAMPLED = 2
_STEPS = {  # blur in thousandths of the side, noise in grey values of 255, quality of a JPEG
    "A": (11.0, 3.0, 75),
    "B": (22.0, 4.5, 50),
    "C": (40.0, 6.0, 30),
}


def write_example(folder: str | Path, images: int = 320, size: int = 96, seed: int = 0) -> Path:
    """Writes the example, unless it is there already.

    The same arguments give the same files, byte by byte, with the same NumPy and Pillow.

    Args:
        folder (path): Where a folder is made for it, with ``images/`` and ``metadata.csv``
            (image_id, filename, tier).
        images (int): How many, of each tier about as many. Defaults to 320.
        size (int): Width and height in pixels. Defaults to 96.
        seed (int): Another seed gives other scenes. Defaults to 0.

    Returns:
        Path of ``metadata.csv``.

    Raises:
        ConfigurationError: If there is no image for each tier, or they are smaller than 32 pixels.
    """
    if images < len(TIERS) or size < 32:
        raise ConfigurationError(
            f"an example of {images} images of {size} pixels: expected at least {len(TIERS)} "
            "images of at least 32 pixels"
        )
    place = Path(folder) / f"ranking_example_{images}x{size}_seed{seed}_v{FORMAT}"
    if place.exists():  # it came there in one piece
        return place / "metadata.csv"
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    try:
        _write(temporary, images, size, seed)
        temporary.chmod(0o755)
        try:
            os.rename(temporary, place)
        except OSError:
            if not place.exists():
                raise  # else another process was faster, with the same files
        sync_folder(place.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return place / "metadata.csv"


def _write(folder: Path, images: int, size: int, seed: int) -> None:
    tiers = np.random.default_rng([seed, FORMAT]).permutation(np.arange(images) % len(TIERS))
    (folder / "images").mkdir()
    rows = []
    for number in progress(range(images), "Drawing example images", "images"):
        draw = np.random.default_rng([seed, FORMAT, number])
        tier = TIERS[tiers[number]]
        picture = _worsen(draw_scene(draw, size), tier, draw)
        name = f"example_{number:04d}"
        content = io.BytesIO()
        picture.save(content, "JPEG", quality=_QUALITY)
        with open(folder / "images" / f"{name}.jpg", "wb") as stream:
            stream.write(_padded(content.getvalue(), 3 * size * size))
            stream.flush()
            os.fsync(stream.fileno())
        rows.append((name, f"{name}.jpg", tier))
    with open(folder / "metadata.csv", "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("image_id", "filename", "tier"))
        writer.writerows(rows)
        stream.flush()
        os.fsync(stream.fileno())
    sync_folder(folder / "images")


def _padded(jpeg: bytes, length: int) -> bytes:
    """A JPEG with comments that make it ``length`` bytes: its size says nothing of its detail."""
    comments = b""
    while (left := length - len(jpeg) - len(comments)) > 4:
        # Not so long that fewer bytes are left than a comment takes.
        text = min(left - 4, 60_000)
        comments += b"\xff\xfe" + (text + 2).to_bytes(2, "big") + b" " * text
    return jpeg[:2] + comments + jpeg[2:]


def _worsen(picture: Image.Image, tier: str, draw: np.random.Generator) -> Image.Image:
    if tier not in _STEPS:
        return picture
    blur, noise, quality = _STEPS[tier]
    blur, noise = (value * draw.uniform(0.9, 1.1) for value in (blur, noise))
    picture = picture.filter(ImageFilter.GaussianBlur(blur * picture.width / 1000))
    pixels = np.asarray(picture, np.float64)
    pixels = pixels + noise * draw.standard_normal(pixels.shape)
    picture = Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=quality)
    return Image.open(stream).convert("RGB")


# Scenes


def draw_scene(draw: np.random.Generator, size: int) -> Image.Image:
    """Draws one of the scenes.

    Args:
        draw (numpy.random.Generator): Decides what is in it.
        size (int): Width and height in pixels.
    """
    n = _OVERSAMPLED * size
    scene = _SCENES[draw.integers(len(_SCENES))]
    canvas = scene(draw, n)
    canvas *= 1 + 0.05 * _noise(draw, n, 0.8)[:, :, None]  # detail everywhere
    y, x = 2 * _places(n) - 1
    canvas *= (1 - draw.uniform(0, 0.25) * (x * x + y * y) / 2)[:, :, None]  # the lens
    canvas *= draw.uniform(0.92, 1.08, 3)  # the light
    canvas = np.clip(canvas, 0, 1) ** draw.uniform(0.65, 1.05)
    pixels = np.rint(255 * canvas).astype(np.uint8)
    return Image.fromarray(pixels).resize((size, size), Image.Resampling.LANCZOS)


def _noise(
    draw: np.random.Generator, n: int, smooth: float, stretch: tuple[float, float] = (1, 1)
) -> np.ndarray:
    """Fractal noise, of mean 0 and variance 1: the larger ``smooth``, the fewer fine details."""
    fy, fx = np.fft.fftfreq(n)[:, None] * stretch[0], np.fft.rfftfreq(n)[None] * stretch[1]
    amplitude = np.maximum(np.hypot(fy, fx), 1 / n) ** -smooth
    amplitude[0, 0] = 0
    field = np.fft.irfft2(np.fft.rfft2(draw.standard_normal((n, n))) * amplitude, (n, n))
    return (field / field.std()).astype(np.float32)


def _places(n: int) -> np.ndarray:
    """How far down and how far right each pixel is, from 0 to 1."""
    return np.mgrid[0:n, 0:n].astype(np.float32) / np.float32(n)


def _line(draw: np.random.Generator, n: int, smooth: float) -> np.ndarray:
    amplitude = np.maximum(np.fft.rfftfreq(n), 1 / n) ** -smooth
    amplitude[0] = 0
    line = np.fft.irfft(np.fft.rfft(draw.standard_normal(n)) * amplitude, n)
    return (line / line.std()).astype(np.float32)


def _colour(
    draw: np.random.Generator,
    hue: tuple[float, float] = (0, 1),
    saturation: tuple[float, float] = (0.2, 0.8),
    value: tuple[float, float] = (0.3, 0.9),
) -> np.ndarray:
    return np.array(
        colorsys.hsv_to_rgb(
            draw.uniform(*hue) % 1, draw.uniform(*saturation), draw.uniform(*value)
        ),
        np.float32,
    )


def _lay(canvas: np.ndarray, colour: np.ndarray | np.float32, opacity: np.ndarray) -> None:
    canvas += (colour - canvas) * opacity[:, :, None]


def _sky(draw: np.random.Generator, n: int) -> np.ndarray:
    top = _colour(draw, (0.5, 0.72), (0.2, 0.8), (0.35, 0.9))
    low = _colour(draw, (-0.05, 0.17), (0.05, 0.6), (0.7, 1.0))
    height = np.linspace(0, 1, n, dtype=np.float32)[:, None, None] ** draw.uniform(0.6, 1.6)
    canvas = np.broadcast_to(top + (low - top) * height, (n, n, 3)).copy()
    clouds = _noise(draw, n, draw.uniform(1.4, 2.0), (draw.uniform(0.4, 0.9), 1.0))
    cover = np.clip(0.5 * (clouds - draw.uniform(-0.3, 1.2)), 0, 0.95)
    _lay(canvas, np.float32(draw.uniform(0.75, 1.0)), cover)
    if draw.random() < 0.4:
        y, x = _places(n)
        far = np.hypot(x - draw.uniform(0.1, 0.9), y - draw.uniform(0.08, 0.35))
        _lay(
            canvas,
            np.float32([1.0, 0.95, 0.8]),
            np.clip((draw.uniform(0.04, 0.09) - far) * n, 0, 1),
        )
        canvas += 0.25 * np.exp(-((far / 0.2) ** 2))[:, :, None]
    return canvas


def _landscape(draw: np.random.Generator, n: int) -> np.ndarray:
    canvas = _sky(draw, n)
    y = _places(n)[0]
    haze = canvas[n // 2, n // 2].copy()
    ground = _colour(draw, (0.05, 0.42), (0.3, 0.8), (0.2, 0.6))
    ridges = draw.integers(2, 5)
    for ridge in range(ridges):
        near = (ridge + 1) / ridges
        level = 0.35 + 0.5 * ridge / ridges + draw.uniform(-0.05, 0.05)
        edge = level + 0.07 * _line(draw, n, draw.uniform(1.1, 1.8))[None]
        light = 1 + (0.15 + 0.3 * near) * _noise(draw, n, draw.uniform(0.7, 1.1), (0.6, 1.0))
        colour = (haze + (ground * draw.uniform(0.7, 1.2) - haze) * near**0.7) * light[:, :, None]
        _lay(canvas, np.clip(colour, 0, 1), np.clip((y - edge) * n, 0, 1))
    return canvas


def _sea(draw: np.random.Generator, n: int) -> np.ndarray:
    canvas = _sky(draw, n)
    horizon = int(n * draw.uniform(0.35, 0.65))
    rows = np.arange(n - horizon)
    mirrored = canvas[np.clip(horizon - 1 - rows, 0, horizon - 1)]
    depth = (rows + 2) / len(rows)
    waves = _noise(draw, n, 1.0, (0.25, 1.0))[horizon:]
    stripes = np.sin(14 / np.sqrt(depth)[:, None] + 2.5 * waves + 40 * depth[:, None])
    colour = _colour(draw, (0.45, 0.65), (0.3, 0.8), (0.2, 0.6))
    sea = 0.55 * mirrored + 0.45 * colour
    canvas[horizon:] = (
        sea * (1 + (0.1 + 0.3 * depth[:, None]) * (0.5 * stripes + 0.5 * waves))[:, :, None]
    )
    for _ in range(draw.integers(0, 4)):  # sails
        width = draw.uniform(0.02, 0.08) * n
        x0, y0 = draw.uniform(0.1, 0.9) * n, horizon + draw.uniform(0, 0.15) * n
        y, x = n * _places(n)
        up = (y0 - y) / (2.2 * width)
        sail = (up > 0) & (up < 1) & (x > x0) & (x - x0 < width * (1 - up))
        hull = (np.abs(x - x0) < width * 0.8) & (y >= y0) & (y - y0 < 0.25 * width)
        _lay(canvas, np.float32(draw.uniform(0.85, 1.0)), sail.astype(np.float32))
        _lay(canvas, _colour(draw, value=(0.1, 0.5)), hull.astype(np.float32))
    return canvas


def _town(draw: np.random.Generator, n: int) -> np.ndarray:
    canvas = _sky(draw, n)
    for row in range(3):
        left = -draw.uniform(0, 0.1)
        while left < 1:
            width = draw.uniform(0.09, 0.24)
            top = 0.15 + 0.2 * row + draw.uniform(0, 0.25)
            box = canvas[int(top * n) :, max(0, int(left * n)) : int((left + width) * n)]
            left += width + draw.choice([0, 0, 0.03])
            if not box.size:
                continue
            wall = _colour(draw, (0.0, 0.17), (0.05, 0.6), (0.25 + 0.15 * row, 0.6 + 0.15 * row))
            shade = np.linspace(1.0, draw.uniform(0.6, 1.0), box.shape[1])[None, :, None]
            box[:] = wall * shade
            pitch = draw.uniform(0.03, 0.06) * n
            y, x = np.mgrid[: box.shape[0], : box.shape[1]]
            window = ((y / pitch) % 1 > 0.45) & ((x / (0.8 * pitch)) % 1 > 0.5) & (y > 0.4 * pitch)
            lit = draw.random((int(n / pitch) + 2, int(n / (0.8 * pitch)) + 2))
            glass = lit[(y / pitch).astype(int), (x / (0.8 * pitch)).astype(int)]
            colour = 0.1 + glass[:, :, None] ** 2 * np.array([0.8, 0.7, 0.45])
            box += (colour - box) * window[:, :, None]
    return canvas


def _still_life(draw: np.random.Generator, n: int) -> np.ndarray:
    y, x = _places(n)
    canvas = _colour(draw, saturation=(0.1, 0.5), value=(0.3, 0.8)) * (
        1 + 0.12 * _noise(draw, n, 1.2) - 0.35 * x
    )[:, :, None].repeat(3, axis=2)
    table = draw.uniform(0.5, 0.65)
    if draw.random() < 0.5:  # wood, or else a cloth of checks
        grain = np.sin(60 * (y - table) + 1.5 * _noise(draw, n, 1.6, (0.2, 1.0)))
        wood = _colour(draw, (0.03, 0.11), (0.4, 0.8), (0.35, 0.75))
        board = wood * (1 + 0.2 * grain + 0.08 * _noise(draw, n, 0.6, (0.1, 1.0)))[:, :, None]
    else:
        away = 0.25 + np.clip(y - table, 0, 1)
        checks = (np.sin(50 * (x - 0.5) / away) > 0).astype(np.float32) + (np.sin(18 / away) > 0)
        cloth = _colour(draw), np.float32(0.92)
        board = cloth[1] + (cloth[0] - cloth[1]) * 0.5 * checks[:, :, None]
    _lay(canvas, np.clip(board, 0, 1), np.clip((y - table) * n, 0, 1))
    light = np.array([draw.uniform(-0.7, 0.7), -0.6, 0.6], np.float32)
    light /= np.linalg.norm(light)
    peel = _noise(draw, n, draw.uniform(0.6, 1.3))
    for _ in range(draw.integers(3, 7)):
        radius = draw.uniform(0.08, 0.18)
        cx, cy = draw.uniform(0.1, 0.9), table + draw.uniform(0, 0.3) - 0.3 * radius
        u, v = (x - cx) / radius, (y - cy) / (radius * draw.uniform(0.8, 1.2))
        shadow = np.hypot((u + 0.8 * light[0]) / 1.3, (v - 0.9) / 0.35)
        canvas *= 1 - 0.5 * np.clip(1.6 - 1.4 * shadow, 0, 1)[:, :, None] * (y > table)[:, :, None]
        squared = u * u + v * v
        up = np.sqrt(np.clip(1 - squared, 0, 1))
        lit = np.clip(u * light[0] + v * light[1] + up * light[2], 0, 1)
        skin = 1 + draw.uniform(0, 0.2) * np.roll(peel, draw.integers(n, size=2), (0, 1))
        body = (
            _colour(draw, saturation=(0.4, 0.9), value=(0.5, 0.95))
            * ((0.2 + 0.8 * lit) * skin)[:, :, None]
            + (0.7 * lit**25)[:, :, None]
        )
        _lay(canvas, np.clip(body, 0, 1), np.clip((1 - squared) * radius * n / 2, 0, 1))
    return canvas


def _meadow(draw: np.random.Generator, n: int) -> np.ndarray:
    canvas = _sky(draw, n)
    y, x = n * _places(n)
    horizon = n * draw.uniform(0.1, 0.45)
    blades = _noise(draw, n, 0.8, (1.0, 0.3))
    near = np.clip((y - horizon) / (n - horizon), 0, 1)
    grass = _colour(draw, (0.17, 0.4), (0.4, 0.8), (0.3, 0.6))
    field = grass * (1 + (0.15 + 0.35 * near) * blades)[:, :, None]
    edge = horizon + 0.015 * n * _line(draw, n, 1.0)[None]
    _lay(canvas, np.clip(field, 0, 1), np.clip(y - edge, 0, 1))
    colours = [_colour(draw, saturation=(0.3, 0.95), value=(0.7, 1.0)) for _ in range(3)]
    for depth in np.sort(draw.uniform(0.03, 1, draw.integers(40, 110))):
        radius = (0.008 + 0.035 * depth) * n
        cx, cy = draw.uniform(0, n), horizon + depth * (n - horizon)
        top, left = max(0, int(cy - radius) - 1), max(0, int(cx - radius) - 1)
        part = (slice(top, int(cy + radius) + 2), slice(left, int(cx + radius) + 2))
        u, v = (x[part] - cx) / radius, (y[part] - cy) / (0.7 * radius)
        far, angle = np.hypot(u, v), np.arctan2(v, u)
        petals = 0.75 + 0.25 * np.cos(draw.integers(4, 9) * angle + draw.uniform(0, 6))
        colour = colours[draw.integers(3)] * draw.uniform(0.75, 1.0)
        _lay(canvas[part], colour, np.clip((petals - far) * radius, 0, 1))
        _lay(canvas[part], np.array([0.9, 0.75, 0.2]), np.clip((0.25 - far) * radius, 0, 1))
    return canvas


def _wall(draw: np.random.Generator, n: int) -> np.ndarray:
    y, x = _places(n)
    rows = draw.uniform(9, 16)
    row = np.floor(y * rows).astype(int)
    across = x * rows * draw.uniform(0.4, 0.6) + 0.5 * (row % 2)
    down = y * rows % 1
    stone = draw.standard_normal((40, 40))[row, across.astype(int)]
    mortar = (np.abs(down - 0.5) > 0.42) | (np.abs(across % 1 - 0.5) > 0.46)
    brick = _colour(draw, (-0.03, 0.12), (0.2, 0.7), (0.35, 0.8))
    canvas = brick * (1 + 0.12 * stone + 0.12 * _noise(draw, n, 0.6))[:, :, None]
    _lay(canvas, np.float32(draw.uniform(0.4, 0.85)), 0.9 * mortar)
    left, top = draw.uniform(0.1, 0.45), draw.uniform(0.1, 0.4)
    u, v = (x - left) / draw.uniform(0.3, 0.5), (y - top) / draw.uniform(0.35, 0.55)
    inside = (u > 0) & (u < 1) & (v > 0) & (v < 1)
    if draw.random() < 0.5:  # a window
        pane = _colour(draw, (0.5, 0.7), (0.1, 0.5), (0.2, 0.7)) * (0.6 + 0.7 * v)[:, :, None]
        _lay(canvas, np.clip(pane, 0, 1), inside.astype(np.float32))
        frame = (np.minimum(u % 0.5, 0.5 - u % 0.5) < 0.03) | (
            np.minimum(v % (1 / 3), 1 / 3 - v % (1 / 3)) < 0.02
        )
        _lay(canvas, np.float32(draw.uniform(0.75, 1.0)), (inside & frame).astype(np.float32))
    else:  # a poster with lines of letters
        _lay(
            canvas,
            _colour(draw, saturation=(0.05, 0.5), value=(0.8, 1.0)),
            inside.astype(np.float32),
        )
        letters = draw.random((16, 26))[
            np.clip(v * 16, 0, 15).astype(int), np.clip(u * 26, 0, 25).astype(int)
        ]
        ink = inside & (letters > 0.35) & (np.abs(v * 16 % 1 - 0.5) < 0.3) & (np.abs(u - 0.5) < 0.4)
        _lay(canvas, _colour(draw, value=(0.05, 0.4)), ink.astype(np.float32))
    across_light = draw.uniform(-0.5, 0.5)
    canvas *= (1 + across_light * (x - 0.5) + draw.uniform(-0.4, 0.4) * (y - 0.5))[:, :, None]
    return canvas


_SCENES: tuple[Callable[[np.random.Generator, int], np.ndarray], ...] = (
    _landscape,
    _sea,
    _town,
    _still_life,
    _meadow,
    _wall,
)
