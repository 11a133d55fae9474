"""What the API tells of scores: those of the last day, whatever else is on their topic."""

from dataclasses import dataclass

from msgspec.structs import replace

from schemas.config.settings import KafkaConnection
from schemas.messages.announcement import encode_announcement
from schemas.messages.examples import MODEL_ANNOUNCEMENT, SCORE
from schemas.messages.score import encode_score
from stream_app.api.board import MOST_ANNOUNCEMENTS, Board
from stream_app.tools.scores import lines, newest_scores
from trainer.service.scores import ScoresTopic

NOW = SCORE.window_start + 60_000
FUTURE = encode_score(replace(SCORE, window_start=4_102_444_800_000))


@dataclass
class Record:
    content: bytes

    def key(self) -> bytes:
        return self.content

    def value(self) -> bytes:
        return self.content

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return 0


def test_a_score_of_the_future_hides_no_others_on_the_board() -> None:
    told: list[str] = []
    board = Board(told.append)
    board.score(b"now", encode_score(SCORE), now_ms=NOW)
    board.score(b"future", FUTURE, now_ms=NOW)
    board.score(b"ahead", encode_score(replace(SCORE, window_start=NOW + 60_000)), now_ms=NOW)  # by its clock
    assert [score.window_start for score in board.scores()] == [SCORE.window_start, NOW + 60_000]
    assert told == ["a score of a window that begins in the future, at 4102444800000"]


def test_the_board_holds_the_scores_of_a_day() -> None:
    board = Board(print)
    within, later = (replace(SCORE, window_start=SCORE.window_start + after) for after in (1, 86_400_000))
    for key, score in ((b"a", SCORE), (b"b", later), (b"c", within), (b"d", SCORE)):
        board.score(key, encode_score(score), now_ms=later.window_start)
    assert board.scores() == [later, within]
    for key in (b"b", b"c"):
        board.score(key, None, now_ms=later.window_start)
    assert board.scores() == []


def test_an_alias_means_what_was_announced_last_whatever_else_is_on_the_topics() -> None:
    told: list[str] = []
    board, key = Board(told.append), MODEL_ANNOUNCEMENT.alias.encode()
    for n in range(MOST_ANNOUNCEMENTS + 1):
        board.announce(key, encode_announcement(replace(MODEL_ANNOUNCEMENT, version=f"v{n}")))
    board.announce(b"challenger", encode_announcement(replace(MODEL_ANNOUNCEMENT, alias="challenger")))
    board.announce(key, b"{}")
    board.score(b"score", b"{}", now_ms=NOW)
    serving = board.serving(MODEL_ANNOUNCEMENT.alias)
    assert serving is not None
    assert serving.version == f"v{MOST_ANNOUNCEMENTS}"
    assert (board.announcements()[0].version, len(board.announcements())) == ("v2", MOST_ANNOUNCEMENTS)
    assert len(told) == 2


def test_nor_in_the_command_nor_from_the_guard() -> None:
    told: list[str] = []
    records = [Record(FUTURE), Record(encode_score(SCORE))]
    assert newest_scores(records, told.append) == [SCORE]
    assert len(told) == 1
    with ScoresTopic(KafkaConnection(), "scores", group="guard", keep_ms=1000) as topic:
        for record in records:
            topic._take(record.key(), record.value(), 0)
        assert list(topic._newest.values()) == [SCORE]


def test_scores_by_another_k_than_the_newest_are_not_added_to_them() -> None:
    newer = [replace(SCORE, window_start=NOW, k=10), replace(SCORE, window_start=NOW + 1, k=5, variant="shadow:b")]
    [line] = lines([SCORE, *newer], ())
    assert (line.tally.predictions, line.first_ms) == (SCORE.total.predictions, NOW)
    assert lines([], ()) == []
