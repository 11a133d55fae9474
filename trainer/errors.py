"""Every error that the trainer raises for its operator, drawn once:

    TrainerError
    ├── TrainingSettingsError (ValueError)   a training setting that does not exist or does not fit
    ├── PresetError (ValueError)             a preset that does not exist or whose file is wrong
    ├── TuningError                          a search that cannot begin or go on
    ├── TooFewSessionsError (ValueError)     nothing is left to train or evaluate on
    ├── TrainingDivergedError                the loss stopped being a number
    ├── CheckpointError                      a checkpoint that is damaged or of another run
    ├── NonFiniteScoresError                 a model whose scores are not numbers
    └── ServiceError                         of the service that retrains: log, registry, announcements
        ├── ClickLogError                    the files of the click log contradict each other, or their topic
        ├── CollectError                     Kafka gives no clicks
        ├── AnnounceError                    the models topic cannot be read, or does not take an announcement
        │   └── KafkaAwayError (CollectError)   either, because the brokers do not answer: it may pass
        ├── RegistryError                    a model version cannot be found, written or removed
        │   └── LeaseError                   another one publishes, or guards, the same alias in the same registry
        ├── ParityError                      the ONNX graphs do not compute what the network computes
        └── CycleError                       a cycle failed by no error of ours: a full disk, too little memory

    StopRequested                            no error: the operator asked to stop, wherever the trainer was

Each message names the cause first and, where there is one, the operator's action after it. Bundles have their own
(:mod:`schemas.errors`).
"""

from schemas.masking import MaskedError


class TrainerError(MaskedError):
    """Root of the tree."""


class TrainingSettingsError(TrainerError, ValueError):
    """A training setting that does not exist or does not fit."""


class PresetError(TrainerError, ValueError):
    """A preset that does not exist or whose file is wrong; the message says which and where."""


class TuningError(TrainerError):
    """A search that cannot begin or go on; the message says why and what to do."""


class TooFewSessionsError(TrainerError, ValueError):
    """Nothing is left to train or evaluate on; the message says after which step."""


class TrainingDivergedError(TrainerError):
    """The loss stopped being a number; the message says where and what to change."""


class NonFiniteScoresError(TrainerError):
    """A model whose scores are not numbers: diverged, or damaged. It has no rank to count."""


class ServiceError(TrainerError):
    """Root of the service's errors."""


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


class NoTopicError(AnnounceError):
    """A topic that does not exist, or that the login may not see."""


class SplitError(ServiceError):
    """A split that workers could not serve; the message says why."""


class KafkaAwayError(CollectError, AnnounceError):
    """The brokers cannot be reached, or are not ready; trying again later may help."""


class LeaseError(RegistryError):
    """Another trainer, or another guard, holds this registry's lease for the alias."""


class CycleError(ServiceError):
    """What the system said, in one line."""


class StopRequested(Exception):  # noqa: N818 - it is no error
    """SIGTERM or Ctrl-C arrived; raised at the next safe place, of which training has one every few steps."""
