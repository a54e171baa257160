"""The experiment store: one SQL database for all runs and models.

SQLite under ``HFTUNE_HOME`` when nothing is configured, PostgreSQL where ``HFTUNE_TRACKING_URL``
says so (``postgresql+psycopg://host/database``). Connections are opened for each transaction: a
process that forks shares none.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..utils.errors import ConfigurationError, HftuneError
from ..utils.home import hftune_home

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine, Table
    from sqlalchemy.dialects.postgresql import Insert

__all__ = ["Store", "StoreError", "insert", "next_id"]

_PATIENCE = 30.0  # seconds that a writer waits for another
# A fork in the middle of SQLite's work would leave the child with locks that nobody opens.
_at_work = threading.RLock()


def _after_fork() -> None:
    global _at_work
    _at_work = threading.RLock()


os.register_at_fork(
    before=lambda: _at_work.acquire(),
    after_in_parent=lambda: _at_work.release(),
    after_in_child=_after_fork,
)

_ADVISORY_LOCK = 7_270_414_905  # any number that other programs do not take
# Write-ahead logs need memory that all processes share; over a network they lose data.
_NETWORK_FILE_SYSTEMS = re.compile(r"nfs|cifs|smb|lustre|gpfs|beegfs|ceph|fuse\.sshfs|9p|afs")


class StoreError(HftuneError):
    """A store that cannot be reached, written or understood."""


class Store:
    """Access to the database; see the module.

    Args:
        url (str, *optional*): Of SQLAlchemy. Defaults to ``HFTUNE_TRACKING_URL``, else to the file
            ``tracking.db`` in ``HFTUNE_HOME``.
        patience (float): Seconds that a write waits for other writers. Defaults to 30.

    Attributes:
        url (str): Where the store is, without a password.
        is_sqlite (bool): Whether it is a file.

    Raises:
        ConfigurationError: If the address is of another kind of database, or cannot be read.
    """

    def __init__(self, url: str | None = None, *, patience: float = _PATIENCE) -> None:
        import sqlalchemy as sa

        given = url or os.environ.get("HFTUNE_TRACKING_URL")
        if not given:
            given = f"sqlite:///{hftune_home() / 'tracking.db'}"
        try:
            self._url = sa.make_url(given)
        except sa.exc.ArgumentError:
            # Not repeated: it may hold a password.
            raise ConfigurationError(
                "HFTUNE_TRACKING_URL is not the address of a database; expected "
                "postgresql+psycopg://USER@HOST/DATABASE or sqlite:////PATH/tracking.db"
            ) from None
        if self._url.drivername == "postgresql":
            self._url = self._url.set(drivername="postgresql+psycopg")
        kind = self._url.get_backend_name()
        if kind not in ("sqlite", "postgresql"):
            raise ConfigurationError(
                f"the tracking database is of the kind '{kind}'; expected sqlite or postgresql"
            )
        if kind == "sqlite" and self._url.database in (None, "", ":memory:"):
            raise ConfigurationError(
                "the tracking database is in memory, where no other command could read it; "
                "expected sqlite:////PATH/tracking.db"
            )
        self.url = self._url.render_as_string(hide_password=True)
        self.is_sqlite = kind == "sqlite"
        self._patience = patience
        self._ready = False
        self._made: Engine | None = None

    @property
    def path(self) -> Path | None:
        """The file, of SQLite."""
        return Path(self._url.database) if self.is_sqlite else None

    @property
    def _engine(self) -> Engine:
        if self._made is None:
            import sqlalchemy as sa

            arguments = {"timeout": self._patience} if self.is_sqlite else {"connect_timeout": 10}
            try:
                self._made = sa.create_engine(
                    self._url, poolclass=sa.NullPool, connect_args=arguments
                )
            except ModuleNotFoundError as error:
                raise ConfigurationError(
                    f"{self.url}: {error}; PostgreSQL needs: pip install 'hftune[postgres]'"
                ) from None
            if self.is_sqlite:
                sa.event.listen(self._made, "connect", _prepare_connection)
                sa.event.listen(self._made, "begin", _begin)
        return self._made

    def with_patience(self, seconds: float) -> Store:
        """Returns the same store for somebody who waits longer or less long."""
        return Store(self._url.render_as_string(hide_password=False), patience=seconds)

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that only reads.

        Raises:
            StoreError: If the store cannot be reached or used.
        """
        with self._transaction(write=False) as connection:
            yield connection

    @contextlib.contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that writes: committed at the end of the block, or nothing of it is.

        Writers of SQLite come one after the other; in PostgreSQL rows are locked as they are
        changed.

        Raises:
            StoreError: If the store cannot be reached or written.
        """
        with self._transaction(write=True) as connection:
            yield connection

    @contextlib.contextmanager
    def _transaction(self, *, write: bool) -> Iterator[Connection]:
        import sqlalchemy as sa

        try:
            with _at_work if self.is_sqlite else contextlib.nullcontext():
                if not self._ready:
                    self._prepare()
                    self._ready = True
                with self._engine.connect() as connection:
                    with connection.execution_options(hftune_write=write).begin():
                        yield connection
        except sa.exc.DBAPIError as error:
            raise StoreError(f"the experiment store {self.url}: {_reason(error)}") from error

    def _prepare(self) -> None:
        """Brings the tables up to date."""
        from .migrations import current_schema, upgrade

        if self.path is None:
            with self._engine.connect() as connection, connection.begin():
                if current_schema(connection, self.url) is None:
                    connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})")
                    upgrade(connection, self.url)
        else:
            try:
                self._prepare_file(self.path)
            except OSError as error:
                raise StoreError(f"the experiment store {self.url}: {error}") from error

    def _prepare_file(self, path: Path) -> None:
        import filelock

        from .migrations import current_schema, upgrade

        if path.exists():
            with self._engine.connect() as connection, connection.begin():
                if current_schema(connection, self.url) is not None:
                    return
        path.parent.mkdir(parents=True, exist_ok=True)
        # The journal's kind can only be changed by one process at a time.
        with filelock.FileLock(path.with_name(f".{path.name}.lock"), timeout=self._patience):
            with self._engine.connect() as connection:
                mode = "DELETE" if _on_network(path.parent) else "WAL"
                connection.connection.execute(f"PRAGMA journal_mode={mode}")
                with connection.execution_options(hftune_write=True).begin():
                    upgrade(connection, self.url)

    def __repr__(self) -> str:
        return f"Store({self.url!r})"


def insert(connection: Connection, table: Table) -> Insert:
    """Returns an ``INSERT`` that can be given ``on_conflict_do_...``."""
    if connection.dialect.name == "sqlite":
        from sqlalchemy.dialects import sqlite as dialect
    else:
        from sqlalchemy.dialects import postgresql as dialect
    return dialect.insert(table)


def next_id(connection: Connection, prefix: str, when: datetime.datetime | None = None) -> str:
    """Allocates ``prefix_YYYYMMDD_NNN``, inside the transaction that uses it.

    Args:
        connection (sqlalchemy.Connection): Of :meth:`Store.write`.
        prefix (str): ``"exp"`` or ``"model"``.
        when (datetime, *optional*): The day, defaults to now; UTC.
    """
    from .tables import counters

    day = when or datetime.datetime.now(datetime.timezone.utc)
    name = f"{prefix}_{day:%Y%m%d}"
    statement = (
        insert(connection, counters)
        .values(name=name, value=1)
        .on_conflict_do_update(index_elements=["name"], set_={"value": counters.c.value + 1})
        .returning(counters.c.value)
    )
    return f"{name}_{connection.execute(statement).scalar_one():03d}"


def _prepare_connection(connection: object, record: object) -> None:
    connection.isolation_level = None  # transactions begin where this module says so
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute("PRAGMA foreign_keys=ON")


def _begin(connection: Connection) -> None:
    write = connection.get_execution_options().get("hftune_write")
    # A reader that becomes a writer half way fails where another wrote in between.
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _on_network(folder: Path) -> bool:
    import psutil

    folder = folder.resolve()
    mounts = {Path(p.mountpoint): p.fstype for p in psutil.disk_partitions(all=True)}
    for place in (folder, *folder.parents):
        if place in mounts:
            return _NETWORK_FILE_SYSTEMS.match(mounts[place].lower()) is not None
    return False


def _reason(error: Exception) -> str:
    """One line, without the statement and its values."""
    lines = str(getattr(error, "orig", None) or error).strip().splitlines()
    text = " ".join(line.strip() for line in lines) or type(error).__name__
    hints = {
        "unable to open database file": "is its folder there and writable? HFTUNE_HOME says where",
        "readonly database": "it cannot be written; HFTUNE_HOME names another place",
        "database is locked": "another program keeps it locked",
        "disk is full": "make room",
        "not a database": "the file is damaged; move it away, then: hftune runs reindex",
        "malformed": "the file is damaged; move it away, then: hftune runs reindex",
    }
    for sign, hint in hints.items():
        if sign in text:
            return f"{text} ({hint})"
    return text
