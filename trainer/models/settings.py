"""What a training run can be told, as one frozen object."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Literal, Self, TypeAlias, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from schemas.bundle.manifest import ADVANCE, ENCODE, BundleLimits
from trainer.errors import TrainingSettingsError

if TYPE_CHECKING:
    from trainer.models.base import Encoder

# Short forms in use in the literature and in other tools' parameter files.
_ALIASES = {"xe": "cross-entropy", "constrained": "shared"}
MOST_UNITS: Final = BundleLimits().hidden_size
MOST_STATE_ROWS: Final = BundleLimits().layers
MOST_WINDOW: Final = BundleLimits().recent_size
DEFAULT_FAMILY: Final = "gru4rec"


def canonical(value: object) -> object:
    """A name as settings have it: lower case, hyphens, no short form. What is no text stays as it is."""
    if not isinstance(value, str):
        return value
    name = value.strip().lower().replace("_", "-")
    return _ALIASES.get(name, name)


LossName = Annotated[Literal["cross-entropy", "bpr", "top1", "bpr-max", "top1-max"], BeforeValidator(canonical)]
ActivationName = Annotated[Literal["softmax", "linear", "elu", "tanh", "relu"], BeforeValidator(canonical)]
OptimizerName = Annotated[Literal["adagrad", "sgd"], BeforeValidator(canonical)]
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


def _target_weights(value: object) -> object:
    """`purchase=5, cart=2` in the order of the names, written as short as can be."""
    if not isinstance(value, str):
        return value
    weights: dict[str, float] = {}
    for part in filter(None, map(str.strip, value.split(","))):
        name, equals, number = (one.strip() for one in part.rpartition("="))
        try:
            weight = float(number) if equals and name else -1.0
        except ValueError:
            weight = -1.0
        if not 0 <= weight <= _GREATEST_WEIGHT:
            raise ValueError(f"{part!r} is not of the form type=weight, with a weight from 0 to {_GREATEST_WEIGHT:g}")
        if name in weights:
            raise ValueError(f"the type {name} is named twice")
        weights[name] = weight
    return ",".join(f"{name}={weight!r}".removesuffix(".0") for name, weight in sorted(weights.items()))


_GREATEST_WEIGHT: Final = 1e6
TargetWeights = Annotated[str, BeforeValidator(_target_weights)]
EngineChoice = Annotated[Literal["auto", "compiled", "torch"], BeforeValidator(canonical)]
EmbeddingMode = Annotated[Literal["shared", "separate", "one-hot"], BeforeValidator(canonical)]


@dataclass(frozen=True)
class Ablation:
    """A row of `trainer ablate`: what it changes in the settings, and what the difference from the base then tells."""

    name: str
    changes: Mapping[str, object]
    tells: str


class TrainingSettings(BaseModel):
    """What every family is told. The defaults of a family are in its own class, see :mod:`trainer.models.registry`.

    Raises (through :meth:`parse`) :class:`TrainingSettingsError` for unknown names and values out of range.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    search: ClassVar[tuple[str, ...]] = ()
    """What `trainer tune` usually tries, as its option --search takes it: what costs no time."""
    ablations: ClassVar[tuple[Ablation, ...]] = ()
    """The rows of `trainer ablate` that not every family has."""

    family: str
    memory: MemoryTerms = Field(
        ("repeat", "cooccurrence", "transitions"),
        description="terms of the session memory, separated by commas; `all`, or `none` for the network alone",
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
    target_weights: TargetWeights = Field(
        "",
        description="weights of the clicks to predict, by type, for example `cart=2,purchase=5`; 1 for types that are "
        "not named, 0: not predicted in training",
    )
    prune: bool = Field(
        False,
        description="leave items unscored that a bound keeps off the list: for more than 100,000 items, if workers "
        "may show most of them",
    )
    seed: int = Field(42, ge=0, lt=2**63)

    @property
    def searched(self) -> tuple[str, ...]:
        """Of `search`, what has an effect with these settings."""
        return self.search

    @property
    def weight_of_type(self) -> Mapping[str, float]:
        """What ``target_weights`` says, by type."""
        parts = (part.rpartition("=") for part in self.target_weights.split(",") if part)
        return {name: float(weight) for name, _, weight in parts}

    def record(self) -> dict[str, Any]:
        """As a manifest keeps them: without what is not asked for and a trainer of before does not know."""
        return _without_defaults(self.model_dump())

    @field_validator("family", mode="before")
    @classmethod
    def _of_any_spelling(cls, value: object) -> object:
        return family_name(value) if isinstance(value, str) else value

    @classmethod
    def parse(cls, values: Mapping[str, object]) -> Self:
        """Settings of the family that the values name, GRU4Rec without, from names and values (texts are converted)."""
        from trainer.models.registry import settings_class

        kind = settings_class(values.get("family", DEFAULT_FAMILY))
        if not issubclass(kind, cls):
            raise TrainingSettingsError(f"family={values.get('family', DEFAULT_FAMILY)}: no {cls.__name__}")
        try:
            return kind.model_validate(_nested(values))
        except ValidationError as error:
            raise TrainingSettingsError("; ".join(_explain(dict(one), kind) for one in error.errors())) from error

    @classmethod
    def from_assignments(cls, assignments: Iterable[str]) -> Self:
        """Settings from texts of the form ``name=value``, as the command line takes them; a later one wins."""
        return cls.parse(assignments_of(assignments))


class LearnedSettings(TrainingSettings):
    """What is told to whatever learns by gradients: one family, or several as one (:mod:`trainer.models.mixed`)."""

    epochs_planned: ClassVar[bool] = False
    """Whether the learning rate goes by a plan over all epochs. A training that stops sooner is then another one than a
    training of fewer epochs."""
    encoder_file: ClassVar[str]
    """The file of a bundle that holds the encoder."""

    @property
    def parts(self) -> Mapping[str, "NetworkSettings"]:
        """The settings of each family, by the name of their table in these; by "" where they are these themselves."""
        raise NotImplementedError

    def changed(self, change: Callable[["NetworkSettings"], Mapping[str, object]]) -> Self:
        """The same, but for what is to be changed in the settings of each family."""
        raise NotImplementedError

    def encoder_numbers(self, items: int) -> int:
        """How many numbers the encoder's file can hold of such a model for so many items."""
        raise NotImplementedError

    @property
    def units(self) -> int:
        """Of all members together."""
        return sum(part.members * part.hidden_size for part in self.parts.values())


class NetworkSettings(LearnedSettings):
    """What every family is told that learns by gradients."""

    loss: LossName = "cross-entropy"
    activation: ActivationName = Field(
        "softmax",
        description="activation of the scores in training; by default softmax (cross-entropy), elu (bpr-max), linear "
        "(others)",
    )
    hidden_size: int = Field(100, ge=1, le=MOST_UNITS)
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
    learning_rate: float = Field(0.1, gt=0, le=10, description="learning rate of the optimizer")
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

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_loss(cls, values: object) -> object:
        if not isinstance(values, dict):
            return values
        loss = canonical(values.get("loss", "cross-entropy"))
        if loss == "cross-entropy":
            return values
        return {"logq": 0.0, "activation": "elu" if loss == "bpr-max" else "linear", **values}

    @model_validator(mode="after")
    def _loss_fits(self) -> "NetworkSettings":
        if self.batch_size == 1 and self.n_sample == 0:
            raise ValueError("batch_size=1 and n_sample=0 leave no negatives: raise one of them")
        if self.members * self.hidden_size > MOST_UNITS:
            raise ValueError(f"members={self.members} of hidden_size={self.hidden_size} are above {MOST_UNITS} units")
        if self.logq > 0 and self.loss != "cross-entropy":
            raise ValueError("logq corrects cross-entropy only: set logq=0 or loss=cross-entropy")
        if (self.activation == "softmax") != (self.loss == "cross-entropy"):
            raise ValueError(
                f"activation={self.activation} does not go with loss={self.loss}: softmax belongs to cross-entropy, "
                "the others to the other losses; leave activation out to get the usual one"
            )
        return self

    @property
    def parts(self) -> Mapping[str, "NetworkSettings"]:
        return {"": self}

    def changed(self, change: Callable[["NetworkSettings"], Mapping[str, object]]) -> Self:
        return self.model_copy(update=dict(change(self)))

    def windowed(self, window: int) -> "Encoder":
        """An encoder of a network's sizes that looks at so many last clicks at once."""
        raise NotImplementedError

    def products_of_a_step(self) -> int:
        """Multiplications of a training step, about: what a GPU is worth."""
        raise NotImplementedError

    @property
    def needs_cpu(self) -> bool:
        """Whether what is asked for is not there on a GPU."""
        return False


class Gru4RecSettings(NetworkSettings):
    """Settings of one GRU4Rec fit. The defaults are those of the measured reference run in ``docs/training.md``."""

    search: ClassVar[tuple[str, ...]] = (
        "learning_rate=0.01..0.3:log",
        "batch_size=32..256:4",
        "dropout_input=0.0..0.6:0.05",
        "dropout_hidden=0.0..0.6:0.05",
        "momentum=0.0..0.6:0.05",
    )
    ablations: ClassVar[tuple[Ablation, ...]] = (
        Ablation("no-gru", {"layers": 0}, "everything before the last click, as far as the memory does not know it"),
        Ablation("no-gru-no-memory", {"layers": 0, "memory": "none"}, "everything before the last click"),
        Ablation(
            "no-regularisation",
            {"dropout_input": 0, "dropout_hidden": 0, "embedding_l2": 0},
            "dropout and L2 of the embedding",
        ),
    )

    encoder_file: ClassVar[str] = ADVANCE

    family: Literal["gru4rec"] = "gru4rec"
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
    layers: int = Field(1, ge=0, le=8, description="gRU layers; 0: no GRU, the state is the last item's row")
    deep_input: bool = Field(False, description="feed the item input to every layer instead of only the first")
    optimizer: OptimizerName = Field("adagrad", description="optimizer")
    momentum: float = Field(0.0, ge=0, lt=1, description="momentum of the optimizer")
    dropout_input: float = Field(0.0, ge=0, lt=1, description="dropout of the item input")
    dropout_hidden: float = Field(0.2, ge=0, lt=1, description="dropout of the hidden state")
    engine: EngineChoice = Field(
        "auto", description="training engine: compiled code where it is supported and faster, otherwise torch"
    )

    @model_validator(mode="after")
    def _fit_together(self) -> "Gru4RecSettings":
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
        return self

    @property
    def state_rows(self) -> int:
        """Rows of H numbers that a session's state takes: the layers', and those of the decayed sum of its inputs."""
        decayed = self.input_decay > 0 or self.layers == 0
        return self.layers + (3 if self.embedding == "one-hot" else 1) * decayed

    def encoder_numbers(self, items: int) -> int:
        units, one_hot = self.hidden_size * self.members, self.embedding == "one-hot"
        inputs = [0 if one_hot else units, *[units * (1 + self.deep_input)] * (self.layers - 1)][: self.layers]
        gates = sum(3 * units * (width + units + 1) for width in inputs)
        return items * (3 * units if one_hot else units) + gates

    def windowed(self, window: int) -> "Encoder":
        from trainer.models.unrolled import Unrolled

        return Unrolled(self, window)

    def products_of_a_step(self) -> int:
        """Three products with the columns' rows, five with each matrix pair of a layer."""
        n, h = self.batch_size, self.hidden_size
        return n * h * (3 * (n + self.n_sample) + 15 * h * self.layers)

    @property
    def needs_cpu(self) -> bool:
        return self.engine == "compiled"


DefaultSettings: TypeAlias = Gru4RecSettings
"""Of :data:`DEFAULT_FAMILY`."""


class WindowSettings(NetworkSettings):
    """What every family is told whose queries come from a session's last items at once (:mod:`trainer.models.base`)."""

    epochs_planned: ClassVar[bool] = True
    encoder_file: ClassVar[str] = ENCODE
    search: ClassVar[tuple[str, ...]] = (
        "learning_rate=0.001..0.02:log",
        "batch_size=32..128:32",
        "dropout=0.0..0.7:0.05",
        "initial_spread=0.02..0.3:log",
    )
    ablations: ClassVar[tuple[Ablation, ...]] = (
        Ablation(
            "two-clicks", {"window": 2}, "everything before the last two clicks, as far as the memory does not know it"
        ),
        Ablation("two-clicks-no-memory", {"window": 2, "memory": "none"}, "everything before the last two clicks"),
        Ablation("no-regularisation", {"dropout": 0, "weight_decay": 0}, "dropout and weight decay"),
    )

    # Of one click there would be nothing to export: torch traces no dynamic size that is always 1.
    window: int = Field(30, ge=2, le=MOST_WINDOW, description="clicks that the model looks back on")
    batch_size: int = Field(64, ge=1, le=65536, description="sessions of a training step")
    learning_rate: float = Field(0.005, gt=0, le=1, description="highest learning rate of the cycle (AdamW)")
    weight_decay: float = Field(0.0, ge=0, le=1, description="weight decay of AdamW, for all but the item tables")
    dropout: float = Field(0.2, ge=0, lt=1, description="dropout, where the family's paper has it")
    initial_spread: float = Field(0.02, gt=0, le=1, description="standard deviation of the items' rows before training")
    epochs: int = Field(10, ge=1, le=10_000)
    averaging: float = Field(
        0.0,
        ge=0,
        le=100,
        description="average the weights of all epochs, epoch e weighted by e to this power; 0: keep the last",
    )

    def encoder(self) -> "Encoder":
        """The family's network but for its item tables, at its start: drawn from torch's global random numbers."""
        raise NotImplementedError

    def windowed(self, window: int) -> "Encoder":
        return self.encoder()

    def encoder_numbers(self, items: int) -> int:
        return window_numbers(self, self.window, items)

    def products_of_a_step(self) -> int:
        """Three products with the columns' rows, of as few clicks to predict as there may be: one a session."""
        n, h = self.batch_size, self.hidden_size
        return n * h * 3 * (2 * n + self.n_sample)


def window_numbers(settings: NetworkSettings, window: int, items: int) -> int:
    """How many numbers `encode.onnx` can hold of these settings' members for so many items."""
    import torch

    with torch.device("meta"):  # sizes alone: no memory, no random numbers
        encoder = settings.windowed(window)
    own = sum(one.numel() for one in [*encoder.parameters(), *encoder.buffers()])
    return settings.members * (items * encoder.input_size + own)


def _without_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _without_defaults(value) if isinstance(value, dict) else value
        for name, value in values.items()
        if (name, value) not in (("target_weights", ""), ("prune", False))
    }


