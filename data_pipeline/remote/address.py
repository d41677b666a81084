"""Which URLs may be read, and how an s3 address becomes one. Fetches nothing."""

from __future__ import annotations

from functools import lru_cache
from typing import Any
from urllib.parse import quote, urlsplit

from coatnet.config import UserError

SCHEMES = ("http", "https", "s3")
_SIGNED_SECONDS = 3600


def is_url(path: str) -> bool:
    """Say whether a path is a URL of any scheme."""
    return "://" in path


def check_url(url: str) -> None:
    """Refuse what is not on the list: `pipe:` runs a shell elsewhere, `file:` and `ftp:` have no place here.

    Raises:
        UserError: no URL, another scheme, no host, or a password, which no request would carry.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise UserError(f"the URL of a corpus makes no sense: {error}") from None
    if parts.scheme not in SCHEMES or not parts.netloc:
        raise UserError(f"{without_secrets(url)}: allowed are a folder or a URL of {', '.join(SCHEMES)}")
    if "@" in parts.netloc:
        raise UserError(f"{without_secrets(url)}: a name or password in a URL is not sent; sign it instead")


def join(base: str, name: str) -> str:
    """Return the URL of a file in a folder; a query, such as a signature, stays."""
    head, question, query = base.partition("?")
    return f"{head.rstrip('/')}/{quote(name)}{question}{query}"


def without_secrets(url: str) -> str:
    """Return a URL for messages, without its query, which may be a signature, and without a password."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def to_http(url: str) -> str:
    """Return the URL to ask: an s3 address is signed anew each time, so that no signature expires.

    Raises:
        UserError: boto3 is missing.
    """
    parts = urlsplit(url)
    if parts.scheme != "s3":
        return url
    client = _s3_client()
    return client.generate_presigned_url(
        "get_object",
        Params={"Bucket": parts.netloc, "Key": parts.path.lstrip("/")},
        ExpiresIn=_SIGNED_SECONDS,
    )


@lru_cache(maxsize=1)
def _s3_client() -> Any:
    try:
        import boto3
        from botocore import UNSIGNED
        from botocore.config import Config
    except ImportError:
        raise UserError("s3 addresses need boto3; pip install 'coatnet[s3]'") from None
    session = boto3.session.Session()
    signature = "s3v4" if session.get_credentials() is not None else UNSIGNED
    return session.client("s3", config=Config(signature_version=signature))
