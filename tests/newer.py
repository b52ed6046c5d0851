"""A newer version of everything, in a folder: what another machine has while versions are exchanged."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

_COMPILED = shutil.ignore_patterns("__pycache__")  # other processes write there, and move what they wrote

_MIGRATION = """
import sqlalchemy as sa
from alembic import op

revision, down_revision, branch_labels, depends_on = "v9999", "{}", None, None
{}

def upgrade():
    for table in sa.inspect(op.get_bind()).get_table_names():
        op.add_column(table, sa.Column("later", sa.Text(), nullable=True))
        op.add_column(table, sa.Column("later_count", sa.Integer(), nullable=False, server_default="0"))
    op.create_table("later", sa.Column("id", sa.Integer(), primary_key=True))
"""


def newer_version(folder: Path, oldest: str | None = None) -> Path:
    """Its root. One stage has other code there, `evaluate`, and the database more columns in every table."""
    folder.mkdir()
    for package in ("service", "worker"):
        (folder / package).symlink_to(ROOT / package)
    for package in ("allo_engine", "migrations"):
        shutil.copytree(ROOT / package, folder / package, ignore=_COMPILED)
    with (folder / "allo_engine" / "stages" / "evaluate.py").open("a") as module:
        module.write("\n_ANOTHER = 1\n")
    last = max(path.name for path in (folder / "migrations" / "versions").glob("v*.py")).partition("_")[0]
    declared = f"oldest = {oldest!r}" if oldest else ""
    (folder / "migrations" / "versions" / "v9999_later.py").write_text(_MIGRATION.format(last, declared))
    return folder


def run_newer(root: Path, code: str) -> str:
    """What a process of that version says."""
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, cwd=root, check=True, capture_output=True, text=True).stdout
