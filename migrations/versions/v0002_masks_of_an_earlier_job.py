"""A job may name the masks of an earlier one."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "v0002"
down_revision = "v0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("masks", sa.String(length=64), nullable=True))


def downgrade() -> None:
    op.drop_column("jobs", "masks")
