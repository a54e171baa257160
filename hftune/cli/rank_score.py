"""``hftune rank score``: ranks a folder of images, as a table and as a page."""

from __future__ import annotations

import argparse
import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.errors import ConfigurationError
from ..utils.files import atomic_write
from .rank_model import find_model, make_pipeline
from .tables import Column, console, one_line, print_json, table

if TYPE_CHECKING:
    from ..tasks.ranking.inference_ranking import RankedImage

__all__ = ["NOT_CALIBRATED", "check_outputs", "percent", "score", "shown_scores"]

NOT_CALIBRATED = "How sure that is is not known: the model has no temperature."
"""Said in the place of probabilities."""

_SHOWN = 5  # of the best and of the worst


def score(arguments: argparse.Namespace) -> int:
    """Ranks the images of a folder and writes the table."""
    check_outputs(arguments.output, arguments.report)

    from ..tasks.ranking.inference_ranking import find_images, rank_by_scores

    folder = Path(arguments.folder)
    paths = find_images(folder, arguments.recursive)
    model = find_model(arguments.model)
    pipeline = make_pipeline(model, arguments)
    temperature = pipeline.model.config.score_temperature
    ranked = rank_by_scores(paths, pipeline.scores(paths), temperature)
    rows = [_row(one, folder) for one in ranked]
    with atomic_write(arguments.output) as stream:
        writer = csv.DictWriter(stream, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    if arguments.report:
        from ..tasks.ranking.report_ranking import write_ranking_report

        write_ranking_report(
            arguments.report,
            ranked,
            title=f"Ranking of {folder.resolve().name}",
            model_name=model.name,
            temperature=temperature,
        )
    if arguments.json:
        print_json(rows)
        return 0
    _print(rows)
    out = console()
    out.print(f"✓ {arguments.output}: {len(rows):,} images", style="green", soft_wrap=True)
    if arguments.report:
        out.print(f"✓ {arguments.report}", style="green", soft_wrap=True)
    return 0


def check_outputs(*outputs: str | None) -> None:
    """Checks that files can be written before hours of work.

    Args:
        *outputs (str, *optional*): Their paths.

    Raises:
        ConfigurationError: If one is a folder, or lies in one that cannot be written.
    """
    for output in filter(None, outputs):
        if Path(output).is_dir():
            raise ConfigurationError(f"{output} is a folder; expected a file to write")
        parent = Path(output).absolute().parent
        while not parent.exists():
            parent = parent.parent
        if not (parent.is_dir() and os.access(parent, os.W_OK)):
            raise ConfigurationError(f"{output} cannot be written: {parent} may not be changed")


def shown_scores(scores: Sequence[float]) -> list[str]:
    """Formats scores with as many digits as their spread needs."""
    import numpy as np

    from ..tasks.ranking.sections_ranking import score_format

    return [*map(score_format(np.array(scores)), scores)]


def percent(probability: float) -> str:
    """Formats a probability; a model is never quite sure."""
    if probability > 0.99:
        return ">99 %"
    return "<1 %" if probability < 0.01 else f"{100 * probability:.0f} %"


def _row(one: RankedImage, folder: Path) -> dict[str, Any]:
    return {
        "rank": one.rank,
        "image": one.path.relative_to(folder).as_posix(),
        "score": one.score,
        "win_probability": one.win_probability,
    }


def _print(rows: Sequence[dict[str, Any]]) -> None:
    out = console()
    if len(rows) <= 2 * _SHOWN:
        parts = [("", slice(None))]
    else:
        parts = [("Best", slice(_SHOWN)), ("Worst", slice(-_SHOWN, None))]
    scores = shown_scores([row["score"] for row in rows])
    for title, places in parts:
        part = rows[places]
        if title:
            out.print(title, style="bold")
        columns = [
            Column("rank", [str(row["rank"]) for row in part], right=True),
            Column("image", [one_line(row["image"]) for row in part]),
            Column("score", scores[places], right=True),
        ]
        chances = [row["win_probability"] for row in part]
        if None not in chances:
            columns.append(Column("better than others", [*map(percent, chances)], right=True))
        out.print(table(columns))
        out.print()
    if len(rows) > 1 and rows[0]["win_probability"] is None:
        out.print(f"{NOT_CALIBRATED}\n", soft_wrap=True)
