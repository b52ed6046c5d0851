"""Tables for people: what is typed again is whole, however narrow the terminal."""

from __future__ import annotations

import pytest
from rich.console import Console

from service.cli.terminal import listing
from service.cli.workers import in_words


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_an_id_is_whole_on_any_terminal(width: int, capsys: pytest.CaptureFixture[str]) -> None:
    job = "ftjob-" + "0123456789abcdefghijklmnop"
    table = listing("job", "status", "made", "model", "method", "stages")
    table.add_row(job, "succeeded", "2026-11-26 13:01", "smollm2", "supervised", "1 of 1")
    Console(width=width).print(table)
    said = capsys.readouterr().out
    assert job in said
    assert "…" not in said


def test_a_worker_is_told_whole_on_a_terminal_of_eighty_letters() -> None:
    gib, job = 2**30, "ftjob-" + "0123456789abcdefghijklmnop"
    worker = {
        "id": "worker-of-a-host-with-a-long-name-1", "host": "host-7.rack-2.example", "beat_at": 1_790_000_000,
        "code_version": "0123456789abcdef", "slots": 2, "cores": 208, "memory_bytes": 2048 * gib, "calibrated": True,
        "devices": [
            {"name": f"GPU-{number}", "kind": "NVIDIA H100 80GB HBM3", "memory_bytes": 80 * gib} for number in range(2)
        ],
        "precisions": ["float32", "bfloat16"],
        "backends": dict.fromkeys(("vllm", "deepspeed", "trl", "bitsandbytes", "lm_eval", "torch"), "1.16.0"),
        "stages": [{"name": "token_rewards", "job_id": job, "status": "running", "devices": ["GPU-1"]}],
    }  # fmt: skip
    said = in_words(worker)
    assert max(map(len, said.splitlines())) <= 80
    for words in (worker["id"], "GPU-1: NVIDIA H100 80GB HBM3, 80.0 GiB", "2048.0 GiB", "bfloat16", "lm_eval 1.16.0",
                  "01234567", f"token_rewards of {job}", "last sign of life"):  # fmt: skip
        assert str(words) in said
