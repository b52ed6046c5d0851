"""Requests that nobody thought of, made from the OpenAPI document by Schemathesis, valid ones and others, alone and in
chains: none meets an error of ours, an undocumented status or body, and no valid one is refused.

ALLO_FUZZ_SECONDS says for how long, and then chance draws; `make fuzz` takes ten minutes. Without it, so many are drawn
from one seed, whatever the pace of the machine.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from service.jobs.access.keys import Scope, create_key, find_key
from service.jobs.tables import Model
from tests.integration.service.domain import SUPERVISED, Domain

SECONDS = os.environ.get("ALLO_FUZZ_SECONDS")
CONFIG, HOOKS = Path(__file__).with_name("schemathesis.toml"), Path(__file__).with_name("fuzzed.py")
DRAWN = ("--phases", "examples,fuzzing,stateful", "--max-examples", "8", "--seed", "1")
BOUNDS = DRAWN if SECONDS is None else ("--max-examples", "20", "--max-time", SECONDS)


USER, ADMIN = ("read", "submit"), ("admin",)
OF_ADMINS = (
    *("--include-path-regex", "^/v1/(keys|audit|workers)|^/metrics"),
    *("--exclude-operation-id-regex", "revoke|rotate"),
)
"""What another key is refused, whatever it asks, but for what would end the very key that asks."""


@pytest.mark.parametrize(("scopes", "which"), [(USER, ()), (ADMIN, OF_ADMINS)], ids=["a user's", "an admin's"])
def test_no_request_made_from_the_document_meets_what_it_does_not_say(
    base_url: str, served: Domain, tmp_path: Path, scopes: Sequence[Scope], which: Sequence[str]
) -> None:
    give_real_weights(served)
    served.submit(SUPERVISED)
    served.run_all()
    key = create_key(served.database, "owner", scopes).secret
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG), "run", f"{base_url}/openapi.json"),
        *("--header", f"Authorization: Bearer {key}", "--mode", "all", *BOUNDS, *which),
        *("--no-shrink", "--generation-database", "none", "--suppress-health-check", "all", "--warnings", "off"),
        *("--continue-on-failure", "--no-color"),
    ]
    environment = os.environ | {"SCHEMATHESIS_HOOKS": str(HOOKS)}
    found = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=3600)
    assert found.returncode == 0, found.stdout[-20_000:]
    assert find_key(served.database, key), "it would have been refused from there on"


def give_real_weights(served: Domain) -> None:
    """The model gets a file that is safetensors, as every registered one has."""
    head = json.dumps({"weight": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    blob = served.store.put_stream([struct.pack("<Q", len(head)), head, bytes(8)])
    with served.database.transaction() as session:
        model = session.get(Model, "tiny")
        assert model is not None
        model.files = [{"path": "model.safetensors", "bytes": blob.size, "sha256": blob.sha256}]
