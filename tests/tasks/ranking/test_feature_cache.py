"""Features of a frozen backbone: an image passes it once, ever; what is read is what it gave."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pickle
import random
import re
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from processes import finish, run_alone, run_together, start
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers import Dinov2Config

from hftune.tasks.ranking import feature_cache
from hftune.tasks.ranking.feature_cache import (
    CachedFeatures,
    FeatureCache,
    compute_features,
    features_space,
    row_keys,
)
from hftune.tasks.ranking.image_files import load_image
from hftune.utils.errors import ConfigurationError, DataError
from hftune.utils.seeds import derive_seed

SIZE = 6
torch.set_num_threads(1)


class Backbone(nn.Module):
    """Counts the images that pass."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(3, SIZE)
        self.dropout = nn.Dropout(0.5)
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.batches: list[tuple[int, ...]] = []

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        self.batches.append(tuple(pixels.shape))
        return self.dropout(self.mix(pixels.mean((2, 3)))) * self.scale

    @property
    def passed(self) -> int:
        return sum(shape[0] for shape in self.batches)


class Model(nn.Module):
    """The attributes of a ranking model that the cache uses."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.backbone = Backbone().requires_grad_(False)
        self.head = nn.Linear(SIZE, 1)
        self.config = SimpleNamespace(
            backbone_config=Dinov2Config(hidden_size=32), pooling="mean", feature_size=SIZE
        )

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.backbone(pixel_values)


class Processor:
    """Pixels as they are, in the size of the file."""

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def settings(self) -> dict:
        return {"resize_mode": "native", "scale": self.scale, "mean": (0.5, 0.5, 0.5)}

    def process(self, image: Image.Image) -> torch.Tensor:
        pixels = np.asarray(image, np.float32).transpose(2, 0, 1) / 255
        return torch.from_numpy(np.ascontiguousarray(pixels * self.scale))


@dataclasses.dataclass(frozen=True)
class Brightness:
    """Stands for an augmentation."""

    amount: float = 0.5
    is_off: ClassVar[bool] = False

    def settings(self) -> dict:
        return {"amount": self.amount}

    def augment(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        factor = 1 - rng.uniform(0, self.amount)
        return image.point(lambda value: round(value * factor))


@dataclasses.dataclass
class Images:
    """Files of images, and what is needed to ask for their features."""

    paths: list[Path]
    folder: Path

    @property
    def hashes(self) -> list[str]:
        return [hashlib.sha256(path.read_bytes()).hexdigest() for path in self.paths]

    def cache(self, model: Model, **dtypes: str) -> FeatureCache:
        return FeatureCache.open(self.folder, features_space(model, Processor(), **dtypes))

    def compute(self, model: Model, cache: FeatureCache | None = None, **options) -> CachedFeatures:
        hashes = options.pop("hashes", None) or self.hashes
        return compute_features(
            model,
            cache or self.cache(model),
            self.paths,
            hashes,
            Processor(),
            **{"batch_size": 4, "progress": False} | options,
        )


@pytest.fixture
def images(tmp_path):
    return make_images(tmp_path, 10)


def make_images(folder: Path, count: int, sizes=((8, 6),)) -> Images:
    rng = np.random.default_rng(count)
    (folder / "images").mkdir()
    paths = []
    for number in range(count):
        width, height = sizes[number % len(sizes)]
        path = folder / "images" / f"그림 {number}.png"
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(path)
        paths.append(path)
    return Images(paths, folder / "cache")


def expected(model: Model, images: Images, augmentation=None, views=1, seed=0) -> np.ndarray:
    """Features ``[N, views, D]``, one image at a time."""
    model.eval()
    result = []
    for path, sha256 in zip(images.paths, images.hashes, strict=True):
        for view in range(views):
            image = load_image(path)
            if view:
                rng = np.random.default_rng(derive_seed(seed, "view", sha256, view))
                image = augmentation.augment(image, rng)
            result.append(model.encode(Processor().process(image)[None])[0].numpy())
    model.backbone.batches.clear()
    return np.array(result).reshape(len(images.paths), views, SIZE)


# What decides the features


def test_a_space_says_what_decides_the_features():
    space = features_space(Model(), Processor(), stored_dtype="float16")
    weights = space.pop("weights")
    backbone = space.pop("backbone")
    assert re.fullmatch("[0-9a-f]{32}", weights)
    assert backbone["model_type"] == "dinov2"
    assert backbone["hidden_size"] == 32
    assert not backbone.keys() & {"_name_or_path", "transformers_version", "id2label", "dtype"}
    assert space == {
        "format": 1,
        "processor": {"resize_mode": "native", "scale": 1.0, "mean": (0.5, 0.5, 0.5)},
        "pooling": "mean",
        "feature_size": SIZE,
        "compute_dtype": "float32",
        "stored_dtype": "float16",
        "device": "cpu",
    }


def change(what: str, model: Model) -> None:
    """Changes one thing about a model."""
    weight = model.backbone.mix.weight
    if what == "the last bit of a weight":
        weight.data.view(torch.int32)[-1, -1] ^= 1
    elif what == "a scalar":
        model.backbone.scale.data += 1
    elif what == "two weights":
        weight.data[[0, 1]] = weight.data[[1, 0]]
    elif what == "the dtype":
        model.backbone.to(torch.bfloat16)
    elif what == "a name":
        model.backbone.other, model.backbone.mix = model.backbone.mix, nn.Identity()
    elif what == "the shape":
        weight.data = weight.data.reshape(3, SIZE)
    elif what == "the configuration":
        model.config.backbone_config.layer_norm_eps *= 2
    elif what == "pooling":
        model.config.pooling = "cls"


@pytest.mark.parametrize(
    "what",
    [
        "the last bit of a weight", "a scalar", "two weights", "the dtype", "a name", "the shape",
        "the configuration", "pooling",
    ],
)  # fmt: skip
def test_another_model_has_another_space(what, tmp_path):
    plain, changed = Model(), Model()
    assert features_space(changed, Processor()) == features_space(plain, Processor())
    change(what, changed)
    folders = {
        FeatureCache.open(tmp_path, features_space(model, Processor())).folder
        for model in (plain, changed)
    }
    assert len(folders) == 2


def test_other_settings_have_other_spaces(tmp_path):
    spaces = [
        features_space(Model(), Processor()),
        features_space(Model(), Processor(scale=0.5)),
        features_space(Model(), Processor(), stored_dtype="float16"),
        features_space(Model(), Processor(), compute_dtype="bfloat16"),
        features_space(Model(), Processor()) | {"device": "cuda"},
    ]
    assert len({FeatureCache.open(tmp_path, space).folder for space in spaces}) == 5


def test_a_head_and_names_are_no_part_of_a_space():
    model = Model()
    plain = features_space(model, Processor())
    model.head.weight.data += 1
    config = model.config.backbone_config
    config.name_or_path, config.id2label = "somewhere", {0: "a"}
    assert features_space(model, Processor()) == plain


def test_the_digest_sees_what_cannot_be_read_in_one_piece():
    plain, turned = Model(), Model()
    weight = turned.backbone.mix.weight
    weight.data = weight.data.T.contiguous().T
    assert not weight.data.is_contiguous()
    assert features_space(turned, Processor()) == features_space(plain, Processor())


def test_a_backbone_that_trains_is_refused():
    model = Model()
    model.backbone.mix.requires_grad_(True)
    with pytest.raises(ConfigurationError) as error:
        features_space(model, Processor())
    assert str(error.value) == (
        "the feature cache needs a frozen backbone, but these train: backbone.mix.weight, "
        "backbone.mix.bias: freeze the backbone, or have its features computed in each step with "
        "--feature_cache off"
    )
    model.backbone.layers = nn.ModuleList(nn.Linear(1, 1) for _ in range(5))
    with pytest.raises(ConfigurationError) as error:
        features_space(model, Processor(), stored_dtype="float61")
    assert error.value.problems == (
        "stored_dtype: found 'float61', expected float32 or float16. Did you mean 'float16' or "
        "'float32'?",
        "the feature cache needs a frozen backbone, but these train: backbone.mix.weight, "
        "backbone.mix.bias, backbone.layers.0.weight, ... (12 in all): freeze the backbone, or "
        "have its features computed in each step with --feature_cache off",
    )


def test_keys_of_views():
    hashes = [hashlib.sha256(b"a").hexdigest(), hashlib.sha256(b"b").hexdigest()]
    plain = row_keys(hashes)
    assert plain == [bytes.fromhex(sha256) for sha256 in hashes]
    keys = row_keys(hashes, 3, Brightness(), 1)
    assert len(set(keys)) == 6
    assert [keys[0], keys[3]] == plain
    assert row_keys(hashes, 2, Brightness(), 1) == [*keys[:2], *keys[3:5]]
    for other in (row_keys(hashes, 3, Brightness(0.4), 1), row_keys(hashes, 3, Brightness(), 2)):
        assert set(other) & set(keys) == set(plain)


# Computing and reading


def test_features_are_those_of_the_model(images):
    model = Model().train()
    wanted = expected(model, images)
    model.train()
    features = images.compute(model)
    assert (len(features), features.views, features.feature_size) == (10, 1, SIZE)
    np.testing.assert_array_equal(features.read(range(10)), wanted[:, 0])
    np.testing.assert_array_equal(features.read([7, 7, 2], 0), wanted[[7, 7, 2], 0])
    assert features.read([1]).dtype == np.float32
    assert model.training
    assert model.backbone.batches == [(4, 3, 6, 8), (4, 3, 6, 8), (2, 3, 6, 8)]


def test_an_image_passes_the_backbone_once_ever(images):
    model = Model()
    first = images.compute(model).read(range(10))
    np.testing.assert_array_equal(images.compute(model).read(range(10)), first)
    assert model.backbone.passed == 10
    # Another run, with more images and other names.
    images.paths[3] = images.paths[3].rename(images.paths[3].with_name("renamed.png"))
    new = images.paths[0].with_name("new.png")
    Image.new("RGB", (8, 6), "red").save(new)
    images.paths.insert(5, new)
    other = Model()
    features = images.compute(other)
    assert other.backbone.passed == 1
    np.testing.assert_array_equal(features.read(range(11)), expected(other, images)[:, 0])


def test_images_with_the_same_bytes_share_a_row(images):
    images.paths += [images.paths[2], images.paths[0].with_name("copy.png")]
    images.paths[-1].write_bytes(images.paths[2].read_bytes())
    model = Model()
    features = images.compute(model)
    assert model.backbone.passed == 10
    assert len(images.cache(model).array) == 10
    wanted = features.read([2])[0]
    np.testing.assert_array_equal(features.read([10, 11]), [wanted, wanted])


def test_images_of_many_shapes_pass_in_batches_of_one_shape(tmp_path):
    sizes = [(8, 6), (6, 8), (4, 4), (8, 6)]
    images = make_images(tmp_path, 40, sizes)
    model = Model()
    features = images.compute(model)
    batches = list(model.backbone.batches)
    assert sorted(batches) == sorted(
        [(4, 3, 6, 8)] * 5
        + [(4, 3, 8, 6)] * 2
        + [(2, 3, 8, 6)]
        + [(4, 3, 4, 4)] * 2
        + [(2, 3, 4, 4)]
    )
    np.testing.assert_array_equal(features.read(range(40)), expected(model, images)[:, 0])


def test_images_of_which_no_two_are_alike_do_not_wait_for_ever(tmp_path):
    images = make_images(tmp_path, 30, [(4 + n, 4) for n in range(30)])
    waiting = []

    class Counting(Processor):
        def process(self, image):
            waiting.append(len(waiting) + 1 - model.backbone.passed)
            return super().process(image)

    model = Model()
    features = compute_features(
        model, images.cache(model), images.paths, images.hashes, Counting(), batch_size=2,
        progress=False,
    )  # fmt: skip
    assert max(waiting) <= 10
    np.testing.assert_array_equal(features.read(range(30)), expected(model, images)[:, 0])


def test_images_that_wait_alone_do_not_part_those_that_come_together(tmp_path):
    alone, pairs = [(4 + n, 4) for n in range(16)], [(4, 5 + n // 2) for n in range(10)]
    model = Model()
    make_images(tmp_path, 26, alone + pairs).compute(model)
    assert [shape for shape in model.backbone.batches if shape[2] > 4] == [
        (2, 3, 5 + n, 4) for n in range(5)
    ]


def test_two_runs_at_once(images):
    def run() -> None:
        features = images.compute(model, batch_size=1)
        np.testing.assert_array_equal(features.read(range(10)), wanted)

    model = Model()
    wanted = expected(model, images)[:, 0]
    assert [finish(child) for child in [start(run), start(run)]] == [0, 0]
    images.compute(model)
    assert model.backbone.passed == 0


def test_workers_and_batches_change_nothing(images):
    model = Model()
    wanted = expected(model, images, Brightness(), 3)
    features = images.compute(
        model, views=3, augmentation=Brightness(), batch_size=5, num_workers=2
    )
    every = np.repeat(np.arange(10), 3), np.tile(np.arange(3), 10)
    np.testing.assert_array_equal(features.read(*every), wanted.reshape(30, SIZE))


def test_views_differ_and_come_again(images):
    model = Model()
    wanted = expected(model, images, Brightness(), 3, seed=7)
    features = images.compute(model, views=3, augmentation=Brightness(), seed=7)
    assert features.views == 3
    assert model.backbone.passed == 30
    for view in range(3):
        np.testing.assert_array_equal(features.read(range(10), view), wanted[:, view])
    np.testing.assert_array_equal(features.read([4, 4, 5], [2, 0, 1]), wanted[[4, 4, 5], [2, 0, 1]])
    assert not np.isclose(wanted[:, 1], wanted[:, 2]).all(1).any()
    # The first view is that of runs without augmentation, or with another.
    images.compute(model)
    assert model.backbone.passed == 30
    images.compute(model, views=4, augmentation=Brightness(), seed=7)
    assert model.backbone.passed == 40
    images.compute(model, views=2, augmentation=Brightness(), seed=8)
    assert model.backbone.passed == 50
    images.compute(model, views=2, augmentation=Brightness(0.4), seed=7)
    assert model.backbone.passed == 60


def test_an_image_is_decoded_once_for_all_its_views(images, monkeypatch):
    read = []
    content = Path.read_bytes
    hashes = images.hashes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path) or content(path))
    images.compute(Model(), views=3, augmentation=Brightness(), hashes=hashes)
    assert sorted(read) == sorted(images.paths)


@pytest.mark.parametrize(("views", "text"), [(0, "found 0, expected 1"), (2, "found 2 and")])
def test_views_need_an_augmentation(images, views, text):
    with pytest.raises(ConfigurationError, match=f"views: {text}"):
        images.compute(Model(), views=views)


def test_a_model_that_has_moved_is_refused(images):
    space = features_space(Model(), Processor()) | {"device": "cuda"}
    with pytest.raises(ConfigurationError) as error:
        images.compute(Model(), FeatureCache.open(images.folder, space))
    assert str(error.value) == (
        "the feature cache was opened for cuda, but the model is on cpu now: move it before "
        "features_space"
    )


def test_float16(images):
    model = Model()
    wanted = expected(model, images)[:, 0]
    cache = images.cache(model, stored_dtype="float16")
    features = images.compute(model, cache)
    assert cache.array.dtype == np.float16
    read = features.read(range(10))
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, wanted.astype(np.float16).astype(np.float32))
    assert not np.array_equal(read, wanted)


def test_bfloat16_computes_with_autocast(images):
    model = Model()
    wanted = expected(model, images)[:, 0]
    read = images.compute(model, images.cache(model, compute_dtype="bfloat16")).read(range(10))
    np.testing.assert_allclose(read, wanted, atol=0.05)
    assert not np.array_equal(read, wanted)
    # A surrounding autocast has no say.
    with torch.autocast("cpu", torch.bfloat16):
        plain = images.compute(model).read(range(10))
    np.testing.assert_array_equal(plain, wanted)


def test_another_encoder(images):
    model = Model()
    features = images.compute(model, encode=lambda pixels: model.encode(pixels) * 2)
    np.testing.assert_array_equal(features.read(range(10)), 2 * expected(model, images)[:, 0])


def test_random_numbers_of_the_run_stay_as_they_are(images):
    torch.manual_seed(3)
    random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    model = Model()
    torch.set_rng_state(before[0])
    images.compute(model, views=2, augmentation=Brightness(), num_workers=2)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before[1:]


def test_copies_for_workers_hold_no_features(tmp_path):
    images = make_images(tmp_path, 400)
    features = images.compute(Model())
    packed = pickle.dumps(features)
    assert len(packed) < 400 * 8 + 4000
    np.testing.assert_array_equal(pickle.loads(packed).read([5, 1]), features.read([5, 1]))


class Reading(Dataset):
    def __init__(self, features: CachedFeatures) -> None:
        self.features = features

    def __len__(self) -> int:
        return len(self.features)

    def __getitems__(self, rows: list[int]) -> torch.Tensor:
        return torch.from_numpy(self.features.read(rows))


def test_a_loader_s_workers_read(images):
    model = Model()
    features = images.compute(model)
    loader = DataLoader(Reading(features), batch_size=3, num_workers=2, collate_fn=lambda x: x)
    np.testing.assert_array_equal(torch.cat([*loader]).numpy(), expected(model, images)[:, 0])


def test_rows_that_others_append_later_do_not_matter(images, tmp_path):
    model = Model()
    cache = images.cache(model)
    features = images.compute(model, cache)
    wanted = features.read(range(10))
    (tmp_path / "more").mkdir()
    more = make_images(tmp_path / "more", 5)
    more.folder = images.folder
    more.compute(model)
    np.testing.assert_array_equal(features.read(range(10)), wanted)
    more.compute(model, cache)
    np.testing.assert_array_equal(features.read(range(10)), wanted)


# What goes wrong


def test_images_that_cannot_be_read_are_named_together(images):
    hashes = images.hashes
    for number, content in ((1, b"no image"), (6, images.paths[6].read_bytes()[:60])):
        images.paths[number].write_bytes(content)
        hashes[number] = hashlib.sha256(content).hexdigest()
    images.paths[3].unlink()
    Image.new("RGB", (8, 6), "blue").save(images.paths[8])
    model = Model()
    with pytest.raises(DataError) as error:
        images.compute(model, hashes=hashes, num_workers=1)
    first, *lines = str(error.value).splitlines()
    assert first == "4 images have no features, those of the others are kept:"
    for line, number, text in zip(
        lines,
        (1, 3, 6, 8),
        ("no image", "No such file", "damaged", "has changed since"),
        strict=True,
    ):
        assert line.startswith(f"  {images.paths[number]}: ")
        assert text in line
    assert model.backbone.passed == 6
    del images.paths[8], images.paths[6], images.paths[3], images.paths[1]
    features = images.compute(model)
    assert model.backbone.passed == 6
    np.testing.assert_array_equal(features.read(range(6)), expected(model, images)[:, 0])


def test_a_long_list_of_problems_is_cut(tmp_path):
    images = make_images(tmp_path, 23)
    hashes = images.hashes
    for path in images.paths[:22]:
        path.write_bytes(b"")
    with pytest.raises(DataError) as error:
        images.compute(Model(), hashes=hashes)
    lines = str(error.value).splitlines()
    assert len(lines) == 22
    assert lines[-1] == "  and 2 more"


def test_features_that_are_not_finite_are_not_kept(images):
    model = Model()

    def overflowing(pixels: torch.Tensor) -> torch.Tensor:
        features = model.encode(pixels)
        features[0] *= 1e6
        return features

    with pytest.raises(DataError) as error:
        images.compute(model, images.cache(model, stored_dtype="float16"), encode=overflowing)
    assert str(error.value) == "3 images have no features, those of the others are kept:" + "".join(
        f"\n  {images.paths[n]}: its features are not finite (try --feature_dtype float32)"
        for n in (0, 4, 8)
    )
    assert len(images.cache(model, stored_dtype="float16").array) == 7


def test_what_was_computed_before_an_error_is_kept(images):
    model = Model()

    def interrupted(pixels: torch.Tensor) -> torch.Tensor:
        if model.backbone.passed == 8:
            raise KeyboardInterrupt
        return model.encode(pixels)

    with pytest.raises(KeyboardInterrupt):
        images.compute(model, encode=interrupted)
    features = images.compute(model)
    assert model.backbone.batches == [(4, 3, 6, 8), (4, 3, 6, 8), (2, 3, 6, 8)]
    np.testing.assert_array_equal(features.read(range(10)), expected(model, images)[:, 0])


@pytest.mark.parametrize("calls", [0, 1, 2])
def test_a_killed_run_goes_on(images, monkeypatch, calls):
    monkeypatch.setattr(feature_cache, "_APPEND_SECONDS", 0)
    model = Model()

    def killed() -> None:
        def encode(pixels: torch.Tensor) -> torch.Tensor:
            if model.backbone.passed == 4 * calls:
                os.kill(os.getpid(), signal.SIGKILL)
            return model.encode(pixels)

        images.compute(model, encode=encode)

    assert run_alone(killed) == -signal.SIGKILL
    assert len(images.cache(model).array) == 4 * calls
    features = images.compute(model)
    assert model.backbone.passed == 10 - 4 * calls
    np.testing.assert_array_equal(features.read(range(10)), expected(model, images)[:, 0])


def test_damaged_rows_are_computed_anew_and_it_is_said_once(images, capsys):
    model = Model()
    wanted = images.compute(model).read(range(10))
    path = images.cache(model).folder / "features.bin"
    content = bytearray(path.read_bytes())
    for row in (2, 9):
        content[row * 4 * SIZE + 3] ^= 64
    path.write_bytes(content)
    features = images.compute(model)
    assert model.backbone.passed == 12
    np.testing.assert_array_equal(features.read(range(10)), wanted)
    said = f"2 of 10 features in {path.parent} are damaged: they are computed anew."
    assert capsys.readouterr().err.splitlines() == [said]
    np.testing.assert_array_equal(images.compute(model).read(range(10)), wanted)
    assert model.backbone.passed == 12
    assert capsys.readouterr().err == ""


# Several processes


def in_group(rank: int, work) -> None:
    torch.distributed.init_process_group("gloo")
    try:
        work(rank)
    finally:
        torch.distributed.destroy_process_group()


def test_processes_of_a_group_share_the_work(images, tmp_path):
    model = Model()
    wanted = expected(model, images, Brightness(), 2)

    def work(rank: int) -> None:
        features = images.compute(model, views=2, augmentation=Brightness())
        for view in range(2):
            np.testing.assert_array_equal(features.read(range(10), view), wanted[:, view])
        (tmp_path / f"{rank}").write_text(str(model.backbone.passed))
        images.compute(model, views=2, augmentation=Brightness())
        assert model.backbone.passed == 10

    assert run_together(lambda rank: in_group(rank, work)) == [0, 0]
    assert [(tmp_path / f"{rank}").read_text() for rank in range(2)] == ["10", "10"]
    assert len(images.cache(model).array) == 20


def test_more_processes_than_work(images):
    model = Model()
    images.paths = images.paths[:1]

    def work(rank: int) -> None:
        assert images.compute(model).read([0]).shape == (1, SIZE)
        assert model.backbone.passed == (rank == 0)

    assert run_together(lambda rank: in_group(rank, work), 3) == [0, 0, 0]


def test_processes_tell_each_other_what_is_wrong(images, tmp_path):
    hashes = images.hashes
    for number in (4, 5):
        images.paths[number].write_bytes(b"")

    def work(rank: int) -> None:
        with pytest.raises(DataError) as error:
            images.compute(Model(), hashes=hashes)
        (tmp_path / f"{rank}").write_text(str(error.value))

    assert run_together(lambda rank: in_group(rank, work)) == [0, 0]
    texts = [(tmp_path / f"{rank}").read_text() for rank in range(2)]
    assert texts[0] == texts[1]
    assert texts[0].startswith("2 images have no features")
    assert len(images.cache(Model()).array) == 8


def test_a_process_that_fails_ends_the_others(images, tmp_path):
    def work(rank: int) -> None:
        def encode(pixels: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("out of memory")

        with pytest.raises(RuntimeError if rank else DataError) as error:
            images.compute(model, encode=encode if rank else None)
        (tmp_path / f"{rank}").write_text(str(error.value))

    model = Model()
    assert run_together(lambda rank: in_group(rank, work)) == [0, 0]
    texts = [(tmp_path / f"{rank}").read_text() for rank in range(2)]
    assert texts == [
        "process 1 could not compute its features: RuntimeError: out of memory",
        "out of memory",
    ]
    assert len(images.cache(model).array) == 5


def test_a_folder_that_is_not_shared_is_found(images, tmp_path):
    def work(rank: int) -> None:
        images.folder = tmp_path / f"of {rank}"
        with pytest.raises(DataError, match="all processes need one HFTUNE_HOME"):
            images.compute(Model())

    assert run_together(lambda rank: in_group(rank, work)) == [0, 0]


def test_a_folder_that_only_the_first_process_has_is_found(images, tmp_path):
    images.compute(Model())

    def work(rank: int) -> None:
        if rank == 0:
            assert len(images.compute(Model())) == 10
            return
        images.folder = tmp_path / "other"
        with pytest.raises(DataError, match="10 features are not in .* need one HFTUNE_HOME"):
            images.compute(Model())

    assert run_together(lambda rank: in_group(rank, work)) == [0, 0]
