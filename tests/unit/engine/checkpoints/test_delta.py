from __future__ import annotations

import json
import struct
import subprocess
import sys
import tempfile
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from allo_engine.checkpoints import coding
from allo_engine.checkpoints.delta import FILE, FORMAT, Values, apply_delta, merge, read_delta, write_delta
from allo_engine.checkpoints.folder import fingerprint
from allo_engine.report import StageError
from tests.tiny import save_tiny

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def base_of(folder: Path, *weights: torch.Tensor) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({f"w{n}": weight for n, weight in enumerate(weights)}, folder / "model.safetensors")
    return folder


def bits(values: np.ndarray) -> list[int]:
    return np.ascontiguousarray(values, dtype=np.float32).view(np.uint32).tolist()


def same(first: Values, second: Values) -> bool:
    return first.keys() == second.keys() and all(
        first[name][0].tolist() == second[name][0].tolist() and bits(first[name][1]) == bits(second[name][1])
        for name in first
    )


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)


@pytest.fixture
def tiny(folder: Path) -> Path:
    return save_tiny(folder / "tiny")


def some_values(base: Path, seed: int = 0, share: float = 0.05) -> Values:
    """Small steps of a share of every weight of a checkpoint."""
    random = np.random.default_rng(seed)
    values = {}
    for path in sorted(base.glob("*.safetensors")):
        for name, weight in load_file(path).items():
            flat = weight.float().numpy().reshape(-1)
            places = np.flatnonzero(random.random(len(flat)) < share)
            step = 1e-4 * random.standard_normal(len(places)).astype(np.float32)
            values[name] = (places, flat[places] + step)
    return {name: entries for name, entries in values.items() if len(entries[0])}


# --- the values come back


patterns = st.integers(0, 2**32 - 1) | st.sampled_from(
    [0, 1 << 31, 1, (1 << 31) | 1, 0x7F7FFFFF, 0xFF7FFFFF, 0x7F800000]
)


@st.composite
def entries(draw: st.DrawFn) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """A stored weight of any bits, a mask, and trained values of any bits."""
    dtype = draw(st.sampled_from(DTYPES))
    size = draw(st.integers(1, 40))
    stored = draw(arrays.arrays(np.uint8, size * dtype.itemsize))
    places = np.flatnonzero(draw(arrays.arrays(np.bool_, size)))
    trained = draw(arrays.arrays(np.uint32, len(places), elements=patterns)).view(np.float32)
    return torch.from_numpy(stored).view(dtype), places, trained


@settings(max_examples=100)
@given(st.lists(entries(), max_size=3))
def test_every_float32_comes_back_bit_by_bit(weights: list[tuple[torch.Tensor, np.ndarray, np.ndarray]]) -> None:
    with tempfile.TemporaryDirectory() as work:
        base = base_of(Path(work), *(weight for weight, _, _ in weights), torch.zeros(1))
        values = {f"w{n}": (places, trained) for n, (_, places, trained) in enumerate(weights)}
        write_delta(values, base, Path(work) / "delta")
        stored = {name: pair for name, pair in values.items() if len(pair[0])}
        assert same(read_delta(Path(work) / "delta", base), stored)


@given(st.sets(st.integers(0, 2000) | st.integers(0, 10**6)))
def test_places_come_back_however_far_apart_they_are(chosen: set[int]) -> None:
    places = np.array(sorted(chosen), dtype=np.int64)
    assert coding.decode_places(coding.encode_places(places), len(places), 10**6 + 1).tolist() == places.tolist()


def read_by_the_description(path: Path, base: dict[str, np.ndarray]) -> dict[str, dict[int, int]]:
    """A reader made from the words of the module's docstring alone: place → the value's bits."""
    raw = path.read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:end])
    found: dict[str, dict[int, int]] = {}
    for name, count in json.loads(header["__metadata__"]["entries"]).items():
        gaps, planes = (
            zlib.decompress(raw[end:][slice(*header[f"{name}/{kind}"]["data_offsets"])]) for kind in ("gaps", "values")
        )
        found[name], place, skipped = {}, -1, 0
        for byte in gaps:
            skipped += byte
            if byte == 255:
                continue
            place, skipped = place + skipped + 1, 0
            number = len(found[name])
            z = sum(planes[plane * count + number] << (8 * plane) for plane in range(4))
            d = (z >> 1) ^ -(z & 1)
            (b,) = struct.unpack("<i", struct.pack("<f", base[name][place]))
            o = (b if b >= 0 else b ^ 0x7FFFFFFF) + d
            o = (o + 2**31) % 2**32 - 2**31
            found[name][place] = (o if o >= 0 else o ^ 0x7FFFFFFF) % 2**32
        assert len(found[name]) == count
    return found


