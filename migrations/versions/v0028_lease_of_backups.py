"""A lease by which nothing that is stored is erased while a backup is made."""

from __future__ import annotations

from alembic import op

revision = "v0028"
down_revision = "v0027"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("INSERT INTO leases (name, holder, beat) VALUES ('backup', '', 0)")


def downgrade() -> None:
    op.execute("DELETE FROM leases WHERE name = 'backup'")
