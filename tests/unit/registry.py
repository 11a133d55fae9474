"""A schema registry without a server, by Confluent's own client; and a codec that asks for none."""

from collections.abc import Iterable
from typing import Any

from confluent_kafka.schema_registry import Schema, SchemaRegistryClient, SchemaRegistryError

from schemas.config.schema_registry_settings import SchemaRegistrySettings
from schemas.formats.codec import Codec
from schemas.formats.registry import SchemaRegistry

SETTINGS = SchemaRegistrySettings(url="http://registry.example", clicks="avro", rankings="avro", timeout=3)


class Registry(SchemaRegistry):
    """Confluent's client without a server; an unknown id is told as servers tell it, and it may be away."""

    def __init__(self, **settings: Any) -> None:
        self.client: Any = SchemaRegistryClient.new_client({"url": "mock://", "ssl.ca.location": False})
        self.away: list[Exception] = []
        self.asked: list[int] = []
        found = self.client.get_schema

        def get_schema(schema_id: int, *_: Any) -> Schema:
            self.asked.append(schema_id)
            if self.away:
                raise self.away.pop()
            try:
                known: Schema = found(schema_id)
            except SchemaRegistryError as error:
                raise SchemaRegistryError(404, 40403, "Schema not found") from error
            return known

        self.client.get_schema = get_schema
        super().__init__(SETTINGS.model_copy(update=settings), client=self.client)


class ReadyFirst(Codec):
    """JSON that may be read once it was got ready, as with a registry."""

    def __init__(self) -> None:
        self._ready: set[bytes | None] = set()

    def ready(self, values: Iterable[bytes | None]) -> None:
        self._ready = set(values)

    def to_json(self, value: bytes) -> bytes:
        assert value in self._ready
        return value
