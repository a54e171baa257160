"""Checks of what goes into a forecast model."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

import torch

from hftune.utils.errors import DataError

from .fields import split_channel

__all__ = ["EPOCH", "check_values", "checked_steps"]

#: Where times begin. With its time zone: a naive time is taken as the machine's own.
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)


def checked_steps(
    config: Any,
    fields: torch.Tensor,
    times: torch.Tensor,
    target_fields: torch.Tensor | None,
    steps: int | None,
    rows: Sequence[int] = (),
) -> int:
    """Returns the number of steps to forecast, once every shape fits.

    Args:
        config: The model's configuration: ``channels``, ``history``, ``latitude``, ``longitude``.
        fields (tensor ``[B, T, C, H, W]``): Past states.
        times (int64 tensor ``[B]``): Seconds of the last of them.
        target_fields (tensor ``[B, L, C, H or H', W]``, *optional*): Next states.
        steps (int, *optional*): Steps that were asked for.
        rows (sequence of int): Numbers of latitudes ``H'`` that targets may have beside ``H``.
            Defaults to none.

    Raises:
        DataError: If a shape, or the type of the times, is another one.
    """
    grid = (len(config.latitude), len(config.longitude))
    expected = (config.history, len(config.channels), *grid)
    if fields.ndim != 5 or tuple(fields.shape[1:]) != expected:
        raise DataError(
            f"fields have the shape {list(fields.shape)}; expected [samples, "
            f"{', '.join(map(str, expected))}]: {config.history} past "
            f"{'states' if config.history > 1 else 'state'} of the channels "
            f"{', '.join(config.channels)} on the model's {grid[0]} x {grid[1]} grid."
        )
    if tuple(times.shape) != (len(fields),) or times.is_floating_point():
        raise DataError(
            f"times have the shape {list(times.shape)} and type {times.dtype}; expected one "
            f"int64 for each of {len(fields)} samples: seconds since 1970-01-01 UTC."
        )
    if target_fields is not None:
        found = tuple(target_fields.shape)
        leads = found[1] if len(found) == 5 else 0
        fits = [(len(fields), leads, expected[1], height, grid[1]) for height in (grid[0], *rows)]
        if found not in fits or not leads:
            raise DataError(
                f"target_fields have the shape {list(found)}; expected [{len(fields)}, steps, "
                f"{', '.join(map(str, expected[1:]))}]."
            )
        if steps not in (None, leads):
            raise DataError(f"steps is {steps}, but target_fields hold {leads} steps.")
        return leads
    steps = 1 if steps is None else steps
    if steps < 1:
        raise DataError(f"steps is {steps}; it must be 1 or more.")
    return steps


@torch.no_grad()
def check_values(
    config: Any,
    fields: torch.Tensor,
    times: torch.Tensor,
    static_fields: torch.Tensor | None,
    target_fields: torch.Tensor | None,
) -> bool:
    """Returns whether targets are missing somewhere; inputs may not be.

    Args:
        config: The model's configuration.
        fields (tensor ``[B, T, C, H, W]``): Past states.
        times (int64 tensor ``[B]``): Seconds of the last of them.
        static_fields (tensor ``[S, H, W]`` or ``[B, S, H, W]``, *optional*): Static fields.
        target_fields (tensor ``[B, L, C, H or H', W]``, *optional*): Next states.

    Raises:
        DataError: If a past state or a static field is NaN or infinite somewhere.
    """
    given = [x for x in (fields, static_fields, target_fields) if x is not None]
    # A sum is finite only if every value is; one look for all of them waits for a GPU once.
    finite = torch.isfinite(torch.stack([x.sum(dtype=torch.float32) for x in given])).tolist()
    if all(finite):
        return False
    if not torch.isfinite(fields).all():
        raise DataError(_describe_bad_input(config, fields, times))
    if static_fields is not None and not torch.isfinite(static_fields).all():
        raise DataError(
            f"static fields {', '.join(config.static_channels)} are not set: call "
            "model.set_static_fields(fields.static_fields)."
            if torch.isnan(static_fields).all()
            else "static_fields hold NaN or infinite values: fill them first."
        )
    return target_fields is not None


def _describe_bad_input(config: Any, fields: torch.Tensor, times: torch.Tensor) -> str:
    bad = ~torch.isfinite(fields)
    sample, past, channel = (int(i) for i in bad.any(-1).any(-1).nonzero()[0])
    back = (config.history - 1 - past) * config.timestep_hours
    moment = EPOCH + datetime.timedelta(seconds=int(times[sample]), hours=-back)
    name = config.channels[channel]
    variable, level = split_channel(name)
    where = variable if level is None else f"{variable} at {level:g} hPa"
    channels = bad.any(-1).any(-1).any(0).any(0).nonzero().flatten().tolist()
    others = [config.channels[c] for c in channels if c != channel]
    also = f", and values of {', '.join(others)} too" if others else ""
    return (
        f"{int(bad[sample, past, channel].sum())} values of {where} (channel {name}) in the "
        f"state of {moment:%Y-%m-%d %H:%M} UTC are NaN or infinite{also}. One such value makes the "
        "whole forecast NaN: fill the gaps, or leave these times or variables out (hftune audit "
        "lists them)."
    )
