"""The table of `trainer models`."""

from rich.console import Console

from trainer.commands.models import ListedModel, _table


def listed(version: str, family: str) -> ListedModel:
    metrics = {"model": {"recall@20": 0.5, "mrr@20": 0.25}}
    return ListedModel(version, family, version == "b", True, 0, 10, "file:///models", None, {"sessions": 7}, metrics)


def shown(*models: ListedModel) -> str:
    console = Console(width=120)
    with console.capture() as captured:
        console.print(_table(list(models), 20))
    return captured.get()


def test_families_are_told_where_there_are_several() -> None:
    assert "family" not in shown(listed("a", "stamp"), listed("b", "stamp"))
    text = shown(listed("a", "gru4rec"), listed("b", "item-knn"))
    assert all(word in text for word in ("family", "gru4rec", "item-knn", "champion", ".5000"))
