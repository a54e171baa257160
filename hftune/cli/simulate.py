"""``hftune simulate``: writes a simulated atmosphere as NetCDF."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from ..utils.files import human_bytes

__all__ = ["main"]


def main(argv: list[str]) -> int:
    """Runs the command.

    Args:
        argv (list of str): Arguments after ``hftune simulate``.

    Returns:
        The exit code.
    """
    from ..tasks.weather.simulation import Simulation, write_simulation

    default = Simulation()
    parser = argparse.ArgumentParser(
        prog="hftune simulate",
        description="Write a simulated atmosphere (two-layer quasi-geostrophic flow in a channel, "
        "with seasons, mountains, land and sea) with the names and units of reanalysis. The same "
        "settings give the same file.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("output", type=Path, help="NetCDF file to write")
    parser.add_argument("--years", type=float, default=default.years, help="length")
    parser.add_argument(
        "--seed", type=int, default=default.seed, help="another seed, another weather"
    )
    parser.add_argument(
        "--step_hours",
        "--step-hours",
        type=int,
        default=default.step_hours,
        help="time step of the output",
    )
    parser.add_argument(
        "--latitudes", type=int, default=default.latitudes, help="rows, from 70 to 20 N"
    )
    parser.add_argument(
        "--longitudes", type=int, default=default.longitudes, help="columns, all round"
    )
    parser.add_argument(
        "--levels", type=int, nargs="+", default=list(default.levels), help="pressure levels in hPa"
    )
    parser.add_argument("--start", default=default.start, help="first day")
    settings = vars(parser.parse_args(argv))
    output = settings.pop("output")
    settings["levels"] = tuple(settings["levels"])
    started = time.monotonic()
    simulation = Simulation(**settings)
    write_simulation(output, simulation)
    print(
        f"{output}: {len(simulation.times)} times, {human_bytes(output.stat().st_size)}, "
        f"in {time.monotonic() - started:.0f} s"
    )
    return 0
