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
        description="of the scores in training; by default softmax (cross-entropy), elu (bpr-max), linear (others)",
    )
    embedding: EmbeddingMode = Field(
        "shared", description="item rows of the input: the output's, a table of their own, or straight to the gates"
    )
    embedding_l2: float = Field(0.0, ge=0, le=1, description="L2 penalty on the item rows that a step touches")
    input_decay: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="0, or the input is the sum of the session's item rows, each weighing this share of the next one",
    )
    hidden_size: int = Field(100, ge=1, le=MOST_UNITS)
    layers: int = Field(1, ge=0, le=8, description="of the GRU; 0 leaves it out: the state is the last item's row")
    deep_input: bool = Field(False, description="the item input goes to every layer, not to the first alone")
    batch_size: int = Field(100, ge=1, le=65536, description="lanes: sessions trained side by side")
    n_sample: int = Field(2048, ge=0, le=1_000_000, description="negatives beside those of the batch, a step")
    sample_alpha: float = Field(0.5, ge=0, le=2, description="negatives are drawn with p ~ support^alpha")
    # The reference results need it: without it Recall@20 on rsc15_64 is .698 in place of .713.
    logq: float = Field(
        1.0, ge=0, le=1, description="strength of the logQ correction; 0 for any loss but cross-entropy"
    )
    bpreg: float = Field(1.0, ge=0, description="weight of bpr-max's score regulariser")
    elu: float = Field(0.5, ge=0, description="alpha of the activation elu; 0 leaves the scores as they are")
    optimizer: OptimizerName = Field("adagrad", description="what makes a step of a gradient")
    learning_rate: float = Field(0.1, gt=0, le=10, description="of the optimizer")
    momentum: float = Field(0.0, ge=0, lt=1, description="share of its last step that a weight repeats")
    dropout_input: float = Field(0.0, ge=0, lt=1, description="share of the item input's components dropped")
    dropout_hidden: float = Field(0.2, ge=0, lt=1, description="share of the hidden state's components dropped")
    epochs: int = Field(5, ge=1, le=10_000)
    averaging: float = Field(
        3.0,
        ge=0,
        le=100,
        description="keep the mean of the weights after each epoch, epoch e weighing e to this power; 0: the last ones",
    )
    members: int = Field(
        1,
        ge=1,
        le=32,
        description="networks trained from different seeds, whose scores are added up; each costs its own",
    )
    memory: MemoryTerms = Field(
        ("repeat", "cooccurrence", "transitions"),
        description="terms of the session memory, names with commas between them; `all`, or `none` for the GRU alone",
    )
    table_width: int = Field(100, ge=1, le=1000, description="items kept of each row of the memory's two tables")
    memory_holdout: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="share of the training sessions, the newest, that the memory's weights are fitted to",
    )
    list_length: int = Field(
        30,
        ge=1,
        le=BundleLimits().k,
        description="items that the model can rank: at least worker.published of them, and more than trainer.gate_k",
    )
    engine: EngineChoice = Field(
        "auto", description="what computes the steps: compiled code where it can and pays, torch for the rest"
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
