"""A job may name a second held-out file, about something else than it trains on."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "v0014"
down_revision = "v0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("retention_file", sa.String(length=64), nullable=True))


def downgrade() -> None:
    op.drop_column("jobs", "retention_file")
