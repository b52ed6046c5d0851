"""The broker's URL: what is refused, without a word of what is secret in it."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from service.brokers import for_celery, for_redis
from service.settings import Settings


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("amqp://allo:secret@host", "must begin with redis://, rediss:// (TLS) or redis+socket://"),
        ("redis://:se/cret@host:6379/0", "special characters of a password"),
        ("rediss://:secret@host?ssl_ca_cert=/ca.pem", "has the option ssl_ca_cert; there are ssl_ca_certs"),
        ("rediss://:secret@host?ssl_cert_reqs=CERT_NONE", "ssl_cert_reqs of required, optional, none"),
        ("redis://:secret@host?ssl_ca_certs=/ca.pem", "options of TLS, and is no rediss:// URL"),
    ],
)
def test_a_url_that_not_both_clients_read_alike_is_refused(url: str, words: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Settings(broker_url=url)
    assert words in str(refused.value)
    assert "cret" not in str(refused.value)


def test_settings_do_not_tell_urls_with_passwords() -> None:
    settings = Settings(broker_url="redis://:secret@host", database_url="postgresql://allo:secret@host/db")
    assert "secret" not in repr(settings)


def test_celery_is_told_to_check_certificates_where_the_url_does_not_say() -> None:
    assert for_celery("rediss://host/0") == "rediss://host/0?ssl_cert_reqs=required"
    assert for_celery("rediss://host/0?ssl_ca_certs=/ca.pem") == (
        "rediss://host/0?ssl_ca_certs=/ca.pem&ssl_cert_reqs=required"
    )
    for same in ("rediss://host/0?ssl_cert_reqs=none", "redis://host/0", "redis+socket:///a/socket"):
        assert for_celery(same) == same
    assert for_redis("redis+socket:///a/socket") == "unix:///a/socket"
