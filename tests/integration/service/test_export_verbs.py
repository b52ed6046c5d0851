"""Models in other forms, as the database knows them: asked for once, made once, gone with their model."""

from __future__ import annotations

import pytest

from service.jobs.errors import InvalidRequest, NotFound, TooMany
from service.jobs.registry import exports
from service.jobs.registry.models import delete_model
from service.jobs.repository.holdings import holders
from service.jobs.tables import Model
from tests.integration.service.domain import ALLO, OWNER, Domain

MADE = {"path": "model.gguf", "bytes": 3, "sha256": "a" * 64}


def ask(domain: Domain, type: str = "f16", owner: str = OWNER) -> exports.Export:
    return exports.ask(domain.database, owner, "tiny", "gguf", {"type": type})


def test_what_is_asked_for_again_is_the_same_until_it_is_ready(domain: Domain) -> None:
    first = ask(domain)
    assert first.status == "queued"
    assert ask(domain).id == first.id
    begun = exports.begin(domain.database)
    assert begun is not None
    assert (begun.id, ask(domain).status) == (first.id, "running")
    assert ask(domain, "q8_0").id != first.id
    exports.finish(domain.database, first.id, [MADE], {"logits": {"max_abs": 0.5}})
    assert (ask(domain).status, ask(domain).files) == ("ready", [MADE])
    assert [row.format for row in exports.of_model(domain.database, OWNER, "tiny")] == ["gguf", "gguf"]


def test_what_somebody_who_is_gone_began_is_begun_again(domain: Domain) -> None:
    first, second = ask(domain), ask(domain, "q8_0")
    for _ in range(2):
        begun = exports.begin(domain.database)
        assert begun is not None
        assert begun.id in (first.id, second.id)
    exports.finish(domain.database, first.id, [], {})
    exports.finish(domain.database, second.id, [], {})
    assert exports.begin(domain.database) is None


def test_an_accident_is_tried_again_and_a_refusal_stays(domain: Domain) -> None:
    row = ask(domain)
    exports.fail(domain.database, row.id, "export_failed", "It crashed.")
    assert ask(domain).status == "queued"
    exports.fail(domain.database, row.id, exports.REFUSED, "GGUF has no place for it.")
    again = ask(domain)
    assert (again.status, again.error) == ("failed", {"code": "refused", "message": "GGUF has no place for it."})


def test_an_owner_has_a_few_under_way_and_each_its_own(domain: Domain) -> None:
    for number in range(exports.AT_ONCE):
        exports.ask(domain.database, OWNER, "tiny", "gguf", {"type": str(number)})
    with pytest.raises(TooMany, match="wait for one"):
        ask(domain)
    assert ask(domain, owner="another").id not in {row.id for row in exports.of_model(domain.database, OWNER, "tiny")}


def test_what_has_no_such_form_or_is_another_owners_is_refused(domain: Domain) -> None:
    job = domain.submit(ALLO).job.id
    domain.run_all()
    name = domain.view(job).job.fine_tuned_model
    assert name is not None
    with pytest.raises(NotFound):
        exports.ask(domain.database, "stranger", name, "gguf", {})
    with pytest.raises(InvalidRequest, match="no base"):
        exports.ask(domain.database, OWNER, "tiny", "peft", {"rank": 4})
    with pytest.raises(InvalidRequest, match="no sparse delta"):
        exports.delta_of(domain.database, OWNER, "tiny")
    assert exports.ask(domain.database, OWNER, name, "peft", {"rank": 4}).inputs["base"] != []


def test_what_was_made_is_held_and_goes_with_its_model(domain: Domain) -> None:
    row = ask(domain)
    exports.finish(domain.database, row.id, [MADE], {})
    with domain.database.snapshot() as session:
        assert (OWNER, MADE["sha256"]) in list(holders(session, 0))
    delete_model(domain.database, OWNER, "tiny", admin=True)
    with domain.database.transaction() as session:
        session.add(Model(id="tiny", owner=None, created_at=0, files=[]))
    assert exports.of_model(domain.database, OWNER, "tiny") == []
