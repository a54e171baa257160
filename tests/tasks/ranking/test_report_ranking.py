"""The report of a ranking: its numbers, what it says of them, and what stands on its pages."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from hftune.tasks.ranking.evaluation_ranking import RankingEvaluator
from hftune.tasks.ranking.ranked_images import contested, rank_by_scores
from hftune.tasks.ranking.report_ranking import (
    ranking_scores,
    render_scores,
    write_ranking_report,
    write_ranking_run_report,
)
from hftune.tasks.ranking.sections_ranking import (
    ranking_sections,
    score_format,
    surprising_pairs,
)
from hftune.tasks.ranking.tables_ranking import Comparisons, ImageTable
from hftune.tasks.ranking.votes_ranking import vote_ceiling
from hftune.tracking.report import Report
from hftune.tracking.report_sections import load_task_report, section_as_dict, section_from_dict
from hftune.tracking.run_record import RunRecord

TIERS = ("S", "A", "B", "C")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures of a few colours: ``0.png`` to ``39.png``."""
    place = tmp_path_factory.mktemp("images")
    for number in range(40):
        Image.new("RGB", (24, 16), (6 * number, 90, 200)).save(place / f"{number}.png")
    return place


def evaluated(folder, scores, targets=None, tiers=(), people=None, comparisons=None, ids=None):
    """An evaluator after an evaluation with these scores, and its table."""
    count = len(scores)
    paths = tuple(folder / f"{number % 40}.png" for number in range(count))
    ids = tuple(ids or (f"image {number}" for number in range(count)))
    targets = None if targets is None else np.asarray(targets, np.float64)
    table = ImageTable(ids, paths, targets, tiers, people)
    evaluator = RankingEvaluator(None, targets, people, comparisons, tiers=tiers)
    evaluator.scores = np.asarray(scores, np.float64)
    return evaluator, table


@pytest.fixture
def small(folder):
    """Eight images of four tiers: an ``S`` at the bottom and a ``C`` at the top, else in order."""
    targets = [3, 3, 2, 2, 1, 1, 0, 0]
    return evaluated(folder, [7, -1, 6, 5, 4, 3, 8, 2], targets, TIERS)


@pytest.fixture
def good(folder):
    """Forty images that are mostly in order, with people's scores and votes."""
    draw = np.random.default_rng(0)
    people = np.sort(draw.normal(size=40))[::-1].copy()
    pairs = np.array(list(itertools.combinations(range(40), 2)))
    votes = np.zeros((len(pairs), 2))
    first = draw.random(len(pairs)) < 1 / (1 + np.exp(people[pairs[:, 1]] - people[pairs[:, 0]]))
    votes[np.arange(len(pairs)), np.where(first, 0, 1)] = 1
    votes[::5] *= 2
    scores = 3 * (people + 0.5 * draw.normal(size=40))
    targets = np.repeat([3.0, 2.0, 1.0, 0.0], 10)
    return evaluated(folder, scores, targets, TIERS, people, Comparisons(pairs, votes))


def blocks(section, kind):
    """Blocks of a kind in a section, and in its parts."""
    found = []
    for block in section.blocks:
        if block["kind"] == kind:
            found.append(block)
        parts = block["sections"] if block["kind"] == "columns" else ()
        for part in [block["section"]] if block["kind"] == "fold" else parts:
            found += blocks(part, kind)
    return found


def tiles_of(section):
    return {tile.label: tile for block in blocks(section, "tiles") for tile in block["tiles"]}


def pages(sections):
    """The page of sections as they are, and of those that were saved and read again."""
    for again in (False, True):
        report = Report("r")
        for section in sections:
            if again:
                saved = json.loads(json.dumps(section_as_dict(section), allow_nan=False))
                section = section_from_dict(saved)
            report.add(section)
        yield report.render()


# Scores


