"""The store: one schema on both databases, safe to open from many processes at once."""

import os
import subprocess
import sys

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from processes import finish, start

from hftune.tracking import migrations
from hftune.tracking.store import Store, StoreError, next_id
from hftune.tracking.tables import SCHEMA, VERSION_TABLE, counters, metadata
from hftune.utils.errors import ConfigurationError


def test_the_migrations_make_the_tables(store_url):
    store = Store(store_url)
    with store.write() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        assert compare_metadata(context, metadata) == []
        assert context.get_current_revision() == SCHEMA
    assert ScriptDirectory(migrations.__path__[0]).get_current_head() == SCHEMA


def test_many_processes_start_at_once(store_url, tmp_path):
    """They all find no tables, and each takes numbers: none is given twice, none is left out."""

    def work(number):
        store = Store(store_url)
        taken = []
        for _ in range(10):
            with store.write() as connection:
                taken.append(next_id(connection, "exp"))
        (tmp_path / f"{number}.txt").write_text("\n".join(taken))

    children = [start(lambda n=n: work(n)) for n in range(8)]
    assert [finish(child) for child in children] == [0] * 8
    taken = [line for n in range(8) for line in (tmp_path / f"{n}.txt").read_text().splitlines()]
    assert sorted(int(one.rpartition("_")[2]) for one in taken) == list(range(1, 81))


def test_a_transaction_is_written_as_a_whole_or_not_at_all(store_url):
    store = Store(store_url)
    with pytest.raises(RuntimeError):
        with store.write() as connection:
            next_id(connection, "exp")
            raise RuntimeError
    with store.read() as connection:
        assert connection.execute(sa.select(counters)).all() == []


def test_a_database_of_a_newer_hftune_is_left_alone(store_url):
    with Store(store_url).write() as connection:
        connection.exec_driver_sql(f"UPDATE {VERSION_TABLE} SET version_num = '9000'")
    with pytest.raises(StoreError, match="written by a newer hftune .*9000.*upgrade hftune"):
        with Store(store_url).write() as connection:
            next_id(connection, "exp")
    engine = sa.create_engine(store_url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        assert connection.execute(sa.select(counters)).all() == []


def test_the_default_is_a_file_in_the_home(monkeypatch):
    store = Store()
    with store.write() as connection:
        mode = connection.exec_driver_sql("PRAGMA journal_mode").scalar()
    assert mode == "wal"
    assert os.listdir(os.environ["HFTUNE_HOME"]).count("tracking.db") == 1
    monkeypatch.setenv("HFTUNE_TRACKING_URL", "sqlite:////tmp/elsewhere/t.db")
    assert Store().url == "sqlite:////tmp/elsewhere/t.db"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("me:pass@host", "is not the address of a database; expected postgresql"),
        ("mysql://me:pass@host/db", "of the kind 'mysql'; expected sqlite or postgresql"),
        ("sqlite://", "is in memory"),
    ],
)
def test_addresses_that_are_none(url, message):
    with pytest.raises(ConfigurationError, match=message) as error:
        Store(url)
    assert "pass" not in str(error.value)


def test_a_server_that_is_not_there():
    store = Store("postgresql://me:secret-word@127.0.0.1:9/none")
    with pytest.raises(StoreError, match=r"me:\*\*\*@127.0.0.1:9/none: .*refused") as error:
        with store.read():
            pass
    assert "secret-word" not in str(error.value)


def test_a_file_that_is_no_database(tmp_path):
    path = tmp_path / "tracking.db"
    path.write_text("this is a letter to my aunt, and no database " * 100)
    with pytest.raises(StoreError, match="damaged; move it away, then: hftune runs reindex"):
        with Store(f"sqlite:///{path}").read():
            pass


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="experiment store sqlite"):
        with Store(f"sqlite:///{tmp_path}/file/tracking.db").write():
            pass


def test_a_lock_that_stays(tmp_path):
    url = f"sqlite:///{tmp_path}/tracking.db"
    with Store(url).write():
        with pytest.raises(StoreError, match="another program keeps it locked"):
            with Store(url, patience=0.1).write():
                pass


def test_light_to_import():
    code = "import sys, hftune.tracking.store; print('sqlalchemy' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.stdout.strip() == "False"
