"""Kills runs again and again, and proves that they end as if nothing had happened.

    python benchmarks/kill_and_resume.py --kills 100

Each run is killed with SIGKILL up to three times, started again each time, and then left to end:
half of them at armed points (in a save before each kind of file, in an evaluation, in the deletion
of old checkpoints, between the stages of a progressive training, ...), half at random times.
Weights to the bit, logs, best model and results must be those of a run that was left alone. A kill
counts as landed only with proof that it ended a process that had not finished. Exits with 1 if an
end differs or a kill at an armed point did not land.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import kill_harness
import torch
from rich.table import Table

from hftune.utils.terminal import console, duration, progress


def arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="at least as many (default: 100)")
    parser.add_argument(
        "--targets", nargs="+", choices=list(kill_harness.targets()), metavar="NAME",
        help=f"which runs (default: {', '.join(kill_harness.targets())})",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, help="of an earlier run, to repeat it")
    return parser.parse_args()


def show(done: list[kill_harness.Series]) -> None:
    """Prints kills by target and kind of point."""
    rows: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
    for series in done:
        for kill in series.kills:
            for key in ((series.target.name, kill.point.partition(":")[0]), ("all", "")):
                rows[key][0] += 1
                rows[key][1] += kill.landed
                rows[key][2] += series.equal
    table = Table("target", "killed at", *("kills", "landed", "end equal"))
    for column in table.columns[2:]:
        column.justify = "right"
    total = rows.pop(("all", ""))
    for (target, point), counts in sorted(rows.items()):
        table.add_row(target, point, *map(str, counts))
    table.add_section()
    table.add_row("all", f"{len(done)} runs", *map(str, total))
    console().print(table)


def main() -> int:
    """Kills, prints a table, and says whether all ends were equal."""
    args = arguments()
    torch.set_num_threads(1)
    seed = random.SystemRandom().randrange(1 << 32) if args.seed is None else args.seed
    print(f"seed {seed}", flush=True)
    draw, begun, done, kills = random.Random(seed), time.monotonic(), [], 0
    chosen = [t for n, t in kill_harness.targets().items() if n in (args.targets or [n])]
    folder = Path(tempfile.mkdtemp(prefix="kill_and_resume_"))
    os.environ["HFTUNE_HOME"] = str(folder / "home")
    references = {
        target.name: kill_harness.Reference(target, folder / f"whole_{number}")
        for number, target in enumerate(chosen)
    }
    with progress(args.kills, "Killing runs", "kills") as bar:
        while kills < args.kills:
            target = chosen[len(done) % len(chosen)]
            points = kill_harness.plan_series(
                target, draw, at_random=len(done) // len(chosen) % 2 == 1
            )
            place = folder / f"run_{len(done)}"
            series = kill_harness.run_series(target, points, references[target.name], place, draw)
            done.append(series)
            kills += len(series.kills)
            bar.update(len(series.kills))
    show(done)
    failed = [series for series in done if not series.passed]
    for series in failed:
        print(f"{series.folder} ({series.target.name}): {series.note or 'a kill did not land'}")
        for kill in series.kills:
            print(f"    {kill.point}: {'landed' if kill.landed else 'NOT LANDED'}; {kill.note}")
    landed = sum(kill.landed for series in done for kill in series.kills)
    equal = sum(series.equal for series in done)
    print(
        f"{kills} kills, {landed} landed, {equal} of {len(done)} runs ended equal, "
        f"{duration(time.monotonic() - begun)}, seed {seed}"
    )
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
