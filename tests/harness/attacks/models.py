"""On models, splits, items and rules: what is announced and published."""

from tests.harness.attacks.rounds import FEW, rounds
from tests.harness.system import ITEMS, System


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
