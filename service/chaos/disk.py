"""Disks so small that they can be filled: file systems in memory, mounted over a part's folder."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_FILLING, _PIECE = "filling", bytes(2**16)


class Disk:
    """A file system of its own at `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def full(self, left: int) -> Iterator[None]:
        """Within, there is no room beyond so many bytes."""
        path = self.folder / _FILLING
        try:
            with path.open("wb", buffering=0) as file:
                with suppress(OSError):
                    while file.write(_PIECE):
                        pass
                file.truncate(max(0, file.tell() - left))
            yield
        finally:
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Take it away; what lay on it stays where it lay."""
        aside = self.folder.with_suffix(".left")
        shutil.copytree(self.folder, aside, symlinks=True, ignore=_no_sockets)
        command = ["umount", "-l", str(self.folder)]
        subprocess.run(command, check=True)
        self.folder.rmdir()
        aside.rename(self.folder)


def mounted(folder: Path, megabytes: int = 96) -> Disk | None:
    """A disk over the folder, which is made; None where nobody may mount here."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"mode=700,size={megabytes}m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        return None
    return Disk(folder) if done.returncode == 0 else None


def _no_sockets(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if (Path(folder) / name).is_socket() or (Path(folder) / name).is_fifo()]
