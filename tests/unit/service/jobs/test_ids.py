"""Ids."""

from __future__ import annotations

from service.jobs.ids import new_id


def test_ids_sort_by_the_time_at_which_they_were_made_and_never_collide() -> None:
    made = [new_id("job") for _ in range(1000)]
    assert len(set(made)) == 1000
    assert made == sorted(made)
    assert all(len(name) == 30 for name in made)
