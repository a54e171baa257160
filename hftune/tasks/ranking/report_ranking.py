"""What a ranking's scores look like: the sections of a report, and a table in the terminal."""

from __future__ import annotations

import copy
import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import expit

from ...tracking.report import Cell, Report, Tile, format_number
from ...tracking.report_runs import write_runs_report
from ...tracking.report_sections import TrainingHints, save_task_report
from ...tracking.run_view import RunView
from .calibration_ranking import Reliability, pair_reliability, reliability
from .contact_sheet import Picture, contact_sheet, shown_name
from .evaluation_ranking import RankingEvaluator, tier_pairs
from .figures_ranking import histogram_figure
from .ranked_images import RankedImage, contested
from .scores_ranking import interval, pair_counts
from .sections_ranking import ENOUGH_REPEATED, PEOPLE, points, ranking_sections, score_format
from .tables_ranking import Comparisons, ImageTable
from .votes_ranking import (
    VoteCeiling,
    bootstrap_votes,
    decided_accuracy,
    merge_votes,
    vote_ceiling,
    votes_accuracy,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = [
    "ranking_scores",
    "render_scores",
    "write_ranking_report",
    "write_ranking_run_report",
]

_SHEET = 12  # pictures of each kind
_MOST_ROWS = 2000  # of a table
_METRICS = {"accuracy": "pair accuracy", "votes_accuracy": "share of the votes"}


def ranking_scores(
    evaluator: RankingEvaluator,
    table: ImageTable,
    *,
    temperature: float | None,
    split: str = "test",
    baselines: Mapping[str, np.ndarray] | None = None,
    comparisons: Comparisons | None = None,
    images: int | None = None,
) -> dict[str, Any]:
    """Returns what ``scores.json`` holds of an evaluation.

    Args:
        evaluator (RankingEvaluator): After an evaluation.
        table (ImageTable): The images that it scored.
        temperature (float, *optional*): What score differences are divided by to become
            probabilities; None for a model that was not calibrated.
        split (str): ``"test"``, or ``"validation"`` for the images that the best model was chosen
            on. Defaults to ``"test"``.
        baselines (mapping of str to float array ``[N]``, *optional*): Scores that single numbers
            give the same images, of :func:`~.baselines_ranking.baseline_scores`.
        comparisons (Comparisons, *optional*): All there are, also between images of other splits,
            which tell more of people's agreement than those of a few images. Defaults to the
            evaluator's.
        images (int, *optional*): Number of images that ``comparisons`` are of.

    Returns:
        JSON values; None stands for what is not known.

        - ``split``, ``remark`` (a sentence where the images are not new to the model), ``images``,
          ``images_by_tier``, ``total_pairs``, ``correct_predictions`` (None without targets).
        - ``summary``, the metrics; ``primary_metric``, its ``interval`` (95 %, over images) and
          ``above_chance``, whether the interval's lower end is above 0.5; False too where all pairs
          are right but a random order would have them right with a probability above 2.5 %.
        - ``tier_pairs``: see :func:`~.evaluation_ranking.tier_pairs`.
        - ``temperature`` and ``reliability``, the fields of
          :class:`~.calibration_ranking.Reliability`.
        - ``correlated_with``: ``"score"`` or ``"tier"``, what the correlations are with.
        - ``baselines``: by name ``accuracy`` (the primary metric's value), ``interval``,
          ``difference`` (the model's less the baseline's) and ``difference_interval``, of the same
          draws of images for both.
        - ``votes``: ``accuracy``, ``interval``, ``decided_accuracy``, ``pairs``, ``votes`` and
          ``ceiling``, the fields of :class:`~.votes_ranking.VoteCeiling`.
        - ``verdicts``: pairs of a tone (``good``, ``note``, ``warning`` or ``bad``) and a sentence.
    """
    metric, summary = evaluator.primary_metric, evaluator.metrics()
    replicates = evaluator.bootstrap()
    low, high = interval(replicates)
    counts = None
    if evaluator.targets is not None:
        counts = pair_counts(evaluator.scores, evaluator.targets)
    scores: dict[str, Any] = {
        "split": split,
        "remark": None,
        "images": len(table),
        "images_by_tier": table.counts(),
        "total_pairs": None if counts is None else counts.total_pairs,
        "correct_predictions": None if counts is None else counts.correct_predictions,
        "summary": summary,
        "primary_metric": metric,
        "interval": [low, high],
        "above_chance": low > 0.5 and not _chance_alone(summary[metric], evaluator.targets),
        "tier_pairs": {} if counts is None else tier_pairs(counts, table.tiers),
        "temperature": temperature,
        "reliability": None,
        "correlated_with": None,
        "baselines": {},
        "votes": None,
    }
    if split == "validation":
        scores["remark"] = (
            "These are the images that the best model was chosen on and that its probabilities "
            "were calibrated on: the numbers flatter it, new images are ranked less well."
        )
    if temperature is not None:
        scores["reliability"] = _reliability(evaluator, temperature)
    if evaluator.references is not None:
        by_tier = bool(table.tiers) and evaluator.references is evaluator.targets
        scores["correlated_with"] = "tier" if by_tier else "score"
    for name, values in (baselines or {}).items():
        other = copy.copy(evaluator)
        other.scores = values
        theirs, drawn = other.metrics()[metric], other.bootstrap()
        scores["baselines"][name] = {
            "accuracy": theirs,
            "interval": list(interval(drawn)),
            "difference": summary[metric] - theirs,
            "difference_interval": list(interval(replicates - drawn)),
        }
    if evaluator.comparisons is not None:
        everything = comparisons or evaluator.comparisons
        ceiling = vote_ceiling(everything.images, everything.votes, images or len(table))
        scores["votes"] = _votes(evaluator, ceiling)
    scores["verdicts"] = _verdicts(scores)
    return scores


def _chance_alone(value: float, targets: np.ndarray | None) -> bool:
    """Whether all pairs are right where that happens to random orders: no draw has a wrong one."""
    if value < 1 or targets is None:
        return False
    sizes = np.unique(targets, return_counts=True)[1]
    right = sum(math.lgamma(size + 1) for size in sizes) - math.lgamma(len(targets) + 1)
    return math.exp(right) > 0.025


def _reliability(evaluator: RankingEvaluator, temperature: float) -> dict[str, Any]:
    if evaluator.targets is not None:
        found = pair_reliability(evaluator.scores, evaluator.targets, temperature)
    else:
        found = _votes_reliability(evaluator.scores, evaluator.comparisons, temperature)
    return {field.name: _as_json(getattr(found, field.name)) for field in dataclasses.fields(found)}


def _votes_reliability(
    scores: np.ndarray, comparisons: Comparisons, temperature: float
) -> Reliability:
    votes = comparisons.votes.sum(1)
    first, second = comparisons.images[votes > 0].T
    shares = comparisons.votes[votes > 0, 0] / votes[votes > 0]
    return reliability(
        expit((scores[first] - scores[second]) / temperature), shares, votes[votes > 0]
    )


def _as_json(values: np.ndarray | float) -> Any:
    if isinstance(values, np.ndarray):
        return [None if math.isnan(value) else float(value) for value in values]
    return float(values)


def _votes(evaluator: RankingEvaluator, ceiling: VoteCeiling) -> dict[str, Any]:
    images, votes = evaluator.comparisons.images, evaluator.comparisons.votes
    replicates = bootstrap_votes(evaluator.scores, images, votes, groups=evaluator.groups)
    found = dataclasses.asdict(ceiling)
    if found["upper_bound_interval"] is not None:
        found["upper_bound_interval"] = list(found["upper_bound_interval"])
    return {
        "accuracy": votes_accuracy(evaluator.scores, images, votes),
        "interval": list(interval(replicates)),
        "decided_accuracy": decided_accuracy(evaluator.scores, images, votes),
        "pairs": len(merge_votes(images, votes)[0]),
        "votes": float(votes.sum()),
        "ceiling": found,
    }


# Verdicts


def _verdicts(scores: Mapping[str, Any]) -> list[list[str]]:
    """What the numbers mean, as tones and sentences."""
    found = [_chance_verdict(scores)]
    if any(entry["difference"] <= 0 for entry in scores["baselines"].values()):
        # Chance is little to be above where a single number does as well.
        found = [("note" if tone == "good" else tone, text) for tone, text in found]
    for name, entry in scores["baselines"].items():
        found.append(_baseline_verdict(name, entry))
    if scores["votes"] is not None:
        found.append(_votes_verdict(scores["votes"]))
    return [list(one) for one in found]


def _chance_verdict(scores: Mapping[str, Any]) -> tuple[str, str]:
    low, high = scores["interval"]
    value = scores["summary"][scores["primary_metric"]]
    drawn = f"with {scores['images']:,} images the interval goes from {low:.3f} to {high:.3f}"
    if value == 1 and scores["above_chance"]:
        return "good", (
            f"All pairs of {scores['images']:,} images are in the right order. How many of other "
            "images' pairs would be wrong they cannot tell: the interval has no width."
        )
    if low > 0.5 and not scores["above_chance"]:
        return "warning", (
            f"Not above chance: all pairs are in the right order, but {scores['images']:,} images "
            "are so few that a random order often is the right one."
        )
    if scores["above_chance"]:
        return "good", f"Above chance: {drawn}, chance is 0.5."
    if high < 0.5:
        return "bad", (
            f"Worse than chance: {drawn}, chance is 0.5. Images that people like less get the "
            "higher scores: check the order of the tiers."
        )
    return "warning", f"Not above chance: {drawn} and contains 0.5."


def _baseline_verdict(name: str, entry: Mapping[str, Any]) -> tuple[str, str]:
    number = f"a single number of the image ({name.replace('_', ' ')})"
    gain = points(entry["difference"])
    low, high = map(points, entry["difference_interval"])
    if entry["difference"] <= 0:
        return "warning", f"No better than {number}, which has {entry['accuracy']:.3f}."
    if entry["difference_interval"][0] <= 0:
        return "warning", (
            f"Not clearly better than {number}: {gain} points, the interval goes from {low} to "
            f"{high}."
        )
    return "good", f"Better than {number}: {gain} points, the interval goes from {low} to {high}."


def _votes_verdict(votes: Mapping[str, Any]) -> tuple[str, str]:
    share, ceiling = votes["accuracy"], votes["ceiling"]
    bound, oracle = ceiling["upper_bound"], ceiling["oracle"]
    better = votes["interval"][0] > 0.5  # than chance, without which nothing is good
    agrees = f"the model agrees with {share:.3f} of the votes"
    if bound is not None and ceiling["repeated_pairs"] >= ENOUGH_REPEATED:
        low, high = ceiling["upper_bound_interval"]
        allowed = f"no ranking is expected to exceed {bound:.3f} ({low:.3f} to {high:.3f})"
        if share >= bound and better:
            return "good", f"As good as the votes' own noise allows: {agrees}, {allowed}."
        return "note", f"People disagree among themselves: {agrees}, {allowed}."
    few = (
        f"Only {ceiling['repeated_pairs']:,} pairs were judged more than once, too few to tell "
        "what the votes' own noise allows"
    )
    if oracle is None:
        return "note", f"{few}; {agrees}."
    others = f"a ranking fitted to people's other votes agrees with {oracle:.3f}"
    if share >= oracle and better:
        return "good", f"As good as a ranking made of votes: {agrees}, {others}. {few}."
    return "note", f"{few}: {agrees}, {others}."


# Pages


def write_ranking_run_report(
    output_dir: str | os.PathLike[str],
    scores: Mapping[str, Any],
    evaluator: RankingEvaluator,
    table: ImageTable,
    *,
    title: str = "Ranking of images",
    log_history: Sequence[Mapping[str, Any]] | None = None,
) -> Path:
    """Writes a run's own sections, ``report_sections.json``, and with them ``report.html``.

    Args:
        output_dir (path): Folder of the run, with ``run.json``.
        scores (mapping): Of :func:`ranking_scores`.
        evaluator (RankingEvaluator): That they are of.
        table (ImageTable): The images that it scored.
        title (str): Heading of the page.
        log_history (sequence of mappings, *optional*): Of the trainer's state, for a run without
            ``metrics.jsonl``; defaults to that of the newest checkpoint.

    Returns:
        Where the report is.
    """
    folder, metric = Path(output_dir), scores["primary_metric"]
    subtitle = f"{scores['images']:,} {scores['split']} images"
    if table.tiers:
        subtitle += f" of the tiers {', '.join(table.tiers)}"
    report = Report(title, subtitle)
    for section in ranking_sections(scores, evaluator, table):
        report.add(section)
    training = TrainingHints(f"eval_{metric}", f"validation {_METRICS[metric]}", ("chance", 0.5))
    save_task_report(folder, report, training=training)
    views = [RunView.from_folder(folder)]
    return write_runs_report(views, folder / "report.html", log_history=log_history)


def write_ranking_report(
    path: str | os.PathLike[str],
    ranked: Sequence[RankedImage],
    *,
    title: str,
    model_name: str,
    temperature: float | None = None,
) -> None:
    """Writes a page about the ranking of a folder's images, of which no order is known.

    It has small pictures of the best, the worst and the most contested images: those that the model
    is least sure of against the others.

    Args:
        path (path): The page, which is written atomically.
        ranked (sequence of RankedImage): Best first.
        title (str): Heading of the page.
        model_name (str): What ranked them.
        temperature (float, *optional*): Of the model; None where it was not calibrated, and then
            no image is contested.

    Example:
        >>> write_ranking_report(
        ...     "page.html", rank_by_scores(paths, scores, 0.8), title="photos", model_name="model",
        ...     temperature=0.8,
        ... )
    """
    scores = np.array([image.score for image in ranked])
    names = _names([image.path for image in ranked])
    facts = {"model": model_name, "images": len(ranked)}
    subtitle = "Images from the best to the worst, as a model sees them"
    report = Report(shown_name(title), subtitle, facts)
    shown = score_format(scores)
    section = report.section("Ranking")
    section.tiles(
        [
            Tile("Images", len(ranked)),
            Tile("Best score", shown(scores[0]), names[0]),
            Tile("Median", shown(float(np.median(scores))), "half of the images are above it"),
            Tile("Worst score", shown(scores[-1]), names[-1]),
            *_spread_tiles(ranked, temperature),
        ]
    )
    section.text(
        "These images have no labels, so this page cannot say how often the model is right: the "
        "report of its training does.",
        tone="note",
    )
    section.figure(
        histogram_figure(scores),
        "How many images have which score; the line is the median.",
        "Histogram of the scores",
    )

    def picture(row: int) -> Picture:
        image = ranked[row]
        about = [f"rank {image.rank:,}, score {shown(image.score)}"]
        if image.win_probability is not None:
            about.append(f"wins {100 * image.win_probability:.0f} % of pairs")
        return Picture(image.path, (Path(names[row]).name, *about), names[row])

    section = report.section("Images")
    best = min(_SHEET, -(-len(ranked) // 2))
    parts = [("Best", range(best))]
    if worst := min(_SHEET, len(ranked) - best):
        parts.append(("Worst, the very last one first", range(len(ranked))[: -worst - 1 : -1]))
    if temperature is not None and len(ranked) > 2:
        unsure = np.argsort(-contested(scores, temperature), kind="stable")
        parts.append(
            ("Most contested: the model is least sure of their order", unsure[: min(_SHEET, best)])
        )
    for heading, rows in parts:
        contact_sheet(section.fold(heading, opened=True), [picture(int(row)) for row in rows])

    section = report.section("All images")
    kept = range(len(ranked))
    caption = "The probability is the mean one to be better than another of these images."
    if len(ranked) > _MOST_ROWS:
        kept = [*kept[: _MOST_ROWS // 2], *kept[-(_MOST_ROWS // 2) :]]
        caption += f" The first and last {_MOST_ROWS // 2:,} of {len(ranked):,}."
    section.fold(f"{len(kept):,} rows").table(
        ["rank", "image", "score", "probability to win"],
        [
            [
                image.rank,
                names[row],
                Cell(image.score, digits=5),
                Cell(image.win_probability, digits=3),
            ]
            for row, image in ((row, ranked[row]) for row in kept)
        ],
        caption,
    )
    report.write(path)


def _names(paths: Sequence[Path]) -> list[str]:
    """Names of files below the folder that all are in: nobody's folders are on a page."""
    folder = os.path.commonpath([os.path.abspath(path.parent) for path in paths])
    return [shown_name(os.path.relpath(os.path.abspath(path), folder)) for path in paths]


def _spread_tiles(ranked: Sequence[RankedImage], temperature: float | None) -> list[Tile]:
    """How sure the model is across the middle half of the images."""
    if temperature is None or len(ranked) < 4:
        return []
    quarter = len(ranked) // 4
    gap = ranked[quarter].score - ranked[-1 - quarter].score
    note = "that an image a quarter from the top is better than one a quarter from the bottom"
    return [Tile("How sure", f"{expit(gap / temperature):.3f}", note)]


# Terminal


def render_scores(scores: Mapping[str, Any]) -> RenderableType:
    """Lays out what :func:`ranking_scores` returns for the terminal.

    Args:
        scores (mapping): The scores.

    Returns:
        A table of the numbers with what to compare them with; below it the verdicts.
    """
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    summary, metric = scores["summary"], scores["primary_metric"]
    table = Table(
        "", "", "95 % interval", "", box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left",
        title=f"Scores on {scores['images']:,} {scores['split']} images",
    )  # fmt: skip
    table.columns[1].justify = table.columns[2].justify = "right"

    def add(name: str, value: float, bounds: Sequence[float] | None = None, note: str = "") -> None:
        between = "" if bounds is None else f"{bounds[0]:.3f} to {bounds[1]:.3f}"
        style = "bold" if name == _METRICS[metric] else ""
        table.add_row(Text(name), f"{value:.3f}", between, Text(note), style=style)

    if metric == "accuracy":
        note = f"{scores['correct_predictions']:,g} of {scores['total_pairs']:,} pairs are right"
        add(_METRICS[metric], summary[metric], scores["interval"], note)
        if "adjacent_accuracy" in summary and len(scores["tier_pairs"]) > 1:
            add("neighbouring tiers", summary["adjacent_accuracy"])
    if scores["votes"] is not None:
        votes, ceiling = scores["votes"], scores["votes"]["ceiling"]
        note = f"{votes['votes']:,.0f} votes on {votes['pairs']:,} pairs"
        add(_METRICS["votes_accuracy"], votes["accuracy"], votes["interval"], note)
        if ceiling["upper_bound"] is not None and ceiling["repeated_pairs"] >= ENOUGH_REPEATED:
            add("  their ceiling", ceiling["upper_bound"], ceiling["upper_bound_interval"])
        if ceiling["oracle"] is not None:
            add("  by other votes", ceiling["oracle"])
    for name in ("srcc", "krcc", "plcc"):
        if name in summary:
            add(name.upper(), summary[name], None, f"with {PEOPLE[scores['correlated_with']]}")
    if scores["reliability"] is not None:
        note = f"temperature {format_number(scores['temperature'])}"
        add("calibration error", scores["reliability"]["ece"], None, note)
    for name, entry in scores["baselines"].items():
        note = f"the model: {points(entry['difference'])} points"
        add(f"{name.replace('_', ' ')} alone", entry["accuracy"], entry["interval"], note)
    styles = {"good": "green", "note": "", "warning": "yellow", "bad": "red"}
    lines = [Text(sentence, styles[tone]) for tone, sentence in scores["verdicts"]]
    if scores["remark"]:
        lines.append(Text(scores["remark"]))
    return Group(table, *lines)
