"""Which columns hold session, item and time: in our own files, and in the public logs as they are downloaded.

| form         | file                   | session            | types of clicks, where there are some     |
|--------------|------------------------|--------------------|-------------------------------------------|
| click-file   | ours, RecBole's .inter | as given           | column `type`                             |
| session-rec  | SessionId ItemId Time  | as given           |                                           |
| rsc15        | yoochoose-clicks.dat   | as given           |                                           |
| diginetica   | train-item-views.csv   | as given           |                                           |
| retailrocket | events.csv             | visitor, 1 h idle  | event: view, addtocart, transaction       |
| coveo        | browsing_train.csv     | as given           | product_action: detail, add, purchase ... |
| coveo-2020   | release_10_23_2020.csv | as given           | the same                                  |
| rees46       | 2019-Oct.csv           | user, 1 h idle     | event_type: view, cart, purchase ...      |
| otto         | *.jsonl                | as given           | type: clicks, carts, orders               |

Names of columns are compared without case, underscores and RecBole's types (`session_id:token`). A file that has
`session_id` and `item_id` is never taken for a public log that has others. Of a public log only views are clicks,
unless a user names more types: published figures are of these. An event of another known kind is no click and no
mistake; an unknown kind is a bad row.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final

from schemas.click_files.options import Format, ReadOptions
from schemas.errors import ClickFileError
from schemas.messages.click import CART, PURCHASE, VIEW

_RSC15_ROW: Final = re.compile(r"[0-9]+,[0-9]{4}-[0-9]{2}-[0-9]{2}T[^,]*,[0-9]+,")
_RECBOLE: Final = re.compile(r":(token|float)(_seq)?$")


@dataclass(frozen=True)
class Form:
    """A form of file; the names of columns are plain (see `plain`).

    columns           all of them, of a file that may have no header
    time              the file may be without, with may_lack_time; numbers are milliseconds, unless may_count_seconds
    since             column of milliseconds to be added to the time
    kind, kinds       column that tells events apart; the type of click that each kind is, "" for what is never one.
                      A form without kinds has types in that column, and may lack it
    event             column of the producer's own id, if the file has it
    idle_gap_minutes  of a form that knows visitors and no sessions
    """

    name: Format
    session: str = ""
    item: str = ""
    time: str = ""
    since: str | None = None
    kind: str | None = None
    kinds: Mapping[str, str] = field(default_factory=dict)
    event: str | None = None
    columns: tuple[str, ...] = ()
    may_lack_time: bool = False
    may_count_seconds: bool = False
    idle_gap_minutes: float | None = None

    @property
    def needed(self) -> tuple[str, ...]:
        """The columns without which a file is not of this form."""
        time = () if self.may_lack_time else (self.time,)
        kind = self.kind if self.kinds else None
        return tuple(name for name in (self.session, self.item, *time, self.since, kind) if name)


CLICK_FILE: Final = Form(
    Format.CLICK_FILE,
    "sessionid",
    "itemid",
    "timestamp",
    kind="type",
    event="eventid",
    may_lack_time=True,
    may_count_seconds=True,
)
OTTO: Final = Form(Format.OTTO, kind="type", kinds={"clicks": VIEW, "carts": CART, "orders": PURCHASE})
_COVEO: Final = Form(
    Format.COVEO,
    "sessionidhash",
    "productskuhash",
    "servertimestampepochms",
    kind="productaction",
    # A page without a product has no action.
    kinds={"detail": VIEW, "add": CART, "purchase": PURCHASE, "remove": "remove", "click": "click", "": ""},
)
_PUBLIC: Final = (
    Form(Format.SESSION_REC, "sessionid", "itemid", "time", may_count_seconds=True),
    Form(Format.DIGINETICA, "sessionid", "itemid", "eventdate", since="timeframe"),
    Form(Format.RSC15, "session", "item", "time", columns=("session", "time", "item", "category")),
    Form(
        Format.RETAILROCKET,
        "visitorid",
        "itemid",
        "timestamp",
        kind="event",
        kinds={"view": VIEW, "addtocart": CART, "transaction": PURCHASE},
        idle_gap_minutes=60.0,
    ),
    _COVEO,
    replace(_COVEO, name=Format.COVEO_2020, item="productskushash"),  # the older of the two logs that Coveo published
    Form(
        Format.REES46,
        "userid",
        "productid",
        "eventtime",
        kind="eventtype",
        kinds={"view": VIEW, "cart": CART, "remove_from_cart": "remove_from_cart", "purchase": PURCHASE},
        idle_gap_minutes=60.0,
    ),
)
FORMS: Final[Mapping[Format, Form]] = MappingProxyType({form.name: form for form in (CLICK_FILE, *_PUBLIC, OTTO)})


@dataclass(frozen=True)
class Layout:
    """Where the columns of a file stand, counted from 0; `header` whether its first line holds names."""

    form: Form
    names: tuple[str, ...]
    session: int
    item: int
    time: int | None
    since: int | None = None
    kind: int | None = None
    event: int | None = None
    header: bool = True

    def described(self) -> str:
        """For people: which columns are read."""
        named = [("session", self.session), ("item", self.item), ("time", self.time)]
        return ", ".join(f"{what} {self.names[place]}" for what, place in named if place is not None)


def plain(name: str) -> str:
    """A column's name without case, underscores and type."""
    return re.sub(r"[_\- ]", "", _RECBOLE.sub("", name.strip())).lower()


