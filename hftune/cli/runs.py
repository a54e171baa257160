"""``hftune runs``: what was recorded, listed, compared, watched, handed out, taken away."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..utils.errors import ConfigurationError
from . import runs_export, runs_list, runs_show, runs_watch
from .arguments import joined, limit
from .tables import confirmed, console, one_line, print_json

if TYPE_CHECKING:
    from ..tracking.store import Store

__all__ = ["main"]

_DESCRIPTION = """\
Runs: every training that was recorded, with its settings, curves and state.

A run is named by its id (exp_20261121_003), the end of it (1121_003), its name
or its folder, where no other run has the same; latest is the newest one."""

_EXAMPLES = """\
examples:
  hftune runs list --where "status=completed and metrics.eval_loss<0.5"
  hftune runs list --sort metrics.eval_loss --limit 5
  hftune runs show latest
  hftune runs compare 1121_001 1121_002
  hftune runs watch

Runs are in the store that HFTUNE_TRACKING_URL names, by default in HFTUNE_HOME;
'hftune runs COMMAND --help' says more."""

_FILTERS = """\
filters:
  status=completed          = != < <= > >=, ~ for "contains", in (a, b)
  metrics.eval_loss<0.5     a metric's last value; min.NAME, max.NAME, best.NAME
                            its extremes; = nan for what went wrong
  config.learning_rate>1e-5 a setting; config.SECTION.NAME where several have it
  tags=baseline             fields: id name status task model_type tags notes
                            description created ended seconds stage step
                            max_steps attempts host folder parent_run git_commit
                            data_fingerprint wandb_run_id last_checkpoint
  created>7d                newer than 7 days (s m h d w), or a date: 2026-11-20
  name="my run"             quotes where there are spaces; none for nothing
  a=1 and not (b=2 or c=3)  joined by and, or, not, parentheses"""


def main(argv: Sequence[str]) -> int:
    """Runs the command.

    Args:
        argv (sequence of str): Arguments after ``hftune runs``.

    Returns:
        The exit code.
    """
    parser = _parser()
    if not argv:
        parser.print_help(sys.stderr)
        return 2
    arguments = parser.parse_args(joined(argv, "--sort"))

    from ..tracking import index
    from ..tracking.store import Store

    store = Store()
    if arguments.run is not _reindex:
        problems = index.refresh(store)
        if problems:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            print(f"hftune runs: {one_line(problems[0])}{more}", file=sys.stderr)
    return arguments.run(store, arguments)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"found '{text}', expected a number")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="hftune runs", description=_DESCRIPTION, epilog=_EXAMPLES, formatter_class=raw
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True, title="commands")

    def command(
        name: str, run: Callable[..., int], text: str, more: str = "", epilog: str | None = None
    ) -> argparse.ArgumentParser:
        made = commands.add_parser(
            name, help=text, description=f"{text[0].upper()}{text[1:]}.{more and ' '}{more}",
            epilog=epilog, formatter_class=raw if epilog else argparse.HelpFormatter,
        )  # fmt: skip
        made.set_defaults(run=run)
        made.add_argument("--json", action="store_true", help="print JSON")
        return made

    def filters(one: argparse.ArgumentParser, most: int | None) -> None:
        one.add_argument("--where", metavar="FILTER", help="only these runs, see below")
        one.add_argument(
            "--sort", metavar="BY", default="-created",
            help="a field, metric or setting as in a filter; a '-' before it: the largest first "
            "(default -created)",
        )  # fmt: skip
        one.add_argument(
            "--limit", type=limit, metavar="N", default=most,
            help=f"how many runs at the most, or all (default {most or 'all'})",
        )  # fmt: skip

    one = command("list", runs_list.list_runs, "list runs", epilog=_FILTERS)
    filters(one, 50)
    one.add_argument(
        "--columns", metavar="NAMES",
        help="what to show beside: metrics.eval_loss,config.learning_rate (default: metrics that "
        "the filter and the runs speak of)",
    )  # fmt: skip

    one = command("show", runs_show.show, "show everything of a run", "All but its curves.")
    one.add_argument("id", metavar="RUN")
    one.add_argument("--all", action="store_true", help="every setting, metric and event")

    one = command("compare", runs_show.compare, "put runs side by side", "What differs.")
    one.add_argument("ids", metavar="RUN", nargs="+")
    one.add_argument("--all", action="store_true", help="what is the same in all, too")

    one = command(
        "watch", runs_watch.watch, "watch a run while it goes on",
        "Ends with the run: with 0 if it completed, else with 1. Ctrl-C leaves it alone.",
    )  # fmt: skip
    one.add_argument("id", metavar="RUN", nargs="?", help="(default: the newest that is running)")
    one.add_argument("--once", action="store_true", help="look once and end")

    one = command("tail", runs_watch.tail, "print what a run logged last")
    one.add_argument("id", metavar="RUN")
    one.add_argument("-n", type=_count, default=20, metavar="N", help="lines (default 20)")
    one.add_argument("-f", "--follow", action="store_true", help="go on until the run ends")

    one = command("report", runs_export.report, "write a page about one or several runs",
                  "It needs no network.")  # fmt: skip
    one.add_argument("ids", metavar="RUN", nargs="+")
    one.add_argument("-o", "--output", default="report.html", metavar="FILE.html",
                     help="(default report.html)")  # fmt: skip

    one = command("export", runs_export.export, "write the metrics of runs to a file",
                  epilog=f"{_FILTERS}\n\nin pandas: pd.read_csv(\"metrics.csv\")")  # fmt: skip
    one.add_argument("ids", metavar="RUN", nargs="*", help="(default: all that --where finds)")
    filters(one, None)
    one.add_argument("-o", "--output", required=True, metavar="FILE",
                     help="a .csv, .jsonl or .json")  # fmt: skip
    one.add_argument("--wide", action="store_true",
                     help="one row a log call, one column a metric")  # fmt: skip
    one.add_argument("--superseded", action="store_true",
                     help="also what a later attempt went back behind")  # fmt: skip

    one = command(
        "reindex", _reindex, "build the index again from the runs' own files",
        "Without folders: of all runs in HFTUNE_HOME/runs. With folders: of the runs there, which "
        "become known, and of those in HFTUNE_HOME/runs that are not.",
    )  # fmt: skip
    one.add_argument("folders", metavar="FOLDER", nargs="*", type=Path,
                     help="of a run, or one to search for runs")  # fmt: skip

    one = command(
        "delete", _delete, "take a run out of the store",
        "Its folder goes to HFTUNE_HOME/trash if it is in HFTUNE_HOME/runs; any other stays as it "
        "is.",
    )  # fmt: skip
    one.add_argument("id", metavar="RUN")
    one.add_argument("--yes", action="store_true", help="do not ask")
    return parser


def _reindex(store: Store, arguments: argparse.Namespace) -> int:
    from ..tracking.reindex import reindex

    done = reindex(store, arguments.folders)
    if arguments.json:
        print_json({"runs": done.runs, "problems": done.problems})
    else:
        out = console()
        for problem in done.problems:
            out.print(f"✗ {one_line(problem)}", style="red", soft_wrap=True)
        count = len(done.runs)
        out.print(f"✓ {count} run{'s' * (count != 1)} indexed from their files", style="green")
    return 1 if done.problems else 0


def _delete(store: Store, arguments: argparse.Namespace) -> int:
    from ..tracking.deletion import delete_run
    from ..tracking.query import find_run

    run = find_run(store, arguments.id)
    what = f"{run.id} ({one_line(run.name)}, {run.status})"
    if not confirmed(f"Delete {what}?", yes=arguments.yes):
        return 1
    try:
        moved = delete_run(store, run)
    except OSError as error:
        raise ConfigurationError(f"{run.id} cannot be deleted: {error}") from None
    if arguments.json:
        print_json({"experiment_id": run.id, "folder": str(moved or run.folder)})
        return 0
    out = console()
    out.print(f"{what} is out of the store.", soft_wrap=True)
    if moved:
        out.print(f"Its folder is in {moved} now.", soft_wrap=True)
    else:
        out.print(f"Its folder {run.folder} was left as it is.", soft_wrap=True)
    out.print(f"To bring it back: hftune runs reindex {moved or run.folder}", soft_wrap=True)
    return 0
