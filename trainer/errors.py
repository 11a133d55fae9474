"""Every error that the trainer raises for its operator, drawn once:

    TrainerError
    ├── TrainingSettingsError (ValueError)   a training setting that does not exist or does not fit
    ├── PresetError (ValueError)             a preset that does not exist or whose file is wrong
    ├── TuningError                          a search that cannot begin or go on
    ├── TooFewSessionsError (ValueError)     nothing is left to train or evaluate on
    ├── TrainingDivergedError                the loss stopped being a number
    ├── CheckpointError                      a checkpoint that is damaged or of another run (trainer.checkpoint)
    └── NonFiniteScoresError                 a model whose scores are not numbers

Each message names the cause first and, where there is one, the operator's action after it. Bundles have their own
(:mod:`schemas.errors`).
"""


class TrainerError(Exception):
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
