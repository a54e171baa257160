"""The first tables: runs, metrics, events, models."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "hftune_counters",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("value", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "hftune_directions",
        sa.Column("metric", sa.Text(), nullable=False),
        sa.Column("greater_is_better", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("metric"),
    )
    op.create_table(
        "hftune_model_events",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("time", sa.Double(), nullable=False),
        sa.Column("who", sa.Text(), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("model_id", sa.String(length=64), nullable=True),
        sa.Column("content", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_hftune_model_events_name", "hftune_model_events", ["name"], unique=False)
    op.create_table(
        "hftune_models",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("architecture", sa.Text(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("experiment_id", sa.String(length=64), nullable=True),
        sa.Column("parent_model", sa.String(length=64), nullable=True),
        sa.Column("record", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("name", "digest", name="uq_hftune_models_digest"),
        sa.UniqueConstraint("name", "version", name="uq_hftune_models_version"),
    )
    op.create_index(
        "ix_hftune_models_architecture", "hftune_models", ["architecture"], unique=False
    )
    op.create_index("ix_hftune_models_content", "hftune_models", ["digest"], unique=False)
    op.create_index("ix_hftune_models_created", "hftune_models", ["created"], unique=False)
    op.create_index("ix_hftune_models_experiment", "hftune_models", ["experiment_id"], unique=False)
    op.create_index("ix_hftune_models_parent", "hftune_models", ["parent_model"], unique=False)
    op.create_table(
        "hftune_runs",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("uid", sa.String(length=32), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column("model_type", sa.Text(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("notes", sa.Text(), nullable=False),
        sa.Column("tags", sa.JSON(), nullable=False),
        sa.Column("parent_run", sa.String(length=64), nullable=True),
        sa.Column("wandb_run_id", sa.Text(), nullable=True),
        sa.Column("folder", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("ended", sa.Double(), nullable=True),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("heartbeat", sa.Double(), nullable=True),
        sa.Column("heartbeat_gap", sa.Double(), nullable=True),
        sa.Column("data_fingerprint", sa.Text(), nullable=True),
        sa.Column("git_commit", sa.Text(), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("stage", sa.Text(), nullable=True),
        sa.Column("step", sa.BigInteger(), nullable=True),
        sa.Column("max_steps", sa.BigInteger(), nullable=True),
        sa.Column("last_checkpoint", sa.Text(), nullable=True),
        sa.Column("resumes", sa.Integer(), nullable=False),
        sa.Column("metrics_offset", sa.BigInteger(), nullable=False),
        sa.Column("events_offset", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("uid"),
    )
    op.create_index("ix_hftune_runs_created", "hftune_runs", ["created", "id"], unique=False)
    op.create_index("ix_hftune_runs_name", "hftune_runs", ["name", "created", "id"], unique=False)
    op.create_index("ix_hftune_runs_parent", "hftune_runs", ["parent_run"], unique=False)
    op.create_index(
        "ix_hftune_runs_status", "hftune_runs", ["status", "created", "id"], unique=False
    )
    op.create_index("ix_hftune_runs_task", "hftune_runs", ["task", "created", "id"], unique=False)
    op.create_table(
        "hftune_aliases",
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("alias", sa.String(length=128), nullable=False),
        sa.Column("model_id", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(
            ["model_id"],
            ["hftune_models.id"],
        ),
        sa.PrimaryKeyConstraint("name", "alias"),
    )
    op.create_index("ix_hftune_aliases_model", "hftune_aliases", ["model_id"], unique=False)
    op.create_table(
        "hftune_events",
        sa.Column("run_id", sa.String(length=64), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("time", sa.Double(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("stage", sa.Integer(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=True),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("content", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["hftune_runs.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "position"),
    )
    op.create_table(
        "hftune_metrics",
        sa.Column("run_id", sa.String(length=64), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("stage", sa.Integer(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=True),
        sa.Column("time", sa.Double(), nullable=False),
        sa.Column("superseded", sa.Boolean(), nullable=False),
        sa.Column("content", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["hftune_runs.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "position"),
    )
    op.create_table(
        "hftune_records",
        sa.Column("run_id", sa.String(length=64), nullable=False),
        sa.Column("content", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["hftune_runs.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id"),
    )
    op.create_table(
        "hftune_params",
        sa.Column("run_id", sa.String(length=64), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.Column("number", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["run_id"], ["hftune_runs.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "key"),
        sqlite_with_rowid=False,
    )
    op.create_index(
        "ix_hftune_params_key", "hftune_params", ["key", "number", "run_id"], unique=False
    )
    op.create_table(
        "hftune_performance",
        sa.Column("model_id", sa.String(length=64), nullable=False),
        sa.Column("metric", sa.Text(), nullable=False),
        sa.Column("value", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["model_id"], ["hftune_models.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("model_id", "metric"),
    )
    op.create_index(
        "ix_hftune_performance_metric", "hftune_performance", ["metric", "value"], unique=False
    )
    op.create_table(
        "hftune_summaries",
        sa.Column("run_id", sa.String(length=64), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("last", sa.Double(), nullable=True),
        sa.Column("last_step", sa.BigInteger(), nullable=True),
        sa.Column("low", sa.Double(), nullable=True),
        sa.Column("low_step", sa.BigInteger(), nullable=True),
        sa.Column("high", sa.Double(), nullable=True),
        sa.Column("high_step", sa.BigInteger(), nullable=True),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["hftune_runs.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "key"),
        sqlite_with_rowid=False,
    )
    op.create_index(
        "ix_hftune_summaries_high", "hftune_summaries", ["key", "high", "run_id"], unique=False
    )
    op.create_index(
        "ix_hftune_summaries_last", "hftune_summaries", ["key", "last", "run_id"], unique=False
    )
    op.create_index(
        "ix_hftune_summaries_low", "hftune_summaries", ["key", "low", "run_id"], unique=False
    )
