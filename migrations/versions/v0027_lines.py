"""What waits alike stands in a line."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "v0027"
down_revision = "v0026"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("stages", sa.Column("line", sa.String(length=16), nullable=True))
    op.create_index(
        op.f("ix_stages_status_stages_line_stages_job_id_stages_position"),
        "stages",
        ["status", "line", "job_id", "position"],
    )
    op.drop_index(op.f("ix_stages_status"), table_name="stages")


def downgrade() -> None:
    op.create_index(op.f("ix_stages_status"), "stages", ["status"])
    op.drop_index(op.f("ix_stages_status_stages_line_stages_job_id_stages_position"), table_name="stages")
    op.drop_column("stages", "line")
