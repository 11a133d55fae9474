"""Errors of the trainer's Kafka side, below the root that :mod:`trainer.errors` draws:

    TrainerError
    └── ServiceError
        ├── ClickLogError      the files of the click log contradict each other, or the topic that they came from
        ├── CollectError       Kafka gives no clicks
        ├── AnnounceError      the models topic cannot be read, or does not take an announcement
        │   └── KafkaAwayError (CollectError)   either, because the brokers do not answer: it may pass
        ├── RegistryError      a model version cannot be found, written or removed
        │   └── LeaseError     another trainer publishes the same alias in the same registry
        ├── ParityError        the ONNX graphs do not compute what the network computes
        └── CycleError         a cycle failed by something that is no error of ours: a full disk, too little memory

    StopRequested              no error: the operator asked the service to stop, wherever it was

Each message names the cause first and the operator's action after it.
"""

from trainer.errors import TrainerError


class ServiceError(TrainerError):
    """Root of this branch."""


class ClickLogError(ServiceError):
    """Files that overlap, miss offsets, or belong to another topic."""


class CollectError(ServiceError):
    """The clicks topic cannot be read."""


class RegistryError(ServiceError):
    """A version that is not there, or a registry that cannot be used."""


class ParityError(ServiceError):
    """An export that would serve other rankings than those that were trained."""


class AnnounceError(ServiceError):
    """The models topic cannot be read or written."""


class KafkaAwayError(CollectError, AnnounceError):
    """The brokers cannot be reached, or are not ready; trying again later may help."""


class LeaseError(RegistryError):
    """Another trainer holds this registry's lease for the alias."""


class CycleError(ServiceError):
    """What the system said, in one line."""


class StopRequested(Exception):  # noqa: N818 - it is no error
    """SIGTERM or Ctrl-C arrived; raised at the next safe place, of which training has one every few steps."""
