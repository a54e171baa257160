"""What can be wrong with the configuration of a weather model: checks that all of them share."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from hftune.utils.errors import did_you_mean

__all__ = [
    "choice_problems",
    "float_list",
    "grid_differences",
    "grid_problems",
    "repeated_problems",
]


def choice_problems(name: str, value: Any, known: Collection[str]) -> list[str]:
    """Returns what is wrong with a value that has to be one of several names."""
    if value in known:
        return []
    hint = did_you_mean(str(value), known)
    return [f"{name} is {value!r}; it must be one of {', '.join(known)}.{hint}"]


def repeated_problems(what: str, names: Sequence[str]) -> list[str]:
    """Returns what is wrong with names of which none may stand twice."""
    twice = sorted({name for name in names if names.count(name) > 1})
    return [f"{what} holds {', '.join(twice)} more than once."] if twice else []


def grid_problems(
    latitude: Sequence[float],
    longitude: Sequence[float],
    prefix: str = "",
    *,
    least: int = 1,
    closed: bool = False,
) -> list[str]:
    """Returns what is wrong with the axes of a grid.

    Args:
        latitude (sequence of float): Degrees north, strictly decreasing.
        longitude (sequence of float): Degrees east, strictly increasing from [0, 360) on.
        prefix (str): Of their names in messages. Defaults to none.
        least (int): Longitudes there have to be. Defaults to 1.
        closed (bool): Whether the last longitude may be the first one again. Defaults to False.
    """
    problems = []
    latitude, longitude = np.asarray(latitude), np.asarray(longitude)
    if latitude.size == 0 or np.abs(latitude).max() > 90 or not (np.diff(latitude) < 0).all():
        problems.append(
            f"{prefix}latitude must be within -90..90 and strictly decreasing (north to south); it "
            f"is {_ends(latitude)}. Flip the latitude axis of the fields; open_fields does so."
        )
    turn = longitude[-1] - longitude[0] if longitude.size else 0
    if (
        longitude.size < least
        or not 0 <= longitude[0] < 360
        or not (np.diff(longitude) > 0).all()
        or turn > 360
        or (turn == 360 and not closed)
    ):
        length = "no more than" if closed else "less than"
        problems.append(
            f"{prefix}longitude must be strictly increasing from a value in [0, 360), {length} one "
            f"turn; it is {_ends(longitude)}. A region across Greenwich goes on past 360: "
            "345, 350, 355, 360, 365."
        )
    return problems


def grid_differences(ours: Any, theirs: Any, our_side: str, their_side: str) -> list[str]:
    """Returns in what the axes of two grids differ, a sentence without its full stop each.

    Args:
        ours, theirs: With ``latitude`` and ``longitude``: layouts or configurations.
        our_side, their_side (str): How the sentence begins and goes on: ``"the model has"``.
    """
    found = []
    for name in ("latitude", "longitude"):
        first, second = np.asarray(getattr(ours, name)), np.asarray(getattr(theirs, name))
        if len(first) != len(second) or not np.allclose(first, second, atol=1e-3):
            found.append(
                f"{our_side} {len(first)} values of {name} from {first[0]:g} to {first[-1]:g}, "
                f"{their_side} {len(second)} from {second[0]:g} to {second[-1]:g}"
            )
    return found


def float_list(values: Sequence[float]) -> list[float]:
    """Returns plain floats, as JSON has them."""
    return [float(value) for value in values]


def _ends(values: np.ndarray) -> str:
    if values.size < 4:
        return str(values.tolist())
    return f"{values[0]:g}, {values[1]:g} ... {values[-2]:g}, {values[-1]:g}"
