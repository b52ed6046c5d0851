"""Stages tell how their attempts ended."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "v0024"
down_revision = "v0023"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("stages", sa.Column("attempts", sa.JSON(none_as_null=True), nullable=True))


def downgrade() -> None:
    op.drop_column("stages", "attempts")
