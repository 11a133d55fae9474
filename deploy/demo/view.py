"""What the demo shows in the terminal: one page that is drawn again and again, or plain lines where there is none."""

import io
import re
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from schemas.messages.ranking import Ranking
from schemas.messages.score import Totals

_LINES_EVERY_SECONDS = 5.0
_EVENTS = 9
_PICTURE_COLUMNS = 112


@dataclass
class Page:
    """The state of the demo as it is shown. Written by the demo, read by the view.

    Attributes:
        phase: what is being done.
        outlook: how long it still takes, and for what.
        url: where a browser shows more, and lets one click.
        clicks: sent so far.
        rankings: received so far.
        clicks_per_second: over the last seconds.
        latency_ms: p50 and p99 over the last seconds.
        models: online scores by version, in the order of their service.
        offline: Recall@20 and MRR@20 on the holdout, by version.
        sessions: some sessions that clicked just now, with their last items.
        events: what happened, newest last.
    """

    phase: str = "starting"
    outlook: str = ""
    url: str = ""
    clicks: int = 0
    rankings: int = 0
    clicks_per_second: float = 0.0
    latency_ms: tuple[float, float] = (0.0, 0.0)
    models: dict[str, Totals] = field(default_factory=dict)
    offline: dict[str, tuple[float, float]] = field(default_factory=dict)
    sessions: list[tuple[tuple[str, ...], Ranking]] = field(default_factory=list)
    events: "deque[str]" = field(default_factory=lambda: deque(maxlen=_EVENTS))


class View:
    """Draws a Page on standard error; standard output is left to the result."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._console = Console(stderr=True)
        self._began = time.monotonic()

    def event(self, text: str) -> None:
        """Tell that something happened."""
        line = f"{time.monotonic() - self._began:6.1f} s  {text}"
        self._page.events.append(line)
        if not self._console.is_terminal:
            self._console.print(line, highlight=False, soft_wrap=True)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Keep the page up to date while the block runs."""
        if self._console.is_terminal:
            with Live(self._page_drawn(), console=self._console, refresh_per_second=4, get_renderable=self._page_drawn):
                yield
            return
        stopping = threading.Event()
        thread = threading.Thread(target=self._print_lines, args=(stopping,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stopping.set()
            thread.join()

    def save(self, path: Path) -> None:
        """Write the page as it is now as a picture, SVG."""
        console = Console(record=True, width=_PICTURE_COLUMNS, file=io.StringIO(), force_terminal=True)
        console.print(self._page_drawn())
        svg = console.export_svg(title="make demo")
        path.parent.mkdir(parents=True, exist_ok=True)
        # Without the fonts that rich would fetch from elsewhere: the reader's own monospace font does.
        path.write_text(re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL), encoding="utf-8")

    def _print_lines(self, stopping: threading.Event) -> None:
        while not stopping.wait(_LINES_EVERY_SECONDS):
            page = self._page
            if page.clicks:
                scores = ", ".join(f"{version} {score.recall:.3f}" for version, score in page.models.items())
                self._console.print(
                    f"{time.monotonic() - self._began:6.1f} s  {page.clicks_per_second:,.0f} clicks/s, "
                    f"p50 {page.latency_ms[0]:.0f} ms, p99 {page.latency_ms[1]:.0f} ms, online Recall@20: {scores}"
                    f"{f'; {page.outlook}' if page.outlook else ''}",
                    highlight=False,
                    soft_wrap=True,
                )

    def _page_drawn(self) -> Group:
        page = self._page
        numbers = Table.grid(expand=True)
        for _ in range(5):
            numbers.add_column(justify="center")
        numbers.add_row(
            *(
                Text.assemble((value, "bold"), "\n", (name, "dim"))
                for value, name in (
                    (f"{page.clicks:,}", "clicks"),
                    (f"{page.rankings:,}", "rankings"),
                    (f"{page.clicks_per_second:,.0f}", "clicks/s"),
                    (f"{page.latency_ms[0]:.0f} ms", "latency p50"),
                    (f"{page.latency_ms[1]:.0f} ms", "latency p99"),
                )
            )
        )
        models = Table(
            expand=True,
            title="Models, in the order of their service",
            title_style="bold",
            caption="online: how often the next click was among the 20 items ranked before it, and how far up (MRR); "
            "holdout: the same in the trainer's evaluation, before the model went into service",
        )
        for name in ("version", "rankings", "online Recall@20", "online MRR@20", "holdout Recall@20", "holdout MRR@20"):
            models.add_column(name, justify="left" if name == "version" else "right")
        for version, score in list(page.models.items()):
            recall, mrr = page.offline.get(version, (None, None))
            models.add_row(
                version,
                f"{score.rankings:,}",
                f"{score.recall:.3f}",
                f"{score.mrr:.3f}",
                "" if recall is None else f"{recall:.3f}",
                "" if mrr is None else f"{mrr:.3f}",
            )
        sessions = Table(
            expand=True,
            title="Sessions that clicked just now",
            title_style="bold",
            caption="left: a visitor's last clicks; right: the first 4 of the 20 items published for the last click",
        )
        sessions.add_column("last items", ratio=1)
        sessions.add_column("what they will want next", ratio=1)
        for items, ranking in page.sessions:
            sessions.add_row(" > ".join(items), ", ".join(item.item_id for item in ranking.items[:4]))
        return Group(
            Panel(
                Group(
                    numbers,
                    Text("latency: from sending a click to receiving its ranking", "dim italic"),
                    *([Text.assemble("look and click: ", (page.url, "bold"))] if page.url else []),
                ),
                title=f"nextclick: {page.phase}",
                subtitle=page.outlook or None,
            ),
            models,
            sessions,
            Panel("\n".join(page.events), title="What happened"),
        )
