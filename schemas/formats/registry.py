"""A schema registry with Confluent's API: schemas by their ids, and ids of schemas. Waits for one that is away.

A record whose schema cannot be had now is neither rejected nor passed over: whoever reads it waits, and ends after
`schema_registry.timeout` without having moved on.
"""

import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import structlog

from schemas.config.schema_registry_settings import SchemaRegistrySettings
from schemas.errors import SchemaRegistryError, SettingsError, StoppedWaitingError

log = structlog.get_logger(__name__)

_ANSWER_SECONDS: Final = 10.0
_PAUSE_SECONDS: Final = 1.0
_NO_SCHEMA: Final = 40403
"""Confluent's code for an id that the registry does not know. A bare 404 says only that the URL is wrong."""
_PASSING: Final = (408, 425, 429)

T = TypeVar("T")


class NoSuchSchemaError(Exception):
    """The registry knows no schema of an id."""


@dataclass(frozen=True)
class WrittenSchema:
    """A schema as the registry has it.

    Attributes:
        kind: `AVRO`, `PROTOBUF` or `JSON`.
        references: the schemas that it refers to, those first that others refer to.
    """

    kind: str
    text: str
    references: tuple[str, ...] = ()


class SchemaRegistry:
    """A registry, asked over HTTP by confluent-kafka's client.

    Args:
        settings: its URL, and how long it may be away.
        stopping: whether whoever waits for it is told to stop.
        client: another one than the settings ask for.

    Attributes:
        waiting_for: what it is waited for with, None while it answers.
    """

    def __init__(
        self, settings: SchemaRegistrySettings, stopping: Callable[[], bool] = lambda: False, client: Any = None
    ) -> None:
        try:
            from confluent_kafka.schema_registry import SchemaRegistryClient
        except ImportError as error:
            raise SettingsError(
                f"[schema_registry] needs {error.name}, which is not installed: pip install 'nextclick[registry]'"
            ) from error
        self._settings, self._stopping = settings, stopping
        waiting_is_ours = {"max.retries": 0, "timeout": _ANSWER_SECONDS}
        self._client = client or SchemaRegistryClient(settings.client() | waiting_is_ours)
        weakref.finalize(self, self._client.close)  # its connections
        self.waiting_for: str | None = None

    def schema(self, schema_id: int) -> WrittenSchema:
        """The schema with an id. Raises NoSuchSchemaError, and SchemaRegistryError once it has waited long enough."""
        return self._insist(lambda: self._written(self._client.get_schema(schema_id)), f"schema {schema_id}")

    def id_of(self, subject: str, kind: str, text: str) -> int:
        """The id of a schema of ours, registered unless `schema_registry.register_schemas` is off.

        Raises SchemaRegistryError where it is refused, or not there.
        """
        from confluent_kafka.schema_registry import Schema

        schema = Schema(text, kind)

        def ask() -> int:
            if self._settings.register_schemas:
                return int(self._client.register_schema(subject, schema))
            return int(self._client.lookup_schema(subject, schema).schema_id)

        what = f"our schema of the subject {subject}"
        try:
            return self._insist(ask, what)
        except NoSuchSchemaError as error:
            raise SchemaRegistryError(
                f"the schema registry has not {what}, and schema_registry.register_schemas is off: register it "
                "(docs/schema-registry.md)"
            ) from error

    def _written(self, found: Any) -> WrittenSchema:
        references: dict[str, None] = {}
        for reference in found.references or ():
            inner = self._written(self._client.get_version(reference.subject, reference.version).schema)
            references |= dict.fromkeys((*inner.references, inner.text))
        return WrittenSchema(found.schema_type or "AVRO", found.schema_str, tuple(references))

    def _insist(self, call: Callable[[], T], what: str) -> T:
        """Call until the registry answers. Raises NoSuchSchemaError and SchemaRegistryError."""
        from confluent_kafka.schema_registry import SchemaRegistryError as RefusedError

        url, until = self._settings.url, time.monotonic() + self._settings.timeout
        while True:
            try:
                answer = call()
            except RefusedError as error:
                status = error.http_status_code
                problem = f"the schema registry {url} refuses {what}: {status} {error.error_message}"
                if error.error_code == _NO_SCHEMA:
                    self.waiting_for = None
                    raise NoSuchSchemaError(problem) from error
                if 400 <= status < 500 and status not in _PASSING:
                    raise SchemaRegistryError(f"{problem}; check [schema_registry] and the subject there") from error
            except Exception as error:  # noqa: BLE001 - whatever its HTTP client raises: it is told, and tried again
                problem = f"the schema registry {url} does not answer for {what}: {type(error).__name__}: {error}"
            else:
                self.waiting_for = None
                return answer
            self.waiting_for = problem
            if self._stopping():
                raise StoppedWaitingError(f"stopped; {problem}")
            if time.monotonic() > until:
                raise SchemaRegistryError(f"{problem}; gave up after schema_registry.timeout")
            log.warning("waiting for the schema registry", problem=problem)
            time.sleep(_PAUSE_SECONDS)
