"""The hour and the day of the year as the four channels that the processor is told."""

from __future__ import annotations

import math

import torch

__all__ = ["time_channels"]


def time_channels(times: torch.Tensor) -> torch.Tensor:
    """Returns sine and cosine of the hour of the day, then of the day of the year.

    A year is taken as 366 days long if its number is a multiple of 4, else as 365, as published.
    Everything is computed on the device of the times, without waiting for it.

    Args:
        times (int64 tensor ``[B]``): Seconds since 1970-01-01 UTC; earlier times are negative.

    Returns:
        float32 tensor ``[B, 4]``.

    Example:
        >>> time_channels(torch.tensor([6 * 3600])).round(decimals=4)
        tensor([[1., -0., 0., 1.]])
    """
    days = torch.div(times, 86400, rounding_mode="floor")
    hours = (times - days * 86400).float() / 3600
    # The calendar counts from 1 March of the year 0, so that a leap day ends a year; 400 years
    # are 146097 days.
    days = days + 719468
    era = torch.div(days, 146097, rounding_mode="floor")
    day = days - era * 146097
    years = (day - day // 1460 + day // 36524 - day // 146096) // 365
    day = day - (365 * years + years // 4 - years // 100)  # days since 1 March
    after = day >= 306  # January and February of the next year
    year = era * 400 + years + after
    leap = (year % 4 == 0) & ((year % 100 != 0) | (year % 400 == 0))
    day = torch.where(after, day - 306, day + 59 + leap)
    length = torch.where(year % 4 == 0, 366.0, 365.0)
    angles = [hours * (math.pi / 12), day * (2 * math.pi / length)]
    return torch.stack([f(angle) for angle in angles for f in (torch.sin, torch.cos)], dim=-1)
