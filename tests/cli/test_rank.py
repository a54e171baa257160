"""``hftune rank``: comparing, scoring and ranking images, evaluating and measuring a model."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest

from hftune.cli.main import main

torch = pytest.importorskip("torch")
pytest.importorskip("scipy", reason="the extras of vision are not installed")
torch.set_num_threads(1)

NAMES = ("a.png", "b.png", "c, d.png", "=e.png", "꽃.png", "f.png", "g.png", "h.png")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """``model`` and ``pictures``, eight of them, in tiers that the model knows nothing of."""
    from PIL import Image
    from transformers import Dinov2Config

    from hftune.tasks.ranking.backbones_ranking import new_backbone
    from hftune.tasks.ranking.modeling_ranking import (
        PairwiseRankingModel,
        make_processor,
        ranking_config,
    )

    place = tmp_path_factory.mktemp("rank")
    torch.manual_seed(0)
    backbone = new_backbone(
        Dinov2Config(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, patch_size=8, image_size=32
        )
    )
    config = ranking_config(
        backbone, projector_hidden_dim=16, projector_output_dim=8, head_hidden_dim=4, tiers="SABC"
    )
    model = PairwiseRankingModel(config, backbone=backbone).eval()
    model.config.score_temperature = 0.02
    model.image_processor = make_processor(backbone.config, 32, "letterbox")
    model.save_pretrained(place / "model")
    draw = np.random.default_rng(0)
    (place / "pictures").mkdir()
    for number, name in enumerate(NAMES):
        pixels = draw.integers(0, 100 + 20 * number, (32 + 3 * number, 40, 3), np.uint8)
        Image.fromarray(pixels).save(place / "pictures" / name)
    with open(place / "test.csv", "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image_id", "filename", "tier", "artist"])
        for number, name in enumerate(NAMES):
            writer.writerow([f"i{number}", name, "SABC"[number % 4], f"artist {number // 3}"])
    return place


@pytest.fixture
def rank(place, monkeypatch, capsys):
    """Runs a command in the folder; returns its exit code, output and messages."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("COLUMNS", "100")

    def run(*words):
        code = main(["rank", *map(str, words)])
        output = capsys.readouterr()
        return code, output.out, " ".join(output.err.split())

    return run


@pytest.fixture(scope="module")
def scores(place):
    """Of the pictures by name, one at a time."""
    from hftune.tasks.ranking.inference_ranking import load_ranking_model

    model = load_ranking_model(place / "model")
    return {name: float(model.score(place / "pictures" / name)) for name in NAMES}


def copy_of_model(place, folder, **settings):
    """The model, with other settings in its configuration."""
    shutil.copytree(place / "model", folder)
    config = json.loads((folder / "config.json").read_text()) | settings
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x)))


# Compare


def test_compare_says_which_image_is_better_and_how_sure_that_is(rank, scores, place, tmp_path):
    first, second = "pictures/a.png", "pictures/h.png"
    difference = scores["a.png"] - scores["h.png"]
    better = "a.png" if difference > 0 else "h.png"

    def said(temperature):
        model = copy_of_model(place, tmp_path / str(temperature), score_temperature=temperature)
        code, out, _ = rank("compare", first, second, "--model", model, "--device", "cpu")
        assert code == 0
        return out.split("\n")[0]

    gap = abs(difference)
    assert said(gap / np.log(4)) == f"{better} is better: 80 % sure."
    assert said(gap / 10) == f"{better} is better: >99 % sure."
    assert said(gap * 10) == f"{better} is better, but that is nearly a coin toss: 52 % sure."
    assert said(None) == (
        f"{better} is better. How sure that is is not known: the model has no temperature."
    )
    code, out, _ = rank("compare", first, first, "-m", "model")
    assert code == 0 and out.startswith("a.png and a.png are equally good.\n")


