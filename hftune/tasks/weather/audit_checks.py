"""Checks of the audit on values: missing, empty, impossible, in other units, sticking out."""

from __future__ import annotations

import numpy as np

from .audit_findings import Finding, Reference, counted
from .audit_scan import Place, Scan, may_rest, outlier_scale, spikes
from .dates import format_time
from .fields import WeatherFields, split_channel
from .variables import VARIABLES

__all__ = ["check_static", "check_statistics", "check_values", "standard_geopotential"]

_FIELD_SCORE = 15.0
_FILLS = (-9999.0, -999.0, -99.0, -32767.0, -32768.0, 9999.0, 999.0, 1e20, -1e20)
_GRAVITY = 9.80665
# Variable, found units, factor, offset: tried on values that do not fit their variable.
_OTHER_UNITS = {
    "K": (("degC", 1.0, 273.15), ("degF", 5 / 9, 459.67 * 5 / 9)),
    "Pa": (("hPa", 100.0, 0.0), ("kPa", 1000.0, 0.0)),
    "m2 s-2": (("m (geopotential height)", _GRAVITY, 0.0), ("dam", 10 * _GRAVITY, 0.0)),
    "kg kg-1": (("g/kg", 0.001, 0.0),),
    "m": (("mm", 0.001, 0.0),),
    "1": (("%", 0.01, 0.0),),
    "%": (("a fraction of 1", 100.0, 0.0),),
}


def standard_geopotential(level: float) -> float:
    """Geopotential of a pressure level (hPa) in the standard atmosphere, in m2/s2."""
    if level >= 226.32:
        return _GRAVITY * 44330.8 * (1 - (level / 1013.25) ** 0.190263)
    return _GRAVITY * (11000 + 6341.6 * float(np.log(226.32 / level)))


def _times(scan: Scan, rows: np.ndarray) -> str:
    """Says which times: one, two to three, or the first, the last and how they lie."""
    if len(rows) <= 3:
        return ", ".join(format_time(scan.times[row]) for row in rows)
    span = f"{format_time(scan.times[rows[0]])} to {format_time(scan.times[rows[-1]])}"
    return f"{span}, without a break" if np.ptp(rows) == len(rows) - 1 else f"between {span}"


def _where(scan: Scan, place: Place) -> dict[str, object]:
    layout = scan.fields.layout
    return {
        "where": (
            float(layout.latitude[place.latitude]),
            float(layout.longitude[place.longitude]),
        ),
        "when": format_time(scan.times[place.row]),
    }


def check_values(scan: Scan) -> list[Finding]:
    """Everything that a channel's values alone can say."""
    findings: list[Finding] = []
    for c, channel in enumerate(scan.fields.layout.channels):
        findings += _missing(scan, c, channel)
        if scan.missing[:, c].all() and not np.isfinite(scan.moments.mean[c]):
            continue
        units = _units(scan, c, channel)
        findings += units or _impossible(scan, c, channel)
        findings += _repeated(scan, c, channel)
        findings += _outliers(scan, c, channel)
    return findings


def _missing(scan: Scan, c: int, channel: str) -> list[Finding]:
    findings = []
    if scan.infinite[c]:
        place = scan.places["infinite", c]
        findings.append(
            Finding("error", "infinite", channel, f"{counted(scan.infinite[c], 'value')} infinite.",
                    int(scan.infinite[c]), **_where(scan, place))
        )  # fmt: skip
    rows = np.flatnonzero(scan.missing[:, c])
    if not len(rows):
        return findings
    total = int(scan.missing[:, c].sum(dtype=np.int64))
    points = scan.missing_points[c]
    whole = np.flatnonzero(scan.missing[:, c] == points.size)
    mask = points == len(scan.times)
    if len(whole) == len(scan.times):
        text = "all values are missing (NaN): leave the variable out."
    elif mask.any() and total == mask.sum() * len(scan.times):
        text = (
            f"{int(mask.sum())} of {mask.size} points are missing (NaN) at all times: below the "
            "ground, or outside the area. Fill them, or leave the level out."
        )
    elif len(whole) and total == len(whole) * points.size:
        text = f"{counted(len(whole), 'field')} missing (all NaN): {_times(scan, whole)}."
    else:
        text = (
            f"{counted(total, 'value')} missing (NaN) at {len(rows)} of {len(scan.times)} times "
            f"and {int((points > 0).sum())} of {points.size} points: {_times(scan, rows)}."
        )
    place = scan.places["missing", c]
    findings.append(Finding("error", "missing", channel, text, total, **_where(scan, place)))
    return findings


