"""Workers register what they have; stages know what they need, where they were placed, and by what code they were
planned."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "v0004"
down_revision = "v0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "workers",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("host", sa.String(length=255), nullable=False),
        sa.Column("offer", sa.JSON(), nullable=False),
        sa.Column("beat", sa.BigInteger(), nullable=False),
        sa.Column("beat_at", sa.BigInteger(), nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_workers")),
    )
    op.add_column("stages", sa.Column("needs", sa.JSON(), nullable=True))
    op.add_column("stages", sa.Column("devices", sa.JSON(), nullable=True))
    op.add_column("stages", sa.Column("code", sa.String(length=64), nullable=True))


def downgrade() -> None:
    for column in ("code", "devices", "needs"):
        op.drop_column("stages", column)
    op.drop_table("workers")
