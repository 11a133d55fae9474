"""The models topic from the trainer's side: which model an alias means now, and making it mean another."""

import structlog

from schemas.config.settings import KafkaConnection
from schemas.errors import AnnouncementError
from schemas.messages.announcement import ModelAnnouncement, decode_announcement, encode_announcement
from trainer.service.compacted import CompactedTopic

log = structlog.get_logger(__name__)


class ModelsTopic:
    """Reads the announcements of every alias, and writes those of one."""

    def __init__(
        self, connection: KafkaConnection, topic: str, alias: str, *, group: str, delivery_seconds: float
    ) -> None:
        self._topic = CompactedTopic(connection, topic, group=group, delivery_seconds=delivery_seconds)
        self.alias = alias

    def current(self) -> ModelAnnouncement | None:
        """The newest usable announcement of our alias, None without one. Raises AnnounceError."""
        return self.announced().get(self.alias)

    def announced(self) -> dict[str, ModelAnnouncement]:
        """The newest usable announcement of each alias. Raises AnnounceError."""
        newest: dict[str, ModelAnnouncement] = {}
        for key, value in self._topic.records():
            try:
                usable = decode_announcement(value, key)
            except AnnouncementError as error:
                log.warning("an announcement is not usable, and no worker uses it", key=str(key), error=str(error))
                continue
            newest[usable.alias] = usable
        return newest

    def announce(self, announcement: ModelAnnouncement) -> None:
        """Returns when Kafka has confirmed it. Raises AnnounceError when it has not: it may yet arrive, or never."""
        what = f"the announcement of {announcement.version}"
        self._topic.write(announcement.alias.encode(), encode_announcement(announcement), what=what)
