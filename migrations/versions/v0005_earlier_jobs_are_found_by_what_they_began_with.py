"""The jobs of an owner are found by what they began with: how long their stages took says how long others will."""

from __future__ import annotations

from alembic import op

revision = "v0005"
down_revision = "v0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(
        op.f("ix_jobs_owner_jobs_model_jobs_training_file_jobs_id"), "jobs", ["owner", "model", "training_file", "id"]
    )
