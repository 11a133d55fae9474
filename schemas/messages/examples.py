"""One example of each message: in the AsyncAPI document, and golden in the contract tests."""

from typing import Final

from schemas.messages.announcement import CHAMPION, ModelAnnouncement
from schemas.messages.click import Click, RejectReason
from schemas.messages.forget import Forget
from schemas.messages.item import Item
from schemas.messages.ranking import RankedItem, Ranking, RankingReason
from schemas.messages.rejected import RejectedClick
from schemas.messages.rule import Match, Rule, RuleAction
from schemas.messages.score import Moments, Score, Tally
from schemas.messages.source import Source
from schemas.messages.split import Split, Variant

CLICK: Final = Click(session_id="s-4711", item_id="camera-7", timestamp=1_767_225_600_000, event_id="e-1", type="view")

FORGET: Final = Forget(session_id="s-4711", action="forget")

RANKING: Final = Ranking(
    session_id="s-4711",
    event_id="e-1",
    item_id="camera-7",
    model_version="20260101T000000Z-1f0c",
    items=(RankedItem("memory-card-2", 7.25), RankedItem("camera-bag-1", 6.5)),
    source=Source("clicks", 3, 1042),
    click_timestamp=1_767_225_600_000,
    produced_at=1_767_225_600_012,
    reason=RankingReason.MODEL,
)

ITEM: Final = Item(
    item_id="camera-7",
    available_until=1_798_761_600_000,
    markets=("at", "de"),
    categories=("cameras", "cameras/compact"),
    attributes={"title": "Compact camera 7", "brand": "Acme", "price": 249.0},
)

RULE: Final = Rule(
    rule_id="summer-sale",
    action=RuleAction.BOOST,
    match=Match(categories=("cameras",), attributes={"brand": ("Acme",)}),
    boost=0.5,
    markets=("de",),
    begin=1_782_864_000_000,
    until=1_785_542_400_000,
)

SPLIT: Final = Split(app_id="nextclick", variants=(Variant(CHAMPION, 90.0), Variant("challenger", 10.0)), salt="1")

REJECTED_CLICK: Final = RejectedClick(
    reason=RejectReason.WRONG_TYPE,
    detail="Expected `int`, got `str` - at `$.timestamp`",
    source=Source("clicks", 3, 1043),
    key=b"s-4711",
    value=b'{"session_id":"s-4711","item_id":"camera-7","timestamp":"now"}',
    value_size=62,
    rejected_at=1_767_225_600_013,
)

MODEL_ANNOUNCEMENT: Final = ModelAnnouncement(
    alias=CHAMPION,
    version="20260101T000000Z-1f0c",
    uri="s3://models/nextclick/20260101T000000Z-1f0c",
    manifest_sha256="9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    announced_at=1_767_225_500_000,
    why="promoted: Recall@20 0.702 against 0.689 of the champion",
)

SCORE: Final = Score(
    model_version="20260101T000000Z-1f0c",
    variant=None,
    market=None,
    window_start=1_767_225_600_000,
    window_ms=300_000,
    partition=3,
    k=20,
    rankings={"model": 480, "unknown-item": 20},
    types={"view": Tally(380, 190, 82.5), "purchase": Tally(20, 14, 8.25)},
    reasons={"model": Tally(390, 200, 89.25), "unknown-item": Tally(10, 4, 1.5)},
    sessions=100,
    moments=Moments(nn=2600, nh=1350, hh=790, nr=602.5, rr=188.75),
    next_offset=91_204,
)
