"""Which URLs may be read, and how an s3 address becomes one. Fetches nothing."""

from __future__ import annotations

from functools import lru_cache
from typing import Any
from urllib.parse import quote, urlsplit

from coatnet.config import UserError

SCHEMES = ("http", "https", "s3")
_SIGNED_SECONDS = 3600


class SigningError(Exception):
    """An address could not be signed just now; the credentials' source may answer again."""


def is_url(path: str) -> bool:
    """Say whether a path is a URL of any scheme."""
    return "://" in path


def check_url(url: str) -> None:
    """Refuse what is not on the list: `pipe:` runs a shell elsewhere, `file:` and `ftp:` have no place here.

    Raises:
        UserError: no URL, another scheme, no host or port, or a password or a part of the path that no
            request would carry.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port  # a port is read only when it is asked for
    except ValueError as error:
        raise UserError(f"the URL of a corpus makes no sense: {error}") from None
    if parts.scheme not in SCHEMES or not host or " " in host:
        raise UserError(f"{without_secrets(url)}; allowed: a folder or a URL of {', '.join(SCHEMES)}")
    if "@" in parts.netloc:
        raise UserError(f"{without_secrets(url)}: a name or password in a URL is not sent; sign it instead")
    if "#" in url or (parts.scheme == "s3" and "?" in url):  # another folder would be read
        raise UserError(f"{without_secrets(url)}: what follows # (in s3 addresses ? as well) is not sent")


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
        UserError: boto3 is missing, or its configuration or the bucket's name makes no sense.
        SigningError: the credentials could not be had.
    """
    parts = urlsplit(url)
    if parts.scheme != "s3":
        return url
    client = _s3_client()
    from botocore.exceptions import BotoCoreError, ParamValidationError

    try:
        return client.generate_presigned_url(
            "get_object",
            Params={"Bucket": parts.netloc, "Key": parts.path.lstrip("/")},
            ExpiresIn=_SIGNED_SECONDS,
        )
    except ParamValidationError:
        raise UserError(f"{without_secrets(url)}: {parts.netloc!r} is not the name of a bucket") from None
    except BotoCoreError as error:  # its text may quote a command's output
        raise SigningError(f"its address could not be signed: {type(error).__name__}") from None


def forget_credentials() -> None:
    """Let the next address be signed by credentials that are read anew: they may have been renewed."""
    _s3_client.cache_clear()


@lru_cache(maxsize=1)
def _s3_client() -> Any:
    try:
        import boto3
        from botocore import UNSIGNED
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    except ImportError:
        raise UserError("s3 addresses need boto3; pip install 'coatnet[s3]'") from None
    try:
        session = boto3.session.Session()
        signature = "s3v4" if session.get_credentials() is not None else UNSIGNED
        return session.client("s3", config=Config(signature_version=signature))
    except (BotoCoreError, ValueError) as error:  # a profile, a region or an endpoint that there is not
        raise UserError(f"s3 addresses cannot be signed: {error}") from None
