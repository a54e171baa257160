"""Changes of the store's tables, one numbered file in ``versions`` each, applied by Alembic."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..tables import SCHEMA, VERSION_TABLE, metadata

if TYPE_CHECKING:
    from sqlalchemy import Connection

__all__ = ["current_schema", "upgrade"]


def current_schema(connection: Connection, url: str) -> str | None:
    """Returns :data:`~hftune.tracking.tables.SCHEMA` if the tables are up to date, else None.

    Args:
        connection (sqlalchemy.Connection): Open.
        url (str): What to call the store in a message.

    Raises:
        StoreError: If a newer hftune wrote the database.
    """
    import sqlalchemy as sa

    from ..store import StoreError

    if not sa.inspect(connection).has_table(VERSION_TABLE):
        return None
    found = connection.exec_driver_sql(f"SELECT version_num FROM {VERSION_TABLE}").scalar()
    if found is not None and found > SCHEMA:
        raise StoreError(
            f"the experiment store {url} was written by a newer hftune (its tables are of version "
            f"{found}, this hftune knows {SCHEMA}): upgrade hftune, or set HFTUNE_TRACKING_URL or "
            "HFTUNE_HOME to another store. Nothing was changed."
        )
    return found if found == SCHEMA else None


def upgrade(connection: Connection, url: str) -> None:
    """Brings the tables to the newest version, inside the caller's transaction.

    Args:
        connection (sqlalchemy.Connection): In a transaction that keeps other writers out.
        url (str): What to call the store in a message.

    Raises:
        StoreError: If a newer hftune wrote the database.
    """
    if current_schema(connection, url) is not None:
        return  # another process was faster
    from alembic.config import Config
    from alembic.runtime.environment import EnvironmentContext
    from alembic.script import ScriptDirectory

    script = ScriptDirectory(str(Path(__file__).parent))

    def steps(revision: object, context: object) -> list:
        return script._upgrade_revs("head", revision)

    with EnvironmentContext(Config(), script, fn=steps) as environment:
        environment.configure(
            connection=connection,
            target_metadata=metadata,
            version_table=VERSION_TABLE,
            render_as_batch=True,
        )
        environment.run_migrations()
