"""Scores of all images: in their order, one pass each, the same from any number of processes."""

from __future__ import annotations

import json
import math
import signal

import numpy as np
import pytest
import torch
from processes import run_together
from small_ranking import SIZE, small_model, small_pixels

from hftune.tasks.ranking.data_ranking import FeatureImages, PixelImages
from hftune.tasks.ranking.scoring_ranking import score_images
from hftune.tasks.ranking.tables_ranking import read_images

torch.set_num_threads(1)


class Pixels(torch.utils.data.Dataset):
    """Images in memory, without targets."""

    def __init__(self, count):
        self.pixels = small_pixels(count)

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, row):
        return {"pixel_values": self.pixels[row]}


class Passes:
    """Counts the images that pass a model's backbone, and those that pass its head."""

    def __init__(self, model):
        self.backbone = self.head = self.batches = 0
        model.backbone.register_forward_pre_hook(self._backbone, with_kwargs=True)
        model.head.register_forward_pre_hook(self._head)

    def _backbone(self, module, args, kwargs):
        assert not module.training and not torch.is_grad_enabled()
        self.backbone += len(kwargs["pixel_values"])

    def _head(self, module, args):
        assert not module.training and not torch.is_grad_enabled()
        self.head += len(args[0])
        self.batches += 1


@pytest.fixture(scope="module")
def table(tiered_images):
    return read_images(tiered_images, tiered_images.parent / "images")


@pytest.mark.parametrize("batch_size", [1, 3, 7, 20, 64])
@pytest.mark.parametrize("workers", [0, 2])
def test_scores_are_the_models_in_the_order_of_the_images(table, batch_size, workers):
    model = small_model()
    images = PixelImages(table.paths, model.image_processor.process, table.targets)
    passes = Passes(model)
    done = []
    scores = score_images(model, images, batch_size, workers, done.append)
    assert scores.dtype == np.float64
    assert passes.backbone == passes.head == 20
    assert sum(done) == 20
    assert len(done) == passes.batches == -(-20 // batch_size)
    expected = model.score([str(path) for path in table.paths])
    np.testing.assert_allclose(scores, expected.numpy(), atol=1e-5)
    assert len(np.unique(scores)) == 20


def test_images_of_several_sizes():
    model = small_model(resize_mode="native")
    shapes = [(SIZE, SIZE), (SIZE, 2 * SIZE), (2 * SIZE, SIZE), (SIZE, SIZE), (SIZE, 2 * SIZE)]
    pixels = [small_pixels(1, *shape, seed=i)[0] for i, shape in enumerate(shapes)]
    images = [{"pixel_values": image} for image in pixels]
    passes = Passes(model)
    scores = score_images(model, images, 4)
    assert passes.backbone == 5
    for image, score in zip(pixels, scores, strict=True):
        assert model.score(image[None])[0].item() == pytest.approx(score, abs=1e-5)


def test_features_pass_the_head_alone():
    class Features:
        views = 1
        values = np.random.default_rng(0).normal(size=(11, 32)).astype(np.float32)

        def __len__(self):
            return len(self.values)

        def read(self, rows, views):
            return self.values[rows]

    model = small_model()
    passes = Passes(model)
    scores = score_images(model, FeatureImages(Features(), np.arange(11.0)), 4)
    assert (passes.backbone, passes.head) == (0, 11)
    with torch.no_grad():
        expected = model.head(torch.from_numpy(Features.values))[:, 0]
    np.testing.assert_allclose(scores, expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_and_all_random_numbers_stay_as_they_were(training):
    model = small_model(freeze_backbone=False, projector_dropout=0.5).train(training)
    torch.manual_seed(3)
    np.random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    modes = {name: module.training for name, module in model.named_modules()}
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    for workers in (0, 1):
        score_images(model, Pixels(3), num_workers=workers)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert torch.is_grad_enabled()


def test_the_mode_is_restored_after_a_failure(table):
    model = small_model().train()
    images = PixelImages(["missing.png"], model.image_processor.process)
    with pytest.raises(Exception, match=r"missing\.png"):
        score_images(model, images)
    assert model.training


def test_no_image_has_no_score():
    assert score_images(small_model(), Pixels(0)).shape == (0,)


def test_signals_are_not_for_the_workers():
    class Handlers(Pixels):
        def __getitem__(self, row):
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
            assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
            return super().__getitem__(row)

    assert len(score_images(small_model(), Handlers(3), num_workers=1)) == 3
    assert signal.getsignal(signal.SIGTERM) != signal.SIG_IGN


# Several processes

CASES = [(count, size) for count in range(6) for size in (1, 2, 4)]


def _score_in(folder, rank):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    model = small_model()
    found = []
    for count, size in CASES:
        passes, done = Passes(model), []
        scores = score_images(model, Pixels(count), size, 0, done.append)
        found.append([scores.tolist(), passes.batches, sum(done)])
    (folder / f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_the_images_and_all_have_the_scores(tmp_path, processes):
    assert run_together(lambda rank: _score_in(tmp_path, rank), processes) == [0] * processes
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(processes)]
    model = small_model()
    for case, (count, size) in enumerate(CASES):
        expected = score_images(model, Pixels(count), size)
        for rank in range(processes):
            np.testing.assert_allclose(found[rank][case][0], expected, atol=1e-6)
            # All call the model equally often, as a sharded one needs it.
            assert found[rank][case][1] == math.ceil(math.ceil(count / size) / processes)
        assert sum(found[rank][case][2] for rank in range(processes)) == count
