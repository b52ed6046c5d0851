"""Rows of a Parquet file. pyarrow is heavy and reads what strangers wrote: it does so in a process of its own, within
limits of memory and time, and of the columns it reads only those that a format may have.

    python -m service.datasets.parquet < FILE     prints a JSON object a row
"""

from __future__ import annotations

import json
import math
import resource
import subprocess
import sys
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from service.children import alone, last_words
from service.datasets.parsing import BadLine, TooMuch

MAGIC = b"PAR1"

MEMORY_BYTES = 3 * 2**30
"""Address space of the reader: pyarrow itself takes most of one GiB of it."""

CPU_SECONDS = 600

BATCH = 256
"""Rows that are made at a time."""


def rows(
    chunks: Iterable[bytes], most: int, longest: int, scratch: Path | None
) -> Generator[tuple[int, bytes], None, None]:
    """(number, JSON) of each row, from 1. Its end names what it holds, so the file is written to `scratch` first.

    Raises BadLine where it is no whole Parquet file, or becomes more than `most` bytes of JSON.
    """
    with TemporaryFile(dir=scratch) as file, TemporaryFile() as errors:
        for chunk in chunks:
            file.write(chunk)
        file.flush()
        command = [sys.executable, "-m", __name__]
        with subprocess.Popen(command, stdin=file, stdout=subprocess.PIPE, stderr=errors, env=alone()) as child:
            try:
                yield from _read(child, most, longest)
            finally:
                child.kill()
        if child.returncode:
            errors.seek(0)
            last = last_words(errors.read().decode(errors="replace"), _SILENT)
            raise BadLine(
                f"could not be read from the Parquet file: {last:.300}", "a whole Parquet file, of smaller rows"
            )


_SILENT = f"its reader died, or took more than {CPU_SECONDS} s or {MEMORY_BYTES >> 20} MB"


def _read(child: subprocess.Popen[bytes], most: int, longest: int) -> Iterator[tuple[int, bytes]]:
    assert child.stdout is not None
    number = size = 0
    while line := child.stdout.readline(longest + 2):
        number += 1
        size += len(line)
        while not line.endswith(b"\n") and (rest := child.stdout.readline(longest)):
            size += len(rest)
            if rest.endswith(b"\n"):
                break
        if size > most:
            raise TooMuch(
                f"is where the file passes {most} bytes of JSON", "a smaller file, or a larger ALLO_MAX_FILE_BYTES"
            )
        yield number, line
    child.wait()


_INPUT = "/proc/self/fd/0"


def main() -> None:
    """Prints the rows of the file that is this process's input."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    _, most = resource.getrlimit(resource.RLIMIT_DATA)  # whoever started this may have less
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    import pyarrow
    from pyarrow import parquet

    from service.datasets.formats import may_be_ours

    pyarrow.set_cpu_count(1)
    pyarrow.set_io_thread_count(1)
    try:
        file = parquet.ParquetFile(_INPUT, memory_map=False)
        names = [name for name in file.schema_arrow.names if may_be_ours(name)]
        for batch in file.iter_batches(batch_size=BATCH, columns=names, use_threads=False):
            for row in batch.to_pylist():
                line = json.dumps({name: _plain(value) for name, value in row.items()}, default=str)
                sys.stdout.write(line + "\n")
    except BrokenPipeError:
        return
    except (pyarrow.ArrowException, OSError, MemoryError, ValueError, TypeError) as error:
        sys.exit(f"{type(error).__name__}: {error}".replace(_INPUT, "it"))


def _plain(value: Any) -> Any:
    """A column of numbers has NaN where a table has nothing."""
    return None if isinstance(value, float) and math.isnan(value) else value


if __name__ == "__main__":
    main()
