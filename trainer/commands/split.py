"""``trainer split`` and ``trainer shadow``: which share of the sessions each model serves, and who ranks beside."""

from collections.abc import Container, Iterable
from typing import Annotated

import msgspec
import typer

from schemas.messages.split import PLACES, Split
from trainer.commands.settings import Config, Json, logged_settings_of
from trainer.errors import SplitError


def split(
    shares: Annotated[
        list[str] | None, typer.Argument(metavar="[ALIAS=PERCENT]...", help="Add up to 100. None: show the split.")
    ] = None,
    *,
    off: Annotated[bool, typer.Option("--off", help="End the split: one model serves all sessions again.")] = False,
    salt: Annotated[
        str | None, typer.Option(help="Draw all sessions anew, by this text; else as few change as can be.")
    ] = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Divide the sessions between the models of several aliases, each session always to the same."""
    from trainer.service.assembly import championship_of, registry_of, split_topic_of
    from trainer.service.split import moved

    if off and shares:
        raise typer.BadParameter("ends the split; leave the shares out", param_hint="--off")
    if salt is not None and not shares:
        raise typer.BadParameter("needs shares, as in champion=90 challenger=10", param_hint="--salt")
    root = logged_settings_of(config)
    topic = split_topic_of(root)
    found = topic.current() or Split(app_id=topic.app_id)
    if off:
        found = msgspec.structs.replace(found, variants=())
        topic.put(found)
    elif shares:
        places = _places(shares)
        _check_announced(places, championship_of(root, registry_of(root)).announced())
        salt = found.salt if salt is None else salt
        variants = moved(found.variants if salt == found.salt else (), places)
        shadow = tuple(alias for alias in found.shadow if alias not in places)
        found = msgspec.structs.replace(found, variants=variants, salt=salt, shadow=shadow)
        topic.put(found)
    _tell(found, json=json)


def shadow(
    aliases: Annotated[list[str] | None, typer.Argument(metavar="[ALIAS]...", help="All of them.")] = None,
    *,
    off: Annotated[bool, typer.Option("--off", help="End all shadows.")] = False,
    config: Config = None,
    json: Json = False,
) -> None:
    """Let the models of these aliases rank every click for the topic `rankings.shadow`, as far as there is time."""
    from trainer.service.assembly import championship_of, registry_of, split_topic_of

    if off and aliases:
        raise typer.BadParameter("ends all shadows; leave the aliases out", param_hint="--off")
    root = logged_settings_of(config)
    topic = split_topic_of(root)
    found = topic.current() or Split(app_id=topic.app_id)
    if off or aliases:
        _check_announced(aliases or [], championship_of(root, registry_of(root)).announced())
        found = msgspec.structs.replace(found, shadow=tuple(dict.fromkeys(aliases or [])))
        topic.put(found)
    _tell(found, json=json)


def _check_announced(aliases: Iterable[str], announced: Container[str]) -> None:
    """Raises SplitError."""
    for alias in aliases:
        if alias not in announced:
            raise SplitError(f"no {alias!r} is announced; do that with `trainer promote VERSION --alias {alias}`")


def _tell(split: Split, *, json: bool) -> None:
    from trainer.service.split import told

    typer.echo(msgspec.json.encode(split).decode() if json else told(split))


def _places(shares: list[str]) -> dict[str, int]:
    """Places of each alias. Raises SplitError."""
    places: dict[str, int] = {}
    for text in shares:
        alias, _, percent = text.partition("=")
        try:
            share = float(percent.removesuffix("%"))
        except ValueError as error:
            raise SplitError(f"{text!r} is no share; write ALIAS=PERCENT, as in challenger=10") from error
        if not 0 < share <= 100 or abs(share * 100 - round(share * 100)) > 1e-6 or not round(share * 100):
            raise SplitError(f"{text!r}: a share is between 0.01 and 100, with two decimals at most")
        if alias in places:
            raise SplitError(f"{alias!r} is named twice")
        places[alias] = round(share * 100)
    if (total := sum(places.values())) != PLACES:
        raise SplitError(f"the shares add up to {total / 100:g}, and must add up to 100")
    return places
