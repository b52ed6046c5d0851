"""Examples of what is sent and answered, for the documentation."""

from __future__ import annotations

from typing import Any

JOB: dict[str, Any] = {
    "model": "smollm2",
    "training_file": "file-abc",
    "method": {"type": "allo", "allo": {"stages": {"improve": {"learning_rate": 1e-6}}}},
    "suffix": "first-try",
}

SWEEP: dict[str, Any] = {
    "model": "smollm2",
    "training_file": "file-abc",
    "validation_file": "file-def",
    "method": {"type": "allo"},
    "sweep": {"improve.learning_rate": [1e-5, 5e-5], "seed": [0, 1, 2]},
}

CHAT: dict[str, Any] = {
    "model": "ft:smollm2:first-try:0a1b2c3d",
    "messages": [{"role": "user", "content": "What is 6 times 7?"}],
    "temperature": 0,
    "max_tokens": 200,
    "stream": True,
}

COMPLETION: dict[str, Any] = {"model": "smollm2", "prompt": "The capital of France is", "max_tokens": 5, "n": 2}

_BAND = {"low": 190.4, "expected": 262.0, "high": 341.9}
ESTIMATE: dict[str, Any] = {
    "object": "fine_tuning.job.estimate",
    "model": "smollm2",
    "training_file": "file-abc",
    "validation_file": None,
    "method": "supervised",
    "stages": [
        {
            "name": "sft",
            "tokens": 310_500,
            "seconds": _BAND,
            "peak_memory_bytes": 3_221_225_472,
            "disk_bytes": 538_060_032,
            "reused": False,
            "reused_from": None,
            "needs": {
                "devices": None,
                "device_memory_bytes": 2_900_000_000,
                "memory_bytes": 543_000_000,
                "memory_bytes_without_device": 3_100_000_000,
                "packages": [],
                "precision": "auto",
            },
            "workers": [{"kind": "8 cores, 62 GiB", "count": 1, "calibrated": True, "names": None}],
            "missing": None,
        }
    ],
    "tokens": 310_500,
    "seconds": _BAND,
    "peak_memory_bytes": 3_221_225_472,
    "disk_bytes": 538_060_032,
    "past": {
        "jobs": 4,
        "stages": 11,
        "seconds_ratio": {"median": 1.04, "low": 0.86, "high": 1.21},
        "memory_ratio": {"median": 0.97, "low": 0.91, "high": 1.02},
    },
    "notes": [],
}
