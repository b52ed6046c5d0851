"""${message}"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = None
depends_on = None
# Older processes run on while this is done, and may start again behind it: it adds tables, indices and columns that may be
# null or have a server default. What does more comes a version later than the code that does without what it takes away,
# and names that code's newest migration here: oldest = "v0000"


def upgrade() -> None:
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    ${downgrades if downgrades else "pass"}
