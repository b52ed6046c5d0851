"""The sparse checkpoint: the masked entries' places and trained values, exact, in about 3 bytes an entry.

A folder holds one safetensors file, delta.safetensors. Its metadata:

    format    "allo-delta-1"
    base      the fingerprint of the base checkpoint: hex sha256 over the sha256 digests of its *.safetensors files, in
              the order of their names
    entries   JSON, an object: each stored weight's name → its number of entries, 1 to the weight's size

and for each of these weights two tensors of bytes, U8 [length], each one zlib stream (RFC 1950):

    <weight>/gaps      the entries' flat positions in the weight (C order), ascending, as gaps: how many positions are
                       skipped since the entry before, or since the start. A gap g is ⌊g / 255⌋ bytes of 255 and then
                       one byte g mod 255, so that entries and bytes other than 255 are the same number.
    <weight>/values    4 bytes an entry, in the same order, as four planes: all entries' lowest bytes, …, all highest,
                       of the uint32 z = (d << 1) ⊕ (d >> 31), where the int32 d = o(trained) − o(base) modulo 2³²,
                       o(x) = b where b ≥ 0, else b ⊕ 0x7FFFFFFF, with b the bits of x as int32. `base` is the base
                       checkpoint's value, widened to float32 if it is stored in 16 bits.

So the trained value's bits come back exactly, whatever they are, and alignment's small steps leave the two high planes
nearly empty. A weight is named as in the base; tied weights are one weight; one without entries is not stored.

`python -m allo_engine.checkpoints.delta --help` shows the commands that merge a delta into its base and that say what
one holds.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import nn

from allo_engine.checkpoints import coding
from allo_engine.checkpoints.folder import fingerprint
from allo_engine.checkpoints.reading import Checkpoint, StoredTensor
from allo_engine.checkpoints.writing import DTYPES, gathered, pieces, rewrite, write_tensors
from allo_engine.report import StageError

FILE = "delta.safetensors"
FORMAT = "allo-delta-1"
KINDS = ("gaps", "values")

Entries = tuple[NDArray[np.int64], NDArray[np.float32]]
"""One weight's ascending flat positions [K] and their trained values [K]."""
Values = dict[str, Entries]
"""Entries by the weight's name."""


def write_delta(values: Values, base: Path, folder: Path) -> None:
    """Write the trained values of a model that was loaded from the checkpoint folder `base`.

    Raises StageError wrong_base where the base has no such weight or position, ValueError where positions do not
    ascend.
    """
    names = sorted(name for name, (positions, _) in values.items() if len(positions))
    with Checkpoint(base) as stored, ThreadPoolExecutor(max_workers=2) as pool:
        digest = pool.submit(fingerprint, base)  # hashing and deflating leave the interpreter to others
        coded = pool.map(lambda name: _encoded(values[name], _weight(stored, name)), names)
        streams = {
            f"{name}/{kind}": stream
            for name, pair in zip(names, coded, strict=True)
            for kind, stream in zip(KINDS, pair, strict=True)
        }
        counts = {name: len(values[name][0]) for name in names}
        metadata = {"format": FORMAT, "base": digest.result(), "entries": json.dumps(counts)}
    folder.mkdir(parents=True, exist_ok=True)
    layout = {key: ("U8", [len(stream)], len(stream)) for key, stream in streams.items()}
    write_tensors(folder / FILE, layout, metadata, map(memoryview, streams.values()))


def read_delta(folder: Path, base: Path) -> Values:
    """All entries. Raises StageError: wrong_base where the delta belongs to another base, bad_delta if damaged."""
    return dict(_read(folder, base))


@torch.no_grad()
def apply_delta(model: nn.Module, folder: Path, base: Path) -> None:
    """Write a delta's values into a model that was loaded from `base`, in each weight's own dtype.

    Raises StageError: wrong_base where the delta belongs to another base or model, bad_delta if damaged.
    """
    weights = dict(model.named_parameters())
    for name, (positions, values) in _read(folder, base):
        if name not in weights or weights[name].numel() <= positions[-1]:
            raise StageError("wrong_base", f"The sparse checkpoint's weight {name} does not fit the model.")
        flat = weights[name].view(-1)
        flat[torch.from_numpy(positions).to(flat.device)] = torch.from_numpy(values).to(flat.device, flat.dtype)


