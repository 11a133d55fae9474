"""`stream-app explain`: what adds up to the places of a session's ranking."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from schemas.bundle.runtime import Model
from schemas.bundle.terms import Terms
from schemas.errors import BundleError, NoAnswerError
from stream_app.core.explain import Explained, Part, explain
from stream_app.errors import StreamError
from stream_app.settings import StreamSettings
from stream_app.tools.announced import Bundles, ModelError, bundles
from stream_app.tools.inspect_session import find_row, no_row
from stream_app.tools.terminal import shown


class Explanation(msgspec.Struct, frozen=True):
    """What `--json` prints.

    Attributes:
        model_version: which ranked.
        clicks: of the session.
        replayed: whether the row had no state of this model's, so that its items were replayed, as at its next click.
    """

    session_id: str
    model_version: str
    clicks: int
    replayed: bool
    items: list[Explained]


class NothingToExplainError(StreamError):
    """There is no such ranking; the message says why."""


@dataclass(frozen=True)
class Opened:
    """What explanations rank with: a model, and the same without each of its parts.

    Attributes:
        terms: keeps what ONNX Runtime reads of the others.
        whole: with lists as long as can be had; `network`: without any term; `without`: without each of them.
    """

    terms: Terms
    whole: Model
    network: Model
    without: Mapping[str, Model]

    @classmethod
    def of(cls, announced: Bundles) -> "Opened":
        """The announced one. Raises ModelError."""
        version = announced.announcement.version
        model = announced.open(version)
        try:
            terms = Terms.of(model, announced.rank_graph(version))
            without = {term: terms.without(term) for term in terms.names}
            return cls(terms, terms.without(), terms.without(*terms.names), without)
        except BundleError as error:
            raise ModelError(f"the bundle of {version} cannot be opened: {error}") from error

    @property
    def size(self) -> int:
        """How much memory it takes, in bytes: each model has weights of its own."""
        return len(self.terms.graph) * (3 + len(self.without))


def explanation(
    session_id: str, settings: StreamSettings, *, item_id: str | None, opened: Callable[[], Opened]
) -> Explanation:
    """Of one item, or of those that the ranking lists. Raises NothingToExplainError, ModelError and ReadError."""
    found = find_row(session_id, settings)
    if found is None:
        raise NothingToExplainError(no_row(session_id, settings))
    ranks = opened()
    model, row = ranks.terms.model, found.state
    version = model.version
    item = None if item_id is None else model.vocabulary.index(item_id)
    if item_id is not None and item is None:
        raise NothingToExplainError(f"{version} does not know the item {item_id!r}: no ranking of its can hold it")
    try:
        items = explain(
            row,
            ranks.whole,
            ranks.network,
            ranks.without,
            items=None if item is None else [item],
            listed=settings.worker.published,
        )
    except NoAnswerError as error:
        raise ModelError(f"{version} cannot rank the session {session_id!r}: {error}") from error
    if not items:
        raise NothingToExplainError(
            f"{version} knows no item of the session {session_id!r}: its ranking is the most clicked items"
        )
    replayed = model.encoder == "recurrent" and row.model_version != model.states_of
    return Explanation(session_id, version, row.clicks, replayed, items)


def explain_session(
    session_id: str, settings: StreamSettings, *, item_id: str | None, json: bool, out: Console, err: Console
) -> int:
    """Print the explanation; returns the exit code, 1 where there is nothing to explain."""
    try:
        with err.status("reading the session's row, then the model"):
            told = explanation(session_id, settings, item_id=item_id, opened=lambda: _announced(settings))
    except NothingToExplainError as error:
        err.print(str(error), markup=False, highlight=False)
        return 1
    if json:
        print(msgspec.json.encode(told).decode())
    else:
        out.print(_table(told, item_id is not None))
    return 0


def _announced(settings: StreamSettings) -> Opened:
    with bundles(settings) as announced:
        return Opened.of(announced)


def _table(told: Explanation, one: bool) -> Table:
    title = Text.assemble("Session ", shown(told.session_id), f", ranked by {told.model_version}")
    return _of_one(title, told.items[0]) if one else _of_all(title, told.items)


def _of_all(title: Text, items: Sequence[Explained]) -> Table:
    table = Table(
        title=title, title_justify="left", caption="+: what a part adds to the score; popular: place by clicks"
    )
    table.add_column("")
    table.add_column("item", overflow="fold")
    for name in ("score", "network", *(f"+ {term}" for term in items[0].terms), "popular"):
        table.add_column(name, justify="right")
    for item in items:
        adds = (_number(part.adds) for part in item.terms.values())
        table.add_row(
            str(item.place), shown(item.item_id), _number(item.score), _number(item.network), *adds,
            f"{item.popularity_place:,}",
        )  # fmt: skip
    return table


def _of_one(title: Text, item: Explained) -> Table:
    table = Table("part", title=title, title_justify="left")
    table.add_column("adds", justify="right")
    table.add_column("place without it", justify="right")
    table.add_row(
        Text.assemble("item ", shown(item.item_id, "bold")), _number(item.score), f"place {_place(item.place)}"
    )
    table.add_row("network", _number(item.network), "")
    for term, part in item.terms.items():
        table.add_row(term, *_cells(part))
    for item_id, part in item.recent.items():
        table.add_row(Text.assemble("clicked ", shown(item_id, "cyan")), *_cells(part))
    table.add_row("clicks in training", f"{item.clicks:,}", f"place {item.popularity_place:,} by clicks")
    return table


def _cells(part: Part) -> tuple[str, str]:
    return _number(part.adds), _place(part.place_without)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _place(place: int | None) -> str:
    return "below the list" if place is None else f"{place:,}"
