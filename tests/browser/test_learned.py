"""What a job learned and what it learned from, walked through in a real browser."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

from playwright.sync_api import expect

from service.jobs.sweeping import sweeps
from service.pages.files import PROBLEMS
from tests.browser.conftest import Site, Visit, assert_accessible, assert_fits, photograph
from tests.integration.service.domain import SUPERVISED
from tests.integration.service.taught import RESPONSE, RIGHT, WHERE, evaluated, taught, told

PROBABILITIES = [0.98, 0.91, 0.84, 0.72, 0.66, 0.55, 0.43, 0.31, 0.22, 0.12, 0.03, 0.97, 0.99, 0.01]
WORDS = ["So", " she", " has", " 5", " +", " 7", " =", " 13", " apples", ",", " not", " 12", ".", "<|end|>"]
WRONG = {
    "problem": "Ann has 5 apples and picks 7. How many has she?",
    "tokens": WORDS,
    "probabilities": PROBABILITIES,
    "ends": [word == "<|end|>" for word in WORDS],
    "length": len(WORDS),
}
MODULES = (
    "input_layernorm",
    "self_attn.q_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
DEEP = {
    "layers": {
        **{
            f"model.layers.{layer}": {
                module: {"weights": 10**6, "forget": 0.01, "improve": abs(layer - 8) * place / 900}
                for place, module in enumerate(MODULES)
            }
            for layer in range(16)
        },
        "outside the layers": WHERE["layers"]["outside the layers"],
    }
}
FINDINGS = {
    "locate": {"masks": {"where.json": json.dumps(DEEP)}},
    "token_rewards": {"scores": {"examples.jsonl": "".join(json.dumps(one) + "\n" for one in (WRONG, RESPONSE) * 4)}},
    "evaluate": evaluated({model: right * 6 for model, right in RIGHT.items()}),
}


def test_what_a_job_learned_is_looked_at_and_paged_through(site: Site, visit: Visit) -> None:
    page = visit(f"/ui/jobs/{taught(site.domain, FINDINGS)}/learned")
    expect(page.get_by_role("img", name="Accuracy on the validation file")).to_be_visible()
    expect(page.locator("#responses .response")).to_have_count(3)
    expect(page.locator("#answers .answer")).to_have_count(10)
    expect(page.locator("#responses .gone").nth(1)).to_have_attribute("title", "P 0.430, weight 1.00")
    assert_accessible(page)
    assert_fits(page)
    photograph(page, "learned", "h2:has-text('Where the mask lies')", 900)
    page.get_by_role("navigation", name="Pages of answers").get_by_role("link", name="After").click()
    expect(page.locator("#answers .answer")).to_have_count(8)
    page.get_by_label("Which").select_option("lost")
    page.get_by_role("button", name="Show").click()
    expect(page.locator("#answers .answer")).to_have_count(6)
    page.get_by_role("navigation", name="Pages of responses").get_by_role("link", name="After").click()
    expect(page.locator("#responses h3").first).to_contain_text("4.")
    page.get_by_role("link", name="The mask of forget").click()
    expect(page.get_by_role("img", name="that the mask of stage forget takes")).to_be_visible()
    page.locator("#masks ~ details summary").click()
    assert_accessible(page)


def test_a_file_is_uploaded_looked_into_and_deleted_by_hand(site: Site, visit: Visit, tmp_path: Path) -> None:
    site.domain.add_file("file-short-lived", filename="short-lived.jsonl")
    bad = tmp_path / "bad <b>.jsonl"
    bad.write_text('{"problem": "1+1?", "solution": "2"}\n' + '{"problem": "", "solution": "2"}\n' * (PROBLEMS + 1))
    page = visit("/ui/files")
    assert_fits(page)
    page.get_by_label("A file to train").set_input_files(bad)
    page.get_by_role("button", name="Upload").click()
    expect(page.get_by_role("heading", name="bad <b>.jsonl")).to_be_visible()
    expect(page.locator("#problems tbody")).to_contain_text("a text that is not empty")
    assert_accessible(page)
    assert_fits(page)
    page.get_by_role("link", name="After").click()
    expect(page.locator("#problems tbody tr")).to_have_count(1)
    page.get_by_role("link", name="Before").click()
    expect(page.locator("#problems tbody tr")).to_have_count(PROBLEMS)
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Delete bad <b>.jsonl").click()
    expect(page.get_by_role("heading", name="Data")).to_be_visible()
    page.get_by_role("button", name="Delete short-lived.jsonl").click()
    expect(page.get_by_role("link", name="short-lived.jsonl")).to_have_count(0)
    assert "bad <b>" not in page.locator("main").inner_text()
    assert_accessible(page)


def test_jobs_are_chosen_and_compared_with_their_curves_over_one_another(site: Site, visit: Visit) -> None:
    names = ("slow", "fast", "careful")
    for place, name in enumerate(names):  # of a seed each: what comes of one is not reused for another
        stages = {"improve": {"learning_rate": 10.0**-place}}
        right = {**RIGHT, "improve": ("1101", "1111", "0111")[place]}
        findings = {**FINDINGS, "evaluate": evaluated({model: digits * 6 for model, digits in right.items()})}
        job = taught(site.domain, findings, stages=stages, suffix=name, seed=place + 7)
        figures = [
            {"stage": "improve", "step": step, "loss": 0.7 * (0.9 - place / 9) ** step, "reward_margin": step / 9}
            for step in range(1, 41)
        ]
        told(site.domain, job, *figures)
    page = visit("/ui/jobs")
    expect(page.get_by_role("button", name="Compare")).to_be_hidden()
    for name in names:
        page.get_by_role("checkbox", name=f"Compare {name}").check()
    with page.expect_response("**/ui/jobs*"):
        page.get_by_label("Search").fill("a")
    expect(page.get_by_role("checkbox", checked=True)).to_have_count(3)
    assert_accessible(page)
    assert_fits(page)
    photograph(page, "jobs", height=600)
    page.get_by_role("button", name="Compare").click()
    plot = page.locator("#plot")
    expect(plot).to_have_attribute(
        "aria-label", re.compile("loss of stage improve: A careful .* C slow from 0.63 to 0.01")
    )
    page.get_by_label("Figure", exact=True).select_option("reward_margin")
    expect(plot).to_have_attribute("aria-label", re.compile("reward margin of stage improve: A careful from 0.1111"))
    page.get_by_label("Stage", exact=True).select_option("sft")
    expect(page.locator("#no-curves")).to_be_visible()
    page.get_by_label("Stage", exact=True).select_option("improve")
    expect(page.locator("#plot canvas")).to_be_visible()
    assert_accessible(page)
    assert_fits(page)
    photograph(page, "compare", "h2:has-text('Settings that differ')")
    page.get_by_role("button", name="Compare", exact=True).last.click()
    expect(page.locator("#paired")).to_contain_text("On 24 cases that both were put to.")
    assert_accessible(page)
    page.get_by_text("Jobs to choose from").click()
    page.get_by_label("Search").fill("careful")
    offered = page.locator("#offered")
    expect(offered.locator("label", has_text="fast")).to_have_count(1)  # chosen ones stay on offer
    expect(offered.get_by_role("checkbox", checked=True)).to_have_count(3)


def test_the_points_of_a_sweep_are_reached_from_one_of_its_jobs_and_compared(site: Site, visit: Visit) -> None:
    domain, values = site.domain, {"sft.learning_rate": [1e-5, 1e-4, 1e-3]}
    sweep = sweeps.submit(domain.database, domain.store, replace(SUPERVISED, seed=81), values, domain.sender(), ())
    domain.run_all()
    page = visit(f"/ui/jobs/{sweep.jobs[0].id}")
    page.get_by_role("link", name="Compare the sweep's points").click()
    results = page.get_by_role("region", name="Results")
    expect(results.get_by_role("row").first).to_have_text("ABC")
    expect(results.get_by_role("link").first).to_have_text("sft.learning_rate 1e-05")
    assert_accessible(page)
    assert_fits(page)
    page.get_by_text("to choose from").click()
    page.get_by_role("checkbox", name="sft.learning_rate 0.0001").uncheck()
    page.get_by_role("button", name="Compare", exact=True).first.click()
    expect(results.get_by_role("row").first).to_have_text("AB")
    results.get_by_role("link", name="sft.learning_rate 0.001").click()
    expect(page.get_by_role("heading", level=1)).to_have_text(sweep.jobs[2].id)
