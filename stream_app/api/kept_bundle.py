"""The bundle that explanations rank with: kept open, because to open it takes longer than to explain."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from schemas.bundle.signature import TrustedKeys
from schemas.messages.announcement import ModelAnnouncement
from stream_app.settings import WorkerSettings
from stream_app.tools.announced import Bundles, ModelError
from stream_app.tools.explain import Opened

MOST_KEPT_BYTES: Final = 512 * 1024**2
"""A larger one is opened for each explanation: the API holds nothing else of that size."""


class KeptBundle:
    """That of the model that serves; another one takes its place when it is announced and asked for.

    For one caller at a time. `worker` says where bundles may lie and how much they may take, `trusted` are the keys of
    which one must have signed them, `serving` says what is announced.
    """

    def __init__(
        self,
        worker: WorkerSettings,
        serving: Callable[[], ModelAnnouncement | None],
        trusted: TrustedKeys | None,
    ) -> None:
        self._worker, self._serving, self._trusted = worker, serving, trusted
        self._kept: tuple[ModelAnnouncement, Opened] | None = None

    def opened(self) -> Opened:
        """What is announced now. Raises ModelError."""
        announced = self._serving()
        if announced is None:
            raise ModelError("no model is announced")
        if self._kept is not None and self._kept[0] == announced:
            return self._kept[1]
        self._kept = None  # first: there is room for one
        with TemporaryDirectory(prefix="nextclick-bundles-") as cache:
            opened = Opened.of(Bundles(announced, self._worker, Path(cache), self._trusted))
        if opened.size <= MOST_KEPT_BYTES:
            self._kept = announced, opened
        return opened
