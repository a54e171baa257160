"""Image files of any kind: what their pixels are, and what is said of those that cannot be read."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import subprocess
import sys
import unicodedata
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from hftune.tasks.ranking.image_files import (
    MAX_PIXELS,
    FileFinder,
    ImageFacts,
    ImageProblem,
    inspect_images,
    load_image,
)
from hftune.utils.errors import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
PHOTO = Image.fromarray(np.random.default_rng(1).integers(0, 256, (60, 80, 3), dtype=np.uint8))


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def png(width: int, height: int, bits: int, colour_type: int, rows: bytes) -> bytes:
    """A PNG written by hand: sizes and depths that Pillow does not write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def array(source) -> np.ndarray:
    image = load_image(source)
    assert image.mode == "RGB"
    return np.asarray(image)


# What turns the upright picture into the one that is stored, by EXIF orientation.
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation(orientation, kind):
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](PIXELS)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    image = load_image(encoded(stored, kind, exif=exif, **options))
    np.testing.assert_array_equal(np.asarray(image), PIXELS)
    # Neither an image that is read again nor one that was saved is turned a second time.
    np.testing.assert_array_equal(array(image), PIXELS)
    np.testing.assert_array_equal(array(encoded(image, "PNG")), PIXELS)


def test_exif_orientation_of_a_jpeg_and_of_an_opened_image():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.fromarray(np.rot90(PIXELS).copy()), "JPEG", exif=exif, quality=95)
    plain = np.asarray(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(array(data), np.rot90(plain, -1))
    np.testing.assert_array_equal(array(Image.open(io.BytesIO(data))), np.rot90(plain, -1))


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0"]
)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_turns_nothing(exif):
    np.testing.assert_array_equal(array(encoded(Image.fromarray(PIXELS), "PNG", exif=exif)), PIXELS)


def test_unknown_orientation_turns_nothing():
    exif = Image.Exif()
    exif[0x0112] = 9
    np.testing.assert_array_equal(array(encoded(Image.fromarray(PIXELS), "PNG", exif=exif)), PIXELS)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_keep_their_gradient(kind):
    grey = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    expected = np.rint(grey / 257).astype(np.uint8)
    found = array(encoded(Image.fromarray(grey), kind))
    np.testing.assert_array_equal(found, np.stack([expected] * 3, axis=2))
    assert len(np.unique(found)) == 256


def test_sixteen_bits_are_the_eight_bits_that_they_were_made_of():
    grey = np.arange(256, dtype=np.uint16).reshape(16, 16)
    np.testing.assert_array_equal(array(encoded(Image.fromarray(grey * 257), "PNG"))[..., 1], grey)


def test_sixteen_bits_turned():
    exif = Image.Exif()
    exif[0x0112] = 3
    grey = np.linspace(0, 65535, 12, dtype=np.uint16).reshape(3, 4)
    found = array(encoded(Image.fromarray(grey), "PNG", exif=exif))[..., 0]
    np.testing.assert_array_equal(found, np.rint(grey[::-1, ::-1] / 257))


def test_sixteen_bits_big_endian():
    grey = np.linspace(0, 65535, 12).astype(np.uint16).reshape(3, 4)
    image = Image.frombytes("I;16B", (4, 3), grey.astype(">u2").tobytes())
    np.testing.assert_array_equal(array(image)[..., 0], np.rint(grey / 257))


def test_sixteen_bits_in_colour():
    colours = np.linspace(0, 65535, 4 * 5 * 3).astype(np.uint16).reshape(4, 5, 3)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in colours)
    found = array(png(5, 4, 16, 2, rows)).astype(int)
    assert np.abs(found - colours / 257).max() <= 1


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (np.full((2, 2), 0.5, np.float32), "pixels of mode F, whose range varies"),
        (np.array([[-5, 70000]], np.int32), "grey values from -5 to 70000 in 32 bits, expected 0"),
    ],
)
def test_values_of_unknown_range_are_refused(tmp_path, values, text):
    path = tmp_path / "grey.tif"
    Image.fromarray(values).save(path)
    with pytest.raises(ImageProblem, match=f"grey.tif has {text}"):
        load_image(path)
    with pytest.raises(DataError, match=f"grey.tif has {text}"):
        inspect_images([path])


def test_transparent_is_white():
    alpha = np.linspace(0, 255, 96).astype(np.uint8).reshape(8, 12)
    share = alpha[..., None] / 255
    for colours, mode in ((PIXELS, "RGBA"), (PIXELS[..., :1], "LA")):
        image = Image.fromarray(np.concatenate([colours, alpha[..., None]], axis=2))
        assert image.mode == mode
        found = array(encoded(image, "PNG")).astype(float)
        assert np.abs(found - (colours * share + 255 * (1 - share))).max() <= 1
        np.testing.assert_array_equal(found[0, 0], 255)
        np.testing.assert_array_equal(found[-1, -1], np.broadcast_to(colours[-1, -1], 3))