def merge(base: Path, delta: Path, out: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write a whole checkpoint to `out`: the base's weights with the delta's values, streamed.

    In float32 a merged value has the very bits that training left; in another dtype it is rounded once, from float32.
    Raises StageError: wrong_base, bad_delta, or not_empty where `out` holds something already.
    """
    source = Delta(delta)
    source.check(base)
    with Checkpoint(base) as stored:
        for name in source.counts:
            _weight(stored, name)  # each is there, before anything is written
        names = {name: name for name in source.counts} | _copies(base, stored, source.counts.keys())
    rewrite(base, out, dtype, lambda name, weight: source.entries(names[name], weight) if name in names else None)


def _copies(base: Path, stored: Checkpoint, changed: Set[str]) -> dict[str, str]:
    """Where a base stores its tied embeddings twice: the second's name → the one that the delta knows it by.

    A model of tied weights names them once, and transformers ties two that are stored only while they are equal.
    """
    path = base / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if not config.get("tie_word_embeddings", True):
        return {}
    embeddings = [name for name, weight in stored.tensors.items() if weight.shape[:1] == (config.get("vocab_size"),)]
    return {
        copy: name
        for copy in embeddings
        for name in embeddings
        if copy not in changed and name in changed and _equal(stored.tensors[copy], stored.tensors[name])
    }


def _equal(first: StoredTensor, second: StoredTensor) -> bool:
    return first.shape == second.shape and all(
        np.array_equal(first.read(*piece), second.read(*piece)) for piece in pieces(first.size)
    )


def _read(folder: Path, base: Path) -> Iterator[tuple[str, Entries]]:
    delta = Delta(folder)
    delta.check(base)
    with Checkpoint(base) as stored:
        for name in delta.counts:
            yield name, delta.entries(name, _weight(stored, name))


def _weight(stored: Checkpoint, name: str) -> StoredTensor:
    if name not in stored.tensors:
        raise StageError("wrong_base", f"The base model stores no weight {name}.")
    return stored.tensors[name]


def _encoded(entries: Entries, weight: StoredTensor) -> tuple[bytes, bytes]:
    positions, values = entries
    if positions[-1] >= weight.size:
        raise StageError("wrong_base", f"Position {positions[-1]} lies outside the base's weight of {weight.size}.")
    return coding.encode_places(positions), coding.encode_values(values, gathered(weight, positions))


class Delta:
    """A stored delta, read weight by weight."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        with self._damage_named():
            self._file = safe_open(self.path, framework="np")
            metadata = self._file.metadata() or {}  # type: ignore[no-untyped-call]
            if metadata.get("format") != FORMAT:
                raise ValueError(f"its format is {metadata.get('format')!r}, not {FORMAT}")
            self.base = metadata["base"]
            self.counts = _counts(metadata["entries"])
            streams = self._file.keys()  # type: ignore[no-untyped-call]
            if set(streams) != {f"{name}/{kind}" for name in self.counts for kind in KINDS}:
                raise ValueError("its streams are not those of the weights that it names")

    def check(self, base: Path) -> None:
        """Raises StageError where the delta belongs to another base."""
        if self.base != fingerprint(base):
            raise StageError("wrong_base", "The sparse checkpoint belongs to another base model than the one given.")

    def entries(self, name: str, weight: StoredTensor) -> Entries:
        """A weight's entries, from the weight as its base stores it."""
        with self._damage_named(name):
            if self.counts[name] > weight.size:
                raise ValueError(f"{self.counts[name]} entries do not fit its {weight.size}")
            positions = coding.decode_places(self._stream(f"{name}/gaps"), self.counts[name], weight.size)
        base_K = gathered(weight, positions)
        with self._damage_named(name):
            return positions, coding.decode_values(self._stream(f"{name}/values"), base_K)

    def _stream(self, key: str) -> bytes:
        stream: NDArray[np.uint8] = self._file.get_tensor(key)  # type: ignore[no-untyped-call]
        if stream.dtype != np.uint8:
            raise ValueError(f"{key} is of {stream.dtype}, not of bytes")
        return stream.tobytes()

    @contextmanager
    def _damage_named(self, name: str = "") -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
            where = f" at weight {name}" if name else ""
            raise StageError("bad_delta", f"{self.path} is no whole sparse checkpoint{where}: {error}.") from error


def _counts(text: str) -> dict[str, int]:
    counts = json.loads(text)
    if not isinstance(counts, dict) or not all(type(count) is int and count > 0 for count in counts.values()):
        raise ValueError("its numbers of entries are none")
    return counts


# --- the command


def main(argv: list[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except (StageError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _merge_command(arguments: argparse.Namespace) -> None:
    dtype = next(dtype for dtype in DTYPES if str(dtype) == f"torch.{arguments.dtype}")
    merge(arguments.base, arguments.delta, arguments.out, dtype)


def _info_command(arguments: argparse.Namespace) -> None:
    delta = Delta(arguments.delta)
    size = delta.path.stat().st_size
    entries = sum(delta.counts.values())
    lines = {
        "weights": len(delta.counts),
        "entries": entries,
        "bytes": f"{size} ({size / max(entries, 1):.2f} an entry)",
        "base": delta.base,
    }
    sys.stdout.writelines(f"{name:8} {value}\n" for name, value in lines.items())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m allo_engine.checkpoints.delta",
        description="Sparse checkpoints: merge one into its base, or look at one.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    merging = commands.add_parser(
        "merge",
        help="write the whole aligned checkpoint: base and delta in one folder",
        description="Write a checkpoint that plain transformers loads: the base's weights with the delta's values.",
        epilog="example: python -m allo_engine.checkpoints.delta merge ./SmolLM2-135M ./delta ./aligned",
    )
    merging.add_argument("base", type=Path, help="the folder of the checkpoint that the delta was trained from")
    merging.add_argument("delta", type=Path, help=f"the folder that holds {FILE}")
    merging.add_argument("out", type=Path, help="the folder to write; new or empty")
    merging.add_argument(
        "--dtype",
        choices=[str(dtype).removeprefix("torch.") for dtype in DTYPES],
        default="float32",
        help="what to write the weights in; float32 (the default) keeps every bit that training left",
    )
    merging.set_defaults(run=_merge_command)
    info = commands.add_parser("info", help="say what a delta holds", description="Say what a delta holds.")
    info.add_argument("delta", type=Path, help=f"the folder that holds {FILE}")
    info.set_defaults(run=_info_command)
    return parser


if __name__ == "__main__":
    sys.exit(main())
