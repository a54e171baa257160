"""``hftune audit``: checks weather data, in the terminal, as JSON and as a page."""

from __future__ import annotations

import argparse
import json
import types
from pathlib import Path
from typing import TYPE_CHECKING

from ..utils.errors import ConfigurationError
from ..utils.files import read_json, write_json

if TYPE_CHECKING:
    from ..tasks.weather.audit_findings import Reference

__all__ = ["main"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hftune audit",
        description="Check weather data before a model learns from them: missing and infinite "
        "values, empty and repeated fields, gaps and time zones, units and ranges, outliers, "
        "drift, levels below the ground, orientation of the grid. Exits with 1 if there are "
        "errors.",
        epilog="example: hftune audit era5_*.nc --model runs/region/model --report audit.html",
    )
    parser.add_argument("data", nargs="+", help="files, globs, Zarr stores or URLs with the fields")
    parser.add_argument("--variables", nargs="+", help="variables to check (default: all)")
    parser.add_argument("--levels", nargs="+", type=float, help="pressure levels in hPa")
    parser.add_argument(
        "--static_data", "--static-data", nargs="+", help="stores of static fields (lsm, z, slt)"
    )
    parser.add_argument("--dates", help="times to check: 1961-01-01:1994-12-31, 1995, 0%%:80%%")
    parser.add_argument(
        "--step_hours", "--step-hours", type=float, help="the time step that a model will need"
    )
    parser.add_argument(
        "--model",
        help="folder of a saved model, or 'aurora' for the published one: compares the data with "
        "the statistics that it normalises with",
    )
    parser.add_argument(
        "--json", metavar="FILE", help="write all that was found; - for the terminal"
    )
    parser.add_argument("--report", type=Path, metavar="FILE.html", help="write a page with plots")
    parser.add_argument("--cache_dir", "--cache-dir", help="where fields are cached")
    return parser


def _reference(model: str, channels: tuple[str, ...]) -> Reference:
    """Statistics of a saved model's ``config.json``, or of the published one."""
    if model == "aurora":
        from ..tasks.aurora.variants_aurora import official_statistics

        known = official_statistics(channels)
        means, stds = zip(*known.values(), strict=True) if known else ((), ())
        return types.SimpleNamespace(channels=tuple(known), mean=means, std=stds)
    path = Path(model) / "config.json"
    if not path.is_file():
        raise ConfigurationError(
            f"--model {model}: there is no {path}. Give the folder of a saved model, or 'aurora'."
        )
    config = read_json(path)
    if not all(config.get(name) for name in ("channels", "mean", "std")):
        raise ConfigurationError(
            f"--model {model}: its config.json has no channels, mean and std: it is no weather "
            "model of hftune's."
        )
    return types.SimpleNamespace(
        channels=config["channels"], mean=config["mean"], std=config["std"]
    )


def main(argv: list[str]) -> int:
    """Runs the command.

    Args:
        argv (list of str): Arguments after ``hftune audit``.

    Returns:
        The exit code: 1 if there are errors in the data.
    """
    from rich.console import Console

    from ..tasks.weather.audit import audit_fields
    from ..tasks.weather.store import open_fields

    arguments = _parser().parse_args(argv)
    fields = open_fields(
        arguments.data,
        variables=arguments.variables,
        levels=arguments.levels,
        static_data=arguments.static_data,
        cache_dir=arguments.cache_dir,
        times=arguments.dates,
    )
    reference = None
    if arguments.model:
        reference = _reference(arguments.model, fields.layout.channels)
    audit = audit_fields(fields, reference=reference, step_hours=arguments.step_hours)
    if arguments.json == "-":
        print(json.dumps(audit.as_dict(), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        Console(highlight=False).print(audit.render())
        if arguments.json:
            write_json(arguments.json, audit.as_dict())
    if arguments.report:
        from ..tasks.weather.report_weather import audit_section
        from ..tracking.report import Report

        report = Report("Audit of weather data", audit.times["text"])
        audit_section(report, audit.as_dict())
        report.write(arguments.report)
    return 1 if audit.verdict == "errors" else 0
