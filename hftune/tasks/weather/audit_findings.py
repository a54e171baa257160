"""What the audit's checks give: findings."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

__all__ = ["SEVERITIES", "Finding", "Reference"]

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
            longitude = (longitude + 180) % 360 - 180
            parts.append(
                f"{abs(latitude):g} {'N' if latitude >= 0 else 'S'} "
                f"{abs(longitude):g} {'E' if longitude >= 0 else 'W'}"
            )
        if self.when is not None:
            parts.append(self.when)
        return ", ".join(parts)
