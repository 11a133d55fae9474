"""Items and rules as whole workers keep to them: changes under load, bad records, restarts, and what is waited for.

Every ranking tells how far its worker had read the two topics. So each is compared with what had been said up to there.
"""

import json
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from deploy.demo.oracle import read_topic
from schemas.messages.click import Click
from schemas.messages.item import Item, decode_item, encode_item
from schemas.messages.ranking import Applied, Ranking, decode_ranking
from schemas.messages.rule import Match, Rule, RuleAction, encode_rule
from stream_app.core.state_codec import decode_state
from stream_app.serve.worker import EXIT_FAILED
from tests.admin import alter_topic, delete_topics
from tests.conftest import REPOSITORY, KafkaUnderTest
from tests.contract.tiny_model import TinyModel
from tests.doc_pages import blocks
from tests.faults.deployment import Deployment
from tests.patience import PATIENCE

ITEMS = tuple(f"item-{n}" for n in range(60))
PUBLISHED = 20
MARKETS = (None, "de", "at")
ON = {"NEXTCLICK_WORKER__ITEMS": "true", "NEXTCLICK_WORKER__RULES": "true", "NEXTCLICK_WORKER__RECENT_ITEMS": "10"}
PER_SECOND = 200.0


def clicks() -> list[Click]:
    """Sessions of three clicks, in every market."""
    began = int(time.time() * 1000)
    return [
        Click(
            session_id=f"s{n // 3}", item_id=ITEMS[7 * n % len(ITEMS)], timestamp=began + n, market=MARKETS[n // 3 % 3]
        )
        for n in range(900)
    ]


def stream_app(deployment: Deployment, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "stream_app", *arguments],
        cwd=REPOSITORY,
        env=deployment.environment() | ON | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def shop(kafka: KafkaUnderTest, topic_prefix: str, tmp_path: Path) -> Iterator[Deployment]:
    """All topics, a model of all items, and no item published yet."""
    deployment = Deployment(kafka.bootstrap_servers, topic_prefix, tmp_path, ITEMS, extra=dict(ON))
    assert stream_app(deployment, "topics").returncode == 0
    deployment.announce(deployment.bundle("v1"))
    yield deployment
    deployment.stop_all()


def publish(deployment: Deployment, folder: Path, *items: Item, complete: bool = False) -> None:
    file = folder / "items.jsonl"
    file.write_bytes(b"\n".join(map(encode_item, items)))
    done = stream_app(deployment, "items", str(file), *["--complete"] * complete)
    assert done.returncode == 0, done.stderr


def rankings(deployment: Deployment) -> list[Ranking]:
    found = read_topic(deployment.connection.librdkafka(), deployment.topics.rankings)
    return [decode_ranking(record.value()) for record in found]


def markets_of_sessions(deployment: Deployment) -> Mapping[str, str | None]:
    """Load sends the same sessions under new ids, with the market of the first."""
    return {click.session_id: click.market for click in clicks()}


def states(deployment: Deployment, topic: str) -> list[dict[str, bytes]]:
    """What each key had once the records up to each offset were read."""
    state: dict[str, bytes] = {}
    after = [dict(state)]
    for record in read_topic(deployment.connection.librdkafka(), topic):
        key, value = record.key().decode(), record.value()
        if value is None:
            state.pop(key, None)
        elif not value.startswith(b"BAD"):
            state[key] = value
        assert record.offset() == len(after) - 1
        after.append(dict(state))
    return after


def broken(deployment: Deployment, found: list[Ranking]) -> list[str]:
    """Rankings that hold what, by the offsets they tell, may not be shown, or in whose place nothing is."""
    items, rules = states(deployment, deployment.topics.items), states(deployment, deployment.topics.rules)
    market_of, wrong = markets_of_sessions(deployment), []
    for ranking in found:
        assert ranking.applied is not None
        market = market_of[ranking.session_id.split("~")[0]]
        excluded: set[str] = set()
        pinned: dict[int, str] = {}
        for value in rules[ranking.applied.rules + 1].values():
            rule = json.loads(value)
            if "markets" not in rule or market in rule["markets"]:
                excluded |= set(rule["match"]["items"]) if rule["action"] == "exclude" else set()
                pinned |= {rule["place"]: rule["match"]["items"][0]} if rule["action"] == "pin" else {}
        shown = set()
        for item_id, value in items[ranking.applied.items + 1].items():
            item = json.loads(value)
            begin, end = item.get("available_from", 0), item.get("available_until", 2**62)
            here = "markets" not in item or market in item["markets"]
            if here and item.get("available", True) and begin <= ranking.produced_at < end and item_id not in excluded:
                shown.add(item_id)
        listed = [item.item_id for item in ranking.items]
        places = {place: item_id for place, item_id in pinned.items() if item_id in shown}
        if (
            not set(listed) <= shown
            or len(listed) != min(PUBLISHED, len(shown))
            or any(listed[place - 1] != item_id for place, item_id in places.items())
        ):
            wrong.append(f"{ranking.session_id} at {ranking.applied}: {sorted(set(listed) - shown)}, {len(listed)}")
    return wrong


def test_changes_under_load_take_effect_and_no_ranking_breaks_what_was_applied(
    shop: Deployment, tmp_path: Path
) -> None:
    publish(shop, tmp_path, *[Item(item_id=item_id) for item_id in ITEMS])
    worker = shop.start_ready()
    load = shop.load(clicks(), per_second=PER_SECOND)
    topics, first = shop.topics, None
    now = int(time.time() * 1000)
    changes: list[Callable[[], int]] = [
        lambda: shop.put(topics.items, ITEMS[0], None),
        lambda: shop.put(topics.items, ITEMS[1], encode_item(Item(item_id=ITEMS[1], available=False))),
        lambda: shop.put(topics.items, ITEMS[2], encode_item(Item(item_id=ITEMS[2], markets=("de",)))),
        lambda: shop.put(topics.items, ITEMS[3], encode_item(Item(item_id=ITEMS[3], available_until=now + 6_000))),
        lambda: shop.put(topics.items, ITEMS[1], b"BAD"),
        lambda: shop.put(topics.rules, "no", rule("no", RuleAction.EXCLUDE, *ITEMS[10:20])),
        lambda: shop.put(topics.rules, "top", rule("top", RuleAction.PIN, ITEMS[30], place=3, markets=("at",))),
        lambda: shop.put(topics.rules, "top", b"BAD"),
        lambda: shop.put(topics.rules, "no", rule("no", RuleAction.EXCLUDE, *ITEMS[15:60])),
        lambda: shop.put(topics.rules, "no", None),
        lambda: shop.put(topics.items, ITEMS[0], encode_item(Item(item_id=ITEMS[0]))),
    ]
    for change in changes:
        first = change()
        shop.wait_until_more_clicks(worker, 100)
    shop.wait(lambda: time.time() * 1000 > now + 7_000, "the last item's time is over")
    shop.wait_until_more_clicks(worker, 100)
    load.stop()
    shop.wait_until_acknowledged()
    found = rankings(shop)
    assert broken(shop, found) == []
    reached = {ranking.applied for ranking in found}
    last = max(applied.items for applied in reached if applied), max(applied.rules for applied in reached if applied)
    assert last == (first, 4)  # of 60 + 6 records of items, and 5 of rules
    assert {ranking.rules for ranking in found} == {(), ("top",)}
    assert worker.metric("nextclick_refused_records_total") == 2
    assert worker.metric("nextclick_items") == len(ITEMS)
    assert worker.metric("nextclick_rules") == 1
    assert "not-json" in worker.output()
    assert worker.stop() == 0
    # After a restart the last good value of a key is no longer known, if it was not the newest.
    again = shop.start_ready()
    seen = len(found)
    shop.send(clicks()[:30])
    shop.wait_until_acknowledged()
    assert {ranking.applied for ranking in rankings(shop)[-1:]} == {Applied(*last)}
    assert shop.records(shop.topics.rankings) == seen + 30
    assert again.stop() == 0


def rule(
    rule_id: str, action: RuleAction, *items: str, place: int | None = None, markets: tuple[str, ...] | None = None
) -> bytes:
    return encode_rule(Rule(rule_id=rule_id, action=action, match=Match(items=items), place=place, markets=markets))


def test_what_a_session_clicked_is_hidden(shop: Deployment, tmp_path: Path) -> None:
    publish(shop, tmp_path, *[Item(item_id=item_id) for item_id in ITEMS[:30]])
    shop.start_ready(NEXTCLICK_WORKER__HIDE="clicked")
    shop.send(clicks()[:300])
    shop.wait_until_acknowledged()
    clicked: dict[str, list[str]] = {}
    found = sorted(rankings(shop), key=lambda ranking: ranking.click_timestamp)
    for ranking in found:
        clicked.setdefault(ranking.session_id, []).append(ranking.item_id)
        listed = {item.item_id for item in ranking.items}
        left = set(ITEMS[:30]) - set(clicked[ranking.session_id])
        assert listed <= left
        assert len(listed) == min(PUBLISHED, len(left))
    assert len(found) == 300


def test_what_a_session_purchased_is_hidden_whatever_was_killed(shop: Deployment, tmp_path: Path) -> None:
    publish(shop, tmp_path, *[Item(item_id=item_id) for item_id in ITEMS[:30]])
    began, kinds = int(time.time() * 1000), ("view", "purchase", "purchase", "view")  # purchases move no session on
    bought = [
        Click(session_id=f"s{n // 4}", item_id=ITEMS[7 * n % 30], timestamp=began + n, type=kinds[n % 4])
        for n in range(1200)
    ]
    hides = {"NEXTCLICK_WORKER__HIDE": "purchased", "NEXTCLICK_CLICKS__ADVANCE_ON": '["view"]'}
    worker = shop.start_ready(**hides)
    shop.send(bought)
    shop.wait(lambda: shop.records(shop.topics.rankings) > 200, "under way")
    worker.kill()
    again = shop.start_ready(**hides)
    shop.wait_until_acknowledged()
    purchased: dict[str, list[str]] = {}
    hidden: dict[int, list[str]] = {}
    for click in bought:
        own = purchased.setdefault(click.session_id, [])
        own += [click.item_id] if click.type == "purchase" else []
        hidden[click.timestamp] = list(own)
    found = rankings(shop)
    assert {ranking.click_timestamp for ranking in found} == hidden.keys()
    for ranking in found:
        listed = {item.item_id for item in ranking.items}
        assert len(listed) == PUBLISHED
        assert listed.isdisjoint(hidden[ranking.click_timestamp])
    # Seen again where nobody bought it: it is not the item that is gone.
    assert set(ITEMS[:30]) == {item.item_id for ranking in found for item in ranking.items}
    assert again.stop() == 0
    changelog = read_topic(shop.connection.librdkafka(), shop.changelog)
    rows = {record.key().decode(): decode_state(record.value()) for record in changelog}
    assert {session_id: list(row.purchased) for session_id, row in rows.items()} == purchased
    assert {row.clicks for row in rows.values()} == {2}


def test_lists_are_diverse_and_say_so(shop: Deployment, tmp_path: Path) -> None:
    categories = {item_id: f"c{n % 8}" for n, item_id in enumerate(ITEMS)}
    publish(shop, tmp_path, *[Item(item_id=item_id, categories=(own,)) for item_id, own in categories.items()])
    shop.put(shop.topics.rules, "top", rule("top", RuleAction.PIN, ITEMS[0], ITEMS[8], ITEMS[16], place=2))  # all of c0
    diverse = {"MAX_PER_CATEGORY": "2", "MMR_LAMBDA": "0.5", "MMR_CANDIDATES": "30"}
    worker = shop.start_ready(**{f"NEXTCLICK_WORKER__{name}": value for name, value in diverse.items()})
    shop.send(clicks()[:300])
    shop.wait_until_acknowledged()
    found = rankings(shop)
    assert len(found) == 300
    for ranking in found:
        listed = [item.item_id for item in ranking.items]
        assert listed[1:4] == [ITEMS[0], ITEMS[8], ITEMS[16]]
        # Two of each of seven categories, and all three that are pinned of the eighth.
        assert Counter(categories[item_id] for item_id in listed) == {"c0": 3, **{f"c{n}": 2 for n in range(1, 8)}}
        assert "category-cap" in ranking.diversity
    assert any("mmr" in ranking.diversity for ranking in found)
    assert any([i.score for i in r.items] != sorted((i.score for i in r.items), reverse=True) for r in found)
    assert worker.stop() == 0


def test_a_worker_waits_for_items_and_refuses_a_bundle_that_cannot_leave_any_out(
    shop: Deployment, tmp_path: Path
) -> None:
    shop.announce(TinyModel(items=ITEMS, k=20, recent_size=6).write(tmp_path / "registry", "old"))
    worker = shop.start()
    shop.wait(lambda: "holds no item" in str(worker.ready()), "told that no item is there")
    shop.wait(lambda: "exported by an older release" in str(worker.ready()), "told that the bundle is too old")
    publish(shop, tmp_path, Item(item_id=ITEMS[0]))
    shop.announce(shop.bundle("v2"))
    shop.wait(lambda: (worker.ready() or {}).get("status") == "ready", "ready")


def test_a_worker_whose_items_topic_is_created_anew_ends_and_the_next_one_offers_what_it_holds(
    shop: Deployment, tmp_path: Path
) -> None:
    """It had read two records, and went on behind the second of the new topic: the first was never offered."""
    publish(shop, tmp_path, *[Item(item_id=item_id) for item_id in ITEMS[:2]])
    worker = shop.start_ready()
    delete_topics(shop.connection.librdkafka(), shop.topics.items)
    assert stream_app(shop, "topics").returncode == 0
    publish(shop, tmp_path, *[Item(item_id=item_id) for item_id in ITEMS[10:40]])
    assert worker.process.wait(PATIENCE) == EXIT_FAILED
    assert f"the topic {shop.topics.items} was deleted and created again while it was read" in worker.output()
    shop.start_ready()
    shop.send(clicks()[:60])
    shop.wait_until_acknowledged()
    offered = {item.item_id for ranking in rankings(shop) for item in ranking.items}
    assert offered == set(ITEMS[10:40])


def test_the_items_command_reads_csv_and_json_lines(shop: Deployment, tmp_path: Path) -> None:
    file = tmp_path / "catalogue.csv"
    file.write_text(
        "item_id,available,available_from,markets,categories,title\n"
        'a,true,,de|at,"shoes|shoes, red",Red shoes\n'
        "b,no,1767225600000,,,\n"
    )
    done = stream_app(shop, "items", str(file))
    assert "2 items" in done.stdout, done.stderr
    found = states(shop, shop.topics.items)[-1]
    assert json.loads(found["a"])["attributes"] == {"title": "Red shoes"}
    assert json.loads(found["b"]) == {"item_id": "b", "available": False, "available_from": 1_767_225_600_000}
    publish(shop, tmp_path, Item(item_id="b"), Item(item_id="c"), complete=True)
    assert sorted(states(shop, shop.topics.items)[-1]) == ["b", "c"]
    rules = tmp_path / "rules.jsonl"
    rules.write_bytes(rule("r", RuleAction.EXCLUDE, "a") + b"\n\n")
    assert "1 rules" in stream_app(shop, "rules", str(rules)).stdout
    assert list(states(shop, shop.topics.rules)[-1]) == ["r"]


def test_the_commands_of_the_pages_work(shop: Deployment, tmp_path: Path) -> None:
    page = REPOSITORY / "docs" / "items-and-rules.md"
    item, rule_of_page = (json.dumps(json.loads(block)) for block in blocks(page, "json"))
    (tmp_path / "catalogue.csv").write_text("item_id,categories\ncamera-7,cameras|cameras/compact\n")
    (tmp_path / "rules.jsonl").write_text(rule_of_page)
    [commands], [diverse] = blocks(page, "sh"), blocks(REPOSITORY / "docs" / "diversity.md", "sh")
    program = f'stream-app() {{ {sys.executable} -m stream_app "$@"; }}\n'
    environment = shop.environment() | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        ["bash", "-ec", program + commands + diverse],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(states(shop, shop.topics.items)[-1]) == ["camera-7"]
    assert list(states(shop, shop.topics.rules)[-1]) == ["summer-sale"]
    assert decode_item(b"camera-7", item.encode()).item_id == "camera-7"
    assert re.search(r"worker\.mmr_lambda\W+0\.8\W+environment", done.stdout)


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("items.csv", "item_id,available\na,perhaps\n", "line 2: wrong-type: Expected `bool`"),
        ("items.csv", "item_id,available\na\n", "line 2: has fewer cells"),
        ("items.csv", "title\na\n", "line 2: wrong-type: Object missing required field `item_id`"),
        ("items.jsonl", '{"item_id": "a"}\n[]\n', "line 2: no JSON object"),
        ("items.jsonl", '{"item_id": "a", "prize": 3}\n', "line 1: wrong-type"),
        ("none.csv", None, "cannot be read"),
    ],
)
def test_a_file_with_a_bad_line_is_not_published(
    shop: Deployment, tmp_path: Path, name: str, text: str | None, problem: str
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    done = stream_app(shop, "items", str(tmp_path / name))
    assert done.returncode == 2
    assert problem in done.stderr
    assert shop.records(shop.topics.items) == 0


def test_a_record_that_the_broker_refuses_is_told_with_its_reason(shop: Deployment, tmp_path: Path) -> None:
    (tmp_path / "items.jsonl").write_text(json.dumps({"item_id": "a", "attributes": {"title": "x" * 3_000}}) + "\n")
    alter_topic(shop.connection.librdkafka(), shop.topics.items, max_message_bytes="1000")
    done = stream_app(shop, "items", str(tmp_path / "items.jsonl"))
    assert done.returncode == 1
    assert "1 records NOT confirmed: Broker: Message size too large" in " ".join(done.stdout.split())
