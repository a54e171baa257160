"""Finds, recognises and opens the stores that fields are read from."""

from __future__ import annotations

import dataclasses
import glob
import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hftune.utils.errors import DataError, did_you_mean

if TYPE_CHECKING:
    import xarray

__all__ = ["MANIFEST", "Source", "digest_sources", "find_sources", "open_source"]

#: File that makes a folder a cache of ours.
MANIFEST = "manifest.json"
_ZARR_METADATA = (".zmetadata", "zarr.json", ".zgroup")
_ENDINGS = (".nc", ".nc4", ".cdf", ".h5", ".grib", ".grb", ".grib2", ".grb2")
# Up to this total the content is hashed; beyond it sizes, times and samples must do.
_HASH_LIMIT = 1 << 29
_SAMPLE = 1 << 20


@dataclasses.dataclass(frozen=True)
class Source:
    """A store that exists.

    Attributes:
        path (str): Local path or URL.
        format (str): ``"hdf5"`` (NetCDF-4), ``"netcdf3"``, ``"grib"``, ``"zarr"`` or ``"cache"``.
    """

    path: str
    format: str

    @property
    def name(self) -> str:
        """Short name for messages."""
        return self.path if self.remote else os.path.basename(os.path.normpath(self.path))

    @property
    def remote(self) -> bool:
        """Whether it is a URL."""
        return "://" in self.path