def test_a_reader_written_from_the_description_finds_the_values(folder: Path) -> None:
    weight = torch.randn(100, 20, generator=torch.Generator().manual_seed(0)).bfloat16()
    base = base_of(folder, weight, torch.tensor(0.5))
    places = np.array([0, 1, 254, 510, 1021, 1999])  # gaps of 0, 0, 252, 255, 510 and 977
    trained = np.array([-0.0, 1e-45, -3e38, np.inf, 0.125, np.nan], dtype=np.float32)
    write_delta({"w0": (places, trained), "w1": (np.array([0]), np.float32([0.25]))}, base, folder / "delta")
    found = read_by_the_description(
        folder / "delta" / FILE, {"w0": weight.float().numpy().reshape(-1), "w1": np.float32([0.5])}
    )
    assert found == {"w0": dict(zip(places.tolist(), bits(trained), strict=True)), "w1": {0: 0x3E800000}}


def test_a_small_step_is_a_small_difference() -> None:
    base = np.array([1.0, 1.0, 0.0, -0.0], dtype=np.float32)
    trained = np.array([1.0 + 2**-23, 1.0 - 2**-24, -0.0, 1e-45], dtype=np.float32)
    planes = zlib.decompress(coding.encode_values(trained, base))
    assert planes[:4] == bytes([2, 1, 1, 4])  # zigzag of +1, −1, −1, +2 steps
    assert not any(planes[4:])


def test_a_mask_of_5_percent_takes_less_than_8_percent_of_16_bit_weights(folder: Path) -> None:
    base = base_of(folder, 0.1 * torch.randn(400_000, generator=torch.Generator().manual_seed(0)))
    write_delta(some_values(base, share=0.05), base, folder / "delta")
    assert (folder / "delta" / FILE).stat().st_size < 0.08 * 2 * 400_000


def test_entries_that_did_not_move_cost_next_to_nothing(folder: Path) -> None:
    weight = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    base = base_of(folder, weight)
    write_delta({"w0": (np.arange(100_000), weight.numpy())}, base, folder / "delta")
    assert (folder / "delta" / FILE).stat().st_size < 100_000 / 20


def test_a_delta_without_entries_is_read_as_none(folder: Path) -> None:
    base = base_of(folder, torch.ones(4))
    write_delta({"w0": (np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32))}, base, folder / "delta")
    assert read_delta(folder / "delta", base) == {}


@pytest.mark.parametrize("places", [[1, 0], [2, 2], [-1, 0]])
def test_positions_that_do_not_ascend_are_refused(folder: Path, places: list[int]) -> None:
    base = base_of(folder, torch.ones(4))
    with pytest.raises(ValueError, match="ascend"):
        write_delta({"w0": (np.array(places), np.ones(2, dtype=np.float32))}, base, folder / "delta")


# --- into models and checkpoints


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shards", ["1GB", "30KB"])
def test_merging_gives_the_bits_of_applying_and_saving(
    tiny: Path, folder: Path, dtype: torch.dtype, shards: str
) -> None:
    base = folder / "base"
    AutoModelForCausalLM.from_pretrained(tiny, dtype=dtype).save_pretrained(base, max_shard_size=shards)
    write_delta(some_values(base), base, folder / "delta")

    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    apply_delta(model, folder / "delta", base)
    model.save_pretrained(folder / "applied", max_shard_size=shards)
    merge(base, folder / "delta", folder / "merged", dtype)

    files = {path.name for path in (folder / "applied").iterdir()}
    assert (len(files) > 4) == (shards == "30KB")
    assert {path.name for path in (folder / "merged").iterdir()} == files
    changed = 0
    for name in files:
        if name.endswith(".safetensors"):
            applied, merged = load_file(folder / "applied" / name), load_file(folder / "merged" / name)
            assert applied.keys() == merged.keys()
            assert all(merged[key].dtype == dtype and torch.equal(merged[key], applied[key]) for key in applied)
            before = load_file(base / name)
            changed += sum(int((merged[key] != before[key]).sum()) for key in before)
        elif name.endswith(".index.json"):
            applied, merged = (json.loads((folder / side / name).read_text()) for side in ("applied", "merged"))
            assert merged["weight_map"] == applied["weight_map"]
            assert merged["metadata"]["total_size"] == applied["metadata"]["total_size"]
    assert changed > 100


