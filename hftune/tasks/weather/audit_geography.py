"""Checks of the audit on place: the ground, the order of levels, which way is north, local time."""

from __future__ import annotations

import warnings

import numpy as np

from .audit_checks import standard_geopotential
from .audit_findings import Finding
from .audit_scan import Scan
from .fields import split_channel

__all__ = ["check_geography"]

# Roughness read otherwise by that as labelled: 1 or more in order, 0.2 to 0.4 where mixed up.
_MIXED_UP = 0.6


def check_geography(scan: Scan) -> list[Finding]:
    """Everything that needs the grid, or several channels at once."""
    findings = _level_order(scan)
    findings += _below_ground(scan)
    winds, sure = _winds(scan)
    findings += winds
    if not winds and not sure:
        findings += _temperatures(scan)
    findings += _local_time(scan)
    findings += _mixed_up(scan)
    return findings


def _roughness(fields: np.ndarray) -> float:
    """Mean square difference of neighbours by twice the variance: 1 is disorder, 0 is smooth.

    Args:
        fields (array ``[n, H, W]``): Fields of one channel.
    """
    fields = fields - fields.mean(axis=(1, 2), keepdims=True)
    variance = (fields**2).mean(axis=(1, 2))
    steps = [(np.diff(fields, axis=axis) ** 2).mean(axis=(1, 2)) for axis in (1, 2)]
    usable = variance > 0  # NaN is not
    if not usable.any():
        return float("nan")
    return float(np.median(((steps[0] + steps[1]) / 2)[usable] / (2 * variance[usable])))


def _mixed_up(scan: Scan) -> list[Finding]:
    """Fields whose neighbours are strangers, but not if they are read in the other order.

    An array that was written column by column and labelled row by row (R and Fortran have their
    first index in the place of the last) has every value, at the wrong point.
    """
    rows, columns = scan.fields.layout.grid
    if min(rows, columns) < 3:
        return []
    ratios = []
    for c in range(scan.sample.shape[1]):
        fields = scan.sample[:, c].astype(np.float64)
        others = []
        for turned in (fields, fields[:, ::-1]):  # latitudes may have been turned on reading
            others.append(turned.swapaxes(1, 2).reshape(-1, rows, columns))
            others.append(turned.reshape(-1, columns, rows).swapaxes(1, 2))
        ratios.append(min(_roughness(other) for other in others) / max(_roughness(fields), 1e-12))
    ratios = np.array(ratios)[np.isfinite(ratios)]
    if not len(ratios) or np.median(ratios) > _MIXED_UP:
        return []
    text = (
        f"neighbouring points differ {1 / np.median(ratios):.1f} times as much (mean square) as "
        "they would if each field were read column by column: its values probably lie at the wrong "
        "points (an array written in the order of R or Fortran, labelled in that of C). Look at a "
        "map. If so, transpose the fields of the file. Ratios to persistence are little affected; "
        "maps, area weights and all that looks at neighbours are."
    )
    return [Finding("warning", "order", None, text)]


def _on_levels(scan: Scan, variable: str) -> dict[float, int]:
    """Channel index by level of a variable."""
    split = [split_channel(channel) for channel in scan.fields.layout.channels]
    return {
        level: c for c, (name, level) in enumerate(split) if name == variable and level is not None
    }


def _level_order(scan: Scan) -> list[Finding]:
    levels = _on_levels(scan, "z")
    order = sorted(levels, reverse=True)
    means = [float(scan.moments.mean[levels[level]]) for level in order]
    for lower, upper, below, above in zip(
        order[:-1], order[1:], means[:-1], means[1:], strict=True
    ):
        if above <= below:
            text = (
                f"the mean of z_{upper:g} ({above:.5g}) is not above that of z_{lower:g} "
                f"({below:.5g}): the levels are in another order than their labels say."
            )
            return [Finding("error", "levels", f"z_{upper:g}", text)]
    return []


