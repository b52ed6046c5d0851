"""What the command leaves out is what the API takes for it."""

from __future__ import annotations

from service.api.schemas import CreateJob
from service.cli import parser


def test_the_command_and_the_api_have_one_default_method() -> None:
    asked = parser().parse_args(["submit", "train.jsonl", "--model", "tiny"])
    assert asked.method == CreateJob(model="tiny", training_file="file-1").asked().method
