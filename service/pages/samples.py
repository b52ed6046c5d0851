"""A request for a job as people send it from elsewhere: with curl, with OpenAI's client, and as a file."""

from __future__ import annotations

import json
import pprint
import shlex
from collections.abc import Mapping
from typing import Any

OPENAIS = ("model", "training_file", "validation_file", "method", "suffix", "seed", "metadata", "integrations")
"""What the client's `create` takes by name; the rest goes through `extra_body`."""


def samples(body: Mapping[str, Any], address: str) -> dict[str, str]:
    """By what each is for. `address` is the service's."""
    return {"curl": _curl(body, address), "Python": _python(body, address), "YAML": _yaml(body)}


def _curl(body: Mapping[str, Any], address: str) -> str:
    data = shlex.quote(json.dumps(body, indent=2, ensure_ascii=False))
    head = f'curl {shlex.quote(address)}/v1/fine_tuning/jobs -H "Authorization: Bearer $ALLO_API_KEY"'
    return f"{head} \\\n  -H 'Content-Type: application/json' -d {data}"


def _python(body: Mapping[str, Any], address: str) -> str:
    extra = {name: value for name, value in body.items() if name not in OPENAIS}
    named = {name: body[name] for name in OPENAIS if name in body} | ({"extra_body": extra} if extra else {})
    told = "".join(f"    {name}={_indented(value)},\n" for name, value in named.items())
    return (
        "import os\n\nfrom openai import OpenAI\n\n"
        f'client = OpenAI(base_url={f"{address}/v1"!r}, api_key=os.environ["ALLO_API_KEY"])\n'
        f"job = client.fine_tuning.jobs.create(\n{told})\nprint(job.id)"
    )


def _indented(value: Any) -> str:
    return pprint.pformat(value, width=88, sort_dicts=False).replace("\n", "\n    ")


def _yaml(body: Mapping[str, Any]) -> str:
    import yaml  # here: the API starts without it

    return str(yaml.safe_dump(dict(body), sort_keys=False, allow_unicode=True)).strip()
