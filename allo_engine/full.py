"""A full disk, as whoever writes hears of it. Every part of ours asks here."""

from __future__ import annotations

import errno


def disk_is_full(error: BaseException) -> bool:
    """Whether a file found no room: on its disk, or in what its user may have of it."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
