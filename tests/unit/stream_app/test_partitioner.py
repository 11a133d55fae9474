"""Kafka's hash of keys. That a broker's records lie there is tested with a broker."""

import pytest

from stream_app.partitioner import murmur2, partition_of


@pytest.mark.parametrize(
    ("key", "signed"),
    # Apache Kafka's own expectations of its `Utils.murmur2`, as Java's signed integers.
    [
        ("21", -973932308),
        ("foobar", -790332482),
        ("a-little-bit-long-string", -985981536),
        ("a-little-bit-longer-string", -1486304829),
        ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        ("abc", 479470107),
    ],
)
def test_as_kafka_hashes(key: str, signed: int) -> None:
    assert murmur2(key.encode()) == signed % 2**32
    assert partition_of(key.encode(), 8) == (signed & 0x7FFFFFFF) % 8


@pytest.mark.parametrize("partitions", [1, 2, 7, 1000])
def test_partitions_are_within_the_topic(partitions: int) -> None:
    assert {partition_of(b"%d" % n, partitions) for n in range(20 * partitions)} == set(range(partitions))
