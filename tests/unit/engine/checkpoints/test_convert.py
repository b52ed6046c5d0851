"""Conversion of a GGUF file, on a model of two layers that the test writes itself."""

from __future__ import annotations

import shutil
import socket
import warnings
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from allo_engine.checkpoints.convert import ConversionError, convert, is_complete, main, pre_tokenizer_name

HIDDEN, HEADS, KV_HEADS, INNER, LAYERS = 32, 4, 2, 64, 2
TEXT = "Ann has 12 nuts.\n\n3 are left"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    _write_gguf(path, "smollm")
    return path


@pytest.fixture(scope="module")
def folder(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    destination = tmp_path_factory.mktemp("models") / "tiny"
    with _no_network():
        assert convert(source, destination)
    return destination


def test_the_folder_is_whole_and_loads_in_float32_with_the_values_of_the_file(source: Path, folder: Path) -> None:
    assert is_complete(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(source).tensors}["blk.1.ffn_up.weight"]
    expected = gguf.dequantize(stored.data, stored.tensor_type)
    assert np.array_equal(model.model.layers[1].mlp.up_proj.weight.detach().numpy(), expected)


def test_the_tokenizer_keeps_its_chat_template_and_its_special_tokens(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert tokenizer.decode(tokenizer(TEXT).input_ids) == TEXT
    assert tokenizer.eos_token == "<end>"
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert prompt == "<start>hi<end>"


def test_digits_are_cut_off_first_so_that_a_break_before_one_stays_a_token(folder: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert tokenizer.convert_tokens_to_ids("ĊĊ") in tokenizer(TEXT).input_ids
    _write_gguf(tmp_path / "gpt2.gguf", "gpt-2")
    assert pre_tokenizer_name(tmp_path / "gpt2.gguf") == "gpt-2"
    assert convert(tmp_path / "gpt2.gguf", tmp_path / "gpt2")
    plain = AutoTokenizer.from_pretrained(tmp_path / "gpt2", local_files_only=True)
    assert plain.convert_tokens_to_ids("ĊĊ") not in plain(TEXT).input_ids


def test_a_second_run_touches_nothing(source: Path, folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert not convert(source, folder)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_others_may_read_every_file(folder: Path) -> None:
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o644}


def test_a_failed_run_leaves_nothing_behind(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(64))
    with pytest.raises(Exception):  # noqa: B017, PT011 - whatever the reader of the file raises
        convert(broken, tmp_path / "models" / "broken")
    assert list((tmp_path / "models").iterdir()) == []


def test_a_source_that_is_no_gguf_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.gguf").write_text("not a model")
    assert main([str(tmp_path / "model.gguf"), str(tmp_path / "out")]) == 1
    assert "model.gguf is no GGUF file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_destination_with_other_files_is_left_alone(source: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConversionError, match="exists"):
        convert(source, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_the_command_says_what_it_did(source: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = folder.parent / "copy"
    shutil.copytree(folder, copy)
    assert main([str(source), str(copy)]) == 0
    assert capsys.readouterr().out == f"kept {copy}\n"


def _write_gguf(path: Path, pre_tokenizer: str) -> None:
    """A random Llama of two layers whose vocabulary is the bytes, the break before a paragraph, and three signs."""
    tokens = ["<unk>", "<start>", "<end>", *_byte_letters(), "ĊĊ"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_context_length(64)
        writer.add_embedding_length(HIDDEN)
        writer.add_block_count(LAYERS)
        writer.add_feed_forward_length(INNER)
        writer.add_head_count(HEADS)
        writer.add_head_count_kv(KV_HEADS)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_rope_freq_base(10000.0)
        writer.add_rope_dimension_count(HIDDEN // HEADS)
        writer.add_vocab_size(len(tokens))
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre_tokenizer)
        writer.add_token_list(tokens)
        writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
        writer.add_token_merges(["Ċ Ċ"])
        writer.add_unk_token_id(0)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_pad_token_id(2)
        writer.add_chat_template("{% for m in messages %}<start>{{ m['content'] }}<end>{% endfor %}")
        for name, weight in _weights(len(tokens)).items():
            if weight.ndim == 2 and "ffn" in name:
                packed = gguf.quantize(weight, gguf.GGMLQuantizationType.Q4_1)
                writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.Q4_1)
            else:
                writer.add_tensor(name, weight)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _weights(vocabulary: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    kv = HIDDEN * KV_HEADS // HEADS
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (vocabulary, HIDDEN), "output_norm.weight": (HIDDEN,)}
    for i in range(LAYERS):
        shapes |= {
            f"blk.{i}.attn_norm.weight": (HIDDEN,),
            f"blk.{i}.attn_q.weight": (HIDDEN, HIDDEN),
            f"blk.{i}.attn_k.weight": (kv, HIDDEN),
            f"blk.{i}.attn_v.weight": (kv, HIDDEN),
            f"blk.{i}.attn_output.weight": (HIDDEN, HIDDEN),
            f"blk.{i}.ffn_norm.weight": (HIDDEN,),
            f"blk.{i}.ffn_gate.weight": (INNER, HIDDEN),
            f"blk.{i}.ffn_up.weight": (INNER, HIDDEN),
            f"blk.{i}.ffn_down.weight": (HIDDEN, INNER),
        }
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def _byte_letters() -> Iterator[str]:
    """The 256 letters by which byte-level BPE writes bytes."""
    from tokenizers.pre_tokenizers import ByteLevel

    return iter(sorted(ByteLevel.alphabet()))


class _no_network:  # noqa: N801 - a context manager, read as a verb
    """Every connection fails while it lasts."""

    def __enter__(self) -> None:
        self.connect = socket.socket.connect

        def refuse(*_: object) -> None:
            raise AssertionError("conversion must not use the network")

        socket.socket.connect = refuse  # type: ignore[assignment, method-assign]

    def __exit__(self, *_: object) -> None:
        socket.socket.connect = self.connect  # type: ignore[method-assign]
