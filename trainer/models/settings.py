"""What a training run can be told, as one frozen object."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Final, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from schemas.bundle.manifest import BundleLimits
from trainer.errors import TrainingSettingsError

# Short forms in use in the literature and in other tools' parameter files.
_ALIASES = {"xe": "cross-entropy", "constrained": "shared"}
MOST_UNITS: Final = BundleLimits().hidden_size
MOST_STATE_ROWS: Final = BundleLimits().layers


def _canonical(value: object) -> object:
    if not isinstance(value, str):
        return value
    name = value.strip().lower().replace("_", "-")
    return _ALIASES.get(name, name)


LossName = Annotated[Literal["cross-entropy", "bpr", "top1", "bpr-max", "top1-max"], BeforeValidator(_canonical)]
ActivationName = Annotated[Literal["softmax", "linear", "elu", "tanh", "relu"], BeforeValidator(_canonical)]
OptimizerName = Annotated[Literal["adagrad", "sgd"], BeforeValidator(_canonical)]
MemoryTerm = Literal["repeat", "cooccurrence", "transitions"]


def _terms(value: object) -> object:
    """Names with commas between them, in the order that terms have; `all` and `none`."""
    if not isinstance(value, str):
        return value
    named = [name for name in map(str.strip, value.lower().split(",")) if name]
    known = get_args(MemoryTerm)
    if named in (["all"], ["none"]):
        return known if named == ["all"] else ()
    return tuple(sorted(dict.fromkeys(named), key=lambda name: known.index(name) if name in known else -1))


MemoryTerms = Annotated[tuple[MemoryTerm, ...], BeforeValidator(_terms)]
EngineChoice = Annotated[Literal["auto", "compiled", "torch"], BeforeValidator(_canonical)]
EmbeddingMode = Annotated[Literal["shared", "separate", "one-hot"], BeforeValidator(_canonical)]


class TrainingSettings(BaseModel):
    """Settings of one GRU4Rec fit. The defaults are those of the measured reference run in ``docs/training.md``.

    Raises (through :meth:`parse`) :class:`TrainingSettingsError` for unknown names and values out of range.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    loss: LossName = "cross-entropy"
    activation: ActivationName = Field(
        "softmax",
        description="activation of the scores in training; by default softmax (cross-entropy), elu (bpr-max), linear "
        "(others)",
    )
    embedding: EmbeddingMode = Field(
        "shared", description="input embedding: shared with the output, a separate table, or one-hot input to the gates"
    )
    embedding_l2: float = Field(0.0, ge=0, le=1, description="L2 penalty on the item rows used in a step")
    input_decay: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="If above 0, the input is a decayed sum of the session's item rows, with this decay per click",
    )
    hidden_size: int = Field(100, ge=1, le=MOST_UNITS)
    layers: int = Field(1, ge=0, le=8, description="gRU layers; 0: no GRU, the state is the last item's row")
    deep_input: bool = Field(False, description="feed the item input to every layer instead of only the first")
    batch_size: int = Field(100, ge=1, le=65536, description="sessions trained side by side")
    n_sample: int = Field(
        2048, ge=0, le=1_000_000, description="sampled negatives per step, besides those of the batch"
    )
    sample_alpha: float = Field(0.5, ge=0, le=2, description="negatives are drawn with p ~ support^alpha")
    # The reference results need it: without it Recall@20 on rsc15_64 is .698 in place of .713.
    logq: float = Field(
        1.0, ge=0, le=1, description="strength of the logQ correction; 0 for all losses except cross-entropy"
    )
    bpreg: float = Field(1.0, ge=0, description="weight of the score regulariser of bpr-max")
    elu: float = Field(0.5, ge=0, description="alpha of the activation elu; 0 turns it off")
    optimizer: OptimizerName = Field("adagrad", description="optimizer")
    learning_rate: float = Field(0.1, gt=0, le=10, description="learning rate of the optimizer")
    momentum: float = Field(0.0, ge=0, lt=1, description="momentum of the optimizer")
    dropout_input: float = Field(0.0, ge=0, lt=1, description="dropout of the item input")
    dropout_hidden: float = Field(0.2, ge=0, lt=1, description="dropout of the hidden state")
    epochs: int = Field(5, ge=1, le=10_000)
    averaging: float = Field(
        3.0,
        ge=0,
        le=100,
        description="average the weights of all epochs, epoch e weighted by e to this power; 0: keep the last",
    )
    members: int = Field(
        1,
        ge=1,
        le=32,
        description="networks trained from different seeds, whose scores are summed; cost grows with each",
    )
    memory: MemoryTerms = Field(
        ("repeat", "cooccurrence", "transitions"),
        description="terms of the session memory, separated by commas; `all`, or `none` for the GRU alone",
    )
    table_width: int = Field(100, ge=1, le=1000, description="items kept per row of the memory's two tables")
    memory_holdout: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="share of the training sessions, the newest, used to fit the memory's weights",
    )
    list_length: int = Field(
        30,
        ge=1,
        le=BundleLimits().k,
        description="length of the lists that the model can rank: at least worker.published, and above trainer.gate_k",
    )
    engine: EngineChoice = Field(
        "auto", description="training engine: compiled code where it is supported and faster, otherwise torch"
    )
    seed: int = Field(42, ge=0, lt=2**63)

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_loss(cls, values: object) -> object:
        if not isinstance(values, dict):
            return values
        loss = _canonical(values.get("loss", "cross-entropy"))
        if loss == "cross-entropy":
            return values
        return {"logq": 0.0, "activation": "elu" if loss == "bpr-max" else "linear", **values}

    @model_validator(mode="after")
    def _fit_together(self) -> "TrainingSettings":
        if self.batch_size == 1 and self.n_sample == 0:
            raise ValueError("batch_size=1 and n_sample=0 leave no negatives: raise one of them")
        if self.members * self.hidden_size > MOST_UNITS:
            raise ValueError(f"members={self.members} of hidden_size={self.hidden_size} are above {MOST_UNITS} units")
        if self.state_rows > MOST_STATE_ROWS:
            raise ValueError(
                f"layers={self.layers} with input_decay={self.input_decay:g} and embedding={self.embedding} make a "
                f"state of {self.state_rows} rows, and a bundle has {MOST_STATE_ROWS} at most: lower layers"
            )
        if self.layers == 0 and self.embedding == "one-hot":
            raise ValueError("layers=0 scores by the last item's row, and one-hot has none: set embedding=separate")
        if self.deep_input and self.embedding == "one-hot":
            raise ValueError(
                "deep_input needs an embedding to hand on: set embedding=shared or separate, or leave it out"
            )
        if self.logq > 0 and self.loss != "cross-entropy":
            raise ValueError("logq corrects cross-entropy only: set logq=0 or loss=cross-entropy")
        if (self.activation == "softmax") != (self.loss == "cross-entropy"):
            raise ValueError(
                f"activation={self.activation} does not go with loss={self.loss}: softmax belongs to cross-entropy, "
                "the others to the other losses; leave activation out to get the usual one"
            )
        return self

    @property
    def state_rows(self) -> int:
        """Rows of H numbers that a session's state takes: the layers', and those of the decayed sum of its inputs."""
        decayed = self.input_decay > 0 or self.layers == 0
        return self.layers + (3 if self.embedding == "one-hot" else 1) * decayed

    @classmethod
    def parse(cls, values: Mapping[str, object]) -> "TrainingSettings":
        """Settings from names and values (texts are converted)."""
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise TrainingSettingsError("; ".join(_explain(dict(detail)) for detail in error.errors())) from error

    @classmethod
    def from_assignments(cls, assignments: Iterable[str]) -> "TrainingSettings":
        """Settings from texts of the form ``name=value``, as the command line takes them; a later one wins."""
        return cls.parse(assignments_of(assignments))


def assignments_of(texts: Iterable[str]) -> dict[str, str]:
    """Names and values of texts of the form ``name=value``. Raises :class:`TrainingSettingsError`."""
    values: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise TrainingSettingsError(f"'{text}' is not of the form name=value")
        values[name.strip()] = value.strip()
    return values


def _explain(detail: Mapping[str, object]) -> str:
    location = detail["loc"]
    name = ".".join(map(str, location)) if isinstance(location, tuple) else str(location)
    if detail["type"] == "extra_forbidden":
        return f"unknown training setting '{name}' (known: {', '.join(TrainingSettings.model_fields)})"
    message = str(detail["msg"]).removeprefix("Value error, ")
    return f"{name}={detail['input']}: {message}" if name else message
