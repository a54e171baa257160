"""The databases that the other tests are given."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa

KILLED = """
import os, signal

def test_killed(postgresql_server):
    print(postgresql_server.query["host"], flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("turn", [1, 2])
def test_each_test_has_an_empty_database_of_its_own(store_url, turn):
    engine = sa.create_engine(store_url)
    assert f"[{engine.name}-{turn}]" in os.environ["PYTEST_CURRENT_TEST"]
    assert sa.inspect(engine).get_table_names() == []
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE notes (text TEXT)"))
        connection.execute(sa.text("INSERT INTO notes VALUES ('실험')"))
    with engine.connect() as connection:
        assert connection.execute(sa.text("SELECT text FROM notes")).scalar() == "실험"
    # The connection stays open: the database is dropped all the same.


def test_a_server_ends_with_tests_that_are_killed(postgresql_server, tmp_path):
    shutil.copy(Path(__file__).with_name("conftest.py"), tmp_path)
    (tmp_path / "test_killed.py").write_text(KILLED)
    command = [sys.executable, "-m", "pytest", "-s", "-q", "-p", "no:cacheprovider"]
    run = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True)
    assert run.returncode == -9, run.stdout + run.stderr
    folder = run.stdout.split()[0]
    deadline = time.monotonic() + 60
    while Path(folder).exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(folder).exists()
    assert not [p.pid for p in psutil.process_iter(["cmdline"]) if folder in str(p.info["cmdline"])]


@pytest.mark.parametrize(("required", "outcome"), [("0", "1 skipped"), ("1", "1 error")])
def test_what_is_said_without_a_server(tmp_path, required, outcome):
    conftest = Path(__file__).with_name("conftest.py").read_text()
    (tmp_path / "conftest.py").write_text(conftest.replace("pg_ctl", "pg_not_here"))
    (tmp_path / "test_asks.py").write_text("def test_asks(postgresql_server): pass\n")
    command = [sys.executable, "-m", "pytest", "-rs", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    settings = os.environ | {"HFTUNE_REQUIRE_POSTGRES": required}
    run = subprocess.run(command, capture_output=True, text=True, env=settings)
    assert outcome in run.stdout
    assert "no PostgreSQL server here; on Debian and Ubuntu: apt-get install" in run.stdout
