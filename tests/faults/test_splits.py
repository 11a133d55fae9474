"""Several models in one worker, under load: splits that change, a variant's model that is swapped, and kills."""

from collections.abc import Mapping, Sequence

from aiokafka.partitioner import murmur2

from deploy.demo.oracle import Published, read_topic
from schemas.messages.click import Click
from tests.contract.tiny_model import TinyFailing
from tests.faults.deployment import Deployment

Line = Mapping[str, int]


def variant_of(session_id: str, line: Line) -> str | None:
    """By another implementation of the hash, and another way along the line."""
    place, end = (murmur2(session_id.encode()) & 0x7FFFFFFF) % 10_000, 0
    for alias, share in line.items():
        end += 100 * share
        if place < end:
            return alias
    return None


def misplaced(published: Published, lines: Sequence[Line]) -> list[str]:
    """Rankings of a variant that their session had in none of the splits that can have counted by then, in order."""
    wrong, at = [], dict[int, int]()
    for (partition, offset), ranking in sorted(published.last.items()):
        number = at.get(partition, 0)
        while number < len(lines) and ranking.variant != variant_of(ranking.session_id, lines[number]):
            number += 1
        if number == len(lines):
            wrong.append(f"{partition} {offset}: {ranking.variant} in place of one of split {at.get(partition, 0)}")
        else:
            at[partition] = number
    return wrong


def test_splits_change_under_load(deployment: Deployment, stream: list[Click]) -> None:
    deployment.use_splits()
    half = len(deployment.items) // 2
    deployment.announce(deployment.bundle("v2", items=deployment.items[half:], hidden=24), alias="b")
    deployment.announce(deployment.bundle("v4", hidden=12), alias="c")
    lines: list[Line] = [{"champion": 70, "b": 30}, {"champion": 30, "b": 70}, {}]
    deployment.split("c", **lines[0])
    worker = deployment.start_ready()
    load = deployment.load(stream, per_second=500)
    deployment.wait_until_more_clicks(worker, 1000)
    deployment.wait(lambda: deployment.records(deployment.topics.rankings_shadow) > 500, "shadows")
    deployment.split(**lines[1])
    deployment.wait_until_more_clicks(worker, 200)
    worker.kill()
    deployment.put(deployment.topics.splits, "another shop", b"{")
    worker = deployment.start_ready()
    deployment.wait_until_more_clicks(worker, 500)
    deployment.put(deployment.topics.splits, deployment.app_id, b"{")
    deployment.announce(deployment.bundle("v3", hidden=8), alias="b")
    deployment.wait(lambda: "v3" in worker.output(), "the variant's other model")
    deployment.wait_until_more_clicks(worker, 1000)
    assert worker.metric("nextclick_variant_fallbacks_total") == 0
    assert worker.metric("nextclick_refused_bundles_total") == 0
    failing = TinyFailing(items=tuple(deployment.items), k=20, chooses_k=True)
    deployment.announce(deployment.add(failing, "failing"), alias="b")
    deployment.wait(lambda: worker.metric("nextclick_variant_fallbacks_total") > 100, "the champion, for the variant")
    assert worker.metric("nextclick_refused_bundles_total") == 1
    deployment.announce(deployment.root / "registry" / "v3", alias="b")
    deployment.wait_until_swapped(worker, 5)
    deployment.wait_until_more_clicks(worker, 500)
    assert worker.metric("nextclick_refused_records_total") == 1
    assert worker.metric("nextclick_variant_share") == 100
    deployment.split()
    deployment.wait(lambda: worker.metric("nextclick_variant_share") == 0, "the end of the split")
    deployment.wait_until_more_clicks(worker, 500)
    assert worker.metric("nextclick_rebuilt_rows_total") > 0
    deployment.judge(load, worker)
    published = Published.of(read_topic(deployment.connection.librdkafka(), deployment.topics.rankings))
    while_failed: Line = {"champion": 100}
    assert misplaced(published, [*lines[:2], while_failed, *lines[1:]]) == []
    by_variant = {(ranking.variant, ranking.model_version) for ranking in published.last.values()}
    assert by_variant - {("b", "failing")} == {(None, "v1"), ("champion", "v1"), ("b", "v2"), ("b", "v3")}
    beside = Published.of(read_topic(deployment.connection.librdkafka(), deployment.topics.rankings_shadow))
    assert {(ranking.variant, ranking.model_version) for ranking in beside.last.values()} == {("shadow:c", "v4")}
    assert beside.last.keys() <= published.last.keys()
