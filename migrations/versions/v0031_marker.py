"""The store bears a marker that the database names."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "v0031"
down_revision = "v0030"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "markers",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("content", sa.String(length=64), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_markers")),
    )


def downgrade() -> None:
    op.drop_table("markers")
