"""Writes initial conditions: computed by a model, or taken from fields."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from ...utils.errors import ConfigurationError, DataError
from .dates import describe_times, format_time
from .fields import FieldLayout, WeatherFields
from .forecast_file import ForecastInputs, match_inputs
from .initial_conditions import (
    DTYPES,
    InitialConditions,
    build_manifest,
    open_initial_conditions,
    stored_shape,
    times_of,
)
from .initial_conditions_partial import PartialFile

if TYPE_CHECKING:
    import torch

__all__ = [
    "copy_initial_conditions",
    "initial_condition_bytes",
    "match_layout",
    "write_initial_conditions",
]

# Rows are brought into the order of the file this much at a time, beside the block itself.
_CHUNK_BYTES = 4 << 20


def initial_condition_bytes(
    rows: int, layout: FieldLayout, dtype: str = "float32", history: int = 1
) -> int:
    """Returns the size of a file of initial conditions, in bytes.

    Args:
        rows (int): Number of initial times.
        layout (FieldLayout): Channels and grid.
        dtype (str): ``"float32"`` or ``"float16"``. Defaults to ``"float32"``.
        history (int): States in a row. Defaults to 1.
    """
    return rows * int(np.prod(stored_shape(layout, history))) * np.dtype(dtype).itemsize


def write_initial_conditions(
    path: str | os.PathLike[str],
    *,
    layout: FieldLayout,
    times: np.ndarray,
    compute: Callable[[np.ndarray], np.ndarray | torch.Tensor],
    source: Mapping[str, Any],
    lead_hours: float = 0,
    history: int = 1,
    timestep_hours: float = 24,
    statistics: Mapping[str, Sequence[float]] | None = None,
    dtype: str = "float32",
    block_rows: int = 64,
    rank: int = 0,
    world: int = 1,
    wait: Callable[[], Any] = lambda: None,
    progress: Callable[[int], Any] | None = None,
) -> InitialConditions:
    """Writes a file of initial conditions, or what an interrupted call has left of it.

    A file that is there, with the same settings and the same ``source``, is not written again. All
    processes of a distributed run call this together, on one file system. Which rows are computed
    together depends on ``block_rows`` alone, so that any number of processes writes the same bytes.

    Args:
        path (path): The raw file; its manifest goes beside it.
        layout (FieldLayout): Channels, units and grid of the states.
        times (int64 array ``[N]``): Initial times, seconds since 1970-01-01 UTC.
        compute (callable): From row numbers ``[n]`` to a new float32 array or tensor
            ``[n, T, C, H, W]``, in the units of ``layout``. While it computes, the block before is
            written.
        source (mapping): What makes the states, as plain JSON values (``kind``, ``model`` hash,
            ...). Another source makes the file anew.
        lead_hours (float): Hours from the initial times to the states. Defaults to 0.
        history (int): ``T``, states in a row. Defaults to 1.
        timestep_hours (float): Hours between two states of a row. Defaults to 24.
        statistics (mapping, *optional*): ``mean`` and ``std`` of the ``C`` channels, for the
            manifest. float16 needs them.
        dtype (str): ``"float32"`` or ``"float16"``. Defaults to ``"float32"``.
        block_rows (int): Rows that are computed and written together. Defaults to 64.
        rank (int): Number of this process. Defaults to 0.
        world (int): Number of processes. Defaults to 1.
        wait (callable): Returns once all processes have called it.
        progress (callable, *optional*): Called with the number of rows that are there.

    Returns:
        InitialConditions: The file, open for reading.

    Raises:
        ConfigurationError: If ``dtype`` is unknown or lacks the statistics that it needs.
        DataError: If the disk is too small, a value is not finite, or another process failed.
    """
    path = Path(path)
    times = np.asarray(times, dtype=np.int64)
    scaled = dtype == "float16"
    _check_settings(path, layout, times, dtype, statistics)
    manifest = build_manifest(
        layout=layout,
        times=times,
        source=dict(source),
        dtype=dtype,
        lead_hours=lead_hours,
        history=history,
        timestep_hours=timestep_hours,
        statistics=statistics,
        scaled=scaled,
    ) | {"block_rows": block_rows}
    file = PartialFile(path, manifest)
    # Whatever happens in one process, it meets the others where they wait for it; what they then
    # find on the disk says whether to go on.
    with _then(wait):
        if rank == 0:
            file.prepare()
    if not file.is_finished():
        blocks = file.missing()
        if progress is not None:
            progress(file.rows_done())
        with _then(wait):
            _write_blocks(file, blocks[blocks % world == rank], compute, progress)
        if len(file.missing()):
            raise file.other_failed()
        with _then(wait):
            if rank == 0:
                created = datetime.datetime.now(datetime.timezone.utc)
                file.finish({"rows": len(times), "created": created.isoformat(" ", "seconds")})
        if not file.is_finished():
            raise file.other_failed()
        if rank == 0:
            file.clean()
    if progress is not None:
        progress(len(times))
    return open_initial_conditions(path)


def copy_initial_conditions(
    path: str | os.PathLike[str],
    fields: WeatherFields,
    times: np.ndarray | None = None,
    *,
    layout: FieldLayout | None = None,
    history: int = 1,
    timestep_hours: float = 24,
    **options: Any,
) -> InitialConditions:
    """Writes initial conditions from fields, such as a reanalysis: the analyses themselves.

    Args:
        path (path): The raw file.
        fields (WeatherFields): The data.
        times (int64 array ``[N]``, *optional*): Initial times. Defaults to all times of the fields
            that have the states before them.
        layout (FieldLayout, *optional*): Channels and grid to take. Defaults to those of the
            fields.
        history (int): ``T``, states in a row, the last of them at the initial time. Defaults to 1.
        timestep_hours (float): Hours between two states of a row. Defaults to 24.
        **options: Those of :func:`write_initial_conditions`.

    Raises:
        DataError: If the fields lack a channel, a point or a time, besides what
            :func:`write_initial_conditions` raises.
    """
    inputs = match_layout(fields, layout or fields.layout, history, timestep_hours)
    if times is not None:
        times = np.asarray(times, dtype=np.int64)
        places = np.minimum(np.searchsorted(inputs.times, times), len(inputs.times) - 1)
        missing = times[inputs.times[places] != times]
        if len(missing):
            before = f" or what lies {timestep_hours:g} h apart before them" if history > 1 else ""
            raise DataError(
                f"{Path(path).name}: the data lack {len(missing):,} of {len(times):,} initial "
                f"times{before}. The first is {format_time(missing[0])}; the data have "
                f"{describe_times(fields.times)}."
            )
        inputs = dataclasses.replace(inputs, rows=inputs.rows[places])
    names = [os.path.basename(os.path.normpath(name)) for name in fields.sources]
    source = {"kind": "fields", "fingerprint": fields.fingerprint, "names": names}
    return write_initial_conditions(
        path,
        layout=inputs.layout,
        times=inputs.times,
        compute=inputs.read,
        history=history,
        timestep_hours=timestep_hours,
        **{"source": source, **options},
    )


def match_layout(
    fields: WeatherFields, layout: FieldLayout, history: int = 1, timestep_hours: float = 24
) -> ForecastInputs:
    """Finds channels and grid of a layout in some fields, at all times that have what they need.

    Args:
        fields (WeatherFields): The data, which may have more channels and a larger grid.
        layout (FieldLayout): The channels and the grid to take.
        history (int): ``T``, states that belong together. Defaults to 1.
        timestep_hours (float): Hours between two of them. Defaults to 24.

    Raises:
        DataError: If a channel, a grid point or all times are missing.
    """
    wanted = SimpleNamespace(
        channels=layout.channels,
        latitude=layout.latitude,
        longitude=layout.longitude,
        history=history,
        timestep_hours=timestep_hours,
    )
    return match_inputs(fields, wanted, "0%:100%")


@contextlib.contextmanager
def _then(wait: Callable[[], Any]) -> Iterator[None]:
    try:
        yield
    finally:
        wait()


def _check_settings(
    path: Path,
    layout: FieldLayout,
    times: np.ndarray,
    dtype: str,
    statistics: Mapping[str, Sequence[float]] | None,
) -> None:
    problems = []
    if dtype not in DTYPES:
        problems.append(f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}.")
    if dtype == "float16" and statistics is None:
        problems.append(
            f"{path.name}: float16 ends at 65504, less than pressure in Pa or geopotential, so "
            "values are stored as (value - mean) / std: give the statistics of the channels."
        )
    if statistics is not None:
        mean, std = (np.asarray(statistics[name], dtype=np.float64) for name in ("mean", "std"))
        count = len(layout.channels)
        if mean.shape != (count,) or std.shape != (count,):
            problems.append(
                f"{path.name}: the statistics have {mean.size} means and {std.size} standard "
                f"deviations; expected {count}, one a channel."
            )
        elif not (usable := np.isfinite(mean) & np.isfinite(std) & (std > 0)).all():
            wrong = [
                f"{layout.channels[i]} ({mean[i]:g}, {std[i]:g})" for i in np.flatnonzero(~usable)
            ]
            problems.append(
                f"{path.name}: mean and std of {', '.join(wrong)} cannot be used; both have to be "
                "finite and std positive."
            )
    if not len(times):
        problems.append(f"{path.name}: there are no initial times to write.")
    if problems:
        raise ConfigurationError(problems)


def _write_blocks(
    file: PartialFile,
    blocks: np.ndarray,
    compute: Callable[[np.ndarray], np.ndarray | torch.Tensor],
    progress: Callable[[int], Any] | None,
) -> None:
    """Computes and writes blocks, the one while the other is computed."""
    if not len(blocks):
        return
    with file.opened(), ThreadPoolExecutor(1) as writer, contextlib.ExitStack() as last:
        # What was written before an error or Ctrl-C counts.
        last.callback(lambda: writer.submit(file.mark).result())
        pending = None
        for block in blocks.tolist():
            values = compute(file.rows_of(block))
            if not isinstance(values, np.ndarray):
                values = values.detach().float().cpu().numpy()
            if pending is not None:
                pending.result()
                if progress is not None:
                    progress(file.rows_done())
            pending = writer.submit(_write_block, file, block, values)
        pending.result()


def _write_block(file: PartialFile, block: int, values: np.ndarray) -> None:
    rows = file.rows_of(block)
    *states, height, width, channels = file.manifest["shape"][1:]
    expected = (len(rows), *(states or (1,)), channels, height, width)
    if values.shape != expected:
        raise DataError(
            f"{file.path.name}: the states of rows {rows[0]} to {rows[-1]} have the shape "
            f"{list(values.shape)}; expected {list(expected)} (rows, states, channels, latitudes, "
            "longitudes)."
        )
    step = max(1, _CHUNK_BYTES // file.row_bytes)
    file.write(
        block,
        (
            _as_stored(file, values[start : start + step], int(rows[start]))
            for start in range(0, len(rows), step)
        ),
    )


def _as_stored(file: PartialFile, values: np.ndarray, first: int) -> np.ndarray:
    """Brings rows into the order, scale and type of the file."""
    manifest = file.manifest
    if manifest["scaled"]:
        mean, std = (
            np.asarray(manifest["statistics"][name], np.float32)[:, None, None]
            for name in ("mean", "std")
        )
        values = (values - mean) / std
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(
            np.moveaxis(values[..., ::-1, :], -3, -1),
            dtype=file.dtype,
        )
    finite = np.isfinite(stored)
    if not finite.all():
        row = int(np.argmin(finite.reshape(len(finite), -1).all(axis=1)))
        wrong = (~finite[row]).reshape(-1, finite.shape[-1]).sum(axis=0)
        channel = int(np.argmax(wrong > 0))
        when = format_time(times_of(manifest["times"])[first + row])
        raise DataError(
            f"{file.path.name}: row {first + row} ({when}) has {wrong[channel]:,} values of "
            f"{manifest['channels'][channel]} that are not finite. Its block is not kept: look at "
            "what computes it."
        )
    return stored
