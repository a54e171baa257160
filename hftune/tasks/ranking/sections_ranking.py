"""The sections about a ranking in the report of its run: numbers, figures, pictures, pairs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from scipy import stats
from scipy.special import expit

from ...tracking.report import Cell, Section, Tile, format_number
from .contact_sheet import Picture, contact_sheet, shown_name, thumbnail_svg
from .evaluation_ranking import RankingEvaluator
from .figures_ranking import reliability_figure, scatter_figure, tiers_figure
from .tables_ranking import Comparisons, ImageTable
from .votes_ranking import fit_bradley_terry, merge_votes

__all__ = [
    "ENOUGH_REPEATED",
    "PEOPLE",
    "points",
    "ranking_sections",
    "score_format",
    "surprising_pairs",
]

_PICTURES = 6  # of each kind
_SURPRISES = 8
ENOUGH_REPEATED = 30
"""Pairs with several votes from which on they tell what can be reached."""
PEOPLE = {
    "score": "people's scores",
    "tier": "the tiers",
    None: "scores fitted to the votes",
}
"""What correlations are with, for people."""


def points(difference: float) -> str:
    """Returns a difference of shares as percentage points, with its sign."""
    return f"{100 * difference:+.1f}".replace("-", "−")


def ranking_sections(
    scores: Mapping[str, Any], evaluator: RankingEvaluator, table: ImageTable
) -> list[Section]:
    """Makes the sections of a run's report: scores and verdicts, pictures, surprising pairs.

    Args:
        scores (mapping): Of :func:`ranking_scores`.
        evaluator (RankingEvaluator): That they are of.
        table (ImageTable): The images that it scored.

    Returns:
        Sections, to be added with ``Report.add``. They hold small pictures of some images.
    """
    people = evaluator.references
    if people is None:
        comparisons = evaluator.comparisons
        people = fit_bradley_terry(comparisons.images, comparisons.votes, len(table))
    return [
        _scores_section(scores, evaluator, table, people),
        _images_section(scores, evaluator.scores, table, people),
        _surprises_section(scores, evaluator, table),
    ]


def score_format(scores: np.ndarray) -> Callable[[float], str]:
    """Returns a function that formats scores so that three digits of their spread are seen.

    Args:
        scores (float array ``[N]``): The model's.
    """
    spread = float(np.std(scores))
    decimals = min(max(2 - math.floor(math.log10(spread)), 0), 9) if spread > 0 else 2
    return lambda score: f"{score:,.{decimals}f}".replace("-", "−")


def _scores_section(
    scores: Mapping[str, Any], evaluator: RankingEvaluator, table: ImageTable, people: np.ndarray
) -> Section:
    section = Section("Scores")
    section.tiles(_tiles(scores))
    for tone, sentence in scores["verdicts"]:
        section.text(sentence, tone=tone)
    if scores["remark"]:
        section.text(scores["remark"], tone="note")
    left, right = section.columns()
    if scores["tier_pairs"]:
        _tier_table(left, scores)
        rows = [
            (shown_name(tier), np.flatnonzero(evaluator.targets == len(table.tiers) - 1 - place))
            for place, tier in enumerate(table.tiers)
        ]
        right.figure(
            tiers_figure(evaluator.scores, [(tier, rows) for tier, rows in rows if len(rows)]),
            "Scores of the model by tier, each dot an image. A box holds the middle half, the line "
            "in it is the median; the dashed line is the median of all images.",
            "Scores of the model by tier",
        )
    if scores["reliability"] is not None:
        _reliability_part(left, scores)
    if scores["correlated_with"] != "tier":
        label = PEOPLE[scores["correlated_with"]]
        right.figure(
            scatter_figure(evaluator.scores, people, label),
            f"Each dot is an image: {label} and the score of the model.",
            f"Score of the model against {label}",
        )
    return section


def _tiles(scores: Mapping[str, Any]) -> list[Tile]:
    summary, metric = scores["summary"], scores["primary_metric"]
    low, high = scores["interval"]
    images = f"{scores['images']:,} {scores['split']} images"
    value = summary[metric]
    tone = "good" if scores["above_chance"] else "bad" if high < 0.5 else "warning"
    tiles = []
    if metric == "accuracy":
        note = f"{low:.3f} to {high:.3f} with 95 %: {images}, {scores['total_pairs']:,} pairs"
        tiles.append(Tile("Pairs in the right order", f"{value:.3f}", note, tone))
    if scores["votes"] is not None:
        votes = scores["votes"]
        low, high = votes["interval"]
        note = f"{low:.3f} to {high:.3f} with 95 %: {votes['votes']:,.0f} votes"
        if metric == "votes_accuracy":
            note += f" on {images}"
        tone = tone if metric == "votes_accuracy" else ""
        note += _ceiling_note(votes["ceiling"])
        tiles.append(Tile("Votes that agree", f"{votes['accuracy']:.3f}", note, tone))
    if "adjacent_accuracy" in summary and len(scores["tier_pairs"]) > 1:
        tiles.append(
            Tile(
                "Neighbouring tiers", f"{summary['adjacent_accuracy']:.3f}",
                "pairs of these in the right order: the hard ones",
            )
        )  # fmt: skip
    if "srcc" in summary:
        note = f"Spearman's, with {PEOPLE[scores['correlated_with']]}"
        tiles.append(Tile("Rank correlation", f"{summary['srcc']:.3f}".replace("-", "−"), note))
    if scores["reliability"] is not None:
        tiles.append(
            Tile(
                "Calibration error", f"{scores['reliability']['ece']:.3f}",
                "how far it is from being as often right as it is sure",
            )
        )  # fmt: skip
    for name, entry in scores["baselines"].items():
        least, most = map(points, entry["difference_interval"])
        tiles.append(
            Tile(
                f"Points over {name.replace('_', ' ')} alone", points(entry["difference"]),
                f"{least} to {most} with 95 %; it has {entry['accuracy']:.3f}",
                "good" if entry["difference_interval"][0] > 0 else "warning",
            )
        )  # fmt: skip
    return tiles


def _ceiling_note(ceiling: Mapping[str, Any]) -> str:
    if ceiling["upper_bound"] is not None and ceiling["repeated_pairs"] >= ENOUGH_REPEATED:
        return f"; their noise allows {ceiling['upper_bound']:.3f}"
    if ceiling["oracle"] is not None:
        return f"; other votes foretell {ceiling['oracle']:.3f}"
    return ""


def _tier_table(section: Section, scores: Mapping[str, Any]) -> None:
    pairs, counts = scores["tier_pairs"], scores["images_by_tier"]
    tiers = [tier for tier in counts if counts[tier]]
    rows = []
    for better in tiers[:-1]:
        row: list[Any] = [Cell(f"{better}  ({counts[better]:,})", strong=True)]
        for worse in tiers[1:]:
            entry = pairs.get(f"{better}>{worse}")
            if entry is None:
                row.append("")
                continue
            share = entry["accuracy"]
            said = f"{entry['correct_predictions']:,g} of {entry['total_pairs']:,} pairs are right"
            row.append(Cell(f"{share:.3f}", shade=1.5 * (0.5 - share), note=said))
        rows.append(row)
    section.table(
        ["better  ↓   worse  →", *(f"{tier}  ({counts[tier]:,})" for tier in tiers[1:])],
        rows,
        "Share of the pairs of two tiers that the model has in the right order; images in "
        "brackets. 0.5 is chance, red is below it. Pairs beside the diagonal are of neighbouring "
        "tiers and the hardest.",
    )


def _reliability_part(section: Section, scores: Mapping[str, Any]) -> None:
    weights = scores["reliability"]["weight"]
    what = "pairs" if scores["total_pairs"] is not None else "votes"
    caption = (
        f"How sure the model is of the better image of a pair, and how often that is right; larger "
        f"dots are more {what}. Below the line it is surer than it should be."
    )
    if scores["split"] == "validation":
        caption += " The temperature was found on these images."
    section.figure(reliability_figure(scores["reliability"]), caption, "How sure, how often right")
    edges = scores["reliability"]["edges"]
    section.fold("In numbers").table(
        ["sure", what, "mean", "right"],
        [
            [
                f"{low:.2f} to {high:.2f}", round(weight), Cell(mean, digits=3),
                Cell(right, digits=3),
            ]
            for low, high, weight, mean, right in zip(
                edges, edges[1:], weights, scores["reliability"]["mean_probability"],
                scores["reliability"]["observed"], strict=False,
            )
        ],
        f"Temperature {format_number(scores['temperature'])}: what differences of scores are "
        "divided by.",
    )  # fmt: skip


def _images_section(
    scores: Mapping[str, Any], ours: np.ndarray, table: ImageTable, people: np.ndarray
) -> Section:
    section = Section("Images")
    order = np.argsort(-ours, kind="stable")
    places, their_places = (stats.rankdata(-values, "min") for values in (ours, people))
    apart = np.abs(stats.rankdata(ours) - stats.rankdata(people))
    by_tier = scores["correlated_with"] == "tier"
    shown = score_format(ours)

    def picture(row: int) -> Picture:
        about = [f"score {shown(ours[row])}"]
        if table.tiers:
            about.insert(0, f"tier {shown_name(table.tier_of(row))}")
        ranks = f"rank {places[row]:.0f}"
        ranks += f" of {len(table):,}" if by_tier else f", people's {their_places[row]:.0f}"
        name = shown_name(table.ids[row])
        return Picture(table.paths[row], (name, ", ".join(about), ranks), name)

    count = min(_PICTURES, len(table) // 2)
    contested = np.argsort(-apart, kind="stable")[:_PICTURES]
    ranks = "its tier" if by_tier else "people's rank"
    for title, rows in (
        ("Best of all, says the model", order[:count]),
        ("Worst of all, the very last one first", order[::-1][:count]),
        (f"Most contested: the model's rank and {ranks} lie furthest apart", contested),
    ):
        contact_sheet(section.fold(title, opened=True), [picture(int(row)) for row in rows])
    return section


def _surprises_section(
    scores: Mapping[str, Any], evaluator: RankingEvaluator, table: ImageTable
) -> Section:
    section = Section("Surprising pairs")
    ours = evaluator.scores
    pairs = surprising_pairs(ours, evaluator.targets, evaluator.comparisons)
    if not pairs:
        section.text("There is no pair that the model has in the wrong order.", tone="good")
        return section

    shown = score_format(ours)

    def side(row: int) -> list[Any]:
        name = shown_name(table.ids[row])
        about = [f"score {shown(ours[row])}"]
        if table.tiers:
            about.insert(0, f"tier {table.tier_of(row)}")
        elif table.targets is not None:
            about.append(f"people's {format_number(float(table.targets[row]), 3)}")
        return [Cell(markup=thumbnail_svg(table.paths[row], name)), "\n".join([name, *about])]

    temperature = scores["temperature"]
    rows = []
    for first, second in pairs:
        gap = float(ours[first] - ours[second])
        sure = "–" if temperature is None else f"{expit(gap / temperature):.3f}"
        rows.append([*side(first), *side(second), sure])
    section.table(
        ["the model prefers", "", "people prefer", "", "sure"],
        rows,
        f"The pairs that the model is surest of and wrong about, each image at most once. Wrong "
        f"{'tiers' if table.tiers else 'labels'} are often among them.",
    )
    return section


def surprising_pairs(
    scores: np.ndarray,
    targets: np.ndarray | None,
    comparisons: Comparisons | None = None,
    most: int = _SURPRISES,
) -> list[tuple[int, int]]:
    """Finds the pairs that the model is surest of while people say the opposite.

    The surest comes first; each further one is the surest of those images that are left, so that
    one odd image does not fill the list.

    Args:
        scores (array ``[N]``): The model's, larger is better.
        targets (array ``[N]``, *optional*): Tiers, counted from the worst, or people's scores.
        comparisons (Comparisons, *optional*): People's votes, for images without targets.
        most (int): How many at the most. Defaults to 8.

    Returns:
        The image that the model prefers and the one that people prefer, of each pair.
    """
    free = np.ones(len(scores), bool)
    found: list[tuple[int, int]] = []
    if targets is None:
        images, votes = merge_votes(comparisons.images, comparisons.votes)
        lost = np.where((votes[:, 0] < votes[:, 1])[:, None], images, images[:, ::-1])
        gaps = scores[lost[:, 0]] - scores[lost[:, 1]]
        wrong = (votes[:, 0] != votes[:, 1]) & (gaps > 0)
        for first, second in lost[wrong][np.argsort(-gaps[wrong], kind="stable")].tolist():
            if len(found) < most and free[first] and free[second]:
                found.append((first, second))
                free[[first, second]] = False
        return found
    worst_first = np.argsort(targets, kind="stable")
    while len(found) < most:
        order = worst_first[free[worst_first]]
        ours, theirs = scores[order], targets[order]
        below = np.searchsorted(theirs, theirs)  # images that people like less
        top = np.maximum.accumulate(ours)
        gaps = np.where(below > 0, top[below - 1] - ours, -np.inf)
        if not len(gaps) or gaps.max() <= 0:
            break
        place = int(np.argmax(gaps))
        first, second = order[int(np.argmax(ours[: below[place]]))], order[place]
        found.append((int(first), int(second)))
        free[[first, second]] = False
    return found
