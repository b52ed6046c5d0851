"""A job may be one point of a sweep."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "v0015"
down_revision = "v0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("sweep_id", sa.String(length=64), nullable=True))
    op.add_column("jobs", sa.Column("sweep_point", sa.JSON(none_as_null=True), nullable=True))
    op.create_index(op.f("ix_jobs_owner_jobs_sweep_id"), "jobs", ["owner", "sweep_id"])


def downgrade() -> None:
    op.drop_index(op.f("ix_jobs_owner_jobs_sweep_id"), "jobs")
    op.drop_column("jobs", "sweep_point")
    op.drop_column("jobs", "sweep_id")
