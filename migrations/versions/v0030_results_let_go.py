"""Stages say that what they made was let go."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "v0030"
down_revision = "v0029"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("stages", sa.Column("let_go", sa.JSON(), nullable=True))


def downgrade() -> None:
    op.drop_column("stages", "let_go")
