"""The cache of fields: written once, whole or continued, then read by row.

A cache is a folder with ``fields.f32`` (raw little-endian float32 ``[N, C, H, W]``), ``static.f32``
(``[S, H, W]``) and ``manifest.json``, which is written last. It is built in a folder of its own
beside its place and moved there when it is whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from hftune.utils.errors import DataError
from hftune.utils.files import free_bytes, human_bytes, read_json, sync_folder, write_json
from hftune.utils.home import hftune_home
from hftune.utils.terminal import progress

from .dates import select_rows
from .fields import FieldLayout, WeatherFields
from .sources import MANIFEST
from .values import StoredValues

__all__ = ["FORMAT", "build_cache", "cache_root", "load_cache", "select_cache"]

FORMAT = 1
_FIELDS = "fields.f32"
_STATIC = "static.f32"
_PROGRESS = "progress.json"
_BLOCK_BYTES = 32 << 20
_CHUNK_BYTES = 256 << 20
_MARGIN = 64 << 20
_logger = logging.getLogger(__name__)


def cache_root(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """The folder of weather caches: ``cache_dir``, else ``cache/weather`` in the hftune home."""
    if cache_dir is not None:
        return Path(cache_dir).expanduser()
    return hftune_home() / "cache" / "weather"


def load_cache(folder: str | os.PathLike[str]) -> WeatherFields:
    """Opens a cache in place.

    Args:
        folder (path): A folder with ``manifest.json``.

    Raises:
        DataError: If it is of another format or its files have the wrong size.
    """
    folder = Path(folder)
    try:
        manifest = read_json(folder / MANIFEST)
    except (OSError, json.JSONDecodeError) as error:
        raise DataError(f"cannot read {folder / MANIFEST}: {error}.") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise DataError(
            f"{folder} is no weather cache of format {FORMAT}: open the data themselves."
        )
    layout = FieldLayout(
        channels=tuple(manifest["channels"]),
        units=tuple(manifest["units"]),
        static_channels=tuple(manifest["static_channels"]),
        latitude=np.array(manifest["latitude"], dtype=np.float64),
        longitude=np.array(manifest["longitude"], dtype=np.float64),
    )
    times = np.array(manifest["times"], dtype=np.int64)
    stored = (len(times), len(layout.channels), *layout.grid)
    for name, count in ((_FIELDS, np.prod(stored)), (_STATIC, _static_size(layout))):
        size = os.path.getsize(folder / name) if (folder / name).exists() else 0
        if size != int(count) * 4:
            raise DataError(
                f"{folder / name} has {size} bytes, expected {int(count) * 4}: "
                f"remove the folder {folder} and it will be made anew."
            )
    return WeatherFields(
        layout=layout,
        times=times,
        values=StoredValues(folder / _FIELDS, stored),
        static_fields=np.fromfile(folder / _STATIC, dtype="<f4").reshape(-1, *layout.grid),
        fingerprint=manifest["fingerprint"],
        sources=tuple(manifest["sources"]),
        audit_notes=tuple(manifest["audit_notes"]),
    )


def _static_size(layout: FieldLayout) -> int:
    return len(layout.static_channels) * layout.grid[0] * layout.grid[1]


def build_cache(
    folder: Path,
    fields: WeatherFields,
    read_block: Callable[[int, int], np.ndarray],
    *,
    time_chunk: int = 1,
    show_progress: bool = True,
) -> WeatherFields:
    """Writes fields to a cache, or waits for another process that does, and opens it.

    An interrupted build, by Ctrl-C or by kill -9, is continued by the next call.

    Args:
        folder (Path): Where the cache shall be; its parent is made.
        fields (WeatherFields): What to write; its ``values`` are not used.
        read_block (callable): ``read_block(start, stop)`` gives the times ``start:stop`` as float32
            ``[stop - start, C, H, W]``.
        time_chunk (int): How many times the source keeps together. Defaults to 1.
        show_progress (bool): Whether to show a progress bar. Defaults to True.

    Raises:
        DataError: If the disk has too little space.
    """
    import filelock

    row_bytes = 4 * len(fields.layout.channels) * fields.layout.grid[0] * fields.layout.grid[1]
    size = row_bytes * len(fields)
    partial = folder.with_name(folder.name + ".partial")
    done = _written(partial, row_bytes) * row_bytes
    free = free_bytes(folder.parent)
    if size - done + _MARGIN > free:
        raise DataError(
            f"the cache of {len(fields):,} times x {len(fields.layout.channels)} channels x "
            f"{fields.layout.grid[0]} x {fields.layout.grid[1]} points needs "
            f"{human_bytes(size - done)}, but the disk of {folder.parent} has {human_bytes(free)} "
            "free. Select fewer variables, levels or times, or set cache_dir (or "
            "HFTUNE_HOME) to a larger disk."
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder.with_name(folder.name + ".lock"))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        _logger.warning("another process is writing the cache %s; waiting for it", folder)
        lock.acquire()
    try:
        if not (folder / MANIFEST).exists():
            _write(partial, fields, read_block, row_bytes, time_chunk, show_progress)
            os.replace(partial, folder)
            sync_folder(folder.parent)
            (folder / _PROGRESS).unlink()
    finally:
        lock.release()
    return load_cache(folder)


def _written(partial: Path, row_bytes: int) -> int:
    """Number of times that a former build has written and synced."""
    try:
        rows = int(read_json(partial / _PROGRESS)["rows"])
        return rows if os.path.getsize(partial / _FIELDS) >= rows * row_bytes else 0
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _write(
    partial: Path,
    fields: WeatherFields,
    read_block: Callable[[int, int], np.ndarray],
    row_bytes: int,
    time_chunk: int,
    show_progress: bool,
) -> None:
    partial.mkdir(exist_ok=True)
    count = len(fields)
    block = max(1, _BLOCK_BYTES // row_bytes)
    if block < time_chunk <= _CHUNK_BYTES // row_bytes:
        block = time_chunk
    elif block > time_chunk:
        block -= block % time_chunk  # whole chunks, so that none is unpacked twice
    start = _written(partial, row_bytes)
    if start:
        _logger.warning("continuing the cache %s at time %d of %d", partial, start, count)
    with open(partial / _FIELDS, "r+b" if (partial / _FIELDS).exists() else "w+b") as stream:
        stream.truncate(start * row_bytes)
        stream.seek(start * row_bytes)
        bar = progress(count, "Writing the weather cache", "times", initial=start)
        with bar if show_progress else contextlib.nullcontext():
            while start < count:
                stop = min(start + block, count)
                try:
                    values = read_block(start, stop)
                    stream.write(np.ascontiguousarray(values, dtype="<f4").data)
                    stream.flush()
                    os.fsync(stream.fileno())
                except KeyboardInterrupt:
                    _logger.warning(
                        "interrupted; %d of %d times are kept, the next run continues", start, count
                    )
                    raise
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    raise DataError(
                        f"the disk of {partial} is full after {start} of {count} times. Make room "
                        "and run again: it continues where it stopped."
                    ) from error
                # Only what is synced counts: after a crash the next build begins here.
                write_json(partial / _PROGRESS, {"rows": stop})
                if show_progress:
                    bar.update(stop - start)
                start = stop
    with open(partial / _STATIC, "wb") as stream:
        stream.write(np.ascontiguousarray(fields.static_fields, dtype="<f4").data)
        stream.flush()
        os.fsync(stream.fileno())
    layout = fields.layout
    write_json(
        partial / MANIFEST,
        {
            "format": FORMAT,
            "channels": layout.channels,
            "units": layout.units,
            "static_channels": layout.static_channels,
            "latitude": layout.latitude,
            "longitude": layout.longitude,
            "times": fields.times,
            "fingerprint": fields.fingerprint,
            "sources": fields.sources,
            "audit_notes": fields.audit_notes,
        },
    )


def select_cache(
    fields: WeatherFields, channels: tuple[int, ...] | None, dates: str | None
) -> WeatherFields:
    """Shows a part of a cache that was opened in place; see :func:`load_cache`."""
    rows = select_rows(fields.times, dates)
    if rows[-1] - rows[0] + 1 != len(rows):
        raise DataError(
            f"{dates!r} has holes: give one range of dates when opening a cache folder."
        )
    layout = fields.layout
    if channels is not None:
        layout = dataclasses.replace(
            layout,
            channels=tuple(layout.channels[i] for i in channels),
            units=tuple(layout.units[i] for i in channels),
        )
    bounds = (int(rows[0]), int(rows[-1]) + 1)
    return dataclasses.replace(
        fields,
        layout=layout,
        times=fields.times[rows],
        values=StoredValues(fields.values.path, fields.values.stored, bounds, channels),
        fingerprint=f"{fields.fingerprint}-{bounds[0]}-{bounds[1]}-{channels}",
    )
