"""A few of many scored responses, token by token as people read them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from allo_engine.data.prompts import Encoder
from allo_engine.data.records import ScoredGroup, ShownResponse

SHOWN, SHOWN_TOKENS, SHOWN_CHARACTERS = 24, 400, 2000
"""Responses that are shown, and what is shown of one and of its problem at most."""


def examples(scored: Sequence[tuple[str, ScoredGroup]], encoder: Encoder) -> Iterator[ShownResponse]:
    """Up to SHOWN responses, evenly spread over all, each with its problem's text."""
    places = [(problem, group, place) for problem, group in scored for place in range(len(group.responses))]
    for problem, group, place in places[:: max(1, -(-len(places) // SHOWN))]:
        ids, kept = group.responses[place], group.responses[place][:SHOWN_TOKENS]
        yield ShownResponse(
            problem=problem[:SHOWN_CHARACTERS],
            tokens=encoder.pieces(kept),
            probabilities=[round(value, 4) for value in group.probabilities[place][:SHOWN_TOKENS]],
            ends=[token in encoder.ends for token in kept],
            length=len(ids),
        )
