"""Scores, comparisons and rankings of image files."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_ranking import small_model

from hftune.tasks.ranking.inference_ranking import (
    RankedImage,
    RankingPipeline,
    batch_compare,
    contested,
    find_images,
    load_ranking_model,
    rank_by_scores,
    win_probabilities,
)
from hftune.utils.errors import CheckpointError, ConfigurationError, DataError

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Seven images that differ, two of them in a subfolder, and what is no image."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "more" / ".thumbs").mkdir(parents=True)
    draw = np.random.default_rng(0)
    names = ("a.png", "b.JPG", "꽃.png", "d.png", "e.png", "more/f.png", "more/g.png")
    for place, name in enumerate((*names, ".hidden.png", "more/.thumbs/h.png")):
        pixels = draw.integers(0, 80 + 20 * place, (40 + place, 30, 3), np.uint8)
        Image.fromarray(pixels).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture
def model():
    model = small_model()
    model.config.score_temperature = 0.01
    return model


@pytest.fixture
def passes(model):
    """Sizes of the batches that have passed the backbone."""
    sizes: list[int] = []
    model.backbone.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    return sizes


def expected_scores(model, paths):
    """One at a time, as the guide does it."""
    with torch.no_grad():
        return [
            float(model._scores(model.image_processor([path])["pixel_values"])) for path in paths
        ]


# Comparisons


def test_a_comparison_has_the_keys_of_the_guide(model, folder, passes):
    a, b = str(folder / "a.png"), folder / "b.JPG"
    score_a, score_b = expected_scores(model, [a, b])
    passes.clear()
    with Image.open(a) as picture:
        rows = batch_compare(model, [(a, b), (b, a), (a, a), (picture, b)])
    assert sum(passes) == 3  # a, b, and the picture in memory
    assert [list(row) for row in rows] == 4 * [
        ["image1", "image2", "score1", "score2", "winner", "confidence", "probability"]
    ]
    first = rows[0]
    assert first["image1"] is a and first["image2"] is b and rows[3]["image1"] is picture
    assert first["score1"] == pytest.approx(score_a, abs=1e-6)
    assert first["score2"] == pytest.approx(score_b, abs=1e-6)
    assert first["confidence"] == abs(first["score1"] - first["score2"]) > 0
    assert first["winner"] == ("image1" if score_a > score_b else "image2")
    assert rows[1]["winner"] == ("image2" if score_a > score_b else "image1")
    assert first["probability"] == pytest.approx(1 / (1 + math.exp(-first["confidence"] / 0.01)))
    assert (rows[2]["winner"], rows[2]["confidence"], rows[2]["probability"]) == ("tie", 0.0, 0.5)
    model.config.score_temperature = None
    assert batch_compare(model, [(a, b)])[0]["probability"] is None


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_an_image_passes_the_backbone_once_however_many_pairs_it_is_in(
    model, folder, passes, batch_size
):
    paths = find_images(folder)
    pairs = [(first, second) for first in paths for second in paths]
    rows = batch_compare(model, pairs, batch_size=batch_size)
    assert sum(passes) == 5 and max(passes) == min(batch_size, 5)
    expected = dict(zip(paths, expected_scores(model, paths), strict=True))
    for row, (first, second) in zip(rows, pairs, strict=True):
        assert row["score1"] == pytest.approx(expected[first], abs=1e-5)
        assert row["score2"] == pytest.approx(expected[second], abs=1e-5)
    assert batch_compare(model, []) == []


def test_images_of_many_sizes_in_native_mode(folder):
    model = small_model(resize_mode="native")
    paths = find_images(folder, recursive=True)
    found = RankingPipeline(model).scores(paths)
    np.testing.assert_allclose(found, expected_scores(model, paths), atol=1e-5)


def test_a_transform_takes_the_place_of_the_image_processor(model, folder):
    def transform(image):
        array = np.asarray(image.resize((32, 32)), np.float32) / 255
        return torch.from_numpy(array).permute(2, 0, 1)

    a, b = folder / "a.png", folder / "b.JPG"
    [row] = batch_compare(model, [(a, b)], transform, "cpu")
    with torch.no_grad():
        pixels = torch.stack([transform(Image.open(path).convert("RGB")) for path in (a, b)])
        score1, score2 = model(pixels[:1], pixels[1:])
    assert row["score1"] == pytest.approx(score1.item(), abs=1e-6)
    assert row["score2"] == pytest.approx(score2.item(), abs=1e-6)
    model.image_processor = None
    assert batch_compare(model, [(a, b)], transform)[0]["score1"] == row["score1"]
    with pytest.raises(ConfigurationError, match="no image processor: set model.image_processor"):
        batch_compare(model, [(a, b)])


def test_the_mode_of_the_model_and_the_random_numbers_stay(folder):
    model = small_model(projector_dropout=0.5).train()
    state = torch.get_rng_state()
    a, b = folder / "a.png", folder / "b.JPG"
    rows = [batch_compare(model, [(a, b)])[0]["score1"] for _ in range(2)]
    assert model.training and rows[0] == rows[1]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("cache", [False, True])
def test_all_images_that_cannot_be_read_are_listed_at_once(model, folder, tmp_path, passes, cache):
    damaged, missing = tmp_path / "damaged.jpg", tmp_path / "missing.png"
    damaged.write_bytes((folder / "b.JPG").read_bytes()[:200])
    paths = [folder / "a.png", damaged, folder / "d.png", missing]
    with pytest.raises(DataError) as caught:
        RankingPipeline(model, batch_size=1, cache=cache).rank(paths)
    lines = str(caught.value).split("\n")
    assert lines[0] == "2 of 4 images cannot be used:"
    assert lines[1].startswith(f"  {damaged} is damaged or cut off: ")
    assert lines[2] == f"  {missing}: there is no such file"
    assert sum(passes) <= 1  # no time is lost on the others


def test_pairs_must_be_pairs(model):
    with pytest.raises(ConfigurationError) as caught:
        batch_compare(model, ("a.jpg", "b.jpg"))
    assert str(caught.value) == (
        "image_pairs[0] is 'a.jpg', expected two images: [(first, second), ...]"
    )


# Pipeline


def test_a_pipeline_of_a_saved_model_scores_ranks_and_compares(model, folder, tmp_path):
    model.save_pretrained(tmp_path / "run" / "model")
    pipeline = RankingPipeline(tmp_path / "run", device="cpu", num_workers=2, batch_size=2)
    names = ["a.png", "b.JPG", "d.png", "e.png", "꽃.png"]
    paths = [folder / name for name in names]
    expected = expected_scores(model, paths)

    scored = pipeline([str(path) for path in paths])
    assert [row["image"] for row in scored] == [str(path) for path in paths]
    np.testing.assert_allclose([row["score"] for row in scored], expected, atol=1e-6)
    assert pipeline(Image.open(paths[0]))[0]["score"] == pytest.approx(expected[0], abs=1e-6)
    assert pipeline(str(folder))[0]["image"] == folder / "a.png"

    ranked = pipeline.rank(folder)
    order = np.argsort(-np.array(expected))
    assert [one.path for one in ranked] == [paths[row] for row in order]
    assert [one.rank for one in ranked] == [1, 2, 3, 4, 5]
    best = expected[order[0]]
    others = [1 / (1 + math.exp((expected[row] - best) / 0.01)) for row in order[1:]]
    assert ranked[0].win_probability == pytest.approx(np.mean(others), abs=1e-3)
    assert len(pipeline.rank(folder, recursive=True)) == 7

    row = pipeline.compare(paths[0], paths[1])
    assert row == batch_compare(pipeline.model, [(paths[0], paths[1])])[0]


def test_kept_features_spare_every_later_pass(model, folder, passes):
    paths = find_images(folder)
    plain = RankingPipeline(model).scores(paths)
    passes.clear()
    pipeline = RankingPipeline(model, cache=True)
    np.testing.assert_allclose(pipeline.scores(paths), plain, atol=1e-6)
    assert sum(passes) == 5
    np.testing.assert_allclose(pipeline.scores(paths[::-1]), plain[::-1], atol=1e-6)
    assert sum(passes) == 5
    with torch.no_grad():  # another head on the same backbone
        for parameter in model.head.parameters():
            parameter.neg_()
    other = pipeline.scores(paths)
    assert sum(passes) == 5 and not np.allclose(other, plain, atol=1e-3)
    np.testing.assert_allclose(other, RankingPipeline(model).scores(paths), atol=1e-6)


def test_features_of_a_backbone_that_trains_are_not_kept(folder):
    with pytest.raises(ConfigurationError, match="needs a frozen backbone, but these train"):
        RankingPipeline(small_model(freeze_backbone=False), cache=True).rank(folder)


def test_scores_in_bfloat16_are_near_and_have_no_ties(model, folder):
    paths = find_images(folder, recursive=True)
    exact = RankingPipeline(model).scores(paths)
    rounded = RankingPipeline(model, dtype="bfloat16").scores(paths)
    assert 0 < np.abs(rounded - exact).max() < 0.1
    assert len(set(rounded)) == len(paths)
    np.testing.assert_allclose(
        RankingPipeline(model, dtype="bfloat16", cache=True).scores(paths), rounded, atol=1e-6
    )
    with pytest.raises(ConfigurationError) as caught:
        RankingPipeline(model, dtype="bfloat6")
    assert str(caught.value) == (
        "dtype: found 'bfloat6', expected float32 or bfloat16. Did you mean 'bfloat16'?"
    )


def test_scores_that_are_not_finite_are_refused(model, folder):
    with torch.no_grad():
        model.head.score[-1].bias.fill_(math.nan)
    with pytest.raises(DataError) as caught:
        RankingPipeline(model).rank(folder)
    assert str(caught.value) == (
        "the model's score of 5 of 5 images is NaN or infinite: its training has diverged"
    )


# Folders


def test_folders_are_listed_by_name_without_hidden_files(folder):
    names = ["a.png", "b.JPG", "d.png", "e.png", "꽃.png"]
    assert find_images(folder) == [folder / name for name in names]
    assert find_images(str(folder), recursive=True) == [
        *(folder / name for name in names[:4]),
        folder / "more" / "f.png",
        folder / "more" / "g.png",
        folder / "꽃.png",
    ]


def test_folders_without_images_say_what_to_do(folder, tmp_path):
    suffixes = "(.jpg, .jpeg, .png, .webp, .bmp, .tif, .tiff, .gif)"
    with pytest.raises(DataError) as caught:
        find_images(tmp_path)
    assert str(caught.value) == f"{tmp_path} has no images {suffixes}"
    (tmp_path / "more").symlink_to(folder / "more")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "a.png").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        find_images(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} has no images {suffixes}. Its subfolders have 1: look there too (--recursive)"
    )
    with pytest.raises(DataError, match="there is no such folder"):
        find_images(tmp_path / "missing")
    Path(tmp_path, "below", b"caf\xe9.png".decode(errors="surrogateescape")).write_bytes(b"")
    with pytest.raises(DataError, match=r"1 of 2 names are not UTF-8, such as b'caf\\xe9.png'"):
        find_images(tmp_path / "below")


# Rankings


def brute_force(scores, temperature):
    """Mean win probability and mean ``p (1 - p)``, pair by pair."""
    wins, unsure = [], []
    for i, first in enumerate(scores):
        p = [
            1 / (1 + math.exp((second - first) / temperature))
            for j, second in enumerate(scores)
            if i != j
        ]
        wins.append(sum(p) / len(p))
        unsure.append(sum(x * (1 - x) for x in p) / len(p))
    return wins, unsure


def test_probabilities_are_those_of_all_pairs():
    scores = np.random.default_rng(0).normal(0, 3, 60)
    wins, unsure = brute_force(scores, 0.7)
    np.testing.assert_allclose(win_probabilities(scores, 0.7), wins, atol=1e-12)
    np.testing.assert_allclose(contested(scores, 0.7), unsure, atol=1e-12)
    assert win_probabilities(scores, 0.7).mean() == pytest.approx(0.5)


@pytest.mark.parametrize("temperature", [0.2, 2.0])
def test_many_images_have_the_probabilities_of_all_pairs_too(temperature):
    scores = np.random.default_rng(0).normal(0, 3, 6000)
    chosen = np.arange(0, 6000, 500)
    p = 1 / (1 + np.exp(np.clip((scores - scores[chosen, None]) / temperature, -500, 500)))
    np.testing.assert_allclose(
        win_probabilities(scores, temperature)[chosen], (p.sum(1) - 0.5) / 5999, atol=1e-6
    )
    np.testing.assert_allclose(
        contested(scores, temperature)[chosen],
        ((p * (1 - p)).sum(1) - 0.25) / 5999,
        atol=1e-6,
    )


def test_the_most_contested_image_is_among_its_equals():
    unsure = contested(np.array([10.0, 0.1, 0.0, -0.1, -10.0]), 1.0)
    assert unsure.argmax() == 2 and unsure.argmin() in (0, 4)
    assert contested(np.zeros(3), 1.0) == pytest.approx([0.25, 0.25, 0.25])
    assert np.isnan(contested(np.zeros(1), 1.0)).all()


def test_equal_scores_share_a_rank():
    ranked = rank_by_scores(["a", "b", "c", "d"], np.array([1.0, 2.0, 2.0, 0.0]), 1.0)
    assert [(one.rank, one.path.name) for one in ranked] == [(1, "b"), (1, "c"), (3, "a"), (4, "d")]
    assert ranked[0].win_probability == ranked[1].win_probability
    assert rank_by_scores(["a"], np.array([0.3]), 1.0) == [RankedImage(1, Path("a"), 0.3, None)]
    assert rank_by_scores(["a", "b"], np.array([0.0, 1.0]))[0].win_probability is None


# Models


def test_models_are_found_in_their_folders(model, tmp_path):
    model.save_pretrained(tmp_path / "checkpoints" / "best_model")
    for name in ("best_model", "best_model.pt", "best_model.pth"):
        loaded = load_ranking_model(tmp_path / "checkpoints" / name)
        assert not loaded.training and loaded.config.score_temperature == 0.01


def test_a_pickle_is_refused_and_how_to_convert_it_is_said(tmp_path):
    path = tmp_path / "best_model.pt"
    torch.save({"model_state_dict": {}}, path)
    with pytest.raises(CheckpointError) as caught:
        load_ranking_model(path)
    assert str(caught.value) == (
        f"{path} is a pickle, which can run any program as it is read, so hftune does not. If you "
        "trust it, read its weights once with torch.load(path, weights_only=True), give them to "
        'the model (model.load_state_dict(weights["model_state_dict"])) and save that with '
        "model.save_pretrained(folder)."
    )


def test_what_is_no_ranking_model_is_refused(model, tmp_path):
    missing = tmp_path / "missing"
    cases = {
        missing: f"{missing}: there is no such folder. Give the folder of a saved model",
        tmp_path / "x.pt": f"there is neither a file {tmp_path}/x.pt nor a folder {tmp_path}/x of",
        tmp_path: f"{tmp_path} has no config.json, and no model/ with one: it is no saved model.",
    }
    model.backbone.save_pretrained(tmp_path / "backbone")
    cases[tmp_path / "backbone"] = (
        f"there is no ranking model in {tmp_path}/backbone: its config.json has dinov2."
    )
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "config.json").write_text("{")
    cases[tmp_path / "damaged"] = f"there is no ranking model in {tmp_path}/damaged: It looks like"
    model.save_pretrained(tmp_path / "weightless")
    (tmp_path / "weightless" / "model.safetensors").unlink()
    cases[tmp_path / "weightless"] = f"{tmp_path}/weightless cannot be loaded: Error no file"
    for path, message in cases.items():
        with pytest.raises(CheckpointError) as caught:
            load_ranking_model(path)
        assert str(caught.value).startswith(message)


def test_a_checkpoint_of_the_head_alone_is_refused_with_advice(model, tmp_path):
    model._keys_to_ignore_on_save = {f"backbone.{name}" for name in model.backbone.state_dict()}
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="which holds the head alone: the whole models are"):
        load_ranking_model(tmp_path)


def test_a_repository_that_cannot_be_reached():
    with pytest.raises(CheckpointError, match="^nobody/nothing "):
        load_ranking_model("nobody/nothing")
