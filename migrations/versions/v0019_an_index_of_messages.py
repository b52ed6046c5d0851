"""A job's messages are found without its metrics."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "v0019"
down_revision = "v0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    messages = sa.text("type = 'message'")
    op.create_index("ix_events_messages", "events", ["job_id", "seq"], sqlite_where=messages, postgresql_where=messages)


def downgrade() -> None:
    op.drop_index("ix_events_messages", "events")
