"""Requests that wait for as long as a busy machine takes: httpx's own give up after five seconds."""

from functools import partial

import httpx

from tests.waiting import PATIENCE

get = partial(httpx.get, timeout=PATIENCE)
post = partial(httpx.post, timeout=PATIENCE)
delete = partial(httpx.delete, timeout=PATIENCE)
