"""``trainer split``: which share of the sessions each model serves."""

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
    from trainer.service.split import moved, told

    if off and shares:
        raise typer.BadParameter("ends the split; leave the shares out", param_hint="--off")
    if salt is not None and not shares:
        raise typer.BadParameter("needs shares, as in champion=90 challenger=10", param_hint="--salt")
    root = logged_settings_of(config)
    topic = split_topic_of(root)
    found = topic.current()
    if off:
        topic.put(None)
        found = None
    elif shares:
        places = _places(shares)
        announced = championship_of(root, registry_of(root)).announced()
        for alias in places:
            if alias not in announced:
                raise SplitError(f"no {alias!r} is announced; do that with `trainer promote VERSION --alias {alias}`")
        found = found or Split(app_id=topic.app_id)
        salt = found.salt if salt is None else salt
        variants = moved(found.variants if salt == found.salt else (), places)
        found = msgspec.structs.replace(found, variants=variants, salt=salt)
        topic.put(found)
    if json:
        typer.echo(msgspec.json.encode(found).decode())
    else:
        typer.echo(f"split: {told(found)}" if found and found.variants else "no split: one model serves all sessions")


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
