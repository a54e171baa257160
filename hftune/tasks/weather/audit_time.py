"""Checks of the audit on time: the axis itself, and values that drift along it."""

from __future__ import annotations

from typing import Any

import numpy as np

from .audit_findings import Finding, counted
from .audit_scan import Scan, may_rest
from .dates import describe_times, format_time, interval_seconds
from .fields import split_channel

__all__ = ["check_drift", "check_times", "summarise_series"]

_SEASONS = ("DJF", "MAM", "JJA", "SON")
_PARTS = 120
_LEAST_MONTHS = 24


def check_times(times: np.ndarray, step_hours: float | None = None) -> list[Finding]:
    """Checks a time axis.

    Args:
        times (int64 array ``[N]``): Seconds since 1970-01-01 UTC.
        step_hours (float, *optional*): The step that is wanted.
    """
    findings = []
    apart = np.diff(times)
    for check, text, wrong in (
        ("duplicates", "there twice", apart == 0),
        ("backwards", "before the one above", apart < 0),
    ):
        if wrong.any():
            first = format_time(times[1:][wrong][0])
            findings.append(
                Finding("error", check, None,
                        f"{counted(int(wrong.sum()), 'time')} {text}, the first {first}.",
                        int(wrong.sum()), when=first)
            )  # fmt: skip
    years = np.array([times.min(), times.max()]).astype("datetime64[s]").astype("datetime64[Y]")
    if (years < np.datetime64("1700")).any() or (years > np.datetime64("2300")).any():
        findings.append(
            Finding("error", "time_units", None,
                    f"times go from {format_time(times.min())} to {format_time(times.max())}: "
                    "check the units of the time axis.", len(times), when=format_time(times[0]))
        )  # fmt: skip
    if findings or len(times) < 2:
        return findings
    step = interval_seconds(times)
    if step_hours is not None and round(step_hours * 3600) % step:
        findings.append(
            Finding("error", "step", None,
                    f"a step of {step_hours:g} h was asked for; there are {describe_times(times)}.",
                    when=format_time(times[0]))
        )  # fmt: skip
    findings += _gaps(times, step)
    findings += _time_zone(times, step)
    return findings


def _gaps(times: np.ndarray, step: int) -> list[Finding]:
    apart = np.diff(times)
    gaps = np.flatnonzero(apart >= 1.5 * step)
    if not len(gaps):
        return []
    first = format_time(times[gaps[0]] + step)
    if len(gaps) > 0.2 * len(times):
        text = (
            f"the times have no regular step: {step / 3600:g} h is the most common, "
            f"{len(gaps)} of {len(apart)} are longer, the first at {first}."
        )
        return [Finding("warning", "gaps", None, text, len(gaps), when=first)]
    absent = int((np.round(apart[gaps] / step) - 1).sum())
    longest = gaps[apart[gaps].argmax()]
    text = f"{counted(absent, 'time')} missing in {counted(len(gaps), 'gap')}, the first {first}"
    if len(gaps) > 1:
        days = (apart[longest] - step) / 86400
        text += f", the longest of {days:.3g} days after {format_time(times[longest])}"
    return [
        Finding("warning", "gaps", None, text + "; no sample spans a gap.", absent, when=first)
    ]  # fmt: skip