def _repeated(scan: Scan, c: int, channel: str) -> list[Finding]:
    """Fields of zeros or of one value, fields that repeat, points that are stuck."""
    variable = split_channel(channel)[0]
    count = len(scan.times)
    resting = {
        "zeros": np.flatnonzero(scan.zeros[:, c]),
        "constant": np.flatnonzero(scan.flat[:, c]),
        "stuck": np.flatnonzero(scan.same[:, c]),
    }
    findings: list[Finding] = []
    if len(resting["stuck"]) == count - 1 > 0:
        return [
            Finding("warning", "constant", channel,
                    "never changes in time: a static field, or a broken one.", count,
                    when=format_time(scan.times[0]))
        ]  # fmt: skip
    if may_rest(variable):
        # Days without rain are no fault, nor are nights without sunshine.
        if variable in VARIABLES or any(len(rows) > 0.02 * count for rows in resting.values()):
            return []
    texts = {
        "zeros": "all zeros",
        "constant": "with one value everywhere",
        "stuck": "equal to the one before",
    }
    for check, rows in resting.items():
        if len(rows):
            severity = "error" if check != "stuck" or len(rows) > 0.05 * count else "warning"
            findings.append(
                Finding(severity, check, channel,
                        f"{counted(len(rows), 'field')} {texts[check]}: {_times(scan, rows)}.",
                        len(rows), when=format_time(scan.times[rows[0]]))
            )  # fmt: skip
    if c in scan.frozen and not len(resting["stuck"]) > 20:
        points, steps, place = scan.frozen[c]
        findings.append(
            Finding("warning", "stuck", channel,
                    f"{counted(points, 'point')} at one value for 24 steps or more, the longest "
                    f"for {steps} steps at {place.value:g}, until "
                    f"{format_time(scan.times[place.row])}.", points, **_where(scan, place))
        )  # fmt: skip
    return findings


def _units(scan: Scan, c: int, channel: str) -> list[Finding]:
    """Whether the values fit their variable only after a conversion."""
    variable, level = split_channel(channel)
    info = VARIABLES.get(variable)
    values = scan.sample[:, c]
    values = values[np.isfinite(values)].astype(np.float64)
    if info is None or not values.size:
        return []
    if variable == "z" and level is not None:
        expected = standard_geopotential(level)
        spread = 0.15 * expected + 6000.0

        def fits(x: np.ndarray) -> bool:
            return abs(np.median(x) - expected) < spread
    else:

        def fits(x: np.ndarray) -> bool:
            return bool(
                np.percentile(x, 2) >= info.minimum and np.percentile(x, 98) <= info.maximum
            )

    text = ""
    if not fits(values):
        for units, factor, offset in _OTHER_UNITS.get(info.units, ()):
            if fits(values * factor + offset):
                text = f"look like {units}"
                break
        else:
            if variable == "z" and level is not None:
                text = (
                    f"have a mean of {values.mean():.4g}, far from the {expected:.4g} of the "
                    f"standard atmosphere at {level:g} hPa"
                )
    # Fractions, millimetres and heights near the ground are possible, only not plausible.
    elif variable == "r" and values.max() <= 1.5 and values.std() > 0:
        text = "look like a fraction of 1"
    elif variable == "tp" and np.percentile(values, 99.9) > 0.5:
        text = "look like mm"
    elif variable == "z" and level is not None and values.std() > 0 and expected > 12000:
        if abs(values.mean() * _GRAVITY - expected) < 0.05 * expected:
            text = "look like m (geopotential height)"
    if not text:
        return []
    return [
        Finding("error", "units", channel,
                f"values {text} (mean {values.mean():.4g}); expected {info.units}. Convert them, "
                "or correct the attribute 'units' of the file.", len(scan.times))
    ]  # fmt: skip