def test_scores_equal_what_a_list_of_pairs_gives(small):
    evaluator, table = small
    scores = ranking_scores(evaluator, table, temperature=2.0)
    scores = json.loads(json.dumps(scores, allow_nan=False))
    right = {}
    for i, j in itertools.permutations(range(8), 2):
        if evaluator.targets[i] > evaluator.targets[j]:
            name = f"{table.tier_of(i)}>{table.tier_of(j)}"
            right.setdefault(name, []).append(evaluator.scores[i] > evaluator.scores[j])
    every = sum(right.values(), [])
    assert scores["total_pairs"] == len(every) == 24
    assert scores["correct_predictions"] == sum(every)
    assert scores["summary"]["accuracy"] == scores["correct_predictions"] / 24
    assert list(scores["tier_pairs"]) == ["S>A", "S>B", "S>C", "A>B", "A>C", "B>C"]
    for name, entry in scores["tier_pairs"].items():
        assert (entry["correct_predictions"], entry["total_pairs"]) == (sum(right[name]), 4)
    assert scores["images"] == 8 and scores["images_by_tier"] == dict.fromkeys(TIERS, 2)
    assert scores["correlated_with"] == "tier"
    assert (scores["split"], scores["remark"], scores["votes"]) == ("test", None, None)
    low, high = scores["interval"]
    assert 0 <= low < scores["summary"]["accuracy"] < high <= 1
    reliability = scores["reliability"]
    assert sum(reliability["weight"]) == 24 and len(reliability["edges"]) == 11
    gaps = [
        weight * abs(sure - often)
        for weight, sure, often in zip(
            reliability["weight"], reliability["mean_probability"], reliability["observed"],
            strict=True,
        )
        if weight
    ]  # fmt: skip
    assert reliability["ece"] == pytest.approx(sum(gaps) / 24)


def test_of_a_model_that_was_not_calibrated_no_reliability_is_told(small):
    evaluator, table = small
    scores = ranking_scores(evaluator, table, temperature=None)
    assert scores["reliability"] is None and scores["temperature"] is None
    section, _, surprises = ranking_sections(scores, evaluator, table)
    assert "Calibration error" not in tiles_of(section)
    assert {row[-1].value for row in blocks(surprises, "table")[0]["rows"]} == {"–"}


def test_validation_images_are_told_to_flatter(small):
    evaluator, table = small
    scores = ranking_scores(evaluator, table, temperature=2.0, split="validation")
    assert scores["remark"] == (
        "These are the images that the best model was chosen on and that its probabilities were "
        "calibrated on: the numbers flatter it, new images are ranked less well."
    )
    section = ranking_sections(scores, evaluator, table)[0]
    assert scores["remark"] in [text["paragraphs"][0] for text in blocks(section, "text")]
    assert "8 validation images" in tiles_of(section)["Pairs in the right order"].note


def test_a_baseline_is_compared_on_the_same_draws_of_images(good):
    evaluator, table = good
    baselines = {"sharpness": evaluator.scores.copy(), "pixels": np.zeros(40)}
    scores = ranking_scores(evaluator, table, temperature=1.0, baselines=baselines)
    same, level = scores["baselines"]["sharpness"], scores["baselines"]["pixels"]
    assert same["accuracy"] == scores["summary"]["accuracy"]
    assert same["difference_interval"] == [0, 0]  # not the width of two intervals
    assert level["accuracy"] == 0.5 and level["interval"] == [0.5, 0.5]
    assert level["difference_interval"] == pytest.approx(np.array(scores["interval"]) - 0.5)
    assert evaluator.scores is not baselines["pixels"]


# Verdicts


def verdicts(evaluator, table, **more):
    scores = ranking_scores(evaluator, table, temperature=1.0, **more)
    return scores, dict(reversed(one) for one in scores["verdicts"])


def test_chance_is_told_by_the_interval(folder):
    draw = np.random.default_rng(3)
    targets = np.repeat([3, 2, 1, 0], 10)
    for values, above, tone, said in (
        (draw.normal(size=40), False, "warning", r"Not above chance: with 40 images the interval "
         r"goes from 0\.\d{3} to 0\.\d{3} and contains 0\.5\."),
        (targets + draw.normal(size=40), True, "good", r"Above chance: with 40 images the interval "
         r"goes from 0\.\d{3} to 0\.\d{3}, chance is 0\.5\."),
        (-targets + draw.normal(size=40), False, "bad", r"Worse than chance: .*, chance is 0\.5\. "
         r"Images that people like less get the higher scores: check the order of the tiers\."),
    ):  # fmt: skip
        scores, found = verdicts(*evaluated(folder, values, targets, TIERS))
        assert scores["above_chance"] is above
        ((sentence, its_tone),) = found.items()
        assert its_tone == tone and re.fullmatch(said, sentence), sentence
        low, high = scores["interval"]
        assert f"{low:.3f} to {high:.3f}" in sentence


