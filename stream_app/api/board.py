"""The announced models and the newest scores, as their topics have them now. Written by one thread, read by others."""

from collections.abc import Callable
from typing import Final

from schemas.errors import AnnouncementError, MessageError
from schemas.messages.announcement import ModelAnnouncement, decode_announcement
from schemas.messages.score import Score, decode_score

MOST_ANNOUNCEMENTS: Final = 1000
_KEPT_MS: Final = 86_400_000
"""Of scores: windows that began so long before the newest one are left to `stream-app scores`."""


class Board:
    """What `/v1/models` and `/v1/scores` tell."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._announcements: list[ModelAnnouncement] = []
        self._scores: dict[bytes, Score] = {}
        self._newest_window = 0

    def announce(self, key: bytes | None, value: bytes | None) -> None:
        """A record of the models topic; one that no worker would take is told and passed over."""
        try:
            announcement = decode_announcement(value, key)
        except AnnouncementError as error:
            self._warn(str(error))
            return
        self._announcements = [*self._announcements, announcement][-MOST_ANNOUNCEMENTS:]

    def score(self, key: bytes | None, value: bytes | None, *, now_ms: int) -> None:
        """A record of the scores topic."""
        if value is None or key is None:
            self._scores.pop(key or b"", None)
            return
        try:
            score = decode_score(value)
        except MessageError as error:
            self._warn(str(error))
            return
        if not score.has_begun(now_ms):
            self._warn(f"a score of a window that begins in the future, at {score.window_start}")
            return
        if score.window_start <= self._newest_window - _KEPT_MS:
            return
        self._scores[key] = score
        if score.window_start > self._newest_window:
            self._newest_window = score.window_start
            oldest = score.window_start - _KEPT_MS
            self._scores = {key: kept for key, kept in self._scores.items() if kept.window_start > oldest}

    def announcements(self) -> list[ModelAnnouncement]:
        """The newest ones, in their order."""
        return self._announcements

    def serving(self, alias: str) -> ModelAnnouncement | None:
        """The model that an alias means now."""
        return next((one for one in reversed(self._announcements) if one.alias == alias), None)

    def scores(self) -> list[Score]:
        """Those of the last day's windows."""
        return list(self._scores.values())
