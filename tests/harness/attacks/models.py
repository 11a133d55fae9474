"""On models, splits, items and rules: what is announced and published."""

from typing import Final

from tests.harness.attacks.rounds import FEW, rounds
from tests.harness.dripping import DrippingStore
from tests.harness.system import ITEMS, System

_BUNDLE_SECONDS: Final = 15
"""After that a bundle is refused."""
_STANDS_STILL: Final = 3600.0


def swapped(system: System, seconds: float) -> None:
    paths = [system.bundle(kind) for kind in ("gru", "window", "gru", "counts")]
    for number in rounds(seconds):
        system.announce(paths[number % len(paths)])
        system.sleep(1)
        if number % 10 == 9:
            system.kill()
            system.start_ready()


def formats_swapped(system: System, seconds: float) -> None:
    paths = [system.bundle("gru", format_1=number % 2 == 0) for number in range(4)]
    for number in rounds(seconds, least=6):
        system.announce(paths[number % len(paths)])
        system.sleep(1)
        if number % 5 == 4:
            system.kill()
            system.start_ready()


def refused_bundles(system: System, seconds: float) -> None:
    for number in rounds(seconds):
        bad = system.bundle("gru")
        for name in ("rank.onnx", "vocabulary.json", "golden.json", "manifest.json"):
            if system.rng.random() < 0.5 or name == "rank.onnx":
                content = bytearray((bad / name).read_bytes())
                content[system.rng.randrange(len(content))] ^= 255
                (bad / name).write_bytes(content)
        system.announce(bad)
        system.sleep(3)
        if number % 2:
            system.kill()
            system.announce(system.bundle("gru"))
            system.start_ready()


def slow_bundles(system: System, seconds: float) -> None:
    """A store that drips, and a model that is slow to load and to rank.

    The swap comes late, or the bundle is refused at its deadline and comes later; both, while the worker is killed.
    """
    store = DrippingStore(system.models[0].parent)
    system.closing.callback(store.close)
    system.kill()
    system.start_ready(bundle_timeout=str(_BUNDLE_SECONDS))
    ways = (_killed_while_it_drips, _refused_and_late, _large, _overtaken)
    for number in rounds(seconds, least=len(ways)):
        system.clicks_pass(FEW)
        ways[number % len(ways)](system, store)
        system.clicks_pass(FEW)


def _killed_while_it_drips(system: System, store: DrippingStore) -> None:
    bundle, store.seconds = system.bundle("gru"), 1.0
    system.announce(bundle, uri=store.uri(bundle))
    system.sleep(2)
    assert not system.logged("a", "model in service", bundle.name), "it is no slow bundle"
    system.kill()
    system.start_ready(bundle_timeout=str(_BUNDLE_SECONDS))  # which waits for it: it has no other
    system.serves(bundle)


def _refused_and_late(system: System, store: DrippingStore) -> None:
    bundle, store.seconds = system.bundle("window"), _STANDS_STILL
    system.announce(bundle, uri=store.uri(bundle))
    system.wait(lambda: system.logged("a", "an announced model was refused", bundle.name), "it is refused")
    system.did("refused", version=bundle.name)
    system.clicks_pass(FEW)  # the model before it serves on
    store.seconds = 0.0
    system.serves(bundle)


def _large(system: System, store: DrippingStore) -> None:
    bundle, store.seconds = system.bundle("large"), 0.0
    system.announce(bundle, uri=store.uri(bundle))
    system.sleep(system.rng.uniform(0.5, 2))
    system.kill()
    system.start_ready(bundle_timeout=str(_BUNDLE_SECONDS))
    system.serves(bundle)


def _overtaken(system: System, store: DrippingStore) -> None:
    """By a bundle that comes at once, as where somebody rolls it back; what drips is in service at no time."""
    bundle, store.seconds = system.bundle("gru"), _STANDS_STILL
    system.announce(bundle, uri=store.uri(bundle))
    system.sleep(1)
    another = system.bundle("gru")
    system.announce(another)
    system.serves(another)
    store.seconds = 0.0
    system.clicks_pass(FEW)
    assert not system.logged("a", "model in service", bundle.name), "it serves what was announced before"


def items_and_rules_changed(system: System, seconds: float) -> None:
    system.use_items_and_rules()
    for number in rounds(seconds, least=4):
        if number % 3 == 0:
            system.kill()
            system.start_ready()
        some, barred = system.rng.sample(ITEMS, 60), system.rng.sample(ITEMS, 60)
        system.publish("items", {item: {"item_id": item, "available": number % 2 == 1} for item in some})
        rule = {"rule_id": "no", "action": "exclude", "match": {"items": barred}}
        system.publish("rules", {"no": rule if number % 3 else None})
        system.clicks_pass(FEW)


def splits_changed(system: System, seconds: float) -> None:
    system.use_splits()
    system.announce(system.bundle("window"), alias="b")
    system.announce(system.bundle("gru"), alias="c")
    for number in rounds(seconds, least=6):
        system.split((30, 70, 0)[number % 3])
        if number % 2 == 0:
            system.kill()
            system.start_ready()
        system.clicks_pass(FEW)
        if number % 3 == 1:
            system.shadows_rank(FEW)
        if number % 4 == 3:
            system.announce(system.bundle(system.rng.choice(["gru", "window"])), alias="b")
