"""What the audit's checks give: findings."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

__all__ = ["SEVERITIES", "Finding", "Reference", "degrees_east", "counted", "degrees_north"]


def counted(count: int, noun: str) -> str:
    """``1 value``, ``1,200 values``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def degrees_north(latitude: float) -> str:
    """``47.5 N``."""
    return f"{abs(latitude):.6g} {'N' if latitude >= 0 else 'S'}"


def degrees_east(longitude: float) -> str:
    """``5 W``, of any longitude from -180 to 540."""
    longitude = (longitude + 180) % 360 - 180
    return f"{abs(longitude):.6g} {'E' if longitude >= 0 else 'W'}"


SEVERITIES = ("error", "warning", "info")


class Reference(Protocol):
    """Statistics to compare with: a :class:`~.statistics.FieldStatistics` or a model's own."""

    channels: Sequence[str]
    mean: Sequence[float]
    std: Sequence[float]


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that the audit noticed.

    Attributes:
        severity (str): ``"error"``, ``"warning"`` or ``"info"``.
        check (str): Which check: ``"missing"``, ``"zeros"``, ``"units"`` ...
        channel (str, *optional*): The channel or static field, such as ``t_850``; None if it is
            about all of them.
        message (str): What was found, what was expected, what to do.
        count (int): How many values, fields, times or points, as the message says.
        where (tuple of float, *optional*): Latitude and longitude of the first or the worst.
        when (str, *optional*): Time of the first or the worst, UTC.
    """

    severity: str
    check: str
    channel: str | None
    message: str
    count: int = 1
    where: tuple[float, float] | None = None
    when: str | None = None

    @property
    def place(self) -> str:
        """``47.5 N 5.0 W, 1987-06-12``, as far as it is known."""
        parts = []
        if self.where is not None:
            latitude, longitude = self.where
            parts.append(f"{degrees_north(latitude)} {degrees_east(longitude)}")
        if self.when is not None:
            parts.append(self.when)
        return ", ".join(parts)
