"""What one owner may ask of a process."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.limits import AtOnce, Rates
from service.jobs.errors import TooMany


def test_a_minutes_requests_may_come_at_once_and_then_one_at_a_time() -> None:
    now = [0.0]
    rates = Rates(60, clock=lambda: now[0])
    taken = [rates.take("a") for _ in range(61)]
    assert [found.taken for found in taken if found] == [True] * 60 + [False]
    last = taken[-1]
    assert last is not None
    assert (last.remaining, last.wait) == (0, 1.0)
    assert last.headers() == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "60s",
    }
    other = rates.take("b")
    assert other is not None
    assert other.taken
    now[0] += 1
    assert [found.taken for found in (rates.take("a"), rates.take("a")) if found] == [True, False]


@given(st.integers(1, 1000), st.lists(st.floats(0, 30), max_size=200))
def test_in_any_time_no_more_is_taken_than_a_full_bucket_and_what_flows_in(limit: int, pauses: list[float]) -> None:
    now = [0.0]
    rates, taken = Rates(limit, clock=lambda: now[0]), 0
    for pause in pauses:
        now[0] += pause
        found = rates.take("a")
        assert found is not None
        assert 0 <= found.remaining <= limit
        taken += found.taken
    assert taken <= limit + now[0] * limit / 60 + 1e-6


def test_no_limit_is_no_limit() -> None:
    assert Rates(0).take("a") is None


def test_streams_are_counted_by_owner_and_given_back() -> None:
    streams = AtOnce(2, "streams")
    two = (streams.open("a"), streams.open("a"))
    with two[0], two[1], streams.open("b"), pytest.raises(TooMany, match="2 streams"), streams.open("a"):
        pass
    with streams.open("a"):
        pass
    with pytest.raises(ValueError, match="it broke"), streams.open("a"):
        raise ValueError("it broke")
    with streams.open("a"), streams.open("a"):
        pass
