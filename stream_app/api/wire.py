"""Requests as they come over the wire: what one may say beside its body."""

from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MOST_BYTES: Final = 65_536


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's, which itself takes an address and headers of any length, from whoever reaches the port."""

    _beside = 0

    def data_received(self, data: bytes) -> None:
        """Close the connection where address, headers and trailers of a request are too long together."""
        self._beside += len(data)
        super().data_received(data)
        if self._beside > MOST_BYTES and not self.transport.is_closing():
            self.send_400_response("Address and headers are too long.")

    def on_message_begin(self) -> None:
        """Count anew, without what came in one piece with the beginning."""
        self._beside = 0
        super().on_message_begin()

    def on_body(self, body: bytes) -> None:
        """Bodies have a limit of their own (clicks.max_bytes)."""
        self._beside -= len(body)
        super().on_body(body)