def _impossible(scan: Scan, c: int, channel: str) -> list[Finding]:
    info = VARIABLES.get(split_channel(channel)[0])
    low, high = (info.minimum, info.maximum) if info else (-1e15, 1e15)
    units = scan.fields.layout.units[c]
    findings = []
    for what, count, limit in (("low", scan.low[c], low), ("high", scan.high[c], high)):
        if not count:
            continue
        place = scan.places[what, c]
        beyond = abs(place.value - limit)
        fill = abs(place.value) > 1e15 or place.value in _FILLS
        # Packing leaves rain of -1e-9 m; nothing is learnt from it, and nothing spoilt.
        severity = "error" if fill or beyond > 0.02 * (high - low) else "warning"
        text = (
            f"{counted(count, 'value')} {'below' if what == 'low' else 'above'} {limit:g} {units}, "
            f"the worst {place.value:.6g}"
            + (", which looks like a fill value" if fill else "")
            + "."
        )
        if what == "low" and low == 0:
            text = f"{counted(count, 'negative value')}, the lowest {place.value:.4g} {units}."
        findings.append(
            Finding(severity, "range", channel, text, int(count), **_where(scan, place))
        )
    if info is None and not findings:
        lowest, highest = scan.moments.minimum[c], scan.moments.maximum[c]
        for value in (lowest, highest):
            if value in _FILLS:
                findings.append(
                    Finding("error", "range", channel, f"{value:g} looks like a fill value.")
                )
    return findings


def _outliers(scan: Scan, c: int, channel: str) -> list[Finding]:
    findings = []
    if c in scan.outliers:
        count, score, place = scan.outliers[c]
        text = (
            f"{counted(count, 'lone value')} out of line with the neighbours in space and time, "
            f"the worst ({place.value:.6g} {scan.fields.layout.units[c]}) by {score:.0f} times the "
            "usual."
        )
        findings.append(Finding("warning", "outlier", channel, text, count, **_where(scan, place)))
    if may_rest(split_channel(channel)[0]):
        return findings
    mean = scan.row_mean[:, c].astype(np.float64)
    rows = np.flatnonzero(np.isfinite(mean))
    if len(rows) < 30:
        return findings
    series = mean[rows]
    spike = spikes(np.r_[series[1], series[:-1]], series, np.r_[series[1:], series[-2]])
    size = np.abs(spike)
    # With few times the 99th percentile is the outlier itself.
    scale = min(outlier_scale(spike), 3 * float(np.median(np.abs(np.diff(series)))) + 1e-30)
    high = np.flatnonzero(size > max(_FIELD_SCORE * scale, 0.1 * float(scan.moments.std[c])))
    if len(high):
        worst = rows[size.argmax()]
        findings.append(
            Finding("warning", "outlier", channel,
                    f"{counted(len(high), 'field')} whose mean is out of line with the times "
                    f"before and after, the worst with {mean[worst]:.6g} "
                    f"{scan.fields.layout.units[c]}: {_times(scan, rows[high])}.", len(high),
                    when=format_time(scan.times[worst]))
        )  # fmt: skip
    return findings


def check_statistics(scan: Scan, reference: Reference) -> list[Finding]:
    """Compares mean and spread with those that a model was trained with."""
    findings = []
    known = {channel: i for i, channel in enumerate(reference.channels)}
    for c, channel in enumerate(scan.fields.layout.channels):
        mean, std = scan.moments.mean[c], scan.moments.std[c]
        if channel not in known or not np.isfinite(mean):
            continue
        i = known[channel]
        z = (mean - reference.mean[i]) / reference.std[i]
        ratio = std / reference.std[i]
        if abs(z) > 3 or not 0.05 < ratio < 3:
            severity = "error" if abs(z) > 20 or ratio > 30 else "warning"
            findings.append(
                Finding(severity, "statistics", channel,
                        f"mean {mean:.5g} and std {std:.4g} against {reference.mean[i]:.5g} and "
                        f"{reference.std[i]:.4g} of the model: {z:+.1f} standard deviations off, "
                        f"{ratio:.2g} times the spread. Wrong units or level, or statistics of "
                        "another data set.")
            )  # fmt: skip
    return findings


def check_static(fields: WeatherFields) -> list[Finding]:
    """Checks the fields without a time."""
    findings = []
    limits = {"lsm": (0, 1), "z": (-5000, 90000), "slt": (0, 8)}
    layout = fields.layout
    for name, values in zip(layout.static_channels, fields.static_fields, strict=True):
        bad = ~np.isfinite(values)
        if bad.any():
            y, x = np.argwhere(bad)[0]
            findings.append(
                Finding("error", "static", name,
                        f"{int(bad.sum())} of {bad.size} points missing or infinite.",
                        int(bad.sum()), (float(layout.latitude[y]), float(layout.longitude[x])))
            )  # fmt: skip
            continue
        low, high = limits.get(name, (-1e15, 1e15))
        worst = max(low - values.min(), values.max() - high)
        if worst > 0.01 * (high - low):
            findings.append(
                Finding("error", "static", name,
                        f"goes from {values.min():g} to {values.max():g}; expected {low:g} to "
                        f"{high:g}. Check its units.")
            )  # fmt: skip
    return findings
