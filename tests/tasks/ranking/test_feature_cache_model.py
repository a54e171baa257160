"""The feature cache with the ranking model, its processor and its augmentation."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Dinov2Config

from hftune.tasks.ranking.augmentation_ranking import Augmentation
from hftune.tasks.ranking.configuration_ranking import PairwiseRankingConfig
from hftune.tasks.ranking.feature_cache import FeatureCache, compute_features, features_space
from hftune.tasks.ranking.image_files import load_image
from hftune.tasks.ranking.image_processing_ranking import RankingImageProcessor
from hftune.tasks.ranking.modeling_ranking import PairwiseRankingModel
from hftune.utils.errors import ConfigurationError
from hftune.utils.seeds import derive_seed

AUGMENTATION = Augmentation(flip=0.5, brightness=0.2)


def small_model(resize_mode: str = "native", **settings) -> PairwiseRankingModel:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    backbone = Dinov2Config(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=56
    )
    model = PairwiseRankingModel(
        PairwiseRankingConfig(backbone_config=backbone, feature_size=64, **settings)
    )
    model.image_processor = RankingImageProcessor(size=56, resize_mode=resize_mode)
    return model


@pytest.fixture
def paths(tmp_path):
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{number}.png" for number in range(7)]
    for path, size in zip(paths, [(40, 56), (56, 40), (30, 80)] * 3, strict=False):
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(path)
    return paths


def compute(model, paths, views=1):
    """The features of images, and how many images passed the backbone for them."""
    processor = model.image_processor
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    cache = FeatureCache.open(None, features_space(model, processor))
    passed = []
    hook = model.backbone.register_forward_pre_hook(
        lambda module, args, kwargs: passed.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    features = compute_features(
        model, cache, paths, hashes, processor, views=views, augmentation=AUGMENTATION, seed=5,
        batch_size=3, progress=False,
    )  # fmt: skip
    hook.remove()
    return features, sum(passed)


@pytest.mark.parametrize("resize_mode", ["native", "letterbox"])
def test_features_are_what_the_model_encodes(paths, resize_mode):
    model = small_model(resize_mode)
    features, passed = compute(model, paths, views=2)
    assert passed == 14
    for row, path in enumerate(paths):
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        rng = np.random.default_rng(derive_seed(5, "view", sha256, 1))
        image = load_image(path)
        for view, seen in enumerate((image, AUGMENTATION.augment(image, rng))):
            with torch.no_grad():
                wanted = model.encode(model.image_processor.process(seen)[None]).numpy()
            np.testing.assert_allclose(features.read([row], view), wanted, atol=1e-5)


def test_a_model_that_was_saved_finds_what_it_computed(paths, tmp_path):
    model = small_model()
    features, passed = compute(model, paths)
    assert passed == 7
    torch.nn.init.ones_(model.head.score[-1].weight)  # it has learnt
    model.save_pretrained(tmp_path / "model")
    again, passed = compute(PairwiseRankingModel.from_pretrained(tmp_path / "model"), paths)
    assert passed == 0
    np.testing.assert_array_equal(again.read(range(7)), features.read(range(7)))


def test_a_model_whose_last_blocks_train_is_refused():
    with pytest.raises(
        ConfigurationError,
        match=r"needs a frozen backbone, but these train: backbone\.encoder\.layer\.2\..*in all",
    ):
        model = small_model(unfreeze_last_blocks=1)
        features_space(model, model.image_processor)
