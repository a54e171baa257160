"""The tables of the experiment store (SQLAlchemy Core), for SQLite and PostgreSQL.

Everything about runs is an index of the files in their folders (see
:mod:`~hftune.tracking.run_record`) and can be built again from them. Times are seconds since
1970-01-01 UTC. A number that is not finite: NaN is NULL, infinities are themselves.
"""

from __future__ import annotations

import sqlalchemy as sa

__all__ = [
    "SCHEMA",
    "VERSION_TABLE",
    "aliases",
    "counters",
    "directions",
    "events",
    "metadata",
    "metrics",
    "model_events",
    "models",
    "params",
    "performance",
    "records",
    "runs",
    "summaries",
]

SCHEMA = "0001"
"""The newest migration in ``migrations/versions``; what this hftune reads and writes."""

VERSION_TABLE = "hftune_schema"

metadata = sa.MetaData()

_KEY = sa.Text


def _of(table: str, name: str) -> sa.Column:
    """Part of a primary key: a row of another table, which takes this one along."""
    owner = sa.ForeignKey(f"{table}.id", ondelete="CASCADE")
    return sa.Column(name, sa.String(64), owner, primary_key=True)


runs = sa.Table(
    "hftune_runs",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),  # exp_YYYYMMDD_NNN
    sa.Column("uid", sa.String(32), nullable=False, unique=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("description", sa.Text, nullable=False),
    sa.Column("task", sa.Text, nullable=False),
    sa.Column("model_type", sa.Text, nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("notes", sa.Text, nullable=False),
    sa.Column("tags", sa.JSON, nullable=False),  # list of text
    sa.Column("parent_run", sa.String(64)),
    sa.Column("wandb_run_id", sa.Text),
    sa.Column("folder", sa.Text, nullable=False),
    sa.Column("host", sa.Text, nullable=False),
    sa.Column("created", sa.Double, nullable=False),
    sa.Column("ended", sa.Double),
    sa.Column("seconds", sa.Double, nullable=False),  # of all attempts
    sa.Column("heartbeat", sa.Double),
    sa.Column("heartbeat_gap", sa.Double),  # the longest time between two beats so far
    sa.Column("data_fingerprint", sa.Text),
    sa.Column("git_commit", sa.Text),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("stage", sa.Text),  # name of the newest
    sa.Column("step", sa.BigInteger),  # the last that was logged
    sa.Column("max_steps", sa.BigInteger),
    sa.Column("last_checkpoint", sa.Text),
    sa.Column("resumes", sa.Integer, nullable=False),  # attempts that superseded earlier rows
    sa.Column("metrics_offset", sa.BigInteger, nullable=False),  # bytes of metrics.jsonl indexed
    sa.Column("events_offset", sa.BigInteger, nullable=False),
    # A list goes through one of these, newest first, and judges ids without touching the rows.
    sa.Index("ix_hftune_runs_created", "created", "id"),
    sa.Index("ix_hftune_runs_status", "status", "created", "id"),
    sa.Index("ix_hftune_runs_task", "task", "created", "id"),
    sa.Index("ix_hftune_runs_name", "name", "created", "id"),
    sa.Index("ix_hftune_runs_parent", "parent_run"),
)

records = sa.Table(  # apart from the runs, whose rows are gone through in lists
    "hftune_records",
    metadata,
    _of("hftune_runs", "run_id"),
    sa.Column("content", sa.JSON, nullable=False),  # run.json as it stands
)

params = sa.Table(  # the flattened configuration, "section.name"
    "hftune_params",
    metadata,
    _of("hftune_runs", "run_id"),
    sa.Column("key", _KEY, primary_key=True),
    sa.Column("value", sa.Text, nullable=False),  # JSON
    sa.Column("number", sa.Double),  # the same where it is a number
    sa.Index("ix_hftune_params_key", "key", "number", "run_id"),
    sqlite_with_rowid=False,  # the rows lie in the order of the key, found in one step
)

metrics = sa.Table(  # one row a line of metrics.jsonl
    "hftune_metrics",
    metadata,
    _of("hftune_runs", "run_id"),
    sa.Column("position", sa.BigInteger, primary_key=True),  # byte at which the line begins
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("stage", sa.Integer, nullable=False),
    sa.Column("step", sa.BigInteger),
    sa.Column("time", sa.Double, nullable=False),
    sa.Column("superseded", sa.Boolean, nullable=False),  # an attempt went back behind it
    sa.Column("content", sa.Text, nullable=False),  # {"name": number, ...}, as in the file
)

summaries = sa.Table(  # of the rows that are not superseded
    "hftune_summaries",
    metadata,
    _of("hftune_runs", "run_id"),
    sa.Column("key", _KEY, primary_key=True),
    sa.Column("last", sa.Double),
    sa.Column("last_step", sa.BigInteger),
    sa.Column("low", sa.Double),  # of the finite values
    sa.Column("low_step", sa.BigInteger),
    sa.Column("high", sa.Double),
    sa.Column("high_step", sa.BigInteger),
    sa.Column("count", sa.BigInteger, nullable=False),
    sa.Index("ix_hftune_summaries_last", "key", "last", "run_id"),
    sa.Index("ix_hftune_summaries_low", "key", "low", "run_id"),
    sa.Index("ix_hftune_summaries_high", "key", "high", "run_id"),
    sqlite_with_rowid=False,
)

events = sa.Table(  # one row a line of events.jsonl
    "hftune_events",
    metadata,
    _of("hftune_runs", "run_id"),
    sa.Column("position", sa.BigInteger, primary_key=True),
    sa.Column("time", sa.Double, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("stage", sa.Integer, nullable=False),
    sa.Column("step", sa.BigInteger),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("content", sa.JSON, nullable=False),
)

counters = sa.Table(  # the last number given out: "exp_20261121" -> 7
    "hftune_counters",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("value", sa.Integer, nullable=False),
)

directions = sa.Table(  # metrics whose direction a run or a user declared
    "hftune_directions",
    metadata,
    sa.Column("metric", _KEY, primary_key=True),
    sa.Column("greater_is_better", sa.Boolean, nullable=False),
)

models = sa.Table(  # one row a registered version; never changed
    "hftune_models",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),  # model_YYYYMMDD_NNN
    sa.Column("name", sa.String(128), nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("architecture", sa.Text, nullable=False),
    sa.Column("digest", sa.String(64), nullable=False),  # sha256 of the manifest
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("created", sa.Double, nullable=False),
    sa.Column("experiment_id", sa.String(64)),  # not a key: the run may be in another store
    sa.Column("parent_model", sa.String(64)),
    sa.Column("record", sa.JSON, nullable=False),  # checkpoint, config, training_info, lineage
    sa.UniqueConstraint("name", "version", name="uq_hftune_models_version"),
    sa.UniqueConstraint("name", "digest", name="uq_hftune_models_digest"),
    sa.Index("ix_hftune_models_created", "created"),
    sa.Index("ix_hftune_models_architecture", "architecture"),
    sa.Index("ix_hftune_models_experiment", "experiment_id"),
    sa.Index("ix_hftune_models_parent", "parent_model"),
    sa.Index("ix_hftune_models_content", "digest"),
)

performance = sa.Table(
    "hftune_performance",
    metadata,
    _of("hftune_models", "model_id"),
    sa.Column("metric", _KEY, primary_key=True),
    sa.Column("value", sa.Double),
    sa.Index("ix_hftune_performance_metric", "metric", "value"),
)

aliases = sa.Table(
    "hftune_aliases",
    metadata,
    sa.Column("name", sa.String(128), primary_key=True),
    sa.Column("alias", sa.String(128), primary_key=True),
    sa.Column("model_id", sa.String(64), sa.ForeignKey("hftune_models.id"), nullable=False),
    sa.Index("ix_hftune_aliases_model", "model_id"),
)

model_events = sa.Table(  # append-only
    "hftune_model_events",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("time", sa.Double, nullable=False),
    sa.Column("who", sa.Text, nullable=False),  # user@host
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("name", sa.String(128), nullable=False),
    sa.Column("model_id", sa.String(64)),
    sa.Column("content", sa.JSON, nullable=False),
    sa.Index("ix_hftune_model_events_name", "name"),
)