def find_sources(data: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[Source]:
    """Resolves paths, globs, folders of files and URLs.

    Args:
        data (str or list of str): What to read.

    Raises:
        DataError: If something is missing (with the names near it) or of no known format.
    """
    items = [data] if isinstance(data, (str, os.PathLike)) else list(data)
    if not items:
        raise DataError("no data given: name a file, a glob, a Zarr store or a URL.")
    sources: list[Source] = []
    for item in map(os.fspath, items):
        if "://" in item:
            sources += [_remote_source(url) for url in _expand_url(item)]
        elif glob.has_magic(item) and not os.path.exists(item):
            paths = sorted(glob.glob(os.path.expanduser(item), recursive=True))
            if not paths:
                raise DataError(f"no file matches {item!r} in {os.getcwd()}.")
            for path in paths:
                sources += _local_sources(path)
        else:
            sources += _local_sources(os.path.expanduser(item))
    unique = list(dict.fromkeys(sources))
    if len(unique) > 1 and any(source.format == "cache" for source in unique):
        raise DataError("a cache folder holds whole fields: open it alone, not with other files.")
    return unique


def _local_sources(path: str) -> list[Source]:
    if os.path.isdir(path):
        names = set(os.listdir(path))
        if MANIFEST in names:
            return [Source(path, "cache")]
        if names & set(_ZARR_METADATA):
            return [Source(path, "zarr")]
        files = sorted(name for name in names if name.lower().endswith(_ENDINGS))
        if not files:
            raise DataError(
                f"the folder {path} is no Zarr store and holds no file that ends in "
                f"{', '.join(_ENDINGS)}."
            )
        return [
            Source(os.path.join(path, name), _file_format(os.path.join(path, name)))
            for name in files
        ]
    if not os.path.exists(path):
        raise DataError(f"{path} does not exist.{_near_files(path)}")
    return [Source(path, _file_format(path))]


def _near_files(path: str) -> str:
    folder = Path(path).absolute().parent
    if not folder.is_dir():
        while not folder.is_dir():
            folder = folder.parent
        return f" Its folder does not exist either; the nearest that does is {folder}."
    names = sorted(entry for entry in os.listdir(folder) if not entry.startswith("."))
    near = did_you_mean(os.path.basename(path), names)
    if near:
        return near
    if not names:
        return f" The folder {folder} is empty."
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f" The folder {folder} holds {', '.join(names[:8])}{more}."


def _file_format(path: str) -> str:
    with open(path, "rb") as stream:
        head = stream.read(8)
    if head.startswith(b"\x89HDF"):
        return "hdf5"
    if head[:3] == b"CDF":
        return "netcdf3"
    if head.startswith(b"GRIB"):
        return "grib"
    if head.startswith(b"PK"):
        hint = (
            "It is a ZIP archive, as the Copernicus store sends them: unzip it and name its files."
        )
    elif not head:
        hint = "It is empty: fetch it again."
    elif head.lstrip()[:1] in (b"<", b"{"):
        hint = "It looks like a web page or JSON: the download may have failed. Fetch it again."
    else:
        hint = f"It begins with the bytes {head!r}."
    raise DataError(f"{path} is not a NetCDF, GRIB or Zarr file. {hint}")


def _filesystem(url: str) -> tuple[Any, str]:
    """``(file system, path in it)`` of a URL."""
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise DataError(f"cannot open {url}: {error}") from None
    except ValueError as error:
        raise DataError(
            f"cannot open {url}: {error}. Known protocols: file, http, gs, s3, ..."
        ) from None


def _expand_url(url: str) -> list[str]:
    if not glob.has_magic(url) or url.startswith("http"):
        return [url]
    system, path = _filesystem(url)
    found = [system.unstrip_protocol(name) for name in sorted(system.glob(path))]
    if not found:
        raise DataError(f"nothing matches {url}.")
    return found


def _remote_source(url: str) -> Source:
    system, path = _filesystem(url)
    path = path.rstrip("/")
    try:
        if any(system.exists(f"{path}/{name}") for name in _ZARR_METADATA):
            return Source(url, "zarr")
        if not system.isfile(path):
            raise DataError(
                f"{url} does not exist, or is no Zarr store (it has none of "
                f"{', '.join(_ZARR_METADATA)})."
            )
        with system.open(path, "rb") as stream:
            head = stream.read(8)
    except DataError:
        raise
    except Exception as error:  # each protocol has its own
        raise DataError(f"cannot read {url}: {type(error).__name__}: {error}") from error
    if not head.startswith(b"\x89HDF"):
        raise DataError(
            f"{url} is neither a Zarr store nor a NetCDF-4 file; it begins with {head!r}. "
            "Other files have to be downloaded first."
        )
    return Source(url, "hdf5")


def digest_sources(sources: Sequence[Source]) -> str:
    """Returns a hash of what the sources hold, the same wherever local files lie.

    Local files of up to 512 MiB together are hashed whole; larger ones by size, time of change and
    samples of their bytes; remote ones by their metadata.
    """
    import xxhash

    files = {source: _files_of(source.path) for source in sources if not source.remote}
    whole = (
        sum(os.path.getsize(path) for paths in files.values() for _, path in paths) <= _HASH_LIMIT
    )
    digests = []
    for source in sources:
        digest = xxhash.xxh3_128(source.format.encode())
        if source.remote:
            digest.update(source.path.encode())
            system, path = _filesystem(source.path)
            path = path.rstrip("/")
            if source.format == "zarr":
                for name in _ZARR_METADATA:
                    if system.exists(f"{path}/{name}"):
                        digest.update(system.cat_file(f"{path}/{name}"))
            else:
                digest.update(system.ukey(path).encode())
        else:
            for name, path in files[source]:
                digest.update(f"\0{name}\0".encode())
                _digest_file(digest, path, whole)
        digests.append(digest.hexdigest())
    return xxhash.xxh3_128("".join(sorted(digests)).encode()).hexdigest()


def _files_of(path: str) -> list[tuple[str, str]]:
    if os.path.isfile(path):
        return [("", path)]
    return sorted(
        (os.path.relpath(os.path.join(folder, name), path), os.path.join(folder, name))
        for folder, _, names in os.walk(path)
        for name in names
    )


def _digest_file(digest: Any, path: str, whole: bool) -> None:
    status = os.stat(path)
    with open(path, "rb") as stream:
        if whole:
            while block := stream.read(1 << 22):
                digest.update(block)
            return
        digest.update(f"{status.st_size} {status.st_mtime_ns}".encode())
        if status.st_size > 64 * _SAMPLE:  # not for each of a Zarr store's many chunks
            for start in range(0, status.st_size, status.st_size // 8):
                stream.seek(start)
                digest.update(stream.read(_SAMPLE))


def open_source(source: Source) -> list[xarray.Dataset]:
    """Opens a store lazily.

    Returns:
        One data set, or several for a GRIB file with several kinds of levels or steps.
    """
    import xarray

    options: dict[str, Any] = {"decode_timedelta": False, "cache": False}
    try:
        if source.format == "grib":
            return _open_grib(source)
        if source.format == "zarr":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # stores without consolidated metadata are fine
                return [xarray.open_dataset(source.path, engine="zarr", chunks=None, **options)]
        if source.remote:
            system, path = _filesystem(source.path)
            return [xarray.open_dataset(system.open(path, "rb"), engine="h5netcdf", **options)]
        return [xarray.open_dataset(source.path, engine="netcdf4", **options)]
    except DataError:
        raise
    except Exception as error:  # each library and each protocol has its own
        raise DataError(
            f"cannot read {source.path} as {source.format}: {type(error).__name__}: {error}. "
            "The file may be incomplete; compare its size with the original."
        ) from error


def _open_grib(source: Source) -> list[xarray.Dataset]:
    try:
        import cfgrib
    except (ImportError, RuntimeError) as error:  # RuntimeError: the eccodes library is missing
        raise DataError(
            f"reading the GRIB file {source.path} needs cfgrib and eccodes ({error}): "
            "pip install 'hftune[grib]', or convert it with 'grib_to_netcdf'."
        ) from None
    # No index file is written beside data that may be read-only.
    return cfgrib.open_datasets(
        source.path, backend_kwargs={"indexpath": ""}, decode_timedelta=False, cache=False
    )
