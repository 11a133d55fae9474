"""Whom we are measured beside."""

import pytest

from bench import peers
from bench.errors import BenchmarkError


def test_a_peer_that_there_is_not_stops_all_before_they_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONLY", "quix flink")
    with pytest.raises(
        BenchmarkError, match=r"no peer flink; there are nextclick, faust, quix, bytewax, kafka-streams"
    ):
        peers.main()


def test_those_that_are_named_are_measured_beside_us(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[str] = []

    class Shown:
        def show(self, _title: str) -> None: ...

    def measure(_catalogues: object, _rounds: object, peers: tuple[peers.Peer, ...]) -> Shown:
        chosen.extend(peer.key for peer in peers)
        return Shown()

    monkeypatch.setenv("ONLY", "kafka-streams")
    monkeypatch.setattr(peers, "measure", measure)
    peers.main()
    assert chosen == ["nextclick", "kafka-streams"]
