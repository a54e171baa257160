"""Takes a run out of the store."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..utils.errors import ConfigurationError
from ..utils.files import read_json
from ..utils.home import hftune_home
from . import index
from .query import registered_models
from .tables import runs

if TYPE_CHECKING:
    from sqlalchemy import Row

    from .store import Store

__all__ = ["delete_run"]


def delete_run(store: Store, run: Row) -> Path | None:
    """Takes a run out of the index and out of ``HFTUNE_HOME/runs``.

    A folder that lies inside ``HFTUNE_HOME/runs`` goes to ``HFTUNE_HOME/trash``; any other stays
    as it is. ``hftune runs reindex FOLDER`` brings the run back from either.

    Args:
        store (Store): Where.
        run (row): Of :func:`~hftune.tracking.query.find_run`.

    Returns:
        Where its folder is in the trash; None where the folder was left alone.

    Raises:
        ConfigurationError: If the run is alive, or models of it are registered.
        OSError: If ``HFTUNE_HOME`` cannot be written; then nothing is changed in the store.
    """
    import sqlalchemy as sa

    with store.read() as connection:
        status = connection.execute(sa.select(runs.c.status).where(runs.c.id == run.id)).scalar()
        models = registered_models(connection, run.id)
    if status in ("created", "running"):
        raise ConfigurationError(f"{run.id} is running on {run.host}: stop it first")
    if models:
        named = ", ".join(f"{m['model_id']} ({m['name']} version {m['version']})" for m in models)
        raise ConfigurationError(
            f"{run.id} is where registered models come from: {named}. Delete those first"
        )
    for entry in (index.run_links() / run.id, index.pending() / run.id):
        if entry.is_symlink():
            entry.unlink()
    moved = _to_trash(run)
    with store.write() as connection:
        index.forget(connection, run.id)
    return moved


def _to_trash(run: Row) -> Path | None:
    folder = Path(run.folder)
    if folder.parent != index.run_links().resolve():
        return None
    try:
        if read_json(folder / "run.json").get("uid") != run.uid:
            return None  # of a run on another machine, which has the same home
    except FileNotFoundError:
        return None
    trash = hftune_home() / "trash"
    trash.mkdir(exist_ok=True)
    target, number = trash / run.id, 1
    while target.exists():
        number += 1
        target = trash / f"{run.id}-{number}"
    os.replace(folder, target)
    return target
