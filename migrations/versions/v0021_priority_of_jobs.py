"""Jobs have a priority."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "v0021"
down_revision = "v0020"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("priority", sa.SmallInteger(), server_default="0", nullable=False))


def downgrade() -> None:
    op.drop_column("jobs", "priority")