def test_a_merged_float32_checkpoint_has_the_trained_bits_whatever_its_base_is_stored_in(
    tiny: Path, folder: Path
) -> None:
    base = folder / "base"
    AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.bfloat16).save_pretrained(base)
    values = some_values(base)
    write_delta(values, base, folder / "delta")
    merge(base, folder / "delta", folder / "merged")
    before, merged = load_file(base / "model.safetensors"), load_file(folder / "merged" / "model.safetensors")
    for name, stored in before.items():
        expected = stored.float().numpy().reshape(-1)
        places, trained = values.get(name, ([], []))
        expected[places] = trained
        assert bits(merged[name].numpy().reshape(-1)) == bits(expected)
    assert AutoModelForCausalLM.from_pretrained(folder / "merged").dtype == torch.float32


def test_the_index_of_a_merged_checkpoint_tells_its_new_size(tiny: Path, folder: Path) -> None:
    base = folder / "base"
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.bfloat16)
    model.save_pretrained(base, max_shard_size="30KB")
    write_delta(some_values(base), base, folder / "delta")
    merge(base, folder / "delta", folder / "merged")
    index = json.loads((folder / "merged" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 4 * model.num_parameters()


def test_a_merged_folder_has_the_tokenizer_and_no_other_weights(tiny: Path, folder: Path) -> None:
    (tiny / "pytorch_model.bin").write_bytes(b"the base's weights once more")
    write_delta(some_values(tiny), tiny, folder / "delta")
    merge(tiny, folder / "delta", folder / "merged")
    kept = {path.name for path in tiny.iterdir()} - {"pytorch_model.bin"}
    assert {path.name for path in (folder / "merged").iterdir()} == kept
    assert (folder / "merged" / "tokenizer.json").read_bytes() == (tiny / "tokenizer.json").read_bytes()


def test_tied_weights_that_a_base_stores_twice_stay_tied(tiny: Path, folder: Path) -> None:
    weights = load_file(tiny / "model.safetensors")
    copy = weights["model.embed_tokens.weight"].clone()
    save_file(weights | {"lm_head.weight": copy}, tiny / "model.safetensors", metadata={"format": "pt"})
    model = AutoModelForCausalLM.from_pretrained(tiny)
    values = {name: pair for name, pair in some_values(tiny).items() if name in dict(model.named_parameters())}
    write_delta(values, tiny, folder / "delta")
    apply_delta(model, folder / "delta", tiny)
    merge(tiny, folder / "delta", folder / "merged")
    merged = AutoModelForCausalLM.from_pretrained(folder / "merged")
    assert merged.lm_head.weight is merged.model.embed_tokens.weight
    assert torch.equal(merged.lm_head.weight, model.lm_head.weight)
    assert not torch.equal(merged.lm_head.weight, copy)


def test_a_model_in_16_bits_takes_the_values_rounded(tiny: Path, folder: Path) -> None:
    values = some_values(tiny)
    write_delta(values, tiny, folder / "delta")
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.bfloat16)
    apply_delta(model, folder / "delta", tiny)
    for name, weight in model.named_parameters():
        if name in values:
            places, trained = values[name]
            expected = torch.from_numpy(trained).bfloat16()
            assert torch.equal(weight.detach().view(-1)[torch.from_numpy(places)], expected)


MERGE = """
import sys
from pathlib import Path
import torch
from allo_engine.checkpoints.delta import merge

def peak():
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return 1024 * int(line.split()[1])

small, large = map(Path, sys.argv[1:])
merge(small, small / "delta", small / "merged", torch.bfloat16)  # loads and starts what a first run does
before = peak()
merge(large, large / "delta", large / "merged", torch.bfloat16)
print(peak() - before)
"""


def test_merging_holds_no_more_than_one_weight(folder: Path) -> None:
    size = 1 << 24
    small = base_of(folder / "small", torch.ones(8))
    large = base_of(folder / "large", *(torch.ones(size, dtype=torch.bfloat16) for _ in range(5)))
    places = np.arange(0, size, 50)
    values = {f"w{n}": (places, np.zeros(len(places), dtype=np.float32)) for n in range(5)}
    write_delta({"w0": (np.array([0]), np.float32([2.0]))}, small, small / "delta")
    write_delta(values, large, large / "delta")
    command = [sys.executable, "-c", MERGE, str(small), str(large)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 4 * size  # of five weights, in float32


# --- what does not belong, or is damaged


def test_a_delta_of_another_base_is_refused(folder: Path) -> None:
    base, other = base_of(folder / "a", torch.ones(8)), base_of(folder / "b", torch.zeros(8))
    write_delta({"w0": (np.array([3]), np.float32([2.0]))}, base, folder / "delta")
    with pytest.raises(StageError, match="another base") as refused:
        read_delta(folder / "delta", other)
    assert refused.value.code == "wrong_base"
    with pytest.raises(StageError, match="another base"):
        merge(other, folder / "delta", folder / "merged")
    assert not (folder / "merged").exists()


def test_entries_that_the_base_does_not_have_are_not_written(folder: Path) -> None:
    base = base_of(folder, torch.ones(8))
    one = np.float32([1.0])
    for name, place in [("w1", 0), ("w0", 8)]:
        with pytest.raises(StageError) as refused:
            write_delta({name: (np.array([place]), one)}, base, folder / "delta")
        assert refused.value.code == "wrong_base"
    assert not (folder / "delta").exists()


def test_a_weight_that_the_model_does_not_take_is_refused(tiny: Path, folder: Path) -> None:
    weights = load_file(tiny / "model.safetensors")
    save_file(weights | {"another": torch.ones(8)}, tiny / "model.safetensors", metadata={"format": "pt"})
    write_delta({"another": (np.array([7]), np.float32([2.0]))}, tiny, folder / "delta")
    with pytest.raises(StageError, match="another does not fit the model"):
        apply_delta(AutoModelForCausalLM.from_pretrained(tiny), folder / "delta", tiny)


def small_delta(folder: Path) -> tuple[Path, Values]:
    weights = torch.randn(2, 600, generator=torch.Generator().manual_seed(0))
    base = base_of(folder / "base", weights[0], weights[1].bfloat16())
    values = some_values(base)
    write_delta(values, base, folder / "delta")
    return base, values


def test_no_flipped_bit_gives_other_values_or_another_error(folder: Path) -> None:
    base, values = small_delta(folder)
    path = folder / "delta" / FILE
    whole = path.read_bytes()
    refused = 0
    for place in range(len(whole)):
        for flip in (1 << place % 8, 0x20, 0xFF):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :])
            try:
                assert same(read_delta(folder / "delta", base), values)
            except StageError as error:
                assert error.code in ("bad_delta", "wrong_base")  # noqa: PT017 - most flips, not all
                refused += 1
    assert refused > 2.9 * len(whole)  # what is left are spaces behind the header and bits behind a stream's end


