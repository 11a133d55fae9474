"""A models topic for tests without a broker."""

from schemas.messages.announcement import ModelAnnouncement
from trainer.errors import AnnounceError


class TopicInMemory:
    """The models topic: the newest announcement of each alias, and none when Kafka is down."""

    def __init__(self, alias: str = "champion") -> None:
        self.alias = alias
        self.log: list[ModelAnnouncement] = []
        self.down = False

    def announced(self) -> dict[str, ModelAnnouncement]:
        return {announcement.alias: announcement for announcement in self.log}

    def announce(self, announcement: ModelAnnouncement) -> None:
        if self.down:
            raise AnnounceError("Kafka is down")
        self.log.append(announcement)
