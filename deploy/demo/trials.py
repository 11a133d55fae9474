"""Models that are tried on visitors in the demo: a canary that the guard promotes, a bad one that it rolls back."""

import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from deploy.demo.bad_model import publish_shuffled
from deploy.demo.processes import CommandFailedError, Commands
from deploy.demo.reader import RankingsReader
from schemas.messages.announcement import CHAMPION, ModelAnnouncement
from schemas.messages.ranking import Ranking

R = TypeVar("R")
CHALLENGER: Final = "challenger"
"""The alias under which the trainer announces its models, each of which is tried before it serves everybody."""


class Trials:
    """Goes on with the story by what was announced and ranked meanwhile; commands run beside the clicks.

    Attributes:
        canary: of the model that was tried and promoted: version, share, why, and how good both were. None so far.
        rolled_back: of the bad model: version, why, and the seconds that it served. None so far.
        waits_for: what comes next, for people; None once the story is told.
    """

    def __init__(self, commands: Commands, registry: Path, share: float, event: Callable[[str], None]) -> None:
        """`share` is the canary's, in percent of the sessions."""
        self.canary: dict[str, Any] | None = None
        self.rolled_back: dict[str, Any] | None = None
        self.waits_for: str | None = "a challenger"
        self._commands, self._registry, self._share, self._event = commands, registry, share, event
        self._reader: RankingsReader | None = None
        self._story = self._tell()
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="trials")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def update(self, reader: RankingsReader) -> None:
        """Go on as far as possible. Raises what a command failed with."""
        self._reader = reader
        next(self._story, None)

    # -- the story: each `yield` waits for the next update ------------------------------------------------------------

    def _tell(self) -> Iterator[None]:
        yield from self._try_a_canary()
        yield from self._announce_a_bad_model()
        self.waits_for = None

    def _try_a_canary(self) -> Iterator[None]:
        while (tried := self._newest(CHALLENGER)) is None or tried.version == self._champion.version:
            yield
        # Its next model would take the place of this one, of whom nothing would be known then.
        if code := (yield from self._done(partial(self._commands.stop, "trainer run"))):
            raise CommandFailedError(f"trainer run ended with exit code {code}; see its log in {self._commands.logs}")
        self._event("the trainer has done its part, and is stopped")
        tried = self._newest(CHALLENGER) or tried  # it may have been ready with the next one
        share = self._share
        yield from self._beside("trainer", "split", f"{CHAMPION}={100 - share:g}", f"{CHALLENGER}={share:g}")
        self._event(f"canary: {share:g} % of the sessions get {tried.version}, the guard compares")
        self.waits_for = "the guard to promote the canary"
        while (champion := self._champion).evidence is None:
            yield
        evidence = champion.evidence or {}
        self.canary = {
            "version": champion.version,
            "share": share,
            "why": champion.why,
            "champion": evidence["champion"],
            "challenger": evidence["compared_with"],
        }
        self._event(champion.why)
        self.waits_for = "the end of the split"
        while self._last.variant is not None:
            yield
        self._event(f"the split has ended: {champion.version} ranks for everybody")

    def _announce_a_bad_model(self) -> Iterator[None]:
        good = self._champion.version
        bad = yield from self._done(partial(publish_shuffled, self._registry, good))
        yield from self._beside("trainer", "promote", bad)
        began = time.monotonic()
        self._event(f"a bad model that passed every check is announced: {bad}")
        self.waits_for = "the guard to roll the bad model back"
        while not self._champion.why.startswith(f"rolled back from {bad}"):
            yield
        self._event(self._champion.why)
        while self._last.model_version == bad:
            yield
        self.rolled_back = {"version": bad, "why": self._champion.why, "seconds": time.monotonic() - began}
        self._event(
            f"{self._last.model_version} ranks again, {self.rolled_back['seconds']:.0f} s after the announcement"
        )

    def _beside(self, *command: str) -> Generator[None, None, str]:
        return self._done(partial(self._commands.run, *command))

    def _done(self, call: Callable[[], R]) -> Generator[None, None, R]:
        """Call it on a thread, and wait; what it returns or raises."""
        running = self._pool.submit(call)
        while not running.done():
            yield
        return running.result()

    # -- what the reader has seen -------------------------------------------------------------------------------------

    @property
    def _last(self) -> Ranking:
        assert self._reader is not None, "the story goes on by updates"
        return self._reader.recent[-1]

    def _newest(self, alias: str) -> ModelAnnouncement | None:
        assert self._reader is not None, "the story goes on by updates"
        return self._reader.announced.get(alias)

    @property
    def _champion(self) -> ModelAnnouncement:
        found = self._newest(CHAMPION)
        assert found is not None, "the demo begins with a champion"
        return found
