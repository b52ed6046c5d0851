"""What a training file is to a model; its usage is insight.py's.

torch takes three seconds and 260 MB, and transformers loads it where it finds it: here it is not to be found.
"""

from __future__ import annotations

import sys

sys.modules["torch"] = None  # type: ignore[assignment]

from allo_engine.data.insight import main  # noqa: E402

main(sys.argv[1:])
