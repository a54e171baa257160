"""Aardvark's normalisation factors: four small ``.npy`` files."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from hftune.utils.errors import DataError
from hftune.utils.files import checked_name

__all__ = ["read_norm_factors"]


def read_norm_factors(
    folder: str | os.PathLike[str],
    *,
    era5_mode: str = "4u",
    res: int = 1,
    difference_hours: int = 24,
    channels: int = 24,
) -> dict[str, list[float]]:
    """Reads the statistics of the state and of its change, as Aardvark's repository has them.

    The files are ``mean_4u_1.npy``, ``std_4u_1.npy``, ``mean_diff_4u_1.npy`` and
    ``std_diff_4u_1.npy``; the last two end in ``_12h.npy`` or ``_6h.npy`` for other steps than a
    day.

    Args:
        folder (path): ``norm_factors``, or the folder that it lies in.
        era5_mode (str): Set of variables. Defaults to ``"4u"``.
        res (int): Code of the grid: 1 is 1.5 degrees. Defaults to 1.
        difference_hours (int): Hours of the change. Defaults to 24.
        channels (int): Values that each file must have. Defaults to 24.

    Returns:
        ``mean``, ``std``, ``difference_mean`` and ``difference_std``: one number a channel, in
        physical units and in the order of the published channels.

    Raises:
        DataError: If files are missing, are no plain arrays, or have another length; if a number
            is not finite or a standard deviation not positive. All that is wrong is listed.

    Example:
        >>> read_norm_factors("aardvark-weather-public/norm_factors")["std"][0]
        5.497465133666992
    """
    folder = Path(folder)
    if (folder / "norm_factors").is_dir():
        folder = folder / "norm_factors"
    data = checked_name(f"{era5_mode}_{res}", "the set of normalisation factors")
    step = "" if difference_hours == 24 else f"_{difference_hours}h"
    names = {
        "mean": f"mean_{data}.npy",
        "std": f"std_{data}.npy",
        "difference_mean": f"mean_diff_{data}{step}.npy",
        "difference_std": f"std_diff_{data}{step}.npy",
    }
    found, problems = {}, []
    missing = [name for name in names.values() if not (folder / name).is_file()]
    if missing:
        there = sorted(path.name for path in folder.glob("*.npy"))
        listed = ", ".join(there[:12]) + (", ..." if len(there) > 12 else "")
        problems.append(
            f"there is no {', no '.join(missing)}; there is {listed or 'no .npy file at all'}"
        )
    for kind, name in names.items():
        if name not in missing:
            try:
                found[kind] = _read(folder / name, channels, positive=kind.endswith("std"))
            except ValueError as error:
                problems.append(f"{name} {error}")
    if problems:
        raise DataError(f"normalisation factors in {folder}: " + "; ".join(problems) + ".")
    return found


def _read(path: Path, channels: int, *, positive: bool) -> list[float]:
    try:
        values = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(
            f"is refused: it is damaged or holds pickled objects, expected {channels} numbers "
            f"({str(error).rstrip('.')})"
        ) from error
    if values.shape != (channels,) or values.dtype.kind not in "fiu":
        raise ValueError(
            f"has the shape {list(values.shape)} and type {values.dtype}, expected {channels} "
            "numbers: one a channel"
        )
    wrong = ~np.isfinite(values)
    if positive:
        wrong |= ~(values > 0)
    if wrong.any():
        where = np.flatnonzero(wrong)
        listed = ", ".join(f"{values[i]} for channel {i}" for i in where[:5])
        kind = "positive and finite" if positive else "finite"
        raise ValueError(
            f"has {listed}{', ...' if len(where) > 5 else ''}, expected {kind} numbers"
        )
    return values.astype(np.float64).tolist()
