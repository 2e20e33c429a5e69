"""The sections of a recipe, as frozen types. What a key means is said here and nowhere else."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    ModelWrapValidatorHandler,
    Tag,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from lrd_deploy.errors import UsageError
from lrd_deploy.records import DimensionRange, Execution


class Settings(BaseModel):
    """A frozen section that rejects keys it does not know and names the nearest it does."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="wrap")
    @classmethod
    def _known_keys_only(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(data, dict) or data.keys() <= cls.model_fields.keys():
            return handler(data)
        unknown = [str(key) for key in data if key not in cls.model_fields]
        problems = [InitErrorDetails(type=_unknown_keys(unknown, sorted(cls.model_fields)), input=data)]
        try:
            handler({key: value for key, value in data.items() if key in cls.model_fields})
        except ValidationError as exc:
            problems += [_again(error) for error in exc.errors()]
        raise ValidationError.from_exception_data(cls.__name__, problems)


def _again(error: ErrorDetails) -> InitErrorDetails:
    again = PydanticCustomError(error["type"], error["msg"], error.get("ctx"))
    return InitErrorDetails(type=again, loc=error["loc"], input=error["input"])


def _unknown_keys(unknown: list[str], known: list[str]) -> PydanticCustomError:
    nearest = [match for key in unknown for match in get_close_matches(key, known, n=1)]
    names = ", ".join(f"'{key}'" for key in unknown)
    hint = f"did you mean {', '.join(repr(match) for match in nearest)}?" if nearest else "remove it"
    return PydanticCustomError(
        "unknown_key",
        "unknown key {names}",
        {"names": names, "accepted": f"the keys here are {', '.join(known)}", "remedy": hint},
    )


def _beside_recipe(value: str, info: ValidationInfo) -> str:
    """Makes a relative path that exists beside the recipe absolute; leaves hub names alone."""
    folder = (info.context or {}).get("folder")
    if folder is not None and (Path(folder) / value).exists():
        return str((Path(folder) / value).resolve())
    return value


def _from_recipe_folder(value: Path, info: ValidationInfo) -> Path:
    return Path((info.context or {}).get("folder") or ".", value).resolve()


WeightsPath = Annotated[Path, AfterValidator(_from_recipe_folder)]
TablePath = WeightsPath


# Where the model comes from ---------------------------------------------------------------------------------------


class TransformersConfig(Settings):
    """New weights in the shape of a transformers config, given inline; `model_type` names the architecture.

    `weights` (safetensors) makes it a trained model, which is then used and not trained again.
    """

    transformers: dict[str, Any]
    weights: WeightsPath | None = None


class TransformersPretrained(Settings):
    """A trained transformers model: a local folder (config.json, model.safetensors) or a name on the hub."""

    transformers: str

    @field_validator("transformers")
    @classmethod
    def _resolve(cls, value: str, info: ValidationInfo) -> str:
        return _beside_recipe(value, info)


class PythonModel(Settings):
    """`python: package.module:factory`, called with `arguments`; returns a `torch.nn.Module`.

    The module takes one input tensor and returns logits, as a tensor or as an object with `.logits`.
    The recipe's folder is importable. `weights` (safetensors) makes it a trained model.
    """

    python: str = Field(pattern=r"^[\w.]+:\w+$")
    arguments: dict[str, Any] = {}
    weights: WeightsPath | None = None


def _model_tag(value: Any) -> str:
    if isinstance(value, PythonModel) or (isinstance(value, dict) and "python" in value):
        return "<python>"
    inner = value.get("transformers") if isinstance(value, dict) else getattr(value, "transformers", None)
    return "<pretrained>" if isinstance(inner, str) else "<config>"


ModelSource = Annotated[
    Annotated[TransformersConfig, Tag("<config>")]
    | Annotated[TransformersPretrained, Tag("<pretrained>")]
    | Annotated[PythonModel, Tag("<python>")],
    Discriminator(_model_tag),
]


# Where the data comes from ----------------------------------------------------------------------------------------


class Digits(Settings):
    """scikit-learn's 1,797 handwritten digits, scaled to square grey images."""

    image_size: int = Field(default=32, ge=8)
    test_share: float = Field(default=0.2, gt=0.0, lt=1.0)
    batch_size: int = Field(default=64, ge=1)


class DigitsData(Settings):
    """The built-in data set."""

    digits: Digits = Digits()


class PythonData(Settings):
    """`python: package.module:factory`, called with `arguments`; returns `(train_loader, test_loader)`.

    Both are `torch.utils.data.DataLoader`s (or iterables with a length) of `(inputs, labels)` batches, or of
    dictionaries with `labels` and the inputs: `pixel_values`, or whatever `forward` takes by name.
    """

    python: str = Field(pattern=r"^[\w.]+:\w+$")
    arguments: dict[str, Any] = {}


def _data_tag(value: Any) -> str:
    is_python = isinstance(value, PythonData) or (isinstance(value, dict) and "python" in value)
    return "<python>" if is_python else "<digits>"


DataSource = Annotated[
    Annotated[DigitsData, Tag("<digits>")] | Annotated[PythonData, Tag("<python>")],
    Discriminator(_data_tag),
]


# Training ---------------------------------------------------------------------------------------------------------


class NoFreezing(Settings):
    """Every factor learns all the time."""

    schedule: Literal["none"] = "none"


class RegularFreezing(Settings):
    """Group A (down; first, last) stands still throughout. Source: arXiv 2407.20266, section 2.2."""

    schedule: Literal["regular"] = "regular"


class SequentialFreezing(Settings):
    """Groups A and B take turns: `first_frozen` stands still for `period` epochs (or steps), then the other.

    `optimizer_state` of a factor that learns again is `kept` from its last turn, or `reset`.

    Source: arXiv 2309.03824, which alternates every epoch.
    """

    schedule: Literal["sequential"] = "sequential"
    period: int = Field(default=1, ge=1)
    unit: Literal["epochs", "steps"] = "epochs"
    first_frozen: Literal["A", "B"] = "B"
    optimizer_state: Literal["kept", "reset"] = "kept"


Freezing = Annotated[NoFreezing | RegularFreezing | SequentialFreezing, Field(discriminator="schedule")]


class Training(Settings):
    """Supervised training with cross-entropy; the learning rate warms up, then falls along a cosine to zero.

    A batch is the global one: processes share it, so that a recipe means the same on any number of devices.
    """

    epochs: int = Field(ge=1)
    learning_rate: float = Field(gt=0.0)
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = Field(default=0.9, ge=0.0, lt=1.0)
    weight_decay: float = Field(default=5e-4, ge=0.0)
    warmup_share: float = Field(default=0.1, ge=0.0, lt=1.0)
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=1.0)
    clip_norm: float | None = Field(default=None, gt=0.0)
    gradient_accumulation: int = Field(default=1, ge=1)
    mixed_precision: Literal["none", "bf16", "fp16"] = "none"
    compile: bool = False
    channels_last: bool = True