def _time_zone(times: np.ndarray, step: int) -> list[Finding]:
    phases, counts = np.unique(times % min(step, 86400), return_counts=True)
    usual = int(phases[counts.argmax()])
    if len(phases) > 1 and counts.max() > 0.5 * len(times):
        off = np.flatnonzero(times % min(step, 86400) != usual)
        first = format_time(times[off[0]])
        text = (
            f"{counted(len(off), 'time')} off the step of {step / 3600:g} h, the first {first}: "
            "daylight saving time, or two time zones? Times have to be UTC."
        )
        return [Finding("warning", "time_zone", None, text, len(off), when=first)]
    hours = usual / 3600
    natural = step < 7200 or 86400 % min(step, 86400)
    if step >= 86400:
        natural = hours in (0, 6, 12, 18)
    elif not natural:
        natural = hours in ((0, 6) if step == 43200 else (0,))
    if hours % 1 == 0 and natural:
        return []
    clock = np.unique(times[: max(1, 86400 // step)] % 86400)
    shown = ", ".join(f"{s // 3600:02d}:{s % 3600 // 60:02d}" for s in clock[:4])
    text = (
        f"times are at {shown}{', ...' if len(clock) > 4 else ''}, which is unusual for data every "
        f"{step / 3600:g} h. If they are local times, convert them to UTC."
    )
    return [Finding("warning", "time_zone", None, text, len(times), when=format_time(times[0]))]


def _months(times: np.ndarray) -> np.ndarray:
    """Months since January 1970."""
    return times.astype("datetime64[s]").astype("datetime64[M]").astype(np.int64)


def _means(labels: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct labels ``[K]`` and the means of the finite ``values [N]`` of each."""
    good = np.isfinite(values)
    found, inverse = np.unique(labels[good], return_inverse=True)
    sums = np.bincount(inverse, weights=values[good], minlength=len(found))
    return found, sums / np.bincount(inverse, minlength=len(found))


def _anomalies(months: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Monthly means less those of the calendar month, of months that are there in two years."""
    found, means = _means(months, values)
    calendar = found % 12
    counts = np.bincount(calendar, minlength=12)
    keep = counts[calendar] > 1
    found, means, calendar = found[keep], means[keep], calendar[keep]
    usual = np.bincount(calendar, weights=means, minlength=12) / np.maximum(
        np.bincount(calendar, minlength=12), 1
    )
    return found, means - usual[calendar]


def _break(values: np.ndarray) -> tuple[int, float, float, float]:
    """The best place to cut a series in two levels.

    Returns:
        Index of the first value after it, the step, the spread within the two, Student's t.
    """
    n = len(values)
    cut = np.arange(6, n - 5)
    sums = np.cumsum(values)
    step = (sums[-1] - sums[cut - 1]) / (n - cut) - sums[cut - 1] / cut
    best = int(np.argmax(np.abs(step) * np.sqrt(cut * (n - cut))))
    here, size = int(cut[best]), float(step[best])
    rest = values - values[:here].mean()
    rest[here:] -= size
    spread = float(rest.std()) + 1e-30
    return here, size, spread, size / spread * float(np.sqrt(here * (n - here) / n))


def check_drift(scan: Scan) -> list[Finding]:
    """Looks for a level or a spread that changes with the years, or drifts."""
    months = _months(scan.times)
    if len(np.unique(months)) < _LEAST_MONTHS:
        return []
    findings = []
    for c, channel in enumerate(scan.fields.layout.channels):
        found, values = _anomalies(months, scan.row_mean[:, c].astype(np.float64))
        if len(values) < _LEAST_MONTHS:
            continue
        units = scan.fields.layout.units[c]
        here, size, spread, t = _break(values)
        slope, start = np.polyfit(found - found[0], values, 1)
        line = start + slope * (found - found[0])
        total, left = slope * (found[-1] - found[0]), float((values - line).std()) + 1e-30
        when = str(np.datetime64(int(found[here]), "M"))
        least = 0.1 * float(scan.moments.std[c])
        if abs(t) > 10 and abs(size) > max(spread, least) and spread <= left:
            text = (
                f"the level changes by {size:+.4g} {units} ({size / spread:+.1f} times the spread "
                f"of monthly means), season removed, from {when} on: another instrument, model "
                "version or unit?"
            )
            findings.append(Finding("warning", "drift", channel, text, when=when))
        elif abs(total) > max(2 * left, least) and left < spread:
            text = (
                f"drifts by {slope * 120:+.4g} {units} a decade ({total:+.4g} over all, "
                f"{total / left:+.1f} times the spread of monthly means)."
            )
            findings.append(Finding("warning", "drift", channel, text))
        if may_rest(split_channel(channel)[0]):
            continue
        with np.errstate(divide="ignore"):
            widths = np.log(scan.row_std[:, c].astype(np.float64))
        found, values = _anomalies(months, widths)
        if len(values) < _LEAST_MONTHS:
            continue
        here, size, spread, t = _break(values)
        if abs(t) > 10 and abs(size) > max(np.log(1.3), spread):
            when = str(np.datetime64(int(found[here]), "M"))
            text = (
                f"the spread over the area changes to {np.exp(size):.2f} times what it was, from "
                f"{when} on: smoothed, rescaled or from another resolution?"
            )
            findings.append(Finding("warning", "drift", channel, text, when=when))
    return findings


def summarise_series(scan: Scan) -> dict[str, dict[str, Any]]:
    """Means over time of every channel, for plots.

    Returns:
        By channel: ``series`` (``times``: seconds of the middle, ``mean``; at most 120), ``years``
        and ``seasons`` (means by label).
    """
    months = _months(scan.times)
    years, seasons = 1970 + months // 12, (months % 12 + 1) // 3 % 4
    parts = (np.arange(len(scan.times)) * min(_PARTS, len(scan.times))) // len(scan.times)
    _, middles = _means(parts, scan.times.astype(np.float64))
    result = {}
    for c, channel in enumerate(scan.fields.layout.channels):
        values = scan.row_mean[:, c].astype(np.float64)
        part, means = _means(parts, values)
        result[channel] = {
            "series": {"times": middles[part].round().astype(int).tolist(), "mean": means.tolist()},
            "years": {str(y): float(m) for y, m in zip(*_means(years, values), strict=True)},
            "seasons": {
                _SEASONS[s]: float(m) for s, m in zip(*_means(seasons, values), strict=True)
            },
        }
    return result
