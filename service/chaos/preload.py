"""A part's wall clock and its fsync, which somebody else decides: a library that is loaded before all others.

`preload.c` stands in front of the C library's own functions, so that SQLite's fsync fails as ours does. It is built
where the trials run; where there is no C compiler, these two faults are left out.
"""

from __future__ import annotations

import mmap
import shutil
import struct
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path

_SOURCE = Path(__file__).with_name("preload.c")
_TOLD = struct.Struct("<qq")


@cache
def built(folder: Path) -> Path | None:
    """The library, in the folder; None where there is no compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    library = folder / "preload.so"
    command = [compiler, "-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o", str(library), str(_SOURCE), "-ldl"]
    subprocess.run(command, check=True)
    library.chmod(0o755)
    return library


class Told:
    """What one part and all that it starts are told; `user` is whose the part is, where that is not our own."""

    def __init__(self, library: Path, page: Path, user: str | None = None) -> None:
        self._library, self._path = library, page
        page.write_bytes(bytes(mmap.PAGESIZE))
        if user is not None:
            shutil.chown(page, user)
        with page.open("r+b") as file:
            self._page = mmap.mmap(file.fileno(), 0)

    @property
    def environment(self) -> Mapping[str, str]:
        """What the part is started with."""
        return {"LD_PRELOAD": str(self._library), "CHAOS_TOLD": str(self._path)}

    def tell(self, ahead: int = 0, failing: int = 0) -> None:
        """Its wall clock is `ahead` of the true one by so many seconds, and its next `failing` fsyncs fail."""
        _TOLD.pack_into(self._page, 0, ahead, failing)

    def close(self) -> None:
        """Let go of the page; the part may have it still."""
        self._page.close()