def _below_ground(scan: Scan) -> list[Finding]:
    """Pressure levels that lie below the ground: said, and warned of where values are held."""
    layout = scan.fields.layout
    split = [split_channel(channel) for channel in layout.channels]
    heights = _on_levels(scan, "z")
    surface = layout.channels.index("sp") if "sp" in layout.channels else None
    ground = None
    if "z" in layout.static_channels:
        ground = scan.fields.static_fields[layout.static_channels.index("z")]
    if ground is None and surface is None:
        return []
    findings = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # points without values
        for level in sorted({p for _, p in split if p is not None}, reverse=True):
            if surface is not None:
                below = np.nanmean(scan.sample[:, surface], axis=0) < 100 * level
                how = f"mean surface pressure below {level:g} hPa"
            elif level in heights:
                below = np.nanmean(scan.sample[:, heights[level]], axis=0) < ground
                how = f"mean of z_{level:g} below the orography"
            else:
                below = standard_geopotential(level) < ground
                how = "standard atmosphere below the orography"
            if not below.any():
                continue
            on_level = [c for c, (_, p) in enumerate(split) if p == level]
            values = scan.sample[:, on_level][:, :, below]
            held = (np.ptp(values, axis=0) == 0).all(1) if len(values) > 1 else np.zeros(1, bool)
            y, x = np.argwhere(below)[0]
            where = float(layout.latitude[y]), float(layout.longitude[x])
            text = (
                f"{level:g} hPa lies below the ground at {int(below.sum())} of {below.size} points "
                f"({how})"
            )
            if held.any():
                names = ", ".join(layout.channels[on_level[i]] for i in np.flatnonzero(held))
                text += f"; {names} never change there: filled values, which a model would learn."
                severity = "warning"
            else:
                text += "; values there are extrapolated."
                severity = "info"
            findings.append(Finding(severity, "below_ground", None, text, int(below.sum()), where))
    return findings


def _correlation(one: np.ndarray, other: np.ndarray, least: int = 50) -> float:
    good = np.isfinite(one) & np.isfinite(other)
    one, other = one[good], other[good]
    if len(one) < least or one.std() == 0 or other.std() == 0:
        return 0.0
    return float(np.corrcoef(one, other)[0, 1])