def test_a_truncated_file_is_refused_wherever_it_ends(folder: Path) -> None:
    base, _ = small_delta(folder)
    path = folder / "delta" / FILE
    whole = path.read_bytes()
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        with pytest.raises(StageError) as refused:
            read_delta(folder / "delta", base)
        assert refused.value.code == "bad_delta"


def test_a_folder_without_a_delta_is_refused(folder: Path) -> None:
    with pytest.raises(StageError, match=r"delta\.safetensors is no whole sparse checkpoint"):
        read_delta(folder, base_of(folder, torch.ones(1)))


def forged(folder: Path, gaps: bytes, values: bytes, entries: object = 1, **metadata: str) -> tuple[Path, Path]:
    """A delta of one weight of 8 entries, with streams of one's own."""
    base = base_of(folder / "base", torch.ones(8))
    streams = {f"w0/{kind}": torch.frombuffer(bytearray(stream), dtype=torch.uint8) for kind, stream in
               (("gaps", gaps), ("values", values))}  # fmt: skip
    described = {"format": FORMAT, "base": fingerprint(base), "entries": json.dumps({"w0": entries})} | metadata
    (folder / "delta").mkdir()
    save_file(streams, folder / "delta" / FILE, metadata=described)
    return folder / "delta", base


GAP, VALUE = zlib.compress(b"\x03"), zlib.compress(bytes(4))


