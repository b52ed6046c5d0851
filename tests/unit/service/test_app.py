"""The web process stays light."""

from __future__ import annotations

import subprocess
import sys


def test_the_web_process_never_loads_torch() -> None:
    code = "import sys, service.app; print([name for name in sys.modules if name.split('.')[0] in {'torch', 'worker'}])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
