"""``hftune runs export`` and ``report``: runs as a table for other programs, and as a page."""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.errors import ConfigurationError
from ..utils.files import atomic_write
from .tables import console, print_json

if TYPE_CHECKING:
    from ..tracking.run_view import Point
    from ..tracking.store import Store

__all__ = ["export", "report"]

_PLACE = ("run", "attempt", "stage", "step", "time")


def report(store: Store, arguments: argparse.Namespace) -> int:
    """Writes a page about runs."""
    from ..tracking.query import find_run
    from ..tracking.report_runs import write_runs_report
    from ..tracking.run_view import RunView

    ids = list(dict.fromkeys(find_run(store, text).id for text in arguments.ids))
    write_runs_report([RunView.from_store(store, run_id) for run_id in ids], arguments.output)
    if arguments.json:
        print_json({"file": arguments.output, "runs": ids})
    else:
        console().print(f"✓ {arguments.output}", style="green", soft_wrap=True)
    return 0


def export(store: Store, arguments: argparse.Namespace) -> int:
    """Writes the metrics of runs to a file."""
    from ..tracking.query import find_run, search_runs

    if arguments.ids and arguments.where:
        raise ConfigurationError("export: found runs and --where, expected one of the two")
    path = Path(arguments.output)
    writers = {".csv": _write_csv, ".jsonl": _write_lines, ".json": _write_json}
    if path.suffix not in writers:
        raise ConfigurationError(
            f"export: found the output '{path.name}', expected a name that ends in "
            f"{', '.join(writers)}"
        )
    if arguments.ids:
        ids = list(dict.fromkeys(find_run(store, text).id for text in arguments.ids))
    else:
        found = search_runs(store, arguments.where, arguments.sort, arguments.limit)
        ids = [run["id"] for run in found]
    place = (*_PLACE, "superseded") if arguments.superseded else _PLACE
    rows = list(_rows(store, ids, arguments))
    columns = list(place if arguments.wide else (*place, "metric", "value"))
    columns += [
        name for name in dict.fromkeys(n for row in rows for n in row) if name not in columns
    ]
    writers[path.suffix](path, rows, columns)
    if arguments.json:
        print_json({"file": str(path), "runs": ids, "rows": len(rows)})
    else:
        console().print(
            f"✓ {path}: {len(rows):,} rows, {len(ids)} run{'s' * (len(ids) != 1)}",
            style="green",
            soft_wrap=True,
        )
    return 0


def _rows(
    store: Store, ids: Sequence[str], arguments: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    from ..tracking.json_lines import from_number
    from ..tracking.run_view import RunView

    for run_id in ids:
        for point in RunView.from_store(store, run_id).points:
            if point.superseded and not arguments.superseded:
                continue
            place = _place(run_id, point, arguments.superseded)
            values = {name: from_number(value) for name, value in point.metrics.items()}
            if arguments.wide:
                taken = {name if name not in place else f"{name}_": v for name, v in values.items()}
                yield place | taken
            else:
                for name, value in values.items():
                    yield place | {"metric": name, "value": value}


def _place(run_id: str, point: Point, superseded: bool) -> dict[str, Any]:
    place = {"run": run_id, **{name: getattr(point, name) for name in _PLACE[1:]}}
    return place | ({"superseded": point.superseded} if superseded else {})


def _write_csv(path: Path, rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    with atomic_write(path) as stream:
        writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _write_lines(path: Path, rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    with atomic_write(path) as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


def _write_json(path: Path, rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    with atomic_write(path) as stream:
        json.dump(rows, stream, ensure_ascii=False, allow_nan=False, indent=1)
        stream.write("\n")
