"""What a terminal shows of an audit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ...utils.terminal import spark
from .audit_findings import Finding, degrees_east, degrees_north

if TYPE_CHECKING:
    from .audit import Audit

__all__ = ["render_audit"]

_STYLES = {"error": "bold red", "warning": "yellow", "info": "dim"}
_MOST = 40


def _numbers(entry: dict[str, Any]) -> list[str]:
    """Minimum, mean, maximum and std, with the digits that the spread makes meaningful."""
    values = [entry[name] for name in ("minimum", "mean", "maximum", "std")]
    spread = entry["std"] or abs(entry["mean"] or 0) or 1.0
    digits = max(0, 2 - math.floor(math.log10(spread)))
    form = ",.2e" if digits > 7 or spread >= 1e7 else f",.{digits}f"
    texts = ["–" if value is None else format(value, form) for value in values]
    return [text if text.strip("-0.,") else text.lstrip("-") for text in texts]


def render_audit(audit: Audit) -> RenderableType:
    """Lays out an audit: the data, a table of channels, the findings, the verdict."""
    parts: list[RenderableType] = [_head(audit), "", _Channels(audit), ""]
    if audit.findings:
        parts += [_findings(audit.findings), ""]
    return Group(*parts, _verdict(audit))


def _head(audit: Audit) -> Text:
    grid = audit.grid
    text = Text("Audit of ", style="bold")
    text.append(", ".join(audit.sources[:3]) or "fields", style="bold cyan")
    if len(audit.sources) > 3:
        text.append(f" and {len(audit.sources) - 3} more")
    text.append(
        f"\n{audit.times['text']}\n{grid['latitudes']} x {grid['longitudes']} grid points, "
        f"{degrees_north(grid['south'])} to {degrees_north(grid['north'])}, "
        f"{degrees_east(grid['west'])} to {degrees_east(grid['east'])}, "
        f"{len(audit.per_channel)} channels"
    )
    return text


class _Channels:
    """The table of channels; small plots fill the width that is left."""

    def __init__(self, audit: Audit) -> None:
        self.entries = audit.per_channel
        ranks = {"error": 0, "warning": 1, "info": 2}
        self.worst = dict.fromkeys(self.entries, 2)
        for finding in audit.findings:
            if finding.channel in self.worst:
                rank = min(self.worst[finding.channel], ranks[finding.severity])
                self.worst[finding.channel] = rank

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        titles = ["", "channel", "units", "minimum", "mean", "maximum", "std"]
        compared = any(entry["reference_z"] is not None for entry in self.entries.values())
        rows = []
        for channel, entry in self.entries.items():
            row = ["✗!✓"[self.worst[channel]], channel, entry["units"], *_numbers(entry)]
            if compared:
                z = entry["reference_z"]
                row.append("–" if z is None else f"{z:+.1f}")
            rows.append(row)
        if compared:
            titles.append("z model")
        left = options.max_width - sum(
            max(len(row[i]) for row in [titles, *rows]) + 1 for i in range(len(titles))
        )
        widths = [8, min(24, left - 9)] if left >= 18 else [8] if left >= 8 else []
        table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold", pad_edge=False)
        for title in titles:
            numeric = title not in ("", "channel", "units")
            table.add_column(title, justify="right" if numeric else "left", no_wrap=True)
        for title in ("values", "over time")[: len(widths)]:
            table.add_column(title, no_wrap=True, style="cyan")
        marks = ("bold red", "bold yellow", "green")
        for row, (channel, entry) in zip(rows, self.entries.items(), strict=True):
            years = list(entry["years"].values())
            # Whole years show a drift that seasons hide.
            series = years if len(years) >= 6 else entry["series"]["mean"]
            plots = [entry["histogram"]["counts"], series]
            table.add_row(
                Text(row[0], marks[self.worst[channel]]),
                row[1],
                Text(row[2], "dim"),
                *row[3:],
                *(spark(plot, width) for plot, width in zip(plots, widths, strict=False)),
            )
        yield table


def _findings(findings: Sequence[Finding]) -> RenderableType:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, style="bold")
    table.add_column()
    for finding in findings[:_MOST]:
        style = _STYLES[finding.severity]
        message = Text(finding.message, style="dim" if finding.severity == "info" else "")
        if finding.where is not None and finding.severity != "info":
            place = finding.place
            if finding.when and finding.when in finding.message:
                place = place.removesuffix(f", {finding.when}")
            message.append(f" At {place}.", style="cyan")
        table.add_row(Text(finding.severity, style), finding.channel or "", message)
    if len(findings) <= _MOST:
        return table
    more = Text(f"and {len(findings) - _MOST} more: see --json or --report", "dim")
    return Group(table, Padding(more, (0, 1)))


def _verdict(audit: Audit) -> Text:
    counts = []
    for severity in ("error", "warning"):
        number = len(audit.of(severity))
        if number:
            counts.append(f"{number} {severity}{'s' if number > 1 else ''}")
    if not counts:
        return Text("✓ nothing wrong found", "bold green")
    errors = audit.verdict == "errors"
    text = Text(
        ("✗ " if errors else "! ") + ", ".join(counts), _STYLES["error" if errors else "warning"]
    )
    if errors:
        text.append(": a training run would stop here", "default")
    return text
