"""Which URLs name a corpus, and what becomes of one for a request or a message."""

from __future__ import annotations

import pytest

from coatnet.config import UserError
from data_pipeline.remote.address import check_url, join, to_http, without_secrets


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://host/x", "^ftp://host/x; allowed: a folder or a URL of http, https, s3$"),
        ("https:///x", "allowed: a folder or a URL"),
        ("https://:80/x", "allowed: a folder or a URL"),
        ("https://my host/x", "allowed: a folder or a URL"),
        ("https://host:port/x", "makes no sense: Port could not be cast"),
        ("https://host:99999/x", "makes no sense: Port out of range"),
        ("https://[::1/x", "makes no sense: Invalid IPv6 URL"),
        ("https://host/a#1/x", "^https://host/a: what follows # .* is not sent"),
        ("s3://bucket/a?key=2", r"^s3://bucket/a: what follows # \(in s3 addresses \? as well\) is not sent"),
        ("https://me:secret@host/x?key=2", "^https://host/x: a name or password in a URL is not sent"),
    ],
)
def test_a_url_that_could_only_be_asked_for_in_vain_is_refused_at_once(url: str, message: str) -> None:
    """A request would be tried again for nine minutes."""
    with pytest.raises(UserError, match=message) as refused:
        check_url(url)
    assert "secret" not in str(refused.value) and "key" not in str(refused.value)


@pytest.mark.parametrize("url", ["http://127.0.0.1:8000", "https://[::1]:80/x?key=2", "s3://bucket/a/b"])
def test_what_can_be_asked_for_is_taken(url: str) -> None:
    check_url(url)


def test_a_signature_stays_behind_a_files_name_and_comes_into_no_message() -> None:
    address = join("https://me:secret@host:80/a/?key=2#here", "b c.tar")
    assert address == "https://me:secret@host:80/a/b%20c.tar?key=2#here"
    assert without_secrets(address) == "https://host:80/a/b%20c.tar"
    assert to_http(address) == address
