"""What a classifier's scores look like: the sections of a report, and a table in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...tracking.report import INK, Cell, Section, Series, Tile
from .evaluation_classification import ClassificationEvaluator
from .scores_classification import calibration_bins, class_scores

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import RenderableType

__all__ = ["classification_scores", "classification_sections", "confused_pairs", "render_scores"]

_PAIRS = 20
_MISTAKES = 20
_FEW_CLASSES = 16  # whose numbers fit into a matrix, and whose table need not be folded away
_NAMED_CLASSES = 120  # whose names fit beside a matrix
_NAMES = {"majority": "majority class", "naive_bayes": "naive Bayes"}
_METRICS = {
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "weighted_f1": "weighted F1",
    "loss": "loss, nats",
    "calibration_error": "calibration error",
}


def classification_scores(
    evaluator: ClassificationEvaluator, baselines: Mapping[str, Mapping[str, float]] | None = None
) -> dict[str, Any]:
    """Returns what ``scores.json`` holds of an evaluation.

    Args:
        evaluator (ClassificationEvaluator): After an evaluation.
        baselines (mapping, *optional*): Of
            :func:`~hftune.tasks.classification.baselines_classification.baseline_scores`.

    Returns:
        ``samples``; ``summary``, the metrics; ``primary_metric`` and its ``interval`` (95 %, over
        the examples); ``baselines``; ``classes``, by name their precision, recall, F1 and support;
        ``confused``, the pairs of classes that are mistaken most often.
    """
    low, high = np.quantile(evaluator.bootstrap(), [0.025, 0.975])
    scores = class_scores(evaluator.counts)
    return {
        "samples": len(evaluator.labels),
        "summary": evaluator.metrics(),
        "primary_metric": evaluator.primary_metric,
        "interval": [float(low), float(high)],
        "baselines": {name: dict(values) for name, values in (baselines or {}).items()},
        "classes": {
            label: {
                **{name: float(scores[name][i]) for name in ("precision", "recall", "f1")},
                "support": int(scores["support"][i]),
            }
            for i, label in enumerate(evaluator.label_names)
        },
        "confused": [
            {"true": true, "predicted": predicted, "samples": count, "share": share}
            for true, predicted, count, share in confused_pairs(evaluator)
        ],
    }


def confused_pairs(
    evaluator: ClassificationEvaluator, most: int = _PAIRS
) -> list[tuple[str, str, int, float]]:
    """Returns the pairs of classes that are mistaken most often.

    Args:
        evaluator (ClassificationEvaluator): After an evaluation.
        most (int): How many pairs at the most. Defaults to 20.

    Returns:
        True label, predicted label, number of examples, and their share of the true label's.
    """
    wrong = evaluator.counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    support = evaluator.counts.sum(1)
    names = evaluator.label_names
    return [
        (names[i], names[j], int(wrong[i, j]), float(wrong[i, j] / support[i]))
        for i, j in zip(*np.unravel_index(order, wrong.shape), strict=True)
        if wrong[i, j]
    ]


def classification_sections(
    evaluator: ClassificationEvaluator,
    texts: Sequence[str],
    baselines: Mapping[str, Mapping[str, float]] | None = None,
) -> list[Section]:
    """Makes the sections of a report: scores beside baselines, classes, confusions, mistakes.

    Args:
        evaluator (ClassificationEvaluator): After an evaluation.
        texts (sequence of str): Of the examples that it scores.
        baselines (mapping, *optional*): Of
            :func:`~hftune.tasks.classification.baselines_classification.baseline_scores`.

    Returns:
        Sections, to be added with ``Report.add``.
    """
    scores = classification_scores(evaluator, baselines)
    return [
        _scores_section(evaluator, scores),
        _confusion_section(evaluator, scores),
        _mistakes_section(evaluator, texts),
    ]


def _scores_section(evaluator: ClassificationEvaluator, scores: Mapping[str, Any]) -> Section:
    section = Section("Scores")
    summary, metric = scores["summary"], scores["primary_metric"]
    low, high = scores["interval"]
    examples = f"{scores['samples']:,} test texts"
    tiles = [Tile(_METRICS[metric], summary[metric], f"{low:.3f} to {high:.3f}, {examples}")]
    tiles += [
        Tile(_METRICS[name], summary[name])
        for name in ("accuracy", "macro_f1", "calibration_error")
        if name != metric
    ]
    for name, values in scores["baselines"].items():
        gain = summary["accuracy"] - values["accuracy"]
        tiles.append(
            Tile(
                f"Accuracy over {_NAMES[name]}",
                f"{100 * gain:+.1f} points".replace("-", "−"),
                f"which has {values['accuracy']:.3f}",
                "good" if gain > 0 else "bad",
            )
        )
    section.tiles(tiles)
    beaten = [
        _NAMES[name]
        for name, values in scores["baselines"].items()
        if values["accuracy"] >= summary["accuracy"]
    ]
    if beaten:
        section.text(
            f"No better than a baseline that needs seconds: {', '.join(beaten)}.", tone="warning"
        )
    section.table(
        ["", *_METRICS.values()],
        [
            [Cell("model", strong=True), *(summary[name] for name in _METRICS)],
            *(
                [_NAMES[name], *(values.get(key) for key in _METRICS)]
                for name, values in scores["baselines"].items()
            ),
        ],
        f"All on the same {examples}. Macro F1 is the mean over classes, weighted F1 that over "
        "examples. The calibration error is how far confidence and accuracy are apart. Naive Bayes "
        "counts n-grams of characters.",
    )
    _class_table(section, scores)
    count, confidence, share = calibration_bins(
        evaluator.confidence, evaluator.predictions == evaluator.labels
    )
    section.fold("Calibration", opened=True).curves(
        [
            Series("model", confidence, share, 0, dots=True),
            Series(
                "perfect", [float(confidence[0]), 1.0], [float(confidence[0]), 1.0], 1, dashed=True
            ),
        ],
        x_label="confidence",
        y_label="share that is right",
        caption="Below the line the model is surer than it should be. Texts in each point: "
        + ", ".join(f"{number:,}" for number in count)
        + ".",
    )
    return section


def _class_table(section: Section, scores: Mapping[str, Any]) -> None:
    classes = scores["classes"]
    mistaken = {}
    for pair in scores["confused"]:
        mistaken.setdefault(pair["true"], f"{pair['predicted']} ({pair['samples']})")
    order = sorted(classes, key=lambda label: classes[label]["f1"])
    rows = []
    for label in order:
        entry = classes[label]
        rows.append(
            [
                Cell(label, strong=True),
                *(Cell(entry[name], digits=3) for name in ("precision", "recall")),
                Cell(entry["f1"], digits=3, shade=0.7 * (1 - 2 * entry["f1"])),
                entry["support"],
                mistaken.get(label, ""),
            ]
        )
    fold = section.fold(
        f"{len(classes)} classes, the worst first", opened=len(rows) <= _FEW_CLASSES
    )
    fold.table(["", "precision", "recall", "F1", "test texts", "most often taken for"], rows)


def _confusion_section(evaluator: ClassificationEvaluator, scores: Mapping[str, Any]) -> Section:
    section = Section("Confusions")
    section.figure(
        _confusion_figure(evaluator.counts, evaluator.label_names),
        "Rows are true classes, columns predicted ones. Blue: what is right, orange: what is not, "
        "as a share of the row; each has its own scale.",
        "Confusion matrix",
    )
    if scores["confused"]:
        section.table(
            ["true", "predicted", "texts", "share of the true class"],
            [
                [pair["true"], pair["predicted"], pair["samples"], f"{100 * pair['share']:.1f} %"]
                for pair in scores["confused"]
            ],
            f"The {len(scores['confused'])} most frequent confusions.",
        )
    return section


def _confusion_figure(counts: np.ndarray, names: Sequence[str]) -> Figure:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    size = len(names)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    right = np.eye(size, dtype=bool)
    edge = float(np.clip(0.105 * size, 2.4, 9.0))
    figure = Figure(figsize=(edge + 2.2, edge + 1.6), layout="constrained")
    axes = figure.subplots()
    top = max(share[~right].max(initial=0), 0.5)
    # Empty cells stay as the page is, light or dark.
    for part, colors, scale in ((right, "Blues", 1.0), (~right, "Oranges", top)):
        values = np.ma.masked_where(~part | (counts == 0), share)
        axes.imshow(
            0.25 + 0.75 * values / scale, cmap=mpl.colormaps[colors], vmin=0, vmax=1,
            interpolation="nearest",
        )  # fmt: skip
    if size <= _FEW_CLASSES:
        for i, j in np.argwhere(counts):
            strength = share[i, j] / (1.0 if i == j else top)
            axes.text(
                j, i, f"{counts[i, j]:,}", ha="center", va="center", fontsize=8,
                color="#ffffff" if strength > 0.5 else "#202020",
            )  # fmt: skip
    if size <= _NAMED_CLASSES:
        font = float(np.clip(72 * edge / size * 0.75, 4.0, 8.0))
        short = [name if len(name) <= 28 else f"{name[:27]}…" for name in names]
        lengthwise = font * max(map(len, short)) > 72 * edge / size  # too long to lie flat
        axes.set_xticks(range(size), short, rotation=90 if lengthwise else 0, fontsize=font)
        axes.set_yticks(range(size), short, fontsize=font)
    else:
        axes.set_xticks([])
        axes.set_yticks([])
    axes.set_xlabel("predicted", color=INK)
    axes.set_ylabel("true", color=INK)
    axes.tick_params(length=0, colors=INK, labelcolor=INK)
    for spine in axes.spines.values():
        spine.set_color(INK)
        spine.set_linewidth(0.4)
    return figure


def _mistakes_section(evaluator: ClassificationEvaluator, texts: Sequence[str]) -> Section:
    section = Section("Confident mistakes")
    wrong = np.flatnonzero(evaluator.predictions != evaluator.labels)
    order = wrong[np.argsort(-evaluator.confidence[wrong], kind="stable")][:_MISTAKES]
    if not len(order):
        section.text("There is no mistake among the test texts.", tone="good")
        return section
    names = evaluator.label_names
    section.table(
        ["text", "true", "predicted", "confidence"],
        [
            [
                texts[int(i)],
                names[evaluator.labels[i]],
                names[evaluator.predictions[i]],
                Cell(float(evaluator.confidence[i]), digits=3),
            ]
            for i in order
        ],
        f"The {len(order)} of {len(wrong):,} mistakes that the model was surest of: wrong labels "
        "are often among them.",
    )
    return section


def render_scores(scores: Mapping[str, Any]) -> RenderableType:
    """Lays out what :func:`classification_scores` returns for the terminal.

    Args:
        scores (mapping): The scores.

    Returns:
        A table of the model and the baselines; below it the interval and the worst classes.
    """
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, title=f"Scores on {scores['samples']:,} test texts"
    )
    table.add_column("")
    for title in _METRICS.values():
        table.add_column(title, justify="right")
    summary, metric = scores["summary"], scores["primary_metric"]
    table.add_row("model", *(f"{summary[name]:.4f}" for name in _METRICS), style="bold")
    for name, values in scores["baselines"].items():
        cells = [f"{values[key]:.4f}" if key in values else "" for key in _METRICS]
        style = "red" if values["accuracy"] >= summary["accuracy"] else ""
        table.add_row(_NAMES[name], *cells, style=style)
    low, high = scores["interval"]
    lines = [f"{_METRICS[metric]}: {low:.4f} to {high:.4f} with 95 % probability"]
    classes = scores["classes"]
    worst = sorted(classes, key=lambda label: classes[label]["f1"])[:5]
    listed = ", ".join(f"{label} {classes[label]['f1']:.2f}" for label in worst)
    lines.append(f"lowest F1: {listed}")
    return Group(table, *(Text(line) for line in lines))