def _winds(scan: Scan) -> tuple[list[Finding], bool]:
    """Winds blow along the lines of equal height: does the grid's orientation agree?

    Returns:
        Findings, and whether the winds speak for the orientation as it is.
    """
    latitude, longitude = scan.fields.layout.latitude, scan.fields.layout.longitude
    levels = [_on_levels(scan, name) for name in "zuv"]
    common = sorted(set(levels[0]) & set(levels[1]) & set(levels[2]), key=lambda p: abs(p - 500))
    common = [level for level in common if 200 <= level <= 850]
    if not common or min(scan.fields.layout.grid) < 3:
        return [], False
    rows = np.linspace(0, len(scan.sample) - 1, min(len(scan.sample), 60)).astype(int)
    z, u, v = (scan.sample[rows, index[common[0]]].astype(np.float64) for index in levels)
    turning = np.sin(np.deg2rad(latitude))[:, None]
    middle = ((np.abs(latitude) > 20) & (np.abs(latitude) < 80))[:, None] & np.ones(
        len(longitude), bool
    )
    middle[[0, -1]] = middle[:, [0, -1]] = False  # one-sided differences
    if middle.sum() < 4:
        return [], False
    along = -np.gradient(z, latitude, axis=1)
    across = np.gradient(z, longitude, axis=2) / np.cos(np.deg2rad(latitude))[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        fit_u = _correlation((along / turning)[:, middle].ravel(), u[:, middle].ravel())
        fit_v = _correlation((across / turning)[:, middle].ravel(), v[:, middle].ravel())
    what = []
    if fit_u < -0.3:
        what.append(f"u against the gradient of z over latitude (correlation {fit_u:.2f})")
    if fit_v < -0.3:
        what.append(f"v against that over longitude ({fit_v:.2f})")
    if not what:
        return [], fit_u > 0.3 and fit_v > 0.3
    text = (
        f"winds at {common[0]:g} hPa blow the wrong way round highs and lows: "
        f"{' and '.join(what)}. Latitudes or longitudes are in another order than their labels "
        "say, or a sign is wrong."
    )
    return [Finding("error", "orientation", None, text)], False


def _temperatures(scan: Scan) -> list[Finding]:
    """It is colder towards the poles, and in the hemisphere that has winter."""
    layout = scan.fields.layout
    levels = {level: c for level, c in _on_levels(scan, "t").items() if 400 <= level <= 1000}
    if levels:
        channel = levels[min(levels, key=lambda level: abs(level - 850))]
    elif "2t" in layout.channels:
        channel = layout.channels.index("2t")
    else:
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        profile = np.nanmean(scan.sample[:, channel], axis=(0, 2), dtype=np.float64)
        by_time = np.nanmean(scan.sample[:, channel], axis=2, dtype=np.float64)
    latitude, name = layout.latitude, layout.channels[channel]
    months = scan.times[scan.sample_rows].astype("datetime64[s]").astype("datetime64[M]")
    months = months.astype(np.int64) % 12
    for side in (1, -1):
        rows = (side * latitude > 15) & np.isfinite(profile)
        if rows.sum() < 5 or np.ptp(latitude[rows]) < 10:
            continue
        distance = np.abs(latitude[rows])
        slope = np.polyfit(distance, profile[rows], 1)[0]
        fit = _correlation(distance, profile[rows], least=5)
        if fit > 0.8 and slope * np.ptp(distance) > 3:
            # A summer alone can be hotter in the subtropics than nearer to the equator.
            sure = np.ptp(distance) >= 25 and len(np.unique(months)) >= 9
            text = (
                f"it gets warmer towards the pole, by {10 * slope:.1f} K in 10 degrees: latitudes "
                "are probably in another order than their labels say."
            )
            return [Finding("error" if sure else "warning", "orientation", name, text)]
    north, south = (latitude > 30) & (latitude < 60), (latitude < -30) & (latitude > -60)
    if north.sum() < 3 or south.sum() < 3:
        return []
    difference = by_time[:, north].mean(1) - by_time[:, south].mean(1)
    january = difference[np.isin(months, (11, 0, 1))]
    july = difference[np.isin(months, (5, 6, 7))]
    signs = [part.mean() * sign for part, sign in ((january, 1), (july, -1)) if len(part)]
    if signs and min(signs) > 2:
        text = (
            "the north is warmer than the south in its winter: latitudes are probably in another "
            "order than their labels say, or the times are half a year off."
        )
        return [Finding("error", "orientation", name, text)]
    return []


def _local_time(scan: Scan) -> list[Finding]:
    """Afternoons are the warmest time of the day: where they are not, times are not UTC."""
    layout = scan.fields.layout
    findings = []
    for c, (sums, counts) in scan.hourly.items():
        hours = np.flatnonzero(counts.sum(1))
        if (
            len(hours) < 4
            or np.ptp(np.diff(np.r_[hours, hours[0] + 24]))
            or (counts[hours] == 0).any()
        ):
            continue
        means = sums[hours] / counts[hours]
        # The first harmonic of the day at each longitude; its phase is the hour of the maximum.
        wave = (means * np.exp(2j * np.pi * hours / 24)[:, None]).mean(0) * 2
        local = (wave * np.exp(2j * np.pi * layout.longitude / 360)).mean()
        peak = float(np.angle(local) * 12 / np.pi) % 24
        late = (peak - 14.5 + 12) % 24 - 12
        if abs(local) > 1 and abs(late) > 4.5:
            text = (
                f"the warmest time of the day is at {peak:.0f} h local time by the longitudes "
                f"({late:+.0f} h off the early afternoon): are the times UTC, and the longitudes "
                "right?"
            )
            findings.append(Finding("warning", "time_zone", layout.channels[c], text))
    return findings
