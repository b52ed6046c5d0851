"""Jobs may have a limit of time."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "v0026"
down_revision = "v0025"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("max_seconds", sa.BigInteger(), nullable=True))
    op.add_column("stages", sa.Column("ran_seconds", sa.Double(), server_default="0", nullable=False))


def downgrade() -> None:
    op.drop_column("stages", "ran_seconds")
    op.drop_column("jobs", "max_seconds")
