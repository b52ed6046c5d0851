"""`allo doctor --verify` finds what store and rows do not agree on, and `--mend` puts it right."""

from __future__ import annotations

from service.jobs.data.checking import mend, verify
from service.jobs.data.erasing import Keeping
from service.jobs.data.scrubbing import read
from tests.integration.service.domain import SUPERVISED, Domain
from tests.rot import age, flip_a_bit

KEEPING = Keeping(grace=3600, refused=1e9, retriable=1e9)


def test_of_a_whole_store_everything_is_read_and_nothing_found(domain: Domain) -> None:
    told: list[tuple[int, int]] = []
    found = verify(domain.database, domain.store, KEEPING, lambda read, total: told.append((read, total)))
    assert (found.is_well, found.contents, found.bytes, found.unheld) == (True, 1, domain.data.size, [])
    assert told[-1] == (domain.data.size, domain.data.size)


def test_every_kind_of_disagreement_is_found_and_nothing_is_changed(domain: Domain) -> None:
    rotten, old, new = (domain.store.put_stream([name]) for name in (b"rotten", b"old", b"new"))
    domain.add_file("file-rotten", sha256=rotten.sha256)
    domain.add_file("file-lost", sha256="ab" * 32, owner="other")
    flip_a_bit(domain.store, rotten.sha256)
    age(domain.store, old.sha256, 7200)
    for _ in range(2):
        found = verify(domain.database, domain.store, KEEPING)
        assert list(found.damaged) == [rotten.sha256]
        assert found.missing == {"ab" * 32: ["other"]}
        assert {blob.sha256 for blob in found.unheld} == {old.sha256, new.sha256}
        assert [blob.sha256 for blob in found.erasable] == [old.sha256]
        assert not found.is_well


def test_mending_sets_aside_notes_and_erases_what_is_past_the_grace_and_no_more(domain: Domain) -> None:
    made = domain.made["sft"] = domain.store.put_stream([b"weights"])
    domain.submit(SUPERVISED)
    domain.finish(domain.claim())
    rotten, old, new = (domain.store.put_stream([name]) for name in (b"rotten", b"old", b"new"))
    domain.add_file("file-rotten", sha256=rotten.sha256)
    flip_a_bit(domain.store, rotten.sha256)
    domain.store.delete(made.sha256)
    age(domain.store, old.sha256, 7200)
    did = mend(domain.database, domain.store, KEEPING, verify(domain.database, domain.store, KEEPING))
    assert (did.set_aside, did.noted, did.erased) == (1, 1, 1)
    assert [domain.store.exists(blob.sha256) for blob in (rotten, old, new)] == [False, False, True]
    assert {row.id for row in read(domain.database).damages} == {rotten.sha256, made.sha256}
    again = domain.submit(SUPERVISED).job.id
    assert domain.statuses(again)["sft"] == "ready", "nothing takes over what is gone"


def test_what_somebody_holds_again_by_then_is_not_erased(domain: Domain) -> None:
    old = domain.store.put_stream([b"old"])
    age(domain.store, old.sha256, 7200)
    found = verify(domain.database, domain.store, KEEPING)
    domain.add_file("file-new", sha256=old.sha256)
    assert mend(domain.database, domain.store, KEEPING, found).erased == 0
    assert domain.store.exists(old.sha256)
