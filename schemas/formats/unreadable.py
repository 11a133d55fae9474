"""Why a record with a schema's id cannot be read."""

from typing import Final

from schemas.errors import MessageError
from schemas.messages.click import RejectReason

_DETAIL_CHARACTERS: Final = 300


class UnreadableError(MessageError):
    """A record that its schema does not make a message of; `reason` and `detail` as of a rejected click."""

    def __init__(self, reason: RejectReason, detail: str) -> None:
        self.reason = reason
        self.detail = detail[:_DETAIL_CHARACTERS]
        super().__init__(f"{reason}: {self.detail}")
