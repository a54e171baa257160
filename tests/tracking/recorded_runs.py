"""Runs of tests: recorded in their folders and indexed, without a thread beside them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from hftune.tracking import index
from hftune.tracking.run_record import RunRecord


def record_run(store, folder: Path, number: int, name: str = "", logs=(), day=20260101, **more):
    """Records a run that ends at once; ``status`` and ``error`` say how, ``started`` when."""
    status, error = more.pop("status", "completed"), more.pop("error", None)
    started = more.pop("started", f"2026-01-{number:02d}T00:00:00+00:00")
    record = RunRecord.start(
        folder,
        task=more.pop("task", "test"),
        configuration=more.pop("configuration", {}),
        experiment_id=f"exp_{day}_{number:03d}",
        uid=more.pop("uid", f"{number:032x}"),
        name=name or f"run {number}",
        **more,
    )
    for step, metrics in enumerate(logs, 1):
        record.log_metrics(metrics, step=step)
    record.finish(status, error)
    values = record.values | {"started": started}
    record.path.write_text(json.dumps(values), encoding="utf-8")
    index.link(folder, record.experiment_id)
    index.catch_up(store, folder)
    return record


def move(folder: Path, target: Path) -> Path:
    shutil.move(folder, target)
    return target
