"""The report of a progressive training: its learning curve and its stages, after each stage."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import TrainerCallback

from ..tracking.report import Cell, Report, Section
from ..tracking.report_runs import write_runs_report
from ..tracking.report_sections import save_task_report
from ..tracking.run_view import RunView
from ..utils.files import human_bytes
from ..utils.terminal import duration
from .report_learning_curve import learning_curve_section

if TYPE_CHECKING:
    from .progressive import ProgressiveMixin

__all__ = ["ProgressiveReport", "progressive_sections", "write_progressive_report"]


class ProgressiveReport(TrainerCallback):
    """Writes ``report.html`` after a stage, at most twice a minute.

    Args:
        title (str): Heading of the page.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self._written = time.monotonic()

    def on_stage_end(self, args, state, control, trainer, **kwargs):
        if state.is_world_process_zero and time.monotonic() - self._written > 30:
            write_progressive_report(trainer, self.title)
            self._written = time.monotonic()


def write_progressive_report(
    trainer: ProgressiveMixin, title: str, sections: Sequence[Section] = ()
) -> Path:
    """Writes ``report.html`` of a run that has a record (``run.json``).

    Args:
        trainer (ProgressiveMixin): With at least one stage done.
        title (str): Heading of the page.
        sections (sequence of Section): Of the task, after those of the training.

    Returns:
        Where the page is.
    """
    done, stages = len(trainer.results), len(trainer.plan.stages)
    subtitle = f"{done} of {stages} stages done, the last on {trainer.results[-1]['title']}"
    report = Report(title, subtitle)
    for section in (*progressive_sections(trainer), *sections):
        report.add(section)
    save_task_report(trainer.root, report)
    return write_runs_report([RunView.from_folder(trainer.root)], trainer.root / "report.html")


def progressive_sections(trainer: ProgressiveMixin) -> list[Section]:
    """Makes the sections: the learning curve, where there are scores, and the stages.

    Args:
        trainer (ProgressiveMixin): With at least one stage done.
    """
    results = trainer.results
    points = trainer.points(results, trainer.root)
    sections = []
    if points:
        sections.append(
            learning_curve_section(
                points,
                trainer.fit(results, trainer.root),
                metric=trainer.score_name,
                all_samples=trainer.all_samples,
                planned=[stage.settings["samples"] for stage in trainer.plan.stages],
                carried=not trainer.staging.fresh_each_stage,
            )
        )
    section = Section("Stages")
    rows = []
    for result in results:
        batch, memory = result["batch"], result["resources"]
        micro = batch["per_device_train_batch_size"]
        rows.append(
            [
                Cell(result["title"], strong=True),
                result["samples"],
                f"{result['epochs']:g}",
                Cell(
                    f"{micro} × {batch['gradient_accumulation_steps']}",
                    note="found: a larger one did not fit" if batch["reduced"] else "",
                ),
                result["steps"],
                result.get("score"),
                result["best_step"],
                duration(result["seconds"]),
                Cell(
                    human_bytes(memory["memory_bytes"]),
                    shade=0.7 if memory["exceeded"] else None,
                    note="more than max_memory_mb" if memory["exceeded"] else "",
                ),
                result["attempts"],
                # stage_1_10pct/checkpoints/best_model
                result["start_weights"].partition("/")[0],
            ]
        )
    head = ["", "samples", "epochs", "batch", "steps", trainer.score_name, "best step", "time"]
    section.table([*head, "peak memory", "attempts", "started from"], rows)
    sections.append(section)
    return sections