def test_random_scores_are_seldom_called_better_than_chance(folder):
    draw = np.random.default_rng(0)
    above = 0
    for _ in range(60):
        evaluator, table = evaluated(folder, draw.normal(size=12), np.arange(12) % 4, TIERS)
        above += ranking_scores(evaluator, table, temperature=None)["above_chance"]
    assert above <= 5  # 2.5 % of them are to be expected


def test_all_pairs_right_is_much_or_little_by_the_number_of_images(folder):
    scores, found = verdicts(*evaluated(folder, [3, 2, 1, 0], [3, 2, 1, 0], TIERS))
    assert scores["interval"] == [1, 1] and not scores["above_chance"]  # one order of 24
    assert found == {
        "Not above chance: all pairs are in the right order, but 4 images are so few that a random "
        "order often is the right one.": "warning"
    }
    order = list(range(10))
    scores, found = verdicts(*evaluated(folder, order, order))
    assert scores["above_chance"]
    assert list(found.values()) == ["good"]
    assert next(iter(found)).startswith("All pairs of 10 images are in the right order.")


def test_what_a_single_number_reaches_is_told(good):
    evaluator, table = good
    people = evaluator.references
    draw = np.random.default_rng(1)
    scores, found = verdicts(
        evaluator,
        table,
        baselines={
            "sharpness": people,
            "edge_density": evaluator.scores + 1.3 * draw.normal(size=40),
            "pixels": draw.normal(size=40),
        },
    )
    best, near, far = scores["baselines"].values()
    assert best["difference"] < 0
    level = f"{best['accuracy']:.3f}"
    sentence = f"No better than a single number of the image (sharpness), which has {level}."
    assert found[sentence] == "warning"
    assert near["difference"] > 0 > near["difference_interval"][0]
    low, high = (f"{100 * end:+.1f}".replace("-", "−") for end in near["difference_interval"])
    assert (
        found[
            f"Not clearly better than a single number of the image (edge density): "
            f"{100 * near['difference']:+.1f} points, the interval goes from {low} to {high}."
        ]
        == "warning"
    )
    assert far["difference_interval"][0] > 0
    (sentence,) = (text for text in found if "(pixels)" in text)
    assert sentence.startswith("Better than a single number") and found[sentence] == "good"


def test_the_noise_of_votes_is_told(good):
    evaluator, table = good
    scores, found = verdicts(evaluator, table)
    votes, ceiling = scores["votes"], scores["votes"]["ceiling"]
    assert votes["pairs"] == 780 and votes["votes"] == 780 + 156
    assert ceiling == json.loads(
        json.dumps(
            dataclasses.asdict(
                vote_ceiling(evaluator.comparisons.images, evaluator.comparisons.votes, 40)
            )
        )
    )
    # A vote that counts twice agrees with itself: nothing is lost to noise.
    assert ceiling["repeated_pairs"] == 156 and ceiling["upper_bound"] == 1
    (sentence,) = (text for text in found if "votes" in text)
    assert sentence == (
        f"People disagree among themselves: the model agrees with {votes['accuracy']:.3f} of the "
        "votes, no ranking is expected to exceed 1.000 (1.000 to 1.000)."
    )


def test_a_model_is_as_good_as_noise_allows_only_if_enough_pairs_tell(good):
    evaluator, table = good
    draw = np.random.default_rng(0)
    pairs = np.array(list(itertools.combinations(range(40), 2)))
    better = draw.random(len(pairs)) < 0.7  # a vote agrees with the scores' order
    order = np.where(
        (evaluator.scores[pairs[:, 0]] > evaluator.scores[pairs[:, 1]])[:, None],
        pairs,
        pairs[:, ::-1],
    )
    votes = np.where(better[:, None], [1.0, 0.0], [0.0, 1.0])
    repeated = votes.copy()
    repeated[draw.random(len(pairs)) < 0.45] = [1.0, 1.0]
    evaluator.comparisons = Comparisons(order, repeated)
    scores, found = verdicts(evaluator, table)
    bound = scores["votes"]["ceiling"]["upper_bound"]
    assert scores["votes"]["ceiling"]["repeated_pairs"] > 30
    assert scores["votes"]["accuracy"] >= bound
    (sentence,) = (text for text in found if "noise allows" in text)
    assert sentence.startswith("As good as the votes' own noise allows: the model agrees with ")
    assert found[sentence] == "good"

    few = Comparisons(order[:40], votes[:40])
    evaluator.comparisons = few
    scores, found = verdicts(evaluator, table)
    (sentence,) = (text for text in found if "judged more than once" in text)
    assert (
        "0 pairs were judged more than once, too few to tell what the votes' own noise" in sentence
    )
    # All the comparisons that were made can tell it instead.
    everything = Comparisons(order, repeated)
    scores, found = verdicts(evaluator, table, comparisons=everything, images=40)
    assert scores["votes"]["pairs"] == 40
    assert scores["votes"]["ceiling"]["upper_bound"] == bound


