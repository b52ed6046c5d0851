"""Trackers are told of jobs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "v0017"
down_revision = "v0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("integrations", sa.JSON(none_as_null=True), nullable=True))
    op.create_table(
        "trackings",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("job_id", sa.String(length=64), nullable=False),
        sa.Column("tracker", sa.String(length=16), nullable=False),
        sa.Column("settings", sa.JSON(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("steps", sa.JSON(), nullable=False),
        sa.Column("told", sa.String(length=32), nullable=True),
        sa.Column("run", sa.String(length=255), nullable=True),
        sa.Column("due_at", sa.BigInteger(), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("error", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_trackings_job_id_jobs")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_trackings")),
    )
    op.create_index(op.f("ix_trackings_job_id"), "trackings", ["job_id"])
    op.create_index(op.f("ix_trackings_due_at"), "trackings", ["due_at"])


def downgrade() -> None:
    op.drop_table("trackings")
    op.drop_column("jobs", "integrations")