def test_compare_prints_the_pairs_as_json(rank, scores):
    images = ["pictures/a.png", "pictures/꽃.png", "pictures/=e.png"]
    code, out, _ = rank("compare", *images, "-m", "model", "--json")
    rows = json.loads(out)
    assert code == 0 and [(row["image1"], row["image2"]) for row in rows] == [
        (images[0], images[1]), (images[0], images[2]), (images[1], images[2])
    ]  # fmt: skip
    for row in rows:
        one, other = (scores[row[key].removeprefix("pictures/")] for key in ("image1", "image2"))
        assert row["score1"] == pytest.approx(one, abs=1e-6)
        assert row["confidence"] == pytest.approx(abs(one - other), abs=1e-6)
        assert row["winner"] == ("image1" if one > other else "image2")
        assert row["probability"] == pytest.approx(sigmoid(abs(one - other) / 0.02), abs=1e-4)


def test_compare_ranks_more_than_two(rank, scores):
    names = ["a.png", "b.png", "f.png"]
    code, out, _ = rank("compare", *(f"pictures/{name}" for name in names), "-m", "model")
    lines = [line.split() for line in out.strip().split("\n")[2:]]
    order = sorted(names, key=lambda name: -scores[name])
    assert code == 0 and [line[:2] for line in lines] == [
        [str(number), name] for number, name in enumerate(order, 1)
    ]
    probability = sigmoid((scores[order[0]] - scores[order[1]]) / 0.02)
    assert lines[0][3:] == [f"{100 * probability:.0f}", "%"] and lines[2][3:] == []


def test_no_probability_is_certain():
    from hftune.cli.rank_score import percent

    assert [percent(p) for p in (0.0, 0.012, 0.5, 0.986, 0.9999)] == [
        "<1 %", "1 %", "50 %", "99 %", ">99 %"
    ]  # fmt: skip


def test_compare_wants_images(rank):
    assert rank("compare", "pictures/a.png", "-m", "model") == (2, "", (
        "hftune rank: compare: found one image, pictures/a.png; expected two or more. To rank a "
        "folder: hftune rank score FOLDER -o scores.csv"
    ))  # fmt: skip
    assert rank("compare", "x.png", "pictures/a.png", "y.png", "-m", "model") == (2, "", (
        "hftune rank: 2 of 3 images cannot be used: x.png: there is no such file y.png: there is "
        "no such file"
    ))  # fmt: skip


# Models


def test_the_newest_registered_model_is_taken_and_said(rank, place, tmp_path):
    from hftune.tracking.registry import ModelRegistry

    images = ["pictures/a.png", "pictures/b.png"]
    assert rank("compare", *images) == (2, "", (
        "hftune rank: no --model was given, and no ranking model is registered: give the folder of "
        "one, such as --model runs/art/model. recipes/ranking.py trains one, and registers it."
    ))  # fmt: skip
    registry = ModelRegistry()
    facts = {"checkpoint": None, "config": {}, "performance": {}, "training_info": {}}
    for name, architecture in (("art", "hftune_ranking"), ("art", "hftune_ranking"), ("x", "bart")):
        folder = copy_of_model(
            place, tmp_path / str(len(registry.search_models())), score_temperature=len(name) + 0.5
        )
        (folder / "config.json").write_text(
            (folder / "config.json").read_text() + " " * len(registry.search_models())
        )
        registry.register_model(name, architecture, file_path=folder, **facts)
    code, _, said = rank("compare", *images)
    assert code == 0 and said.startswith("Model: art:2 (model_")
    assert said.endswith(" ago; --model takes another one")
    registry.promote("art", 1, "production")
    assert rank("compare", *images)[2].startswith("Model: art:1 (model_")
    for given in ("art", "art:1", "art@production"):
        code, out, said = rank("compare", *images, "--model", given)
        assert code == 0 and "is better" in out and said == ""
    assert rank("compare", *images, "--model", "artt") == (2, "", (
        "hftune rank: artt is no folder, and the registry found no model 'artt'. Did you mean "
        "'art'?"
    ))  # fmt: skip


def test_what_is_no_model_is_explained(rank, place, tmp_path):
    images = ["pictures/a.png", "pictures/b.png"]
    torch.save({"model_state_dict": {}}, tmp_path / "best_model.pt")
    code, _, said = rank("compare", *images, "-m", tmp_path / "best_model.pt")
    assert code == 2 and "best_model.pt is a pickle, which can run any program" in said
    from hftune.tasks.ranking.inference_ranking import load_ranking_model

    model = load_ranking_model(place / "model")
    model._keys_to_ignore_on_save = {f"backbone.{name}" for name in model.backbone.state_dict()}
    model.save_pretrained(tmp_path / "checkpoint-12")
    code, _, said = rank("compare", *images, "-m", tmp_path / "checkpoint-12")
    assert code == 2 and said.endswith(
        "It is a checkpoint of a training on cached features, which holds the head alone: the "
        "whole models are in the run's model/ and last_model/."
    )


