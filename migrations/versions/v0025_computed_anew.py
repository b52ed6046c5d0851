"""Stages can be computed anew though their results are there."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "v0025"
down_revision = "v0024"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("stages", sa.Column("anew", sa.Integer(), server_default="0", nullable=False))


def downgrade() -> None:
    op.drop_column("stages", "anew")
