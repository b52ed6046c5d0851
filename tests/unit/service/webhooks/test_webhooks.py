"""What a delivery is signed with, and where it may go."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.jobs.access.webhooks import WAITS
from service.jobs.errors import InvalidRequest
from service.webhooks.addresses import check_url
from service.webhooks.signing import signature


def test_the_signature_is_that_of_the_specifications_own_example() -> None:
    found = signature(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        1614265330,
        b'{"test": 2432232314}',
    )
    assert found == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "10.1.2.3",
        "169.254.169.254",
        "192.168.0.1",
        "100.64.0.1",
        "0.0.0.1",
        "224.0.0.1",
        "2130706433",
        "0x7f.1",
        "[::1]",
        "[fe80::1]",
        "[fc00::1]",
        "[::ffff:127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "192.0.0.192",
        "[::127.0.0.1]",
        "[::ffff:0:127.0.0.1]",
        "[64:ff9b:1::7f00:1]",
        "[fec0::1]",
    ],
)
def test_owasp_api7_a_private_address_is_refused_however_it_is_written(host: str) -> None:
    with pytest.raises(InvalidRequest, match=r"private network|has no address"):
        check_url(f"https://{host}/hook", private=False)


@pytest.mark.parametrize(
    "url",
    [
        "https://93.184.215.14/hook",
        "https://[2606:4700::6810:84e5]:8443/a?b=c",
        "https://[::ffff:93.184.215.14]/",
        "https://[64:ff9b::5db8:d70e]/",
    ],
)
def test_a_public_address_is_taken(url: str) -> None:
    check_url(url, private=False)


@pytest.mark.parametrize(
    "url",
    [
        "http://93.184.215.14/",
        "ftp://93.184.215.14/",
        "file:///etc/passwd",
        "https://",
        "https:///x",
        "https://user:secret@93.184.215.14/",
        "https://93.184.215.14/#part",
        "https://93.184.215.14:99999/",
        "https://[::1",
        "https://93.184.215.14/a b",
        "https://93.184.215.14/\r\nx: y",
        "hook",
        "",
    ],
)
def test_what_is_no_https_url_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check_url(url, private=False)
    assert refused.value.param == "url"


def test_an_operator_may_allow_private_addresses_without_tls() -> None:
    check_url("http://127.0.0.1:9/hook", private=True)


@given(st.text())
def test_any_text_is_a_url_or_an_error_that_says_so(text: str) -> None:
    with pytest.raises(InvalidRequest):
        check_url(f"gopher:{text}", private=True)


def test_the_last_attempt_comes_a_day_after_the_first() -> None:
    assert 24 * 3600 <= sum(WAITS) <= 30 * 3600
