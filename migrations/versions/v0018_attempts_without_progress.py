"""Attempts count that made no progress."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "v0018"
down_revision = "v0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("stages", sa.Column("saved_step", sa.BigInteger(), nullable=True))
    op.add_column("stages", sa.Column("fruitless", sa.Integer(), nullable=False, server_default="0"))


def downgrade() -> None:
    op.drop_column("stages", "fruitless")
    op.drop_column("stages", "saved_step")