# Sections


def test_sections_show_the_numbers(good):
    evaluator, table = good
    scores = ranking_scores(
        evaluator, table, temperature=1.0, baselines={"sharpness": np.zeros(40)}
    )
    section, images, surprises = sections = ranking_sections(scores, evaluator, table)
    summary = scores["summary"]
    low, high = scores["interval"]
    tiles = tiles_of(section)
    assert {label: tile.value for label, tile in tiles.items()} == {
        "Pairs in the right order": f"{summary['accuracy']:.3f}",
        "Votes that agree": f"{summary['votes_accuracy']:.3f}",
        "Neighbouring tiers": f"{summary['adjacent_accuracy']:.3f}",
        "Rank correlation": f"{summary['srcc']:.3f}",
        "Calibration error": f"{scores['reliability']['ece']:.3f}",
        "Points over sharpness alone": f"{100 * (summary['accuracy'] - 0.5):+.1f}",
    }
    assert tiles["Pairs in the right order"].tone == "good"
    assert tiles["Pairs in the right order"].note == (
        f"{low:.3f} to {high:.3f} with 95 %: 40 test images, 600 pairs"
    )
    assert tiles["Rank correlation"].note == "Spearman's, with people's scores"
    matrix = blocks(section, "table")[0]
    assert [cell.value for cell in matrix["rows"][1]] == [
        "A  (10)", "",
        *(f"{scores['tier_pairs'][name]['accuracy']:.3f}" for name in ("A>B", "A>C")),
    ]  # fmt: skip
    assert matrix["rows"][0][3].shade < 0  # far apart and right: blue
    assert len(blocks(section, "svg")) == 3
    assert [block["tone"] for block in blocks(section, "text")] == [
        tone for tone, _ in scores["verdicts"]
    ]
    folds = [block["section"].title for block in images.blocks]
    assert folds == [
        "Best of all, says the model",
        "Worst of all, the very last one first",
        "Most contested: the model's rank and people's rank lie furthest apart",
    ]
    best = images.blocks[0]["section"]
    order = np.argsort(-evaluator.scores)
    alts = "; ".join(block["alt"] for block in blocks(best, "svg"))
    assert re.findall(r"image (\d+)", alts) == [str(row) for row in order[:6]]
    shown = score_format(evaluator.scores)(evaluator.scores[order[0]])
    rank = 1 + int((evaluator.references > evaluator.references[order[0]]).sum())
    assert f"tier {table.tier_of(order[0])}, score {shown}, rank 1, people's {rank}" in alts
    for page in pages(sections):
        assert "was left out" not in page
        assert page.count("data:image/jpeg") == 18 + 2 * len(blocks(surprises, "table")[0]["rows"])


def test_contested_images_are_those_whose_ranks_lie_furthest_apart(small):
    evaluator, table = small
    scores = ranking_scores(evaluator, table, temperature=1.0)
    images = ranking_sections(scores, evaluator, table)[1]
    alts = "; ".join(block["alt"] for block in blocks(images.blocks[2]["section"], "svg"))
    assert re.findall(r"image (\d)", alts)[:2] == ["1", "6"]
    assert "image 1, tier S, score −1.00, rank 8 of 8" in alts
    assert "image 6, tier C, score 8.00, rank 1 of 8" in alts


def test_comparisons_alone_have_a_report_too(good):
    evaluator, table = good
    comparisons = evaluator.comparisons
    table = dataclasses.replace(table, targets=None, tiers=(), scores=None)
    alone = RankingEvaluator(None, None, None, comparisons)
    alone.scores = evaluator.scores
    scores = json.loads(json.dumps(ranking_scores(alone, table, temperature=1.0), allow_nan=False))
    assert scores["primary_metric"] == "votes_accuracy" and scores["tier_pairs"] == {}
    assert scores["total_pairs"] is None and scores["correlated_with"] is None
    assert scores["summary"]["votes_accuracy"] == scores["votes"]["accuracy"]
    assert scores["interval"] == scores["votes"]["interval"]
    assert sum(scores["reliability"]["weight"]) == comparisons.votes.sum()
    sections = ranking_sections(scores, alone, table)
    assert "Pairs in the right order" not in tiles_of(sections[0])
    assert tiles_of(sections[0])["Votes that agree"].tone == "good"
    for page in pages(sections):
        assert "was left out" not in page
    text = said(scores)
    assert "share of the votes" in text and "pair accuracy" not in text