def family_name(text: str) -> str:
    """The name of a family, or of several with + between them, in the form that settings have."""
    return "+".join(str(canonical(one)) for one in text.split("+"))


def assignments_of(texts: Iterable[str]) -> dict[str, str]:
    """Names and values of texts of the form ``name=value``. Raises :class:`TrainingSettingsError`."""
    values: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise TrainingSettingsError(f"'{text}' is not of the form name=value")
        table, dot, setting = name.strip().rpartition(".")
        values[table.replace("-", "_") + dot + setting] = value.strip()
    return values


def flattened(values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Tables of settings as one, whose names have dots: `sasrec.dropout`."""
    flat: dict[str, object] = {}
    for name, value in values.items():
        flat |= flattened(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def _nested(values: Mapping[str, object]) -> dict[str, object]:
    """The inverse of :func:`flattened`; a name with a dot wins over what a table has."""
    found = {name: dict(of) if isinstance(of, Mapping) else of for name, of in values.items() if "." not in name}
    for name, value in values.items():
        table, dot, setting = name.partition(".")
        inner = found.setdefault(table, {}) if dot else None
        if isinstance(inner, dict):
            inner[setting] = value
        elif dot:
            found[name] = value  # of a setting that is no table: unknown, and refused as such
    return found


def _explain(detail: Mapping[str, object], kind: type[BaseModel]) -> str:
    location = detail["loc"]
    assert isinstance(location, tuple)
    name = ".".join(map(str, location))
    if detail["type"] == "extra_forbidden":
        for table in location[:-1]:
            inner = kind.model_fields[str(table)].annotation
            assert isinstance(inner, type)
            kind = inner
        family = kind.model_fields["family"].default
        return f"unknown training setting '{name}' of family={family} (known: {', '.join(kind.model_fields)})"
    message = str(detail["msg"]).removeprefix("Value error, ")
    return f"{name}={detail['input']}: {message}" if name else message
