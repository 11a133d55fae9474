"""What can end a worker.

StreamError
├── RowError            (state_codec)  a row cannot be read or written
├── DeliveryError       a record could not be made durable
├── StoreError          the local store does not fit the topics, or cannot be written
├── FencedError         another worker has this one's place in the group
├── TelemetryError      spans cannot be sent as the settings say
└── StalledError        nothing moved for too long
"""

from schemas.masking import MaskedError


class StreamError(MaskedError):
    """Base of what the worker raises; its text names the cause and what to do."""


class RowError(StreamError, ValueError):
    """A row that this version cannot read: damaged, or written by a newer version."""


class DeliveryError(StreamError):
    """Kafka did not confirm a record in time; what it belongs to is not acknowledged and will be redelivered."""


class StoreError(StreamError):
    """The local store and the topics contradict each other, or the store cannot be written."""


class FencedError(StreamError):
    """Another worker has joined under the id of this one's data folder."""


class TelemetryError(StreamError):
    """Spans cannot be sent as the settings, or OpenTelemetry's variables, say."""


class StalledError(StreamError):
    """A part of the worker has work and makes no progress."""