def test_transparent_entries_of_a_palette_are_white():
    image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    white = [255, 255, 255]
    expected = [[[10, 20, 30], white], [[70, 80, 90], white]]
    for data in (
        encoded(image, "PNG", transparency=1),
        encoded(image, "PNG", transparency=bytes([255, 0, 255])),
        encoded(image, "GIF", transparency=1),
    ):
        np.testing.assert_array_equal(array(data), expected)


def test_one_bit_and_grey():
    bits = np.array([[0, 1, 1], [1, 0, 0]], bool)
    np.testing.assert_array_equal(array(encoded(Image.fromarray(bits), "PNG"))[..., 0], bits * 255)
    grey = PIXELS[..., 0]
    np.testing.assert_array_equal(array(encoded(Image.fromarray(grey), "PNG"))[..., 2], grey)


def test_cmyk():
    rgb = np.repeat(np.array([[[255, 0, 0], [0, 200, 40], [250, 250, 250]]], np.uint8), 8, axis=1)
    image = Image.fromarray(np.repeat(rgb, 8, axis=0)).convert("CMYK")
    for data in (encoded(image, "TIFF"), encoded(image, "JPEG", quality=95)):
        assert np.abs(array(data).astype(int) - rgb).max() <= 12  # not inverted


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame(tmp_path, kind):
    frames = [Image.new("RGB", (40, 50), colour) for colour in ("red", "blue", "lime")]
    path = tmp_path / f"moving.{kind.lower()}"
    options = {"lossless": True} if kind == "WEBP" else {}
    frames[0].save(path, kind, save_all=True, append_images=frames[1:], **options)
    np.testing.assert_array_equal(array(path), np.asarray(frames[0]))
    (facts,) = inspect_images([path])
    assert facts.animated and (facts.width, facts.height) == (40, 50)


@pytest.mark.parametrize("lost", [1, 300, 1000])
def test_a_damaged_second_frame_is_no_problem(tmp_path, lost):
    path = tmp_path / "moving.gif"
    still = encoded(PHOTO, "GIF")
    data = encoded(PHOTO, "GIF", save_all=True, append_images=[PHOTO.rotate(180)])
    path.write_bytes(data[:-lost])
    np.testing.assert_array_equal(array(path), array(still))
    assert inspect_images([path])[0].animated
    path.write_bytes(still)
    assert not inspect_images([path])[0].animated


def test_an_image_of_one_pixel():
    np.testing.assert_array_equal(
        array(encoded(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG")), [[[1, 2, 3]]]
    )


def test_sources(tmp_path):
    data = encoded(Image.fromarray(PIXELS), "PNG")
    path = tmp_path / "image"  # the suffix says nothing
    path.write_bytes(data)
    for source in (
        path,
        str(path),
        data,
        bytearray(data),
        io.BytesIO(data),
        Image.fromarray(PIXELS),
    ):
        np.testing.assert_array_equal(array(source), PIXELS)
    with open(path, "rb") as stream:
        np.testing.assert_array_equal(array(stream), PIXELS)
        assert not stream.closed
    image = Image.fromarray(PIXELS)
    assert load_image(image) is image


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files by /proc")
def test_no_file_stays_open(tmp_path):
    frames = [Image.new("RGB", (4, 5), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "moving.png", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "still.bmp")
    (tmp_path / "broken.png").write_bytes((tmp_path / "moving.png").read_bytes()[:60])
    before = set(os.listdir("/proc/self/fd"))
    kept = [load_image(tmp_path / "moving.png"), load_image(tmp_path / "still.bmp")]
    with pytest.raises(ImageProblem):
        load_image(tmp_path / "broken.png")
    assert set(os.listdir("/proc/self/fd")) == before
    assert len(kept) == 2


# What cannot be read


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9, 0.98])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data", "ignore:Truncated File Read")
def test_cut_off(tmp_path, kind, share):
    path = tmp_path / "cut.img"
    data = encoded(PHOTO, kind)
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ImageProblem, match="cut.img is (damaged or cut off: |no image)") as one:
        load_image(path)
    with pytest.raises(DataError) as many:
        inspect_images([path])
    assert str(many.value) == f"1 of 1 images cannot be used:\n  {one.value}"


@pytest.mark.parametrize("missing", [1, 2, 100])
def test_cut_off_jpeg_at_its_very_end(missing):
    with pytest.raises(ImageProblem, match="^the image is damaged or cut off: image file is trunc"):
        load_image(encoded(PHOTO, "JPEG")[:-missing])


