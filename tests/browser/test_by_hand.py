"""A whole job by hand: from the key to the answer of the aligned model, in a browser before a real `allo up`."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Browse, photograph
from tests.e2e.conftest import Service, start, stop
from tests.tiny import save_tiny
from tests.unit.engine.pipeline import write_problems
from tests.unit.engine.stages.test_stages import SETTINGS

WATCH = """talks => {
  const watched = new MutationObserver(changes => {
    for (const { target, addedNodes } of changes) {
      if (target.matches(".said")) target.dataset.pieces = Number(target.dataset.pieces ?? 0) + addedNodes.length;
    }
  });
  watched.observe(talks, {childList: true, subtree: true});
}"""
"""Counts the pieces that an answer grows by."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """With a folder of models that may be added; nothing else is in it."""
    folder = tmp_path_factory.mktemp("by-hand")
    save_tiny(folder / "models" / "tiny", merges=[("q", "u")])  # GGUF has no place for a BPE that merges nothing
    running = start(folder / "data", ALLO_MODELS_DIR=str(folder / "models"))
    yield running
    assert stop(running) == []


def put(page: Page, stage: str, name: str, value: Any) -> None:
    """Unfolds whatever the setting is folded into, and types."""
    field = page.locator(f'[id="stages.{stage}.{name}"]')
    for fold in field.locator("xpath=ancestor::details").all():
        if fold.get_attribute("open") is None:
            fold.locator("> summary").click()
    field.fill(str(value))


def takes(page: Page, what: str) -> str:
    """What the estimate says."""
    return page.locator("#estimate dt", has_text=what).locator("xpath=following-sibling::dd[1]").inner_text()


def test_a_job_is_brought_from_a_file_to_the_aligned_models_answer(
    service: Service, browse: Browse, tmp_path: Path
) -> None:
    page = browse(service.url, "/")
    page.get_by_label("API key").fill(service.key)
    page.keyboard.press("Enter")

    page.get_by_role("link", name="Models").click()
    page.get_by_text("Add a model").click()
    page.get_by_role("button", name="Add", exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_have_text("tiny")

    page.get_by_role("link", name="Data").click()
    page.get_by_label("A file to train").set_input_files(write_problems(tmp_path / "problems") / "data.jsonl")
    page.get_by_role("button", name="Upload").click()
    expect(page.locator("#insight")).to_contain_text("The answer is red")
    page.get_by_role("button", name="Look").click()
    expect(page.locator("#insight")).to_contain_text("The answer is red")

    page.get_by_role("link", name="New job with it").click()
    page.get_by_label("allo", exact=True).check()
    page.get_by_label("Held-out file").select_option(index=1)
    expect(page.get_by_role("region", name="Stages").get_by_role("row").filter(has_text="improve")).to_contain_text(
        "1 ×"
    )
    before = takes(page, "Tokens")
    for stage, settings in SETTINGS.items():
        for name, value in settings.items():
            put(page, stage, name, value)
    expect(page.locator("#estimate dl")).not_to_contain_text(before)
    photograph(page, "new-job", height=640)
    page.get_by_role("button", name="Submit the job").click()

    page.wait_for_url("**/ui/jobs/ftjob-*")
    page.evaluate("document.body.dataset.same = 'page'")
    expect(page.locator("#live .status").first).to_have_text("succeeded")
    expect(page.locator("#events li").first).to_contain_text("The job succeeded")
    expect(page.locator("body")).to_have_attribute("data-same", "page")
    expect(page.get_by_label("Loss", exact=False).first).to_be_visible()
    job = page.url

    with page.expect_download() as taken:
        page.get_by_role("link", name="safetensors", exact=True).click()
    assert_answers(taken.value.path(), tmp_path / "model")
    page.get_by_role("link", name="as GGUF").click()
    assert made(page, "GGUF, 16 bits", ".gguf").read_bytes().startswith(b"GGUF")
    assert b'"r": 16' in made(page, "PEFT adapter, rank 16", "adapter_config.json").read_bytes()

    page.goto(job)
    page.get_by_role("link", name="What was learned").click()
    expect(page.get_by_role("img", name="Accuracy on the validation file")).to_be_visible()
    expect(page.get_by_role("img", name="that the mask of stage")).to_be_visible()
    expect(page.locator("#responses .response").first).to_be_visible()

    page.goto(job)
    page.get_by_role("link", name="Try its models").click()
    for between in (2, 3, 4):
        page.get_by_label(f"Model {between}").fill("")
    page.get_by_label("Prompt").fill("sky")
    page.get_by_label("Temperature").fill("0")
    page.get_by_label("Tokens at most").fill("24")
    page.locator("#talks").evaluate(WATCH)
    page.get_by_role("button", name="Ask").click()
    expect(page.locator("#state")).to_have_text("2 of 2 answered.")
    answers = page.locator("#talks .said")
    expect(answers).to_have_count(2)
    expect(answers.last).to_contain_text("The answer is")
    for answer in answers.all():
        assert int(answer.get_attribute("data-pieces") or 0) > 1


def made(page: Page, form: str, file: str) -> Path:
    """A file of another form of the model, which is made while the page waits for it."""
    page.get_by_label("Another form").select_option(form)
    page.get_by_role("button", name="Make it").click()
    with page.expect_download() as taken:
        page.locator("#forms").get_by_role("link", name=file).click()
    return Path(taken.value.path())


def assert_answers(archive: Path, folder: Path) -> None:
    """What was taken away is a whole model that transformers loads and that says something."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with tarfile.open(archive) as whole:
        whole.extractall(folder, filter="data")
    ids = AutoTokenizer.from_pretrained(folder)("sky", return_tensors="pt")["input_ids"]
    made = AutoModelForCausalLM.from_pretrained(folder).generate(ids, max_new_tokens=4, do_sample=False)
    assert made.shape[1] > ids.shape[1]