def test_numeric_scores_have_a_report_without_tiers(folder):
    draw = np.random.default_rng(0)
    people = draw.normal(size=60)
    evaluator, table = evaluated(folder, people + draw.normal(size=60), people)
    scores = ranking_scores(evaluator, table, temperature=1.0)
    assert scores["correlated_with"] == "score" and scores["total_pairs"] == 60 * 59 / 2
    section, _, surprises = ranking_sections(scores, evaluator, table)
    assert "Neighbouring tiers" not in tiles_of(section)
    assert len(blocks(section, "svg")) == 2  # reliability and people's scores
    assert "people's" in blocks(surprises, "table")[0]["rows"][0][1].value


def test_hostile_names_and_tiers_are_only_shown(folder, tmp_path):
    tiers = ("<b>$x$", "나쁨", "c\x02")
    ids = ["<script>alert(1)</script>", "가/나.jpg", "half\udc80", *"abc"]
    evaluator, table = evaluated(folder, [1, 5, 2, 4, 3, 0], [2, 2, 1, 1, 0, 0], tiers, ids=ids)
    table = dataclasses.replace(table, paths=(tmp_path / "missing.jpg", *table.paths[1:]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = ranking_scores(evaluator, table, temperature=1.0)
        sections = ranking_sections(scores, evaluator, table)
    for page in pages(sections):
        assert "was left out" not in page
        assert "<script>alert" not in page and "<b>$x$" not in page
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
        assert "cannot be read" in page and "나쁨" in page


# Surprising pairs


def reference_pairs(scores, targets, most):
    """The surest wrong pair of all, then that of the images that are left, by a list of pairs."""
    left, found = set(range(len(scores))), []
    while len(found) < most:
        wrong = [
            (scores[i] - scores[j], i, j)
            for i, j in itertools.permutations(sorted(left), 2)
            if targets[i] < targets[j] and scores[i] > scores[j]
        ]
        if not wrong:
            break
        gap = max(wrong)[0]
        found.append(gap)
        left -= {i for g, a, b in wrong if g == gap for i in (a, b)}
    return found


@pytest.mark.parametrize("kinds", [2, 4, 30])
def test_surprising_pairs_equal_those_of_a_list_of_pairs(kinds):
    draw = np.random.default_rng(kinds)
    scores = draw.normal(size=30)
    targets = np.arange(30.0) if kinds == 30 else draw.integers(0, kinds, 30).astype(float)
    pairs = surprising_pairs(scores, targets, most=6)
    gaps = [scores[first] - scores[second] for first, second in pairs]
    assert gaps == reference_pairs(scores, targets, 6)
    assert all(targets[first] < targets[second] for first, second in pairs)
    assert len(set(itertools.chain(*pairs))) == 2 * len(pairs)


def test_surprising_pairs_of_votes_go_by_the_majority():
    scores = np.array([0.0, 3.0, 1.0, 2.0, 9.0])
    images = np.array([[0, 1], [1, 0], [2, 3], [4, 0], [3, 4]])
    votes = np.array([[2.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 5.0]])
    assert surprising_pairs(scores, None, Comparisons(images, votes)) == [(1, 0), (3, 2)]


def test_a_perfect_order_has_no_surprise(folder):
    evaluator, table = evaluated(folder, range(6), range(6))
    scores = ranking_scores(evaluator, table, temperature=1.0)
    surprises = ranking_sections(scores, evaluator, table)[2]
    assert surprises.blocks[0]["paragraphs"] == (
        "There is no pair that the model has in the wrong order.",
    )


# Terminal


def said(scores):
    stream = io.StringIO()
    Console(file=stream, width=120).print(render_scores(scores))
    return stream.getvalue()


def test_terminal(good):
    evaluator, table = good
    scores = ranking_scores(
        evaluator, table, temperature=1.0, split="validation", baselines={"[red]": np.zeros(40)}
    )
    text = " ".join(said(scores).split())
    low, high = scores["interval"]
    assert "Scores on 40 validation images" in text
    assert (
        f"pair accuracy {scores['summary']['accuracy']:.3f} {low:.3f} to {high:.3f} "
        f"{scores['correct_predictions']:g} of 600 pairs are right" in text
    )
    assert f"SRCC {scores['summary']['srcc']:.3f} with people's scores" in text
    assert "[red] alone 0.500 0.500 to 0.500" in text
    for _, sentence in scores["verdicts"]:
        assert sentence in text
    assert scores["remark"] in text


# Pages


def test_the_report_of_a_run(good, tmp_path):
    evaluator, table = good
    with RunRecord.start(tmp_path / "run", task="ranking", configuration={}):
        pass
    scores = ranking_scores(evaluator, table, temperature=1.0)
    history = [
        {"step": 10, "loss": 0.6}, {"step": 10, "eval_accuracy": 0.7},
        {"step": 20, "loss": 0.5}, {"step": 20, "eval_accuracy": 0.8},
    ]  # fmt: skip
    page = write_ranking_run_report(
        tmp_path / "run", scores, evaluator, table, title="그림", log_history=history
    )
    assert page == tmp_path / "run" / "report.html"
    text = page.read_text(encoding="utf-8")
    assert "<h1>그림" in text and "40 test images of the tiers S, A, B, C" in text
    assert "validation pair accuracy" in text and "chance" in text
    kept = load_task_report(tmp_path / "run")
    assert [section.title for section in kept.sections] == ["Scores", "Images", "Surprising pairs"]
    assert kept.training.metric == "eval_accuracy"


def test_the_page_of_a_folder(folder, tmp_path):
    draw = np.random.default_rng(0)
    paths = [folder / f"{number}.png" for number in range(40)]
    values = draw.normal(size=40)
    ranked = rank_by_scores(paths, values, 0.5)
    page = tmp_path / "page.html"
    write_ranking_report(
        page, ranked, title="<i>photos", model_name="runs/art/model", temperature=0.5
    )
    text = page.read_text(encoding="utf-8")
    assert "<h1>&lt;i&gt;photos</h1>" in text and "runs/art/model" in text
    assert str(folder) not in text  # of a machine's folders nothing is told
    assert text.count("data:image/jpeg") == 36
    parts = re.split(r"<summary>(Best|Worst|Most contested|40 rows)", text)
    shown = {
        name: [int(found) for found in re.findall(r"<title>(\d+)&#46;png", part)]
        for name, part in zip(parts[1::2], parts[2::2], strict=True)
    }
    order = np.argsort(-values)
    assert shown["Best"] == order[:12].tolist()
    assert shown["Worst"] == order[::-1][:12].tolist()
    unsure = contested(values, 0.5)
    assert sorted(shown["Most contested"]) == sorted(np.argsort(-unsure)[:12].tolist())
    table = parts[parts.index("40 rows") + 1]
    assert re.findall(r">(\d+)\.png<", table) == [str(row) for row in order]
    assert f"wins {100 * ranked[0].win_probability:.0f} % of pairs" in text


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_folders_of_few_images_and_models_without_temperature(folder, tmp_path, count):
    paths = [folder / f"{number}.png" for number in range(count)]
    ranked = rank_by_scores(paths, np.zeros(count), None)
    page = tmp_path / "page.html"
    write_ranking_report(page, ranked, title="few", model_name="m")
    text = page.read_text(encoding="utf-8")
    assert text.count("data:image/jpeg") == count
    assert "Most contested" not in text and "How sure" not in text and "wins" not in text


def test_long_tables_are_cut(folder, tmp_path):
    paths = [Path(folder, f"{number % 40}.png") for number in range(2500)]
    ranked = rank_by_scores(paths, np.arange(2500.0), 1.0)
    page = tmp_path / "page.html"
    write_ranking_report(page, ranked, title="many", model_name="m", temperature=1.0)
    text = page.read_text(encoding="utf-8")
    assert "The first and last 1,000 of 2,500." in text
    assert len(text) < 3_000_000
    assert "<td" in text and ">1,000<" in text and ">1,001<" not in text and ">1,501<" in text


def test_tiers_without_neighbours_have_no_number_of_them(folder):
    evaluator, table = evaluated(folder, range(6), [0, 0, 2, 2, 4, 4], ("A", "B", "C", "D", "E"))
    scores = ranking_scores(evaluator, table, temperature=1.0)
    assert set(scores["tier_pairs"]) == {"A>C", "A>E", "C>E"}
    assert "Neighbouring tiers" not in tiles_of(ranking_sections(scores, evaluator, table)[0])
    assert "neighbouring" not in said(scores)
