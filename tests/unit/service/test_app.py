"""The web process stays light."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from service.migrating import migrate

HEAVY = {
    "torch",
    "worker",
    "celery",
    "kombu",
    "alembic",
    "psycopg",
    "redis",
    "rich",
    "transformers",
    "numpy",
    "httpcore",
}


def test_the_web_process_loads_nothing_that_it_does_not_need(tmp_path: Path) -> None:
    migrate(f"sqlite:///{tmp_path / 'allo.db'}")
    code = f"""
import sys
from pathlib import Path
import service.app, service.server
service.app.create_app(service.app.Settings(data_dir=Path({str(tmp_path)!r})))
print(sorted({{name.split('.')[0] for name in sys.modules}} & {HEAVY}))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