def test_damaged_in_the_middle():
    data = bytearray(encoded(PHOTO, "PNG"))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(ImageProblem, match="damaged or cut off"):
        load_image(bytes(data))


def test_pillows_settings_are_left_alone():
    load_image(encoded(PHOTO, "JPEG"))
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False
    assert Image.MAX_IMAGE_PIXELS == 89_478_485
    assert MAX_PIXELS == 2 * Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "x.jpg is empty"),
        (b"hello world", r"x.jpg is no image that Pillow can read: it begins with b'hello world'"),
        (b"version https://git-lfs.github.com/spec/v1\n", "begins with b'version https://git-lfs"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "x.jpg is a HEIC photograph, which Pillow does not read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "x.jpg is EPS"),
    ],
)
def test_wrong_files(tmp_path, content, text):
    path = tmp_path / "x.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageProblem, match=text) as error:
        load_image(path)
    assert str(path) in str(error.value)
    with pytest.raises(DataError, match=text):
        inspect_images([path])


def test_no_file_and_a_folder(tmp_path):
    with pytest.raises(ImageProblem, match="a.jpg: there is no such file$"):
        load_image(tmp_path / "a.jpg")
    (tmp_path / "folder.jpg").mkdir()
    with pytest.raises(ImageProblem, match="folder.jpg is a folder, not an image$"):
        load_image(tmp_path / "folder.jpg")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bombs_are_refused_by_their_header():
    with pytest.raises(ImageProblem, match="the image is too large: .*3600000000 pixels"):
        load_image(png(60_000, 60_000, 8, 2, b""))
    # Between the size at which Pillow warns and the one that it refuses.
    data = png(12_000, 12_000, 8, 2, b"")
    expected = "12000x12000 = 144,000,000 pixels, more than 100,000,000"
    with pytest.raises(ImageProblem, match=expected):
        load_image(data, max_pixels=100_000_000)
    with pytest.raises(ImageProblem, match="12x8 = 96 pixels, more than 95"):
        load_image(encoded(Image.fromarray(PIXELS), "PNG"), max_pixels=95)
    assert load_image(encoded(Image.fromarray(PIXELS), "PNG"), max_pixels=96).size == (12, 8)


def test_large_images_print_no_warning_of_pillow():
    code = (
        "import sys\n"
        "from hftune.tasks.ranking.image_files import ImageProblem, load_image\n"
        "try:\n    load_image(sys.stdin.buffer.read())\n"
        "except ImageProblem as problem:\n    print(problem)\n"
        "assert 'torch' not in sys.modules\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        input=png(12_000, 12_000, 8, 2, b""),
        capture_output=True,
        check=True,
    )
    assert run.stdout.startswith(b"the image is damaged or cut off")
    assert run.stderr == b""


# Many images


