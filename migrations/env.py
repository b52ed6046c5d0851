"""How Alembic reaches the database: through the connection that `service.db.migrate` hands it, in its transaction."""

from __future__ import annotations

from alembic import context

import service.jobs.tables  # noqa: F401 - fills the metadata
from service.db import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    compare_type=True,
    render_as_batch=True,  # SQLite alters a table by copying it
)
context.run_migrations()
