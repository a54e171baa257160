"""The audit: are these fields what they should be, before a model learns from them?

One pass over the data (:mod:`.audit_scan`) collects what the checks (:mod:`.audit_checks`,
:mod:`.audit_time`, :mod:`.audit_geography`) draw findings from. An *error* is something that spoils
training or means that the data are not what their labels say; a *warning* should be looked at;
*info* is good to know.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hftune.utils.errors import DataError

from .audit_findings import SEVERITIES, Finding, Reference, counted
from .dates import describe_times, format_time, interval_seconds, select_rows
from .fields import WeatherFields

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["Audit", "Finding", "Reference", "audit_fields"]


@dataclasses.dataclass(frozen=True, eq=False)
class Audit:
    """The result of :func:`audit_fields`.

    Attributes:
        findings (tuple of Finding): Errors first, then warnings, then info.
        per_channel (dict): By channel: ``units``; ``mean``, ``std``, ``minimum``, ``maximum`` of
            the values that are neither missing nor impossible (None if there are none); how many
            are ``missing``, ``infinite``, ``impossible``; ``zero_fields``; ``reference_z`` (how
            many of the reference's standard deviations the mean is off); ``histogram``
            (``counts``, ``edges``) of a sample; ``series`` (``times``, ``mean``: means of at most
            120 equal parts); means by ``years`` and ``seasons``.
        times (dict): ``count``, ``first``, ``last``, ``step_hours``, ``text``.
        grid (dict): ``latitudes``, ``longitudes`` (numbers), ``north``, ``south``, ``west``,
            ``east``.
        sources (tuple of str): What was read.
        fingerprint (str): Of the fields.
    """

    findings: tuple[Finding, ...]
    per_channel: dict[str, dict[str, Any]]
    times: dict[str, Any]
    grid: dict[str, Any]
    sources: tuple[str, ...] = ()
    fingerprint: str = ""

    def of(self, severity: str) -> list[Finding]:
        """The findings of a severity."""
        return [finding for finding in self.findings if finding.severity == severity]

    @property
    def verdict(self) -> str:
        """``"errors"``, ``"warnings"`` or ``"ok"``."""
        return "errors" if self.of("error") else "warnings" if self.of("warning") else "ok"

    def as_dict(self) -> dict[str, Any]:
        """Plain dictionaries, lists, texts and numbers."""
        return {
            "verdict": self.verdict,
            "errors": len(self.of("error")),
            "warnings": len(self.of("warning")),
            "sources": list(self.sources),
            "fingerprint": self.fingerprint,
            "times": self.times,
            "grid": self.grid,
            "findings": [dataclasses.asdict(f) | {"place": f.place} for f in self.findings],
            "channels": self.per_channel,
        }

    def render(self) -> RenderableType:
        """What a terminal shows: the data, a table of channels, the findings, the verdict."""
        from .audit_render import render_audit

        return render_audit(self)

    def raise_on_errors(self) -> None:
        """Stops if there are errors.

        Raises:
            DataError: Lists each error with its variable, level, place and time.
        """
        errors = self.of("error")
        if not errors:
            return
        lines = [
            f"  {finding.channel or 'all'}: {finding.message}"
            + (f" ({finding.place})" if finding.place else "")
            for finding in errors[:20]
        ]
        if len(errors) > 20:
            lines.append(f"  and {len(errors) - 20} more")
        raise DataError(
            f"the audit found {counted(len(errors), 'error')} in the data:\n"
            + "\n".join(lines)
            + "\nMend or leave out what is wrong ('hftune audit' shows all), or pass "
            "'--audit warn' to train on the data as they are."
        )


def audit_fields(
    fields: WeatherFields,
    *,
    reference: Reference | None = None,
    step_hours: float | None = None,
    rows: str | Sequence[int] | slice | None = None,
) -> Audit:
    """Checks fields in one streaming pass.

    Args:
        fields (WeatherFields): The fields.
        reference (FieldStatistics, *optional*): Statistics that a model was trained with; the
            data's own are compared with them.
        step_hours (float, *optional*): The time step that is wanted; that of the data has to
            divide it. Defaults to that of the data.
        rows (str, sequence of int or slice, *optional*): Which times (see
            :func:`~.dates.select_rows`). Defaults to all.

    Returns:
        Audit: The findings and a summary of every channel.
    """
    from .audit_checks import check_static, check_statistics, check_values
    from .audit_geography import check_geography
    from .audit_scan import scan_fields
    from .audit_time import check_drift, check_times, summarise_series

    chosen = select_rows(fields.times, rows)
    scan = scan_fields(fields, chosen)
    findings = [
        Finding("info", "reader", None, note)
        for note in fields.audit_notes
        if "gap(s) in time" not in note  # said better below
    ]
    about_time = check_times(scan.times, step_hours)
    findings += about_time + check_values(scan) + check_static(fields)
    if not any(finding.severity == "error" for finding in about_time):
        findings += check_drift(scan)
    findings += check_geography(scan)
    if reference is not None:
        findings += check_statistics(scan, reference)
    findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    return Audit(
        findings=tuple(findings),
        per_channel=_per_channel(scan, reference, summarise_series(scan)),
        times={
            "count": len(scan.times),
            "first": format_time(scan.times[0]),
            "last": format_time(scan.times[-1]),
            "step_hours": interval_seconds(scan.times) / 3600,
            "text": describe_times(scan.times),
        },
        grid={
            "latitudes": fields.layout.grid[0],
            "longitudes": fields.layout.grid[1],
            "north": float(fields.layout.latitude.max()),
            "south": float(fields.layout.latitude.min()),
            "west": float(fields.layout.longitude.min()),
            "east": float(fields.layout.longitude.max()),
        },
        sources=fields.sources,
        fingerprint=fields.fingerprint,
    )


def _plain(value: float) -> float | None:
    """A number that JSON has, or None."""
    return float(value) if np.isfinite(value) else None


def _per_channel(scan, reference: Reference | None, series: dict[str, Any]) -> dict[str, Any]:
    moments = scan.moments
    known = (
        dict(zip(reference.channels, range(len(reference.channels)), strict=True))
        if (reference is not None)
        else {}
    )
    result = {}
    for c, channel in enumerate(scan.fields.layout.channels):
        counts, edges = scan.histogram(c)
        z = None
        if channel in known:
            i = known[channel]
            z = _plain((moments.mean[c] - reference.mean[i]) / reference.std[i])
        result[channel] = {
            "units": scan.fields.layout.units[c],
            "minimum": _plain(moments.minimum[c]),
            "mean": _plain(moments.mean[c]),
            "maximum": _plain(moments.maximum[c]),
            "std": _plain(moments.std[c]),
            "missing": int(scan.missing[:, c].sum(dtype=np.int64)),
            "infinite": int(scan.infinite[c]),
            "impossible": int(scan.low[c] + scan.high[c]),
            "zero_fields": int(scan.zeros[:, c].sum()),
            "reference_z": z,
            "histogram": {"counts": counts.tolist(), "edges": edges.tolist()},
            **series[channel],
        }
    return result