@pytest.mark.parametrize(
    ("gaps", "values", "entries", "message"),
    [
        (zlib.compress(b"\x08"), VALUE, 1, "behind the weight's end"),
        (zlib.compress(b"\xff\x01"), VALUE, 1, "behind the weight's end"),
        (zlib.compress(b"\x03\xff"), VALUE, 1, "places"),
        (zlib.compress(b"\x03\x01"), VALUE, 1, "holds 2 places, not 1"),
        (zlib.compress(bytes(9)), zlib.compress(bytes(36)), 9, "9 entries do not fit"),
        (GAP, zlib.compress(bytes(3)), 1, "3 bytes of values, not 4"),
        (GAP, zlib.compress(bytes(5)), 1, "length is wrong"),
        (GAP, VALUE + b"more", 1, "length is wrong"),
        (GAP[:-4], VALUE, 1, "length is wrong"),
        (b"no stream", VALUE, 1, "w0"),
        (GAP, VALUE, 0, "numbers of entries"),
        (GAP, VALUE, "1", "numbers of entries"),
        (GAP, VALUE, [[1]], "numbers of entries"),
    ],
)
def test_streams_that_no_writer_made_are_refused(
    folder: Path, gaps: bytes, values: bytes, entries: object, message: str
) -> None:
    delta, base = forged(folder, gaps, values, entries)
    with pytest.raises(StageError, match=message) as refused:
        read_delta(delta, base)
    assert refused.value.code == "bad_delta"


@pytest.mark.parametrize("metadata", [{"format": "allo-delta-2"}, {"entries": "[" * 100_000}, {"entries": "{}"}])
def test_a_header_that_no_writer_made_is_refused(folder: Path, metadata: dict[str, str]) -> None:
    delta, base = forged(folder, GAP, VALUE, **metadata)
    with pytest.raises(StageError) as refused:
        read_delta(delta, base)
    assert refused.value.code == "bad_delta"


@pytest.mark.parametrize("kind", ["gaps", "values"])
def test_a_stream_inflates_no_further_than_its_weight(folder: Path, kind: str) -> None:
    bomb = zlib.compress(bytes(1 << 28))
    delta, base = forged(folder, **({"gaps": GAP, "values": VALUE} | {kind: bomb}))
    tracemalloc.start()
    try:
        with pytest.raises(StageError, match="length is wrong"):
            read_delta(delta, base)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


# --- whole or not at all


def test_a_merge_that_fails_leaves_nothing(folder: Path) -> None:
    delta, base = forged(folder, GAP, zlib.compress(bytes(3)))
    with pytest.raises(StageError):
        merge(base, delta, folder / "merged")
    assert {path.name for path in folder.iterdir()} == {"base", "delta"}


def test_a_merge_takes_no_rest_of_an_interrupted_one(folder: Path) -> None:
    base, _ = small_delta(folder)
    (folder / "merged.tmp").mkdir()
    (folder / "merged.tmp" / "model-00009-of-00009.safetensors").write_bytes(b"half")
    merge(base, folder / "delta", folder / "merged")
    assert {path.name for path in folder.iterdir()} == {"base", "delta", "merged"}
    assert [path.name for path in (folder / "merged").iterdir()] == ["model.safetensors"]


def test_a_merge_writes_over_nothing(folder: Path) -> None:
    base, _ = small_delta(folder)
    with pytest.raises(StageError, match="another folder"):
        merge(base, folder / "delta", base)


def test_a_write_that_fails_leaves_the_delta_that_was_there(folder: Path) -> None:
    base, values = small_delta(folder)
    with pytest.raises(StageError):
        write_delta({"w9": values["w0"]}, base, folder / "delta")
    assert [path.name for path in (folder / "delta").iterdir()] == [FILE]
    assert same(read_delta(folder / "delta", base), values)
