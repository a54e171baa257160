"""Model folders kept by the hash of their bytes, on one disk that a team may share.

Below the store's folder lie::

    objects/<aa>/<sha256>         each different file once, mode 0444
    contents/<digest>/...         a registered folder under its files' own names, to load from
    manifests/<digest>.json       what is in it; its sha256 is the digest; written last
    partial/                      what is being written, or was when a process died

A content counts once its manifest is there, after everything else is on the disk: whatever stops a
registration leaves only what :meth:`ContentStore.gc` removes.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import re
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..utils.errors import CheckpointError, ConfigurationError
from ..utils.files import free_bytes, human_bytes, sync_folder
from ..utils.home import hftune_home
from .content_files import (
    CHANGED,
    copy,
    disk_bytes,
    file_problem,
    link,
    remove,
    same_file,
    who_may_remove,
)
from .model_files import find_model_files, walk
from .store import StoreError

__all__ = ["Content", "ContentStore", "Garbage"]


@dataclasses.dataclass(frozen=True)
class Content:
    """A model folder that was stored.

    Attributes:
        digest (str): sha256 of the manifest.
        files (dict): The manifest: ``{"path/in/folder": {"bytes", "sha256"}}``, for safetensors
            also ``"header_sha256"``.
        left_out (tuple of str): What the folder held beside the model.
    """

    digest: str
    files: dict[str, dict[str, Any]]
    left_out: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(entry["bytes"] for entry in self.files.values())


@dataclasses.dataclass(frozen=True)
class Garbage:
    """What :meth:`ContentStore.gc` removed, or would.

    Attributes:
        contents (int): Model folders that no version refers to.
        objects (int): Files that no folder refers to.
        partials (int): Leftovers of registrations that were killed.
        bytes (int): Their size on the disk.
        left (tuple of str): What stays because it is another user's, and whose it is.
    """

    contents: int
    objects: int
    partials: int
    bytes: int
    left: tuple[str, ...] = ()


class ContentStore:
    """Keeps model folders; see the module.

    Args:
        root (path, *optional*): Its folder. Defaults to ``HFTUNE_MODELS_DIR``, else to ``models``
            in ``HFTUNE_HOME``.

    Example:
        >>> contents = ContentStore()
        >>> content = contents.put("out/best")
        >>> model = AutoModel.from_pretrained(contents.folder(content.digest))
    """

    def __init__(self, root: str | os.PathLike[str] | None = None) -> None:
        root = root or os.environ.get("HFTUNE_MODELS_DIR") or hftune_home() / "models"
        self.root = Path(root).expanduser().absolute()

    def folder(self, digest: str) -> Path:
        """Returns where a content's files are, without a look at them."""
        return self.root / "contents" / digest

    def digest_at(self, path: str | os.PathLike[str]) -> str | None:
        """Returns the digest of the content that a path lies in, None for any other path."""
        try:
            inside = Path(path).resolve().relative_to((self.root / "contents").resolve())
        except (ValueError, OSError, RuntimeError):
            return None
        return inside.parts[0] if inside.parts and _is_digest(inside.parts[0]) else None

    # Writing

    @contextlib.contextmanager
    def holding(self) -> Iterator[None]:
        """Keeps :meth:`gc` away until what was put is referred to.

        Raises:
            StoreError: If the folder cannot be written.
        """
        with self._flock("lock", fcntl.LOCK_SH):
            yield

    def put(self, source: str | os.PathLike[str]) -> Content:
        """Stores a copy of a model folder, or of one file.

        What is there already takes no more room. Of a training run's folder only the model is
        taken; see :attr:`Content.left_out`.

        Args:
            source (path): The folder.

        Raises:
            ConfigurationError: If it is missing, empty, incomplete, or holds what cannot be kept:
                links, pickled weights.
            DataError: If a file changed while it was copied.
            StoreError: If there is no room for it, or the store cannot be written.
        """
        source = Path(source).expanduser()
        if self.root.resolve().is_relative_to(source.resolve()):
            raise ConfigurationError(
                f"{source} holds the model store {self.root} itself: register the model's folder"
            )
        files, left_out = find_model_files(source)
        size = sum(path.stat().st_size for path in files.values())
        if (free := free_bytes(self.root)) < size:
            raise StoreError(
                f"the model store {self.root}: {source} needs {human_bytes(size)}, the disk has "
                f"{human_bytes(free)}; make room (hftune models gc), or set HFTUNE_MODELS_DIR to "
                "another place"
            )
        with self.holding(), self.explained():
            entries = {name: self._store(path) for name, path in files.items()}
            data = _canonical(entries)
            digest = hashlib.sha256(data).hexdigest()
            with self._flock("publish.lock", fcntl.LOCK_EX):
                self._publish(digest, entries, data)
        return Content(digest, entries, tuple(left_out))

    def _store(self, path: Path) -> dict[str, Any]:
        """Puts a file among the objects; returns its entry in the manifest."""
        with self._partial() as partial:
            # A copy and never a hard link to the user's own file: the next save_pretrained there
            # writes into the same inode (measured: config.json always, weights with safetensors
            # 0.4.3 but not 0.8.0) and would change what is registered. Clones of the blocks do not
            # have that fault.
            size, digest = copy(path, partial, 0o444)
            entry: dict[str, Any] = {"bytes": size, "sha256": digest}
            if path.suffix == ".safetensors":
                with open(partial, "rb") as stream:
                    header = stream.read(int.from_bytes(stream.read(8), "little"))
                entry["header_sha256"] = hashlib.sha256(header).hexdigest()
            target = self._object(digest)
            # A damaged object must not stand for a whole file.
            if file_problem(target, entry):
                self._install(partial, target)
        return entry

    def _object(self, digest: str) -> Path:
        return self.root / "objects" / digest[:2] / digest

    def _publish(self, digest: str, entries: Mapping[str, Any], manifest: bytes) -> None:
        """Makes the folder to load from, then the manifest that makes it count."""
        if self._folder_problems(digest, entries, trusted=True):
            with self._partial() as partial:
                for name, entry in entries.items():
                    target = partial / name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    link(self._object(entry["sha256"]), target)
                for parent, _, _ in os.walk(partial):
                    sync_folder(parent)
                self._set_aside(self.folder(digest))
                self._install(partial, self.folder(digest))
            for parent, _, _ in os.walk(self.folder(digest)):
                os.chmod(parent, 0o555)
        with self._partial() as partial:
            with open(partial, "xb") as stream:
                stream.write(manifest)
                stream.flush()
                os.fchmod(stream.fileno(), 0o444)
                os.fsync(stream.fileno())
            self._install(partial, self._manifest_path(digest))

    @contextlib.contextmanager
    def _partial(self) -> Iterator[Path]:
        """A path of its own to write to, gone at the end."""
        path = self.root / "partial" / uuid.uuid4().hex
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield path
        finally:
            remove(path)

    def _install(self, partial: Path, target: Path) -> None:
        if not target.parent.is_dir():
            target.parent.mkdir(parents=True, exist_ok=True)
            sync_folder(target.parent.parent)
        os.replace(partial, target)
        sync_folder(target.parent)

    def _set_aside(self, folder: Path) -> None:
        with self._partial() as partial, contextlib.suppress(FileNotFoundError):
            os.chmod(folder, 0o755)  # without the right to write its '..' it cannot be moved
            os.replace(folder, partial)

    # Reading

    def _manifest_path(self, digest: str) -> Path:
        return self.root / "manifests" / f"{digest}.json"

    def manifest(self, digest: str) -> dict[str, dict[str, Any]]:
        """Returns the files of a content: ``{"path/in/folder": {"bytes", "sha256"}}``.

        Raises:
            CheckpointError: If there is no such content, or its manifest has changed.
        """
        path = self._manifest_path(digest)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise CheckpointError(f"manifest {path}: {error.strerror}") from None
        if hashlib.sha256(data).hexdigest() != digest:
            raise CheckpointError(f"manifest {path} has changed since it was written")
        entries = json.loads(data)
        for name in entries:
            # The hash vouches for the bytes, not for who wrote them to a shared disk.
            if name.startswith("/") or ".." in name.split("/"):
                raise CheckpointError(f"manifest {path} names a file outside its folder: {name!r}")
        return entries

    def verify(self, digest: str, on_bytes: Callable[[int], None] | None = None) -> list[str]:
        """Reads and hashes a content.

        Args:
            digest (str): The content.
            on_bytes (callable, *optional*): Called now and then with how many bytes were read; from
                several threads, one at a time.

        Returns:
            What is wrong with it, one text a problem; empty for a whole one.
        """
        done, lock = 0, threading.Lock()

        def count(size: int) -> None:
            nonlocal done
            with lock:
                done += size
                on_bytes(done)

        try:
            entries = self.manifest(digest)
        except CheckpointError as error:
            return [str(error)]
        return self._folder_problems(digest, entries, on_block=on_bytes and count)

    def _folder_problems(
        self,
        digest: str,
        entries: Mapping[str, Any],
        *,
        trusted: bool = False,
        on_block: Callable[[int], None] | None = None,
    ) -> list[str]:
        """Compares a folder with its manifest; trusted objects are not read again."""
        folder = self.folder(digest)

        def check(name: str) -> str | None:
            path, entry = folder / name, entries[name]
            shared = same_file(path, self._object(entry["sha256"]))
            if trusted and shared:
                return None
            if problem := file_problem(path, entry, on_block):
                return f"{name} {problem}"
            if not shared and self._object(entry["sha256"]).exists():
                if problem := file_problem(self._object(entry["sha256"]), entry):
                    return f"the object of {name} {problem}; registering the file again mends it"
            return None

        with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            problems = [problem for problem in pool.map(check, sorted(entries)) if problem]
        extra = sorted({name for name, _ in walk(folder)} - entries.keys())
        return problems + [f"{name} was not registered with it" for name in extra]

    def export(self, digest: str, target: str | os.PathLike[str]) -> Path:
        """Copies a content to a folder of its own, whose files can be changed.

        Args:
            digest (str): The content.
            target (path): Where to; must not exist, or be empty.

        Returns:
            ``target``, with every byte as it was registered.

        Raises:
            CheckpointError: If the content is damaged.
            ConfigurationError: If there is something at ``target``.
        """
        target = Path(target).expanduser().absolute()
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise ConfigurationError(f"{target} exists already: name a new or an empty folder")
        entries = self.manifest(digest)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
        try:
            partial.mkdir()
            for name, entry in entries.items():
                source, path = self.folder(digest) / name, partial / name
                path.parent.mkdir(parents=True, exist_ok=True)
                problem = file_problem(source, {"bytes": entry["bytes"]})
                if problem is None and copy(source, path)[1] != entry["sha256"]:
                    problem = CHANGED
                if problem:
                    raise CheckpointError(f"{name} {problem}: nothing was exported")
            os.replace(partial, target)
        finally:
            remove(partial)
        sync_folder(target.parent)
        return target

    # Removing

    def gc(self, used: Callable[[], Iterable[str]], *, dry_run: bool = False) -> Garbage:
        """Removes what no model refers to.

        What another user registered stays whole: only that user or root can remove it.

        Args:
            used (callable): Returns the digests that stay; called when no registration is under
                way.
            dry_run (bool): Only say what would be removed. Defaults to False.

        Raises:
            StoreError: If a registration is under way.
            CheckpointError: If the manifest of a digest that stays is damaged.
        """
        with self._flock("lock", fcntl.LOCK_EX | fcntl.LOCK_NB), self.explained():
            keep = set(used())
            left: list[str] = []

            def removable(paths: Iterable[Path]) -> list[Path]:
                found = []
                for path in paths:
                    if (owner := who_may_remove(path)) is None:
                        found.append(path)
                    else:
                        name = path.relative_to(self.root)
                        left.append(f"{name}: only {owner} or root can remove it")
                return found

            unused = {p.name: p for p in _entries(self.root / "contents") if p.name not in keep}
            contents = removable(unused.values())
            files = [self.manifest(digest) for digest in keep]
            for digest in unused.keys() - {path.name for path in contents}:
                keep.add(digest)  # what cannot be removed stays whole
                with contextlib.suppress(CheckpointError):
                    files.append(self.manifest(digest))
            needed = {entry["sha256"] for entries in files for entry in entries.values()}
            manifests = _entries(self.root / "manifests")
            stale = removable(p for p in manifests if p.name.removesuffix(".json") not in keep)
            stored = [p for shelf in _entries(self.root / "objects") for p in _entries(shelf)]
            objects = removable(p for p in stored if p.name not in needed)
            partials = removable(_entries(self.root / "partial"))
            garbage = Garbage(
                contents=len(contents),
                objects=len(objects),
                partials=len(partials),
                bytes=disk_bytes([*partials, *contents, *objects, *stale]),
                left=tuple(left),
            )
            if not dry_run:
                # In this order what is left of an interrupted removal does not count.
                for path in [*stale, *contents, *objects, *partials]:
                    remove(path)
        return garbage

    @contextlib.contextmanager
    def _flock(self, name: str, kind: int) -> Iterator[None]:
        with self.explained():
            self.root.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.root / name, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                fcntl.flock(descriptor, kind)
            except BlockingIOError:
                raise StoreError(
                    f"the model store {self.root}: a registration is under way, its files must not "
                    "be taken for leftovers; try again when it is done"
                ) from None
            yield
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Turns errors of the disk into ones that say what to do.

        Raises:
            StoreError: For every ``OSError``.
        """
        try:
            yield
        except OSError as error:
            hint = "is it there and writable? HFTUNE_MODELS_DIR names another place"
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                hint = "make room (hftune models gc), or set HFTUNE_MODELS_DIR to another place"
            raise StoreError(f"the model store {self.root}: {error} ({hint})") from error


def _canonical(entries: Mapping[str, Any]) -> bytes:
    text = json.dumps(entries, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8")


def _is_digest(text: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{64}", text) is not None


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []
