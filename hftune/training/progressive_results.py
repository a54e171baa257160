"""What a progressive training leaves for people and scripts: its results as JSON and as text."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..utils.files import atomic_write, human_bytes, write_json
from ..utils.terminal import duration
from .learning_curve import LearningCurve

__all__ = ["RESULTS", "SUMMARY", "write_results"]

RESULTS = "progressive_training_results.json"
SUMMARY = "progressive_training_summary.txt"

_STATUS = {
    "running": "running",
    "completed": "completed",
    "stopped": "ended early",
}


def write_results(
    root: str | os.PathLike[str],
    results: Sequence[Mapping[str, Any]],
    *,
    status: str,
    reason: str | None,
    score_name: str,
    greater_is_better: bool,
    all_samples: int,
    carried: bool,
    curve: LearningCurve | None,
) -> None:
    """Writes ``progressive_training_results.json`` and ``progressive_training_summary.txt``.

    Args:
        root (path): The run's folder.
        results (sequence of mappings): Of the stages that are done.
        status (str): ``running``, ``completed`` or ``stopped`` (before the plan's end).
        reason (str, *optional*): Why it was stopped.
        score_name (str): The metric that is followed.
        greater_is_better (bool): Of the metric.
        all_samples (int): Of the whole training data.
        carried (bool): Whether weights go from stage to stage.
        curve (LearningCurve, *optional*): Through the scores.
    """
    # Once all data were seen, what more of them would bring.
    target = all_samples if results[-1]["samples"] < all_samples else 2 * all_samples
    prediction = None if curve is None else curve.predict(target)
    write_json(
        Path(root) / RESULTS,
        {
            "format": 1,
            "status": status,
            "reason": reason,
            "metric": score_name,
            "greater_is_better": greater_is_better,
            "all_samples": all_samples,
            "weights": "carried from stage to stage" if carried else "fresh in each stage",
            "stages": results,
            "learning_curve": None
            if curve is None
            else {**curve.as_dict(), "expected": {"samples": target, **prediction.as_dict()}},
            "total_seconds": sum(result.get("seconds", 0.0) for result in results),
        },
    )
    lines = [
        f"Progressive training: {_STATUS[status]}, {len(results)} stages done"
        + (f" ({reason})" if reason else ""),
        f"Written {time.strftime('%Y-%m-%d %H:%M:%S')}",
        "",
        *_table(results, score_name),
        "",
    ]
    if prediction is not None:
        lines += [
            f"Through the {len(curve.points)} scores: {curve.as_dict()['form']} with "
            f"a = {curve.a:.4g}, b = {curve.b:.4g}, c = {curve.c:.4g}",
            f"Expected with {'all ' if target == all_samples else ''}{target:,} samples: "
            f"{prediction.value:.4f} "
            f"({prediction.low:.4f} to {prediction.high:.4f}, {prediction.level:.0%})",
        ]
        if carried:
            lines.append(
                "Weights went from stage to stage: later stages have had more updates, and the "
                "curve is not that of independent trainings (--fresh_each_stage is)."
            )
    with atomic_write(Path(root) / SUMMARY) as stream:
        stream.write("\n".join(lines).rstrip() + "\n")


def _table(results: Sequence[Mapping[str, Any]], score_name: str) -> list[str]:
    head = ["stage", "data", "samples", "epochs", "batch", "steps", score_name, "gain", "time"]
    head.append("peak memory")
    rows = [head]
    before = None
    for result in results:
        batch, score = result["batch"], result.get("score")
        gain = "" if before is None or score is None else f"{score - before:+.4f}"
        micro = batch["per_device_train_batch_size"]
        memory = (result.get("resources") or {}).get("memory_bytes")
        rows.append(
            [
                str(result["number"]),
                f"{round(100 * result['ratio'], 4):g} %",
                f"{result['samples']:,}",
                f"{result['epochs']:g}",
                f"{micro} x {batch['gradient_accumulation_steps']}",
                str(result["steps"]),
                "-" if score is None else f"{score:.4f}",
                gain,
                duration(result.get("seconds", 0.0)),
                "-" if memory is None else human_bytes(memory),
            ]
        )
        before = score
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return ["  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
