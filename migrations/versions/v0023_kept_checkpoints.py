"""Checkpoints of running stages are kept in the store."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "v0023"
down_revision = "v0022"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "kept_checkpoints",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("stage_id", sa.String(length=64), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("work", sa.String(length=64), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("files", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["stage_id"], ["stages.id"], name=op.f("fk_kept_checkpoints_stage_id_stages")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_kept_checkpoints")),
    )
    op.create_index(op.f("ix_kept_checkpoints_stage_id"), "kept_checkpoints", ["stage_id"])
    op.create_index(op.f("ix_kept_checkpoints_work"), "kept_checkpoints", ["work"])


def downgrade() -> None:
    op.drop_table("kept_checkpoints")
