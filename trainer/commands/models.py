"""``trainer models``, ``trainer promote`` and ``trainer rollback``: who is champion, and making another one it."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Final

import msgspec
import typer
from rich import box
from rich.console import Console
from rich.table import Table

from schemas.messages.announcement import ModelAnnouncement
from schemas.messages.split import shares_of
from trainer.commands.settings import Config, Json, logged_settings_of

_DECISIONS_READ: Final = 20
"""Of the newest announcements: each is a file of the registry."""


@dataclass(frozen=True)
class ListedModel:
    """A published version as `trainer models --json` shows it."""

    version: str
    family: str
    champion: bool
    announced: bool
    """Whether it ever was."""
    created_at: int
    items: int
    uri: str
    refreshed: str | None
    """The version that was trained, of a refreshed one."""
    window: dict[str, Any]
    metrics: dict[str, Any]
    guard: list[ModelAnnouncement] = field(default_factory=list)
    """What the guard announced of it: its promotions, and rollbacks to it."""
    aliases: list[str] = field(default_factory=list)
    """Which mean this version now."""
    share: float | None = None
    """Percent of the sessions that the split gives to these aliases; None without a split."""


def models(config: Config = None, json: Json = False) -> None:
    """List the published versions: metrics, training window, the gate's verdict, who is champion, and who serves."""
    from trainer.service.assembly import championship_of, registry_of, split_topic_of
    from trainer.service.split import told

    root = logged_settings_of(config)
    registry = registry_of(root)
    championship = championship_of(root, registry)
    standing, split = championship.standing(), split_topic_of(root).current_if_used()
    shares = {} if split is None else shares_of(split.variants)
    meant = {alias: announcement.version for alias, announcement in championship.announced().items()}
    aliases = {model: sorted(alias for alias in meant if meant[alias] == model) for model in set(meant.values())}
    champion = standing.champion.version if standing.champion else None
    guarded = [
        made
        for entry in standing.entries[-_DECISIONS_READ:]
        if (made := registry.announced_as(root.trainer.model_alias, entry)) is not None and made.evidence is not None
    ]
    listed = [
        ListedModel(
            version=model.version,
            family=model.manifest.family,
            champion=model.version == champion,
            announced=standing.was_announced(model.version),
            created_at=model.manifest.created_at,
            items=model.manifest.catalogue_size,
            uri=model.uri,
            refreshed=model.manifest.states_of,
            window=model.manifest.training.get("window", {}),
            metrics=model.manifest.metrics,
            guard=[made for made in guarded if made.version == model.version],
            aliases=aliases.get(model.version, []),
            share=sum(shares.get(alias, 0) for alias in aliases.get(model.version, [])) / 100 if shares else None,
        )
        for model in registry.versions()
    ]
    if json:
        typer.echo(msgspec.json.encode(listed).decode())
        return
    Console().print(_table(listed, root.trainer.gate_k))
    for model in listed:
        verdict = model.metrics.get("gate")
        if verdict is not None and not verdict["passed"]:
            typer.echo(f"{model.version} was refused: {verdict['reasons'][0]}")
    if split is not None:
        typer.echo(told(split))
    for made in guarded:
        typer.echo(f"{made.version} was announced by the guard: {made.why}")
    if champion is None:
        typer.echo("no champion is announced; announce one with `trainer promote VERSION`")
    elif not any(model.champion for model in listed):
        typer.echo(f"the champion {champion} is not in this registry")


def promote(
    version: Annotated[str, typer.Argument(help="As `trainer models` lists it.")],
    why: Annotated[str, typer.Option(help="For the people who read the announcement.")] = "promoted by hand",
    alias: Annotated[
        str | None, typer.Option(help="Instead of trainer.model_alias: `challenger`, for an experiment.")
    ] = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Verify a published version as a worker would, and announce it: every worker serves it within seconds."""
    from trainer.service.assembly import championship_of, registry_of

    root = logged_settings_of(config)
    registry = registry_of(root)
    with Console(stderr=True).status("verifying the bundle as a worker would"):
        made = championship_of(root, registry, alias).promote(registry.get(version), why)
    _tell(made, json=json)


def rollback(config: Config = None, json: Json = False) -> None:
    """Announce the champion's predecessor again."""
    from trainer.service.assembly import championship_of, registry_of

    root = logged_settings_of(config)
    with Console(stderr=True).status("verifying the predecessor as a worker would"):
        made = championship_of(root, registry_of(root)).roll_back()
    _tell(made, json=json)


def _tell(announcement: ModelAnnouncement, *, json: bool) -> None:
    if json:
        typer.echo(msgspec.json.encode(announcement).decode())
    else:
        typer.echo(f"announced {announcement.version} as {announcement.alias}: {announcement.why}")


def _table(listed: list[ListedModel], k: int) -> Table:
    table = Table(title="Published models, the newest last", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("version", no_wrap=True)
    several = len({model.family for model in listed}) > 1
    if several:
        table.add_column("family", no_wrap=True)
    for name in ("sessions", f"R@{k}", f"MRR@{k}", "vs"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for model in listed:
        own = model.metrics.get("model") or {}
        table.add_row(
            model.version,
            *([model.family] if several else []),
            f"{model.window.get('sessions', 0):,}",
            _number(own, f"recall@{k}"),
            _number(own, f"mrr@{k}"),
            _number(model.metrics.get("champion") or {}, f"recall@{k}"),
            _standing(model),
            style="bold" if model.champion else None,
        )
    table.caption = f"vs: R@{k} of the champion of its time on the same predictions"
    return table


def _standing(model: ListedModel) -> str:
    others = [] if model.champion else model.aliases
    if model.refreshed is not None:
        return ", ".join(["champion"] * model.champion + others + ["refreshed"])
    if others:
        return ", ".join(others)
    return "champion" if model.champion else "announced" if model.announced else _gate(model.metrics.get("gate"))


def _number(metrics: dict[str, Any], name: str) -> str:
    value = metrics.get(name)
    return "" if value is None else f"{value:.4f}"


def _gate(verdict: dict[str, Any] | None) -> str:
    if verdict is None:
        return ""
    return "passed" if verdict["passed"] else "refused"
