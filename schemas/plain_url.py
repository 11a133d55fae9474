"""A setting that is shown, logged and announced as it is: a folder, or a URL without a login."""

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator

from schemas.masking import masked


def _holds_no_login(url: str) -> str:
    try:
        has_login = "@" in urlsplit(url).netloc
    except ValueError:  # brackets in a password
        has_login = "@" in url
    if has_login or masked(url) != url:
        raise ValueError(
            "holds a login, and would be shown, logged and announced with it: leave it out, and give it to the "
            "store's client by the client's own variables or files"
        )
    return url


PlainUrl = Annotated[str, AfterValidator(_holds_no_login)]