def layout_of(
    names: Sequence[str],
    options: ReadOptions,
    *,
    first_line: str = "",
    file_name: str = "",
    has_header: bool = False,
) -> Layout:
    """Where the columns are, by the names of the first line; that line itself and the file's name tell RSC15's.

    `has_header`: the names are known to be names, as of Parquet's columns. Else those of RSC15 may be its first click.
    Raises ClickFileError when a column is missing or named twice; the message does not name the file.
    """
    form = _form(names, options, first_line, file_name)
    header = has_header or not form.columns or set(form.needed) <= set(map(plain, names))
    columns = names if header else form.columns
    twice = {name for name in names if names.count(name) > 1} if header else ()

    def place(named: str | None, wanted: str | None, *, optional: bool = False) -> int | None:
        """Of the column that an option names, else of the form's."""
        if wanted is None and named is None:
            return None
        matching = [n for n, name in enumerate(columns) if name == named] if named else []
        key = plain(named or wanted or "")
        matching = matching or [n for n, name in enumerate(columns) if plain(name) == key]
        if len(matching) > 1 or (matching and columns[matching[0]] in twice):
            raise ClickFileError(f"two columns have the name {columns[matching[0]]}: rename one")
        if not matching and (named or not optional):
            missing.append(named or wanted or "")
        return matching[0] if matching else None

    missing: list[str] = []
    session = place(options.session_column, form.session)
    item = place(options.item_column, form.item)
    time = place(options.time_column, form.time or None, optional=form.may_lack_time)
    since = None if options.time_column else place(None, form.since)
    kind = place(None, form.kind, optional=not form.kinds)
    event = place(options.event_column, form.event, optional=True)
    if missing or session is None or item is None:
        raise ClickFileError(_no_columns(missing, names, form, first_line))
    return Layout(form, tuple(columns), session, item, time, since, kind, event, header)


def _form(names: Sequence[str], options: ReadOptions, first_line: str, file_name: str) -> Form:
    if options.format is not None:
        return FORMS[options.format]
    have = set(map(plain, names))
    ours = {CLICK_FILE.session, CLICK_FILE.item} <= have
    if options.session_column or options.item_column or (ours and CLICK_FILE.time in have):
        return CLICK_FILE
    for form in _PUBLIC:
        if set(form.needed) <= have and (not ours or form.session == CLICK_FILE.session):
            return form
    if not ours and (_RSC15_ROW.match(first_line) or file_name.startswith("yoochoose-clicks")):
        return FORMS[Format.RSC15]
    return CLICK_FILE


def _no_columns(missing: Sequence[str], names: Sequence[str], form: Form, first_line: str) -> str:
    wanted = {CLICK_FILE.session: "session_id", CLICK_FILE.item: "item_id"}
    lacks = " and no column ".join(wanted.get(name, name) for name in missing)
    shown = ", ".join(names).encode(errors="backslashreplace").decode()
    shown = shown if len(shown) <= 300 else f"{shown[:300]}..."
    advice = "name the right ones (--session-column, --item-column, --time-column), the --delimiter or the --format"
    if '{"' in first_line:
        advice = "a dump of a topic must hold the values alone, one JSON object a line, without keys"
    elif form is not CLICK_FILE:
        advice = f"is it of the form {form.name}? See --format"
    return f"has no column {lacks}; it has {shown}: {advice}"