class Distillation(Settings):
    """The dense model's softened answers as targets: `weight` of the loss is theirs, the rest the labels'.

    Source: Hinton et al., arXiv 1503.02531; the softened part is scaled by the temperature squared.
    """

    weight: float = Field(default=0.5, gt=0.0, le=1.0)
    temperature: float = Field(default=2.0, gt=0.0)


class FactorRates(Settings):
    """What the learning rate is multiplied by, for the factors of each group."""

    A: float = Field(default=1.0, gt=0.0)
    B: float = Field(default=1.0, gt=0.0)


class FineTuning(Training):
    """Training of the decomposed model; `batchnorm_batches` re-estimate BatchNorm right after decomposition.

    `factor_decay` applies `weight_decay` to the factors' `product`, or to `each` factor by itself.
    """

    freezing: Freezing = SequentialFreezing()
    batchnorm_batches: int = Field(default=20, ge=0)
    factor_decay: Literal["each", "product"] = "each"
    factor_rates: FactorRates = FactorRates()
    distillation: Distillation | None = None

    @field_validator("freezing", mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {"schedule": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _both_groups_learn(self) -> Self:
        freezing = self.freezing
        in_epochs = isinstance(freezing, SequentialFreezing) and freezing.unit == "epochs"
        if in_epochs and self.epochs <= freezing.period:
            raise ValueError(
                f"sequential freezing with a period of {freezing.period} needs at least {freezing.period + 1} epochs, "
                f"or group {freezing.first_frozen} would never learn"
            )
        return self


class Calibration(Settings):
    """Training images that tell what layers' inputs look like, for factors that lose what is least seen.

    `samples` of them are run once, without augmentation of ours; 0 weighs all inputs alike. `damping` is the share of
    the mean squared input that every direction counts at least.
    """

    samples: int = Field(default=256, ge=0)
    damping: float = Field(default=0.01, gt=0.0)


class Progress(Settings):
    """Of long training: a checkpoint every so many minutes, besides after every epoch, and accelerate's trackers.

    `trackers` are names that accelerate knows, such as tensorboard. Nothing here changes the result.
    """

    checkpoint_minutes: float = Field(default=10.0, gt=0.0)
    trackers: tuple[str, ...] = ()


# After training ---------------------------------------------------------------------------------------------------


class Export(Settings):
    """PyTorch to ONNX, with a dynamic batch."""

    opset: int = Field(default=20, ge=18, le=25)


class Rewrite(Settings):
    """Ranks that are no multiple of `quantum` are padded up to one; 1 leaves every rank as it is.

    `auto` leaves ranks that were chosen by measured time, and pads those of a formula to multiples of 16.
    """

    quantum: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"


class Build(Settings):
    """Which shapes TensorRT's engines take, tuned for `opt_batch`, and for which GPUs TensorRT-RTX compiles.

    Left out, `opt_batch` is the batch of `bench`, and `max_batch` 64 or more. `dimensions` holds sizes of further
    dynamic dimensions by name, such as `sequence: [16, 128, 512]`.
    """

    min_batch: int = Field(default=1, ge=1)
    opt_batch: int | None = Field(default=None, ge=1)
    max_batch: int | None = Field(default=None, ge=1)
    dimensions: dict[str, DimensionRange] = Field(default_factory=dict)
    tf32: bool = True
    compute_capabilities: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _batches_rise(self) -> Self:
        said = [each for each in (self.min_batch, self.opt_batch, self.max_batch) if each is not None]
        if said != sorted(said):
            raise ValueError(f"min_batch, opt_batch and max_batch must rise, and are {', '.join(map(str, said))}")
        return self


class Bench(Settings):
    """Deployment conditions, for choosing ranks and for the final measurement alike."""

    batch: int = Field(default=8, ge=1)
    threads: int = Field(default=1, ge=1)
    launches: int = Field(default=8, ge=4, multiple_of=2)
    rounds: int = Field(default=40, ge=4)
    training_launches: int = Field(default=4, ge=4, multiple_of=2)
    device: str = "cpu"
    io_binding: bool | None = None
    cuda_graph: bool = False
    tf32: bool | None = None

    @model_validator(mode="after")
    def _runs_somewhere(self) -> Self:
        try:
            _ = self.execution
        except UsageError as exc:
            raise ValueError(f"{exc.found}; {exc.accepted}") from exc
        return self

    @property
    def execution(self) -> Execution:
        """Where models run, and how they are called there."""
        return Execution.on(self.device, io_binding=self.io_binding, cuda_graph=self.cuda_graph, tf32=self.tf32)