def test_facts(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    grey = Image.fromarray(np.zeros((40, 50), np.uint16))
    files = {
        "turned.jpg": (encoded(PHOTO, "JPEG", exif=exif), 60, 80, "RGB"),
        "turned.png": (encoded(PHOTO, "PNG", exif=exif), 60, 80, "RGB"),
        "turned.tif": (encoded(PHOTO, "TIFF", exif=exif), 60, 80, "RGB"),
        "cmyk.jpg": (encoded(PHOTO.convert("CMYK"), "JPEG"), 80, 60, "CMYK"),
        "grey.jpg": (encoded(PHOTO.convert("L"), "JPEG"), 80, 60, "L"),
        "deep.png": (encoded(grey, "PNG"), 50, 40, "I;16"),
        "photo.mpo": (encoded(PHOTO, "MPO", save_all=True, append_images=[PHOTO]), 80, 60, "RGB"),
    }
    for name, (data, *_) in files.items():
        (tmp_path / name).write_bytes(data)
    for workers in (1, 3, None):
        facts = inspect_images([tmp_path / name for name in files], workers=workers)
        assert facts == [
            ImageFacts(hashlib.sha256(data).hexdigest(), width, height, mode, False)
            for data, width, height, mode in files.values()
        ]
    for name, fact in zip(files, facts, strict=True):
        assert load_image(tmp_path / name).size == (fact.width, fact.height)
    assert inspect_images([]) == []


def test_all_problems_are_reported_together(tmp_path):
    paths = []
    for i in range(25):
        path = tmp_path / f"bad_{i:02d}.jpg"
        path.write_bytes(b"text" if i % 2 else encoded(PHOTO, "JPEG")[:500])
        paths.append(path)
    PHOTO.save(tmp_path / "good.png")
    with pytest.raises(DataError) as error:
        inspect_images([*paths[:10], tmp_path / "good.png", *paths[10:]])
    lines = str(error.value).splitlines()
    assert lines[0] == "25 of 26 images cannot be used:"
    assert lines[21:] == ["  and 5 more"]
    for path, line in zip(paths, lines[1:21], strict=False):
        assert line.startswith(f"  {path} is ")
    assert lines[2].endswith("is no image that Pillow can read: it begins with b'text'")


def test_missing_images_name_near_ones(tmp_path):
    for name in ("image_001.jpg", "image_002.JPG", "꽃.png"):
        PHOTO.save(tmp_path / name)
    with pytest.raises(DataError) as error:
        inspect_images([tmp_path / name for name in ("imge_001.jpg", "IMAGE_002.png", "zzz.png")])
    assert str(error.value).splitlines() == [
        "3 of 3 images cannot be used:",
        f"  {tmp_path}/imge_001.jpg: there is no such file. Did you mean 'image_001.jpg'?",
        f"  {tmp_path}/IMAGE_002.png: there is no such file. Did you mean 'image_002.JPG'?",
        f"  {tmp_path}/zzz.png: there is no such file",
    ]


def test_oddities_are_said_once(tmp_path, capfd):
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
    paths = [tmp_path / f"[{i}].gif" for i in range(3)]
    for path in paths:
        frames[0].save(path, save_all=True, append_images=frames[1:])
    small = tmp_path / "small.png"
    Image.new("RGB", (31, 400)).save(small)
    inspect_images([*paths, small])
    assert capfd.readouterr().err.splitlines() == [
        "warning: 3 of 4 images have more than one frame or page, of which the first counts, "
        f"such as {paths[0]}",
        f"warning: 1 of 4 images have a side of less than 32 pixels, such as {small}",
    ]


# Names


@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
def test_hangul_names_are_found_in_either_form(tmp_path, on_disk):
    folder, name = (unicodedata.normalize(on_disk, text) for text in ("화가", "꽃 그림.jpg"))
    (tmp_path / folder).mkdir()
    (tmp_path / folder / name).write_bytes(b"")
    (tmp_path / name).write_bytes(b"")
    finder = FileFinder(tmp_path)
    for form in ("NFC", "NFD"):
        below, plain = (unicodedata.normalize(form, t) for t in ("화가/꽃 그림.jpg", "꽃 그림.jpg"))
        assert finder.find(below) == tmp_path / folder / name
        assert finder.find(plain) == tmp_path / name
        assert finder.find(tmp_path / below) == tmp_path / folder / name
        assert FileFinder("/nowhere").find(str(tmp_path / below)) == tmp_path / folder / name
    assert finder.find("화가") is None  # a folder
    assert finder.find("화가/나무.jpg") is None
    assert finder.near("꽃 그림.png") == [unicodedata.normalize("NFC", "꽃 그림.jpg")]


def test_the_form_that_is_written_wins(tmp_path):
    forms = [unicodedata.normalize(form, "꽃.jpg") for form in ("NFC", "NFD")]
    for name in forms:
        (tmp_path / name).write_bytes(b"")
    assert [FileFinder(tmp_path).find(name) for name in forms] == [tmp_path / n for n in forms]


def test_a_folder_is_listed_once(tmp_path, monkeypatch):
    listed = []
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda folder: listed.append(folder) or listdir(folder))
    for i in range(50):
        (tmp_path / unicodedata.normalize("NFD", f"꽃 {i}.jpg")).write_bytes(b"")
    finder = FileFinder(tmp_path)
    assert all(finder.find(f"꽃 {i}.jpg") for i in range(50))
    assert finder.find("나무.jpg") is None
    assert listed == [tmp_path]


@pytest.mark.parametrize("name", ["", ".", "a\0b", "long " * 100, "x/" * 3000, "꽃" * 200])
def test_what_can_be_no_name_is_not_found(tmp_path, name):
    finder = FileFinder(tmp_path)
    assert finder.find(name) is None
    assert finder.near(name) == []
    with pytest.raises(ImageProblem):
        load_image(tmp_path / name)


def test_near_names(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("a_01.jpg", "a_02.jpg", "b.jpeg", "sub/c.PNG"):
        (tmp_path / name).write_bytes(b"")
    finder = FileFinder(tmp_path)
    assert finder.near("B.jpg") == ["b.jpeg"]
    assert finder.near("sub/c.png") == ["sub/c.PNG"]
    assert finder.near("a-01.jpg") == ["a_01.jpg", "a_02.jpg"]
    assert finder.near("nowhere/c.png") == []


def test_real_screenshots(test_data):
    paths = sorted((test_data / "ranking" / "websites").rglob("*.jp*g"))[:12]
    for path, fact in zip(paths, inspect_images(paths), strict=True):
        image = Image.open(path)
        assert (fact.width, fact.height) == image.size
        np.testing.assert_array_equal(array(path), np.asarray(ImageOps.exif_transpose(image)))
