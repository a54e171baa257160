"""What a terminal shows of an audit."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from hftune.tasks.weather.audit import Audit
from hftune.tasks.weather.audit_findings import Finding
from hftune.utils.terminal import spark


def test_spark():
    assert spark([0, 1, 2, 7], 4) == "▁▂▃█"
    assert spark([0, 2, 4, 6], 2) == "▁█"
    assert spark([3, 3, 3], 5) == "▁▁▁"
    assert spark([], 5) == ""


def entry(**changes):
    return {
        "units": "K", "minimum": 250.0, "mean": 280.5, "maximum": 310.25, "std": 9.5,
        "missing": 0, "infinite": 0, "impossible": 0, "zero_fields": 0, "reference_z": None,
        "histogram": {"counts": [1, 5, 9, 2], "edges": [250, 265, 280, 295, 310]},
        "series": {"times": [0, 1], "mean": [280.0, 281.0]}, "years": {}, "seasons": {}, **changes,
    }  # fmt: skip


def show(findings=(), width=80, **channels):
    audit = Audit(
        findings=tuple(findings),
        per_channel=channels,
        times={"count": 2, "first": "a", "last": "b", "step_hours": 24.0, "text": "2 times"},
        grid={
            "latitudes": 6, "longitudes": 9, "north": 47.5, "south": -5.0, "west": 345.0,
            "east": 365.0,
        },
        sources=("a.nc",),
    )  # fmt: skip
    stream = io.StringIO()
    Console(file=stream, width=width).print(audit.render())
    return stream.getvalue()


def test_the_whole():
    shown = show([Finding("warning", "outlier", "2t", "Odd.", 1, (47.5, 355.0), "1987-06-12")],
                 **{"2t": entry(), "q": entry(units="kg kg-1", minimum=None, mean=-1e-9, std=2e-4,
                                              maximum=0.002)})  # fmt: skip
    assert [line.rstrip() for line in shown.splitlines()] == [
        "Audit of a.nc",
        "2 times",
        "6 x 9 grid points, 5 S to 47.5 N, 15 W to 5 E, 2 channels",
        "",
        "  channel units   minimum     mean  maximum      std values over time",
        "! 2t      K        250.00   280.50   310.25     9.50 ▁▅█▂   ▁█",
        "✓ q       kg kg-1       – 0.000000 0.002000 0.000200 ▁▅█▂   ▁█",
        "",
        "warning  2t  Odd. At 47.5 N 5 W, 1987-06-12.",
        "",
        "! 1 warning",
    ]


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_any_width(width):
    shown = show(width=width, **{f"t_{p}": entry(reference_z=0.5) for p in (500, 1000)})
    assert all(len(line) <= width for line in shown.splitlines())
    assert ("over time" in shown) == (width >= 80)


def test_a_channel_without_values():
    nothing = dict.fromkeys(("minimum", "mean", "maximum", "std"))
    empty = {"counts": [0, 0], "edges": [0, 1, 2]}
    shown = show(**{"t": entry(**nothing, histogram=empty, series={"times": [], "mean": []})})
    assert "✓ t       K" in shown and shown.count("–") == 4


def test_many_findings_are_cut():
    shown = show([Finding("info", "reader", None, f"note {i}") for i in range(50)], t=entry())
    assert "note 39" in shown and "note 40" not in shown
    assert "and 10 more: see --json or --report" in shown
