"""Logins inside URLs, masked in every text that leaves the process.

Settings that are secrets are of pydantic's SecretStr. URLs are not: those of a registry and of its bundles are
announced and logged, and libraries repeat them in their errors.
"""

import re
import traceback
from typing import Final

MASK: Final = "********"

# The first half is for a password with a slash in it, which no program can read and people write all the same.
_LOGIN: Final = re.compile(r"(?<=://)(?:[^\s/?#@:'\"<>]{0,512}:(?!\d{1,5}/)[^\s'\"<>]{0,512}|[^\s/?#'\"<>]{0,512})@")
_GRANTS: Final = re.compile(
    r"([?&][\w.-]{0,64}(?:password|passwd|secret|token|signature|credential|access_?key|api_?key|\bsig)=)[^\s&#'\"<>]+",
    re.IGNORECASE,
)


def masked(text: str) -> str:
    """The text with its URLs' logins masked, and their parameters that grant access."""
    if "://" not in text:
        return text
    return _GRANTS.sub(rf"\1{MASK}", _LOGIN.sub(f"{MASK}@", text))


class MaskedError(Exception):
    """Base of errors whose text may hold what a library said, and with it a URL."""

    def __str__(self) -> str:
        return masked(super().__str__())


def masked_traceback() -> str:
    """That of the exception which is being handled, as Python prints it."""
    return masked(traceback.format_exc())