# Score


@pytest.fixture
def passes():
    """How many images have passed a backbone, of any model."""
    from transformers import Dinov2Model

    counted = []

    def count(module, inputs, keywords, output):
        if isinstance(module, Dinov2Model):
            counted.append(len(output.last_hidden_state))

    hook = torch.nn.modules.module.register_module_forward_hook(
        lambda module, inputs, output: count(module, inputs, {}, output)
    )
    yield counted
    hook.remove()


def test_score_writes_a_table_and_a_page(rank, scores, tmp_path, passes):
    table, page = tmp_path / "out" / "scores.csv", tmp_path / "page.html"
    words = ("score", "pictures", "-m", "model", "-o", table)
    code, out, _ = rank(*words, "--report", page, "--batch-size", "3", "--num_workers", "2")
    assert code == 0 and sum(passes) == len(NAMES)
    assert out.endswith(f"✓ {table}: 8 images\n✓ {page}\n")
    assert "<html" in page.read_text(encoding="utf-8")
    with open(table, encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [list(row) for row in rows] == [["rank", "image", "score", "win_probability"]] * 8
    order = sorted(NAMES, key=lambda name: -scores[name])
    assert [(row["rank"], row["image"]) for row in rows] == [
        (str(number), name) for number, name in enumerate(order, 1)
    ]
    for row in rows:
        mine = scores[row["image"]]
        others = [value for name, value in scores.items() if name != row["image"]]
        assert float(row["score"]) == pytest.approx(mine, abs=1e-6)
        expected = np.mean(sigmoid((mine - np.array(others)) / 0.02))
        assert float(row["win_probability"]) == pytest.approx(expected, abs=1e-4)
    lines = out.split("\n")
    assert lines[0].split() == ["rank", "image", "score", "better", "than", "others"]
    assert f" {order[0]} " in lines[2]

    before = table.read_bytes()
    assert rank(*words)[0] == 0 and table.read_bytes() == before
    assert sum(passes) == len(NAMES)  # none of them again
    assert rank(*words, "--feature_cache", "off")[0] == 0
    assert sum(passes) == 2 * len(NAMES)


def test_score_shows_the_best_and_the_worst_of_many(rank, place, tmp_path, scores):
    folder = tmp_path / "many"
    (folder / "더").mkdir(parents=True)
    for name in NAMES:
        shutil.copy(place / "pictures" / name, folder / name)
        shutil.copy(place / "pictures" / name, folder / "더" / name)
    words = ("score", folder, "-m", "model", "-o", tmp_path / "s.csv", "--json")
    assert len(json.loads(rank(*words)[1])) == 8
    rows = json.loads(rank(*words, "--recursive")[1])
    assert {row["image"] for row in rows} == {*NAMES, *(f"더/{name}" for name in NAMES)}
    assert [row["rank"] for row in rows] == [1 + number // 2 * 2 for number in range(16)]
    code, out, _ = rank(*words[:-1], "--recursive")
    lines = out.split("\n")
    best, worst = lines.index("Best"), lines.index("Worst")
    order = sorted(NAMES, key=lambda name: -scores[name])
    for line, name in zip(lines[best + 3 :], (order[0], f"더/{order[0]}", order[1]), strict=False):
        assert f" {name} " in line
    assert f" 더/{order[-1]} " in lines[worst + 7]


def test_a_model_without_temperature_has_no_probabilities(rank, place, tmp_path):
    model = copy_of_model(place, tmp_path / "model", score_temperature=None)
    page = tmp_path / "page.html"
    words = ("score", "pictures", "-m", model, "-o", tmp_path / "s.csv", "--report", page)
    code, out, _ = rank(*words)
    assert code == 0 and "better than others" not in out and page.is_file()
    assert "\nHow sure that is is not known: the model has no temperature.\n" in out
    images = ("pictures/a.png", "pictures/b.png", "pictures/f.png")
    out = rank("compare", *images, "-m", model)[1]
    assert out.endswith("\n\nHow sure that is is not known: the model has no temperature.\n")
    rows = list(csv.DictReader((tmp_path / "s.csv").read_text(encoding="utf-8").splitlines()))
    assert {row["win_probability"] for row in rows} == {""}


def test_a_backbone_that_was_trained_along_is_scored_without_the_cache(rank, place, tmp_path):
    model = copy_of_model(place, tmp_path / "model", freeze_backbone=False)
    assert rank("score", "pictures", "-m", model, "-o", tmp_path / "s.csv")[0] == 0


def test_score_stops_before_the_work_where_it_cannot_write(rank, tmp_path, passes):
    code, _, said = rank("score", "pictures", "-m", "model", "-o", tmp_path)
    assert (code, said) == (2, f"hftune rank: {tmp_path} is a folder; expected a file to write")
    (tmp_path / "file").write_text("")
    code, _, said = rank("score", "pictures", "-m", "model", "-o", tmp_path / "file" / "s.csv")
    assert code == 2 and said.startswith(f"hftune rank: {tmp_path}/file/s.csv cannot be written")
    code, _, said = rank("score", tmp_path, "-m", "model", "-o", tmp_path / "s.csv")
    assert code == 2 and said.startswith(f"hftune rank: {tmp_path} has no images (.jpg,")
    assert not passes and [path.name for path in tmp_path.iterdir()] == ["file"]


# Evaluate


def brute_force(scores):
    """Right pairs and pairs, by the names of their tiers."""
    tiers = {name: "SABC"[number % 4] for number, name in enumerate(NAMES)}
    counts = {}
    for better in NAMES:
        for worse in NAMES:
            if "SABC".index(tiers[better]) < "SABC".index(tiers[worse]):
                right, pairs = counts.get(f"{tiers[better]}>{tiers[worse]}", (0, 0))
                right += scores[better] > scores[worse]
                counts[f"{tiers[better]}>{tiers[worse]}"] = right, pairs + 1
    return counts


def test_evaluate_counts_all_pairs_with_the_flags_of_the_guide(rank, scores, place, tmp_path):
    shutil.copytree(place / "model", tmp_path / "best_model")
    data = ("--test-data", "test.csv", "--image-dir", "pictures")
    model = tmp_path / "best_model.pt"  # there is a folder instead, and it is taken
    code, out, _ = rank("evaluate", "--checkpoint", model, *data, "--json")
    found = json.loads(out)
    counts = brute_force(scores)
    right, pairs = np.sum(list(counts.values()), axis=0).tolist()
    assert code == 0 and (found["correct_predictions"], found["total_pairs"]) == (right, pairs)
    assert found["summary"]["accuracy"] == pytest.approx(right / pairs)
    assert found["tier_pairs"] == {
        name: {"accuracy": right / pairs, "total_pairs": pairs, "correct_predictions": right}
        for name, (right, pairs) in counts.items()
    }
    assert found["model"] == str(model) and found["temperature"] == 0.02
    low, high = found["interval"]
    assert low < 0.5 < high and not found["above_chance"]

    page = tmp_path / "page.html"
    code, out, _ = rank("evaluate", "model", *data, "--report", page)
    words = " ".join(out.split())
    assert code == 0 and page.is_file()
    assert f"{right} of {pairs} pairs are right" in words
    assert f"Not above chance: with 8 images the interval goes from {low:.3f} to {high:.3f}" in (
        words
    )
    assert f"S>A {counts['S>A'][0] / 4:.3f} 4 {counts['S>A'][0]}" in words

    grouped = rank("evaluate", "model", *data, "--group_column", "artist", "--json")[1]
    assert json.loads(grouped)["interval"] != found["interval"]


def test_evaluate_takes_votes_beside_tiers_or_alone(rank, scores, tmp_path):
    rows = [("i0", "i1", 3, 1), ("i2", "i5", 0, 2), ("i7", "i0", 1, 1), ("i0", "other", 5, 0)]
    lines = ["image_1,image_2,votes_1,votes_2", *(",".join(map(str, row)) for row in rows)]
    votes = tmp_path / "comparisons.csv"
    votes.write_text("\n".join(lines), encoding="utf-8")
    score_of = {f"i{number}": scores[name] for number, name in enumerate(NAMES)}
    agreeing = sum(v1 if score_of[a] > score_of[b] else v2 for a, b, v1, v2 in rows[:3])
    data = ("--test_data", "test.csv", "--image_dir", "pictures", "--json")
    code, out, said = rank("evaluate", "model", *data, "--comparisons", votes)
    assert code == 0 and json.loads(out)["votes"]["accuracy"] == pytest.approx(agreeing / 8)
    assert said == ("1 of 4 comparisons are left out: test.csv does not have both of their images")
    votes.write_text("\n".join([lines[0], "a,b,3,1", "f,g,0,2"]), encoding="utf-8")
    words = ("evaluate", "model", "--comparisons", votes, "--image_dir", "pictures")
    code, out, said = rank(*words, "--json")
    agreeing = 3 if scores["a.png"] > scores["b.png"] else 1
    agreeing += 0 if scores["f.png"] > scores["g.png"] else 2
    found = json.loads(out)
    assert (code, said, found["images"]) == (0, "", 4)
    assert found["summary"]["votes_accuracy"] == pytest.approx(agreeing / 6)
    assert found["primary_metric"] == "votes_accuracy" and found["total_pairs"] is None
    assert rank(*words)[0] == 0
    votes.write_text(f"{lines[0]}\nnobody,no one,3,1\n", encoding="utf-8")
    code, _, said = rank("evaluate", "model", *data, "--comparisons", votes)
    assert code == 2 and "image_1 'nobody' is no image of the table" in said


def test_evaluate_keeps_features_too(rank, passes):
    words = ("evaluate", "model", "--test-data", "test.csv", "--image-dir", "pictures", "--json")
    first, second = rank(*words)[1], rank(*words)[1]
    assert first == second and sum(passes) == len(NAMES)


def test_evaluate_explains_what_is_missing(rank, tmp_path):
    assert rank("evaluate", "model")[2] == (
        "hftune rank: evaluate: expected --test-data FILE (image_id, filename, tier), or "
        "--comparisons FILE (image_1, image_2, votes_1, votes_2)"
    )
    assert rank("evaluate", "one", "--checkpoint", "two", "--test_data", "test.csv")[2] == (
        "hftune rank: evaluate: found the models one, two; expected one"
    )
    other = tmp_path / "other.csv"
    other.write_text("filename,tier\na.png,good\nb.png,bad\nf.png,bad\n")
    words = ("evaluate", "model", "--test-data", other, "--image-dir", "pictures")
    code, _, said = rank(*words)
    assert code == 2 and "'good'" in said
    assert rank(*words, "--tiers", "good", "bad")[0] == 0
    other.write_text("filename,tier\na.png,S\nb.png,S\n")
    assert rank(*words)[2] == (
        f"hftune rank: {other} has no pairs: all 2 images are of tier 'S'. Expected images of at "
        "least two tiers or scores."
    )


# Benchmark


def test_benchmark_measures(rank):
    words = ("benchmark", "-m", "model", "--batch-size", "2", "--device", "cpu")
    code, out, _ = rank(*words, "--json", "--image_size", "16", "--dtype", "bfloat16")
    found = json.loads(out)
    assert code == 0 and found["meets_inference_requirement"] is True
    assert (found["image_size"], found["batch_size"], found["dtype"]) == (16, 2, "bfloat16")
    code, out, _ = rank(*words)
    assert code == 0 and "time of a pair" in out and "< 100 ms  ✓" in out


def test_help_teaches(capsys):
    for name in ("compare", "score", "evaluate", "benchmark"):
        with pytest.raises(SystemExit) as stopped:
            main(["rank", name, "--help"])
        assert stopped.value.code == 0
        assert f"example:\n  hftune rank {name} " in capsys.readouterr().out
    assert main(["rank"]) == 2
    assert "hftune rank compare a.jpg b.jpg" in capsys.readouterr().err
    for option, value, problem in (
        ("--batch_size", "0", "found 0, expected 1 or more"),
        ("--num_workers", "-1", "found '-1', expected a number such as 8"),
    ):
        with pytest.raises(SystemExit):
            main(["rank", "score", "x", "-o", "y", f"{option}={value}"])
        assert problem in capsys.readouterr().err
