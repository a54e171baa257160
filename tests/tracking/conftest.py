"""The databases that the tests of the experiment store run on: SQLite, and a PostgreSQL server."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

# PostgreSQL refuses to run as root; Debian's package makes this user.
USER = "postgres" if os.geteuid() == 0 else None

# Waits for a line or the end of its input: should pytest be killed, the server goes with it. Sorts
# text by language, as a team's server does, where SQLite compares bytes.
SERVER = """
folder=$1 programs=$2
{
    "$programs/initdb" -D "$folder/data" -U hftune -A trust -N -E UTF8 \
        --locale=C.UTF-8 --locale-provider=icu --icu-locale=en-US &&
    "$programs/pg_ctl" -D "$folder/data" -w start \
        -o "-F -c listen_addresses= -c unix_socket_directories=$folder -c full_page_writes=off"
} >"$folder/log" 2>&1 && echo started || cat "$folder/log"
read -r line
"$programs/pg_ctl" -D "$folder/data" -m immediate stop >/dev/null 2>&1
rm -rf "$folder"
"""


def programs() -> Path | None:
    """The folder of the newest PostgreSQL's programs."""
    known = shutil.which("pg_ctl")
    if known:
        return Path(known).resolve().parent
    debian = Path("/usr/lib/postgresql").glob("*/bin/pg_ctl")
    return max((path.parent for path in debian), key=lambda p: float(p.parent.name), default=None)


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[sa.URL]:
    """A PostgreSQL server of this process, on a socket in a folder of its own."""
    found = programs()
    if found is None:
        message = "no PostgreSQL server here; on Debian and Ubuntu: apt-get install postgresql"
        if os.environ.get("HFTUNE_REQUIRE_POSTGRES") == "1":
            pytest.fail(message)
        pytest.skip(message)
    # Not pytest's own folders: the server's user may not enter them, and a socket's path is short.
    folder = tempfile.mkdtemp(prefix="hftune-postgres-", dir="/tmp")
    if USER:
        shutil.chown(folder, USER)
    server = subprocess.Popen(
        ["sh", "-c", SERVER, "sh", folder, found],
        cwd=folder, user=USER, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for the tests, which stop the server when they end
    )  # fmt: skip
    try:
        first = server.stdout.readline()
        if first != "started\n":
            pytest.fail(f"PostgreSQL did not start: {first}{server.communicate(chr(10))[0]}")
        yield sa.URL.create(
            "postgresql+psycopg", "hftune", database="postgres", query={"host": folder}
        )
    finally:
        server.communicate("stop\n", timeout=60)


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of an empty database, of SQLite and of PostgreSQL in turn."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/hftune.db"
        return
    server = request.getfixturevalue("postgresql_server")
    name = f"test_{uuid.uuid4().hex}"
    engine = sa.create_engine(server, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    yield server.set(database=name).render_as_string(hide_password=False)
    with engine.connect() as connection:
        connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
