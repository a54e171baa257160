"""``hftune stages``: how far a run in stages has come, and training some of them again."""

from __future__ import annotations

import argparse
import fcntl
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..training.checkpoints import MANIFEST, find_checkpoints, verify_checkpoint
from ..training.folder_lock import locked_folder
from ..training.plan import JOURNAL, PLAN, Journal, Plan, best_model, set_aside
from ..utils.errors import ConfigurationError
from ..utils.files import write_json
from ..utils.terminal import duration
from .background_start import DEFAULT_FOLDERS
from .tables import Column, console, fitted, number, one_line, print_json

__all__ = ["main"]

_STYLES = {"done": "green", "running": "bold cyan", "interrupted": "yellow", "not begun": "dim"}
_EXAMPLES = """\
examples:
  hftune stages runs/x
  hftune stages runs/x --restart 3      # stages 1 and 2 stay, the next start trains from 3 on"""


def main(argv: Sequence[str]) -> int:
    """Runs the command.

    Args:
        argv (sequence of str): Arguments after ``hftune stages``.

    Returns:
        0.

    Raises:
        ConfigurationError: If there is no run in stages, or a stage cannot be trained again.
    """
    default = DEFAULT_FOLDERS["progressive"]
    parser = argparse.ArgumentParser(
        prog="hftune stages",
        description="Show the stages of a run: which are done, what they scored, and what the next "
        "start of the run would do.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "folder", nargs="?", metavar="DIR", help=f"the run's folder (default {default})"
    )
    parser.add_argument(
        "--restart", type=int, metavar="NUMBER",
        help="set this stage and all later ones aside, into DIR/quarantine; the next start trains "
        "them again",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args(argv)
    root = Path(arguments.folder or default)
    if not root.is_dir():
        if arguments.folder is None:
            raise ConfigurationError(f"which run? There is no {default} here: give its folder")
        raise ConfigurationError(f"{root}: no such folder")
    plan = Plan.read(root)
    if plan is None:
        raise ConfigurationError(f"{root} has no {PLAN}: no run in stages was started there")
    if arguments.restart is not None:
        return _restart(root, plan, arguments.restart)
    view = _describe(root, plan, Journal(root))
    if arguments.json:
        print_json(view)
    else:
        _show(view)
    return 0


# What there is


def _describe(root: Path, plan: Plan, journal: Journal) -> dict[str, Any]:
    holder = _holder(root)
    results = journal.results(plan)
    metrics = [r["metric_for_best_model"] for r in results if r["metric_for_best_model"]]
    before, stages = None, []
    for position, planned in enumerate(plan.stages, 1):
        status = journal.status(planned.name)
        entry = {} if status is None else journal.entry(planned.name)
        result = entry.get("result", {})
        best = best_model(root, planned.name)
        saved = _newest_checkpoint(best.parent)
        score = result.get("score", result.get("best_metric"))
        # Another lead time is another task, of which nobody expects a smaller error.
        compared = plan.kind != "lead_time" and None not in (before, score)
        stages.append(
            {
                "number": position,
                "name": planned.name,
                "title": planned.title,
                "samples": planned.settings.get("samples"),
                "status": _status(status, holder),
                "steps": result.get("steps", _step(saved) if status else 0),
                "planned_steps": planned.steps or None,
                "score": score,
                "gain": score - before if compared else None,
                "epochs": planned.epochs,
                "batch": entry.get("batch"),
                "seconds": entry.get("seconds"),
                "checkpoint": saved.name if saved and status == "running" else None,
                "best_model": os.fspath(best) if status == "done" else None,
                "problems": verify_checkpoint(best, hashes=False) if status == "done" else [],
            }
        )
        before = score
    return {
        "folder": os.fspath(root),
        "kind": plan.kind,
        "metric": metrics[0].removeprefix("eval_") if metrics else None,
        "process": holder,
        "ended": journal.values["ended"],
        "next": _next(root, stages, holder, journal.values["ended"]),
        "stages": stages,
    }


def _status(status: str | None, holder: str | None) -> str:
    if status == "running" and holder is None:
        return "interrupted"
    return status or "not begun"


def _holder(root: Path) -> str | None:
    """Who trains in a folder; None where nobody does."""
    try:
        with open(root / ".hftune.lock", encoding="utf-8") as lock:
            try:
                fcntl.lockf(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                return one_line(lock.read().strip()) or "another process"
    except OSError:  # no lock, or a file system without locks
        pass
    return None


def _newest_checkpoint(folder: Path) -> Path | None:
    whole = [c for c in find_checkpoints(folder) if (c / MANIFEST).is_file()]
    return whole[-1] if whole else None


def _step(checkpoint: Path | None) -> int:
    return 0 if checkpoint is None else int(checkpoint.name.rpartition("-")[2])


def _next(
    root: Path, stages: Sequence[dict[str, Any]], holder: str | None, ended: str | None
) -> str:
    """What the next start of the run would do."""
    count = len(stages)
    following = next((stage for stage in stages if stage["status"] != "done"), None)
    if holder is not None:
        return f"running: {holder}"
    for stage in stages:
        if stage["problems"]:
            return (
                f"the next start would refuse to go on: stage {stage['number']} is done, but its "
                f"best model is damaged ({stage['problems'][0]}). Put it back, or train from there "
                f"on again: {_restart_command(root, stage['number'])}"
            )
    if following is None:
        return f"finished: all {count} stages are done"
    place = following["number"]
    name = f"stage {place} of {count} ({one_line(following['title'])})"
    if ended is not None:
        return f"ended before {name}: {one_line(ended)}"
    if following["checkpoint"] is not None:
        return f"the same command goes on with {name} from {following['checkpoint']}"
    if following["status"] == "interrupted":
        return f"the same command begins {name} again, which has no checkpoint yet"
    return f"the same command {'begins' if place == 1 else 'goes on'} with {name}"


def _restart_command(root: Path, place: int) -> str:
    return f"hftune stages {shlex.quote(os.fspath(root))} --restart {place}"


def _show(view: dict[str, Any]) -> None:
    from rich.text import Text

    stages, out = view["stages"], console()
    titles = [s["title"] if s["title"] != s["name"] else "" for s in stages]
    columns = [
        Column("#", [str(s["number"]) for s in stages], right=True),
        Column("stage", [s["name"] for s in stages]),
        Column("title", [one_line(title) for title in titles], rank=6),
        Column("samples", [_thousands(s["samples"]) for s in stages], right=True, rank=5),
        Column("status", [Text(s["status"], style=_STYLES[s["status"]]) for s in stages], rank=1),
        Column("steps", [_steps(s) for s in stages], right=True, rank=4),
        Column(view["metric"] or "score", [number(s["score"]) for s in stages], True, 2),
        *(
            [Column("gain", [_gain(s["gain"]) for s in stages], right=True, rank=3)]
            if any(s["gain"] is not None for s in stages)
            else []
        ),
        Column("epochs", [f"{s['epochs']:g}" for s in stages], right=True, rank=9),
        Column("batch", [_batch(s["batch"]) for s in stages], right=True, rank=8),
        Column("time", [_time(s["seconds"]) for s in stages], right=True, rank=7),
        Column("best model", [one_line(s["best_model"] or "") for s in stages], rank=10),
    ]
    table, left_out = fitted(columns, out.width)
    out.print(table)
    if left_out:
        out.print(
            f"\nNo room for {', '.join(left_out)}; --json has all.", style="dim", soft_wrap=True
        )
    out.print()
    out.print(view["next"], soft_wrap=True)
    done = [stage["best_model"] for stage in stages if stage["best_model"]]
    if done:
        out.print(
            f"best model of the last stage that is done: {one_line(done[-1])}", soft_wrap=True
        )


def _thousands(count: int | None) -> str:
    return "" if count is None else f"{count:,}"


def _steps(stage: dict[str, Any]) -> str:
    if stage["status"] == "done" or stage["planned_steps"] is None:
        return _thousands(stage["steps"])
    return f"{stage['steps']:,}/{stage['planned_steps']:,}"


def _gain(gain: float | None) -> str:
    return "" if gain is None else f"{gain:+.3g}"


def _batch(batch: dict[str, Any] | None) -> str:
    if batch is None:
        return ""
    halved = ", reduced" if batch["reduced"] else ""
    return (
        f"{batch['per_device_train_batch_size']} x {batch['gradient_accumulation_steps']}{halved}"
    )


def _time(seconds: float | None) -> str:
    return duration(seconds) if seconds else ""


# Training stages again


def _restart(root: Path, plan: Plan, place: int) -> int:
    count = len(plan.stages)
    if not 1 <= place <= count:
        raise ConfigurationError(
            f"--restart {place}: there is no such stage, the plan in {root} has {count}"
        )
    if (holder := _holder(root)) is not None:
        raise ConfigurationError(
            f"--restart {place}: {root} is in use by {holder}; stop it first, it can go on later"
        )
    with locked_folder(root):  # no run starts meanwhile
        journal = Journal(root)
        names = [stage.name for stage in plan.stages[place - 1 :]]
        if not any(journal.status(name) or (root / name).exists() for name in names):
            stages = _describe(root, plan, journal)["stages"]
            raise ConfigurationError(
                f"--restart {place}: stage {place} has not begun, there is nothing to train again; "
                + _next(root, stages, None, journal.values["ended"])
            )
        # Stage 1 writes the first weights anew, where they are kept for all stages too.
        first = ["initial_model"] if place == 1 else []
        aside = [*names, *first, *_results(plan.kind)]
        moved, target = set_aside(root, aside, copies=[PLAN, JOURNAL])
        # Last: a stop before it leaves stages that are "done" and not there, which a start refuses
        # with the name of this command. Without their entries the old folders of stages that are
        # still to be moved would be taken for the new ones.
        kept = {s.name for s in plan.stages[: place - 1]}
        entries = {n: entry for n, entry in journal.values["stages"].items() if n in kept}
        write_json(root / JOURNAL, {**journal.values, "stages": entries, "ended": None})
    for path in moved:
        print(f"moved {path} to {target / path.name}")
    print(f"{PLAN} and {JOURNAL} as they were are in {target}")
    if any(path.name in _results(plan.kind) for path in moved):
        print("results and summary are written again when the next stage ends")
    print(_describe(root, plan, Journal(root))["next"])
    return 0


def _results(kind: str) -> list[str]:
    """Files of the run that tell of all its stages."""
    if kind != "progressive":
        return []
    from ..training.progressive_results import RESULTS, SUMMARY

    return [RESULTS, SUMMARY]
