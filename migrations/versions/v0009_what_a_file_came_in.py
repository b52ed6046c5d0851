"""What a file's lines were written like and came in, and the lines that they became."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "v0009"
down_revision = "v0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("files", sa.Column("form", sa.String(length=64), nullable=True))
    op.add_column("files", sa.Column("container", sa.String(length=16), nullable=True))
    op.add_column("files", sa.Column("duplicates", sa.BigInteger(), nullable=True))
    op.add_column("files", sa.Column("data_sha256", sa.String(length=64), nullable=True))
    op.add_column("files", sa.Column("data_bytes", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    for column in ("data_bytes", "data_sha256", "duplicates", "container", "form"):
        op.drop_column("files", column)
