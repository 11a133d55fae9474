"""Every error that `schemas` raises, drawn once:

    SchemaError
    ├── MessageError (ValueError)          a record does not hold the message it should hold
    │   ├── ClickRejectedError             a click, with its RejectReason (schemas.messages.click)
    │   ├── UnreadableError                a record in a format of a schema registry (schemas.formats.unreadable)
    │   └── AnnouncementError              a model announcement
    ├── BundleError                        a model bundle cannot be written, found, trusted or run
    │   ├── BundleExistsError              a bundle of that version is already there
    │   ├── BundleAwayError                its files cannot be reached, which says nothing of the bundle: it may pass
    │   └── NoAnswerError                  a graph fails on what it is asked, or returns what is no answer
    ├── VocabularyError (ValueError)       item ids that are no vocabulary
    ├── ClickFileError (ValueError)        a file of clicks that cannot be used
    ├── SchemaRegistryError                the schema registry is away for too long, or refuses
    │   └── StoppedWaitingError            whoever waited for it was told to stop
    ├── SettingsError                      the configuration cannot be used as it stands
    └── TopicError                         the topics of the cluster do not fit the topic table

Each message names the cause first and, where there is one, the operator's action after it.
"""

from schemas.masking import MaskedError


class SchemaError(MaskedError):
    """Root of the tree."""


class MessageError(SchemaError, ValueError):
    """A record's bytes are not the message they should be."""


class AnnouncementError(MessageError):
    """A record on the `models` topic is not a usable announcement."""


class BundleError(SchemaError):
    """A model bundle is refused; the message starts with the file and says why."""


class BundleExistsError(BundleError):
    """A bundle is immutable: its version can be written once."""


class BundleAwayError(BundleError):
    """A bundle's files cannot be read now: a store that does not answer, a disk with errors. Trying again may help."""


class NoAnswerError(BundleError):
    """A graph fails on what it is asked, or returns items or numbers that are no answer; the message says which."""


class VocabularyError(SchemaError, ValueError):
    """Ids that are empty, too long, repeated, or not a list of strings."""


class ClickFileError(SchemaError, ValueError):
    """A file of clicks that cannot be used; the message names the file, the place in it and the cause."""


class SchemaRegistryError(SchemaError):
    """A schema cannot be had; no record that needs it was passed over."""


class StoppedWaitingError(SchemaRegistryError):
    """The process was told to stop while it waited for the schema registry: no failure of its own."""


class SettingsError(SchemaError):
    """Unknown, missing or unusable settings; every problem found is in the one message."""


class TopicError(SchemaError):
    """Topics are missing or differ in a way that would lose or misplace data."""
