"""Pixels of a ranking model: geometry against another implementation, settings, saving."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate
from transformers import AutoImageProcessor

from hftune.tasks.ranking.image_files import ImageProblem
from hftune.tasks.ranking.image_processing_ranking import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    RESIZE_MODES,
    RankingImageProcessor,
)
from hftune.utils.errors import ConfigurationError, DataError

torch.set_num_threads(1)
MEAN = torch.tensor(IMAGENET_MEAN)[:, None, None]
STD = torch.tensor(IMAGENET_STD)[:, None, None]


def picture(width: int, height: int) -> Image.Image:
    """Smooth colours with some noise, none of them near black or white."""
    rng = np.random.default_rng(width * 1000 + height)
    coarse = torch.tensor(rng.uniform(60, 190, (1, 3, 5, 7)))
    smooth = interpolate(coarse, size=(height, width), mode="bilinear")[0].permute(1, 2, 0)
    return Image.fromarray((smooth.numpy() + rng.uniform(-9, 9, smooth.shape)).astype(np.uint8))


def resized(image: Image.Image, width: int, height: int) -> torch.Tensor:
    """Colours in [0, 255], resized by torch."""
    pixels = torch.tensor(np.asarray(image)).permute(2, 0, 1)[None].double()
    if image.width == width == 1:  # which torch 2.15 resizes wrongly: three columns instead
        pixels = pixels.repeat(1, 1, 1, 3)
        return interpolate(pixels, size=(height, 3), mode="bicubic", antialias=True)[0, :, :, :1]
    return interpolate(pixels, size=(height, width), mode="bicubic", antialias=True)[0]


def colours(pixels: torch.Tensor) -> torch.Tensor:
    assert pixels.dtype == torch.float32 and pixels.is_contiguous()
    return 255 * (pixels * STD + MEAN)


def assert_near(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 1.1  # Pillow rounds twice, to whole levels


@pytest.mark.parametrize(
    ("width", "height", "inner", "place"),
    [
        (300, 200, (112, 75), (0, 18)),
        (200, 300, (75, 112), (18, 0)),
        (40, 30, (112, 84), (0, 14)),  # smaller ones grow
        (112, 112, (112, 112), (0, 0)),
        (1, 1, (112, 112), (0, 0)),
        (1, 3000, (1, 112), (55, 0)),
    ],
)
def test_letterbox(width, height, inner, place):
    image = picture(width, height)
    found = RankingImageProcessor(112).process(image)
    assert found.shape == (3, 112, 112)
    (x, y), (w, h) = place, inner
    assert_near(colours(found)[:, y : y + h, x : x + w], resized(image, w, h))
    # All around it lies the mean, but for its rounding to 8 bits.
    around = torch.ones(112, 112, dtype=torch.bool)
    around[y : y + h, x : x + w] = False
    assert found[:, around].abs().max() < 0.5 / 255 / 0.224 if around.any() else True
    assert around.sum() == 112 * 112 - w * h


def test_background():
    processor = RankingImageProcessor(28, background=(10, 20, 250))
    found = colours(processor.process(Image.new("RGB", (20, 10), (1, 2, 3)))).round()
    assert found[:, 0, 0].tolist() == [10, 20, 250]
    assert found[:, 14, 14].tolist() == [1, 2, 3]
    assert RankingImageProcessor().background == [124, 116, 104]


def test_squash():
    image = picture(300, 200)
    found = RankingImageProcessor(112, "squash").process(image)
    assert_near(colours(found), resized(image, 112, 112))


@pytest.mark.parametrize(
    ("width", "height", "whole", "place"),
    [
        (300, 200, (168, 112), (28, 0)),
        (200, 300, (112, 168), (0, 28)),
        (50, 100, (112, 224), (0, 56)),
        (56, 60, (112, 120), (0, 4)),
    ],
)
def test_crop(width, height, whole, place):
    image = picture(width, height)
    x, y = place
    expected = resized(image, *whole)[:, y : y + 112, x : x + 112]
    assert_near(colours(RankingImageProcessor(112, "crop").process(image)), expected)


def test_crop_of_a_very_long_image_is_quick():
    # The short side grown to 518 first would be 259 million pixels.
    found = RankingImageProcessor(518, "crop").process(Image.new("RGB", (1, 500_000), (9, 9, 9)))
    assert found.shape == (3, 518, 518)


@pytest.mark.parametrize(
    ("width", "height", "patch", "expected"),
    [
        (300, 200, 14, (112, 70)),  # 112 x 74.7
        (200, 300, 14, (70, 112)),
        (100, 60, 14, (98, 56)),  # not above the size: no shrinking
        (112, 105, 14, (112, 112)),  # 7.5 patches, to the even
        (3, 2, 14, (14, 14)),
        (1000, 2, 14, (112, 14)),
        (100, 61, 1, (100, 61)),
        (224, 100, 1, (112, 50)),
    ],
)
def test_native(width, height, patch, expected):
    image = picture(width, height)
    found = RankingImageProcessor(112, "native", patch).process(image)
    assert_near(colours(found), resized(image, *expected))


def test_normalisation_is_exact_where_nothing_is_resized():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (28, 28, 3), dtype=np.uint8)
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
    for mode in RESIZE_MODES:
        processor = RankingImageProcessor(28, mode, image_mean=mean, image_std=std)
        expected = ((pixels / 255 - mean) / std).astype(np.float32).transpose(2, 0, 1)
        np.testing.assert_array_equal(processor.process(Image.fromarray(pixels)), expected)


def test_the_rounding_of_the_size_is_said_once(tmp_path, capfd):
    processor = RankingImageProcessor(768, "squash")
    assert processor.size == 756
    assert capfd.readouterr().err == (
        "warning: 768 is not a multiple of the patch size 14: images are 756 pixels instead; the "
        "backbone would silently ignore the last 12 rows and columns\n"
    )
    processor.save_pretrained(tmp_path)
    assert RankingImageProcessor.from_pretrained(tmp_path).size == 756
    assert RankingImageProcessor(768, patch_size=16).size == 768
    assert RankingImageProcessor(225, patch_size=1).size == 225
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("mode", RESIZE_MODES)
def test_saved_and_loaded(tmp_path, mode):
    processor = RankingImageProcessor(
        96, mode, 16, (0.1, 0.2, 0.3), [0.123456789, 1 / 3, 1], (0, 255, 7)
    )
    processor.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["preprocessor_config.json"]
    image = picture(130, 70)
    for cls in (RankingImageProcessor, AutoImageProcessor):
        loaded = cls.from_pretrained(tmp_path)
        assert type(loaded) is RankingImageProcessor
        assert loaded.to_dict() == processor.to_dict()
        assert loaded.settings() == processor.settings()
        assert torch.equal(loaded.process(image), processor.process(image))
        other = cls.from_pretrained(tmp_path, size=32, background=(1, 2, 3))
        assert (other.size, other.background, other.resize_mode) == (32, [1, 2, 3], mode)


def test_settings_are_json_and_tell_processors_apart():
    changes = [
        {},
        {"size": 504},
        {"resize_mode": "native"},
        {"patch_size": 7},
        {"image_mean": (0.5, 0.5, 0.5)},
        {"image_std": (0.5, 0.5, 0.5)},
        {"background": (0, 0, 0)},
    ]
    keys = [json.dumps(RankingImageProcessor(**change).settings()) for change in changes]
    assert len(set(keys)) == len(changes)
    assert json.loads(keys[0]) == RankingImageProcessor().settings()
    assert json.loads(keys[0]) == {
        "algorithm": 1,
        "resample": "bicubic",
        "size": 518,
        "resize_mode": "letterbox",
        "patch_size": 14,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "background": [124, 116, 104],
    }


def test_a_batch_of_all_that_is_an_image(tmp_path):
    image = picture(50, 40)
    image.save(tmp_path / "a.png")
    processor = RankingImageProcessor(28)
    expected = processor.process(image)
    images = [str(tmp_path / "a.png"), tmp_path / "a.png", image, np.asarray(image)]
    batch = processor(images, return_tensors="pt")
    assert list(batch) == ["pixel_values"]
    assert batch["pixel_values"].shape == (4, 3, 28, 28)
    assert all(torch.equal(pixels, expected) for pixels in batch["pixel_values"])
    for one in images:
        assert torch.equal(processor(images=one)["pixel_values"], expected[None])


def test_arrays_of_grey_and_with_transparency():
    processor = RankingImageProcessor(28, "squash")
    grey = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)
    clear = np.zeros((28, 28, 4), np.uint8)
    first, second, white = processor([grey, grey[..., None], clear])["pixel_values"]
    assert torch.equal(first, second)
    np.testing.assert_array_equal(colours(first).round()[1], grey)
    assert (colours(white).round() == 255).all()


def test_native_images_of_several_sizes_are_a_list():
    processor = RankingImageProcessor(112, "native")
    images = [picture(100, 60), picture(60, 100), picture(300, 300)]
    pixels = processor(images)["pixel_values"]
    assert isinstance(pixels, list)
    assert [list(p.shape) for p in pixels] == [[3, 56, 98], [3, 98, 56], [3, 112, 112]]
    assert all(torch.equal(p, processor.process(i)) for p, i in zip(pixels, images, strict=True))
    assert processor(images[:1] * 2)["pixel_values"].shape == (2, 3, 56, 98)


def test_what_is_no_image(tmp_path):
    processor = RankingImageProcessor(28)
    with pytest.raises(DataError, match=r"found an array \[2, 2, 3\] of float64 as an image"):
        processor(np.zeros((2, 2, 3)))
    with pytest.raises(DataError, match=r"found an array \[3, 9, 9\] of uint8 as an image"):
        processor([np.zeros((3, 9, 9), np.uint8)])
    with pytest.raises(DataError, match="found no images"):
        processor([])
    with pytest.raises(ImageProblem, match="there is no such file"):
        processor([tmp_path / "a.png"])
    with pytest.raises(ConfigurationError, match="return_tensors is 'np', expected 'pt'"):
        processor(picture(9, 9), return_tensors="np")


def test_wrong_settings_are_reported_together():
    with pytest.raises(ConfigurationError) as error:
        RankingImageProcessor(True, "letterbx", 0, [1, 2], [0.1, 0, 1], (0, 0, 256), sise=3)
    assert error.value.problems == (
        "sise is not a setting of images. Did you mean 'size'?",
        "size is True, expected a number of pixels",
        "patch_size is 0, expected a number of pixels",
        "resize_mode is 'letterbx', expected one of letterbox, squash, crop, native. "
        "Did you mean 'letterbox'?",
        "image_mean is [1, 2], expected three numbers",
        "image_std is [0.1, 0, 1], expected three numbers above 0",
        "background is (0, 0, 256), expected three integers from 0 to 255",
    )
    with pytest.raises(ConfigurationError, match="size is 13, less than one patch of 14 pixels"):
        RankingImageProcessor(13)
