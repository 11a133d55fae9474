"""What a scorer needs when it is given a partition: the scores so far, and where to read rankings from.

No changelog: the scores topic holds the counts, and the rankings topic holds what rows are made of. A row depends on
the rankings of its session since the idle gap, and on those of the hour that its last click was in.
"""

import logging
import time
from typing import Any, Final

from confluent_kafka import IsolationLevel, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from schemas.config.settings import KafkaConnection
from schemas.errors import MessageError
from schemas.formats.codec import Codec
from schemas.kafka.watermarks import while_leaders_move
from schemas.messages.score import Score, decode_score
from schemas.messages.split import is_shadow
from stream_app.core.scoring import UNIT_MS, ScoringRules, decode_ranking
from stream_app.kafka.plain_consumer import PlainConsumer, ReadError

_ANSWER_SECONDS: Final = 30.0
_FURTHEST_BACK_MS: Final = 30 * 86_400_000


def known_scores(
    connection: KafkaConnection, scores: PlainConsumer, partition: int, rules: ScoringRules, *, shadows: bool
) -> list[Score]:
    """The scores of a partition of the rankings topic, or of that of shadows, as they were published last.

    Those of another k or window length are left out: counting goes on beside them. So are those of the future, or all
    clicks would be late. Raises ReadError.
    """
    newest: dict[bytes | None, Score] = {}
    number = partition % len(scores.partitions)
    # A killed scorer's transaction may be open still. What was committed behind it counts, and must be seen.
    end = _written(connection, scores.topic, number)
    for record in scores.history(number, until=end):
        try:
            score = decode_score(record.value())
        except MessageError as error:
            where = f"{scores.topic} partition {number}, offset {record.offset()}"
            raise ReadError(f"{where}: {error}; nobody but scorers may write there") from error
        if score.partition == partition and is_shadow(score.variant) == shadows:
            newest[record.key()] = score
    now_ms = time.time_ns() // 1_000_000
    found = (score for score in newest.values() if (score.k, score.window_ms) == (rules.k, rules.window_ms))
    return [score for score in found if score.has_begun(now_ms)]


def lookback(
    rankings: PlainConsumer, partition: int, low: int, committed: int, rules: ScoringRules, *, codec: Codec
) -> int:
    """The offset from which rankings lead to the rows that the ones from `committed` on need; at least `low`.

    Clicks say when a session ends, and Kafka finds records by when they were written: where those times go by at
    different speeds (a worker that catches up, a replay) it takes a second look further back. Raises ReadError.
    """
    last = rankings.first_at(partition, max(low, committed - 1))
    if last is None or committed <= low:
        return low
    back = rules.idle_gap_ms + UNIT_MS
    while back < _FURTHEST_BACK_MS:
        start = rankings.offset_at(partition, last.timestamp()[1] - back)
        if not low < start < committed:
            break
        first = rankings.first_at(partition, start)
        if first is not None and _clicked(first, codec) <= _clicked(last, codec) - rules.idle_gap_ms - UNIT_MS:
            return start
        back *= 2
    return low


def _clicked(record: Any, codec: Codec) -> int:
    try:
        return decode_ranking(codec.to_json(record.value() or b"")).click_timestamp
    except MessageError:  # no ranking: when it was written is near enough
        return int(record.timestamp()[1])


def _written(connection: KafkaConnection, topic: str, partition: int) -> int:
    """Where a partition ends, those records included whose transaction is open."""
    asked = {TopicPartition(topic, partition): OffsetSpec.latest()}

    def ask() -> int:
        admin = AdminClient(connection.librdkafka(), logger=logging.getLogger("librdkafka"))
        [answer] = admin.list_offsets(
            asked, isolation_level=IsolationLevel.READ_UNCOMMITTED, request_timeout=_ANSWER_SECONDS
        ).values()
        return int(answer.result(_ANSWER_SECONDS).offset)

    try:
        return while_leaders_move(ask, timeout=_ANSWER_SECONDS)
    except (KafkaException, TimeoutError) as error:
        raise ReadError(f"the end of {topic} partition {partition} is not known: {error}") from error
