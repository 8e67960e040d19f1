"""Everything that determines a study: frozen, validated, and the same text in Python and in JSON.

A definition is written in a study script, overridden from the command line (`search.arguments`), stored whole in the
study, and read back by every command. Nothing that is not in it may change what a trial returns.
"""

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from search.errors import UserError, unknown_name

REGRESSION_METRICS = ("pearson", "spearman")
"""Names of the metrics of a regression."""

METRICS = ("accuracy", "f1", "matthews", *REGRESSION_METRICS)
"""Names of the task metrics; all that fit the task are kept for every trial, one of them is the objective."""

OBJECTIVES = (
    *METRICS,
    "parameters",
    "encoder_parameters",
    "encoder_share",
    "macs",
    "latency_ms",
    "energy_mj",
    "stored_bytes",
    "peak_memory_bytes",
)
"""Names of the built-in quantities that can be an objective. A study script may add its own, and a definition further
latencies under names of its own (`Definition.latencies`)."""

LATENCY = "latency_ms"
"""Name of the latency of `Definition.latency`; that of one called `single` in `Definition.latencies` is
`latency_ms.single`."""

IMPORTANCES = ("fisher", "taylor", "magnitude", "random")
"""Names of the importance scores."""

STORED = "stored"
"""Context of the validation of what a study holds: what was accepted once can be read for ever."""

Ratio = Annotated[float, Field(ge=0.0, le=1.0)]
RangeT = TypeVar("RangeT", bound="Part")


class Part(BaseModel):
    """A part of a definition: frozen, no unknown fields, field docstrings as help texts."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, validate_default=True
    )


class Task(Part):
    """What is classified, and how the rows are divided into training, selection and held-out splits."""

    config: str | None = None
    """Configuration of the hub data set, for example sst2; not used for local files."""
    text: tuple[str, ...] = ("text",)
    """Name of the text column, or of the two text columns of a sentence pair."""
    label: str = "label"
    """Name of the label column."""
    labels: tuple[str, ...] = ("0", "1")
    """The declared labels as they stand in the file; their order gives the class numbers. None at all, [], is a
    regression: the label column holds numbers, and the metric is pearson or spearman."""
    columns: tuple[str, ...] | None = None
    """Column names of a CSV or TSV file without a header line."""
    quoting: bool | None = None
    """Whether quotation marks enclose fields; by default so in CSV files and not in TSV files."""
    where: dict[str, str] | None = None
    """Keep only the rows whose column has this value, for example {"source": "rotten_tomatoes"}; null keeps all."""
    train: str = "train"
    """Split to train on: name of a hub split, or of a file in the data folder (without its ending)."""
    held_out: str | None = None
    """Split that the search never sees, named likewise (validation also finds dev); null carves it out of train."""
    selection: str | None = None
    """Split that trials are scored on, named likewise; null carves it out of train."""
    train_rows: int | None = Field(default=None, ge=2)
    """Train on this many rows, drawn with the study's seed; null takes all."""
    selection_rows: int = Field(default=1000, ge=2)
    """Rows carved out of train as selection split, where none is named."""
    held_out_rows: int = Field(default=1000, ge=2)
    """Rows carved out of train as held-out split, where none is named."""
    phrases: bool = False
    """Whether train holds phrases of its own sentences (SST-2): then only whole sentences are carved out, and with
    each of them all its phrases leave the training rows."""
    max_tokens: int = Field(default=128, ge=4, le=512)
    """Longest sequence in tokens, special tokens included; longer texts are cut off."""
    metric: Literal["accuracy", "f1", "matthews", "pearson", "spearman"] = "accuracy"
    """The task metric: what the objective named metric stands for."""

    @field_validator("labels", mode="before")
    @classmethod
    def _read_words(cls, labels: Any) -> Any:
        """Take the words true and false, which a command line and JSON read as something else, for labels."""
        if not isinstance(labels, list | tuple):
            return labels
        return tuple(str(label).lower() if isinstance(label, bool) else label for label in labels)

    @field_validator("labels")
    @classmethod
    def _check_labels(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        if len(labels) == 1:
            raise ValueError("a classification has two labels or more, and a regression none")
        return labels

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not 1 <= len(self.text) <= 2:
            raise ValueError(f"text is {list(self.text)}: name one text column, or two for a sentence pair")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError(f"labels are {list(self.labels)}: each label may stand there once")
        if self.is_regression != (self.metric in REGRESSION_METRICS):
            raise ValueError(
                f"metric is {self.metric!r} with {len(self.labels)} labels: a regression, which has no labels, takes "
                f"{' or '.join(REGRESSION_METRICS)}, and a classification the others"
            )
        if self.is_regression and self.phrases:
            raise ValueError("phrases is true without labels: phrases are known of classifications only")
        if self.metric == "f1" and len(self.labels) != 2:
            raise ValueError(f"metric is 'f1' with {len(self.labels)} labels: f1 is for two labels, use accuracy")
        return self

    @property
    def is_regression(self) -> bool:
        """Whether the labels are numbers."""
        return not self.labels

    @property
    def outputs(self) -> int:
        """Width of the model's last layer: one number for each label, or the number that a regression predicts."""
        return len(self.labels) or 1


class Range(Part):
    """Smallest and largest ratio that may be kept."""

    low: Ratio = 0.0
    """Smallest ratio, from 0 to 1."""
    high: Ratio = 1.0
    """Largest ratio, from 0 to 1."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        return _ordered(self, self.low, self.high)


class LayerRanges(Part):
    """Ranges of one layer, where they differ from those of the space."""

    heads: Range | None = None
    """Share of the layer's attention heads to keep."""
    neurons: Range | None = None
    """Share of the layer's feed-forward neurons to keep."""


class RateRange(Part):
    """Smallest and largest learning rate; what lies between is spaced by equal factors."""

    low: float = Field(gt=0, lt=1)
    """Smallest peak learning rate."""
    high: float = Field(gt=0, lt=1)
    """Largest peak learning rate."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        return _ordered(self, self.low, self.high)


class StepRange(Part):
    """Fewest and most steps."""

    low: int = Field(ge=0)
    """Fewest optimizer steps."""
    high: int = Field(ge=0)
    """Most optimizer steps."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        return _ordered(self, self.low, self.high)


def _ordered(part: RangeT, low: float, high: float) -> RangeT:
    if low > high:
        raise ValueError(f"low is {low} and high is {high}: low must not exceed high")
    return part


class ScheduleRanges(Part):
    """What of the recovery's schedule the search chooses with each plan; null keeps the recovery's own value."""

    learning_rate: RateRange | None = None
    """Peak learning rate."""
    steps: StepRange | None = None
    """Optimizer steps. More of them cost more: give the search an objective or a budget that says so."""
    distillation: Range | None = None
    """Weight of the distillation loss."""
    warmup: Range | None = None
    """Share of the steps in which the learning rate rises."""

    @property
    def chosen(self) -> dict[str, RateRange | StepRange | Range]:
        """The ranges that there are, by the recovery's field."""
        ranges = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: range_ for name, range_ in ranges.items() if range_ is not None}


class SpaceSettings(Part):
    """Which plans may be tried: a ratio of heads and a ratio of neuron blocks for each layer."""

    heads: Range = Range()
    """Share of attention heads to keep, in every layer; 0 removes the attention block."""
    neurons: Range = Range()
    """Share of feed-forward neurons to keep, in every layer; 0 removes the feed-forward block."""
    neuron_block: int = Field(default=64, ge=1)
    """Neurons are kept in blocks of this many, so that the matrices stay friendly to the hardware."""
    layers: dict[int, LayerRanges] = {}
    """Ranges of single layers by number, from 0, for example {"0": {"heads": {"low": 0.5}}}."""
    embedding: Range = Range(low=1.0)
    """Rank of the word embeddings as a share of the hidden size; 1 leaves them one table, and only that is tried unless
    low is set below 1. Half of the rank is about half of their numbers."""
    embedding_block: int = Field(default=32, ge=1)
    """Ranks are multiples of this many; the smallest is one of these blocks."""
    schedule: ScheduleRanges = ScheduleRanges()
    """What of the recovery's schedule is chosen with each plan, for example
    {"learning_rate": {"low": 3e-5, "high": 3e-4}}. By default nothing is."""
    vocabulary: Literal["all", "train"] = "all"
    """train leaves of the vocabulary only the tokens that the training rows use, and single characters, which spell
    every other word. This happens before the teacher is fine-tuned: the dense trial and all others have the small
    vocabulary, so that sizes and metrics compare with each other, and not with those of a study with all."""

    precision: tuple[Literal["fp32", "bf16", "int8"], ...] = Field(default=("fp32",), min_length=1)
    """Number types that models are deployed in: recovered as ever, and then scored and measured so. Of several the
    search chooses one with each plan; the dense model and the ladder have the first. int8 is dynamic, on a CPU through
    ONNX Runtime (extra: onnx), which costs 5 to 20 s per trial."""

    @field_validator("layers", mode="wrap")
    @classmethod
    def _check_layers(cls, layers: Any, check: ValidatorFunctionWrapHandler) -> dict[int, LayerRanges]:
        checked: dict[int, LayerRanges] = check(layers)
        if len(checked) != len(layers):
            raise ValueError(f"layers are {list(layers)}: each may stand there once")
        return checked

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.precision)) != len(self.precision):
            raise ValueError(f"precision is {list(self.precision)}: each may stand there once")
        return self

    @property
    def factorises(self) -> bool:
        """Whether the rank of the word embeddings is a dimension."""
        return self.embedding.low < 1.0


class TeacherSettings(Part):
    """The dense model that is cut, compared with and distilled from; fine-tuned once per study."""

    fine_tuned: bool = False
    """Whether the checkpoint is a fine-tuned classifier already; then it is used as it is."""
    epochs: float = Field(default=3.0, gt=0)
    """Passes over the training rows."""
    batch_size: int = Field(default=32, ge=1)
    """Sentences per step."""
    learning_rate: float = Field(default=3e-5, gt=0, lt=1)
    """Peak learning rate of AdamW."""
    warmup: Ratio = 0.1
    """Share of the steps in which the learning rate rises; afterwards it falls linearly to zero."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled weight decay of the matrices; biases and LayerNorm have none."""


class ImportanceSettings(Part):
    """How heads and neurons are ranked: the plan says how many stay, the ranking says which."""

    method: Literal["fisher", "taylor", "magnitude", "random"] = "fisher"
    """Name of the score; random is the control that the others are compared with."""
    loss: Literal["task", "distillation"] = "task"
    """Loss whose gradients fisher and taylor take: that of the rows' labels, or of the labels that the teacher itself
    would give, for which fisher is the curvature of the distillation loss."""
    rows: int = Field(default=512, ge=1)
    """Training rows, drawn with the study's seed, that the score is averaged over; magnitude and random take them for
    whole blocks only."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.loss != "task" and self.method not in ("fisher", "taylor"):
            raise ValueError(f"loss is {self.loss!r} with method {self.method!r}: fisher and taylor alone have a loss")
        return self


class SupernetSettings(Part):
    """The super-network, trained once per study so that all plans cut from it work; see recovery.start."""

    steps: int = Field(default=200, ge=1)
    """Optimizer steps; each trains the smallest plan and the random plans on the same sentences."""
    plans: int = Field(default=1, ge=0)
    """Random plans per step: a size first, each halving as likely, then how it is spread over the layers."""
    smallest: Ratio = 0.125
    """Smallest size: the share of heads and of neuron blocks that the smallest plan keeps in every layer, raised to
    where the space begins, and in the last layer to one head."""
    batch_size: int = Field(default=32, ge=1)
    """Sentences per step."""
    learning_rate: float = Field(default=1e-4, gt=0, lt=1)
    """Peak learning rate of AdamW."""
    warmup: Ratio = 0.1
    """Share of the steps in which the learning rate rises; afterwards it falls linearly to zero."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled weight decay of the matrices; biases and LayerNorm have none."""
    distillation: Ratio = 0.9
    """Weight of the distillation loss; the rest is cross-entropy on the labels."""
    temperature: float = Field(default=2.0, gt=0)
    """Softmax temperature of teacher and super-network in the distillation loss."""

    @property
    def drawn_from(self) -> float:
        """The smallest size that random plans are drawn with; the logarithm of 0 would be no end of the range."""
        return max(self.smallest, 0.01)


class RecoverySettings(Part):
    """How a cut model is brought back: least squares first, then a brief fine-tune."""

    start: Literal["dense", "supernet", "nearest", "supernet-nearest"] = "dense"
    """What a plan is cut from: the dense model; the super-network, after which few steps or none are needed; or the
    nearest finished trial: the smallest that keeps all that the plan keeps, the dense model where there is none. Then
    training adds up along the front, each trial's weights are kept among the artifacts, and what a trial gives depends
    on the trials that were finished when it began. supernet-nearest takes the super-network where there is none."""
    refit_rows: int = Field(default=0, ge=0)
    """Training rows for the least-squares re-fit after a cut of the dense model; 0 leaves it out. With 512 it brought
    back as much as 50 distilled steps, and nothing on top of them (studies/results/recovery.md): use it with few steps
    or none."""
    steps: int = Field(default=300, ge=0)
    """Optimizer steps of the fine-tune; 0 scores the model as it is after the cut and the re-fit."""
    batch_size: int = Field(default=32, ge=1)
    """Sentences per step."""
    learning_rate: float = Field(default=1e-4, gt=0, lt=1)
    """Peak learning rate of AdamW."""
    warmup: Ratio = 0.1
    """Share of the steps in which the learning rate rises; afterwards it falls linearly to zero."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled weight decay of the matrices; biases and LayerNorm have none."""
    distillation: Ratio = 0.9
    """Weight of the distillation loss; the rest is cross-entropy on the labels."""
    temperature: float = Field(default=2.0, gt=0)
    """Softmax temperature of teacher and student in the distillation loss."""
    hidden_weight: float = Field(default=0.0, ge=0)
    """Weight of the distance between the hidden states of teacher and student after each layer, beside the other
    losses. Above 0 every step also runs the dense teacher, which a step of a small model feels most; 0 never does."""
    dropout: Ratio = 0.0
    """Dropout of the recovery. 0 was better and faster on the quickstart (studies/results/first-runs.md)."""
    train_embeddings: bool = False
    """Whether the word embeddings are trained on as well: that costs time, and a brief recovery gains nothing by it."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Autocast type of training and of the dense model's logits; auto takes bf16 on devices that have it, else fp32.
    Trials are scored in fp32."""

    @property
    def cut_from(self) -> str:
        """What plans are cut from, in words."""
        return {
            "dense": "cut from the dense model",
            "supernet": "cut from the super-network",
            "nearest": "cut from the nearest finished trial",
            "supernet-nearest": "cut from the nearest finished trial, else the super-network",
        }[self.start]

    @property
    def cuts_supernet(self) -> bool:
        """Whether plans are cut from the super-network, at least those that no finished trial contains."""
        return self.start in ("supernet", "supernet-nearest")

    @property
    def inherits(self) -> bool:
        """Whether plans are cut from the nearest finished trial, and each trial's weights are kept for that."""
        return self.start in ("nearest", "supernet-nearest")


class EndingSettings(Part):
    """When a recovery is ended because it cannot reach the front any more; off unless rungs are named."""

    rungs: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = ()
    """Shares of a recovery's steps after which it is looked at, for example [0.33, 0.67]."""
    rows: int = Field(default=256, ge=1)
    """Rows of the selection split, drawn with the study's seed, that the candidate is scored on then."""
    wrong: float = Field(default=0.1, gt=0, lt=1)
    """Share of all recoveries that may be ended although they would have reached the front, all rungs together. The
    smaller it is, the more trials must have finished before any is ended: 9 at 0.1 and 19 at 0.05 with one rung, 19 and
    39 with two."""
    audited: Ratio = 0.1
    """Share of those that would be ended which go on all the same, to see how many are ended wrongly."""


class LatencySettings(Part):
    """Conditions of the latency measurement, which the energy measurement and the MACs share."""

    batch: int = Field(default=32, ge=1)
    """Sequences per batch."""
    tokens: Annotated[int, Field(ge=1, le=512)] | Literal["selection"] = 32
    """Tokens per sequence, special tokens included; selection takes the mix of lengths of the selection split, each
    batch padded to its longest sequence (MACs and modelled energy then count a sequence of its mean length)."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads; null takes as many as the worker has."""
    warmup: int = Field(default=3, ge=0)
    """Batches that run before measuring starts."""
    repeats: int = Field(default=20, ge=3)
    """Batches measured, at least, half of them the dense model's where it is measured beside; the value is a median."""
    interval: float | None = Field(default=0.05, gt=0)
    """Go on until the 95 % confidence interval of the median is at most this share of it wide; null stops at
    repeats."""
    seconds: float = Field(default=2.0, ge=0)
    """Seconds of running after which no more than repeats batches are measured, however wide the interval. On a CPU the
    seconds in which other processes have its cores do not count."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number type that the model is run in; modelled energy is that of float32, or of the plan's precision."""
    backend: Literal["eager", "compile", "cuda_graphs", "onnxruntime"] = "eager"
    """What runs the model: eager PyTorch, torch.compile, CUDA graphs or ONNX Runtime (extra: onnx)."""
    source: Literal["measured", "table"] = "measured"
    """measured times every trial's model; table adds up what its blocks cost, by a table that is measured once per
    device and study: equal plans have equal latencies, a trial spends no time on them, and is off by its error."""


class TableSettings(Part):
    """The additive table, for the latencies whose source it is and for energy where energy.table says so."""

    entries: int | None = Field(default=6, ge=2)
    """Numbers of heads, and of neuron blocks, that get an entry, from one to all; what lies between is taken on a
    straight line, which suits CPUs. null gives every number one, for devices where cost rises in steps."""
    plans: int = Field(default=20, ge=0)
    """Random plans that are measured besides, to tell how far the table is off; with fewer than 2 that is not known."""


class MeasuringSettings(Part):
    """How latencies are kept comparable on a machine that is shared, throttles or warms up."""

    reference: bool = True
    """Whether the dense model is measured in the same seconds as each cut one, by turns with it: the ratio is kept, and
    what slows the machine cancels in it."""
    figure: Literal["auto", "corrected", "absolute"] = "auto"
    """Which figure is the quantity: absolute as measured, or corrected, the ratio times what the dense model took when
    the study was created. Both are kept. auto corrects where the study has such a reference: all but those of versions
    before it have, and they go on as they began."""
    exclusive: Literal["auto", "always", "never"] = "auto"
    """Whether workers take turns, so that nobody trains on a device while another worker measures on it: auto those on
    one GPU or one set of cores, always all on this machine's CPU, never none. CPU workers with cores of their own
    disturb each other little, and taking turns would stop all of them for each measurement."""
    table: TableSettings = TableSettings()
    """The table of costs, where a study asks for one."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.figure == "corrected" and not self.reference:
            raise ValueError("figure is 'corrected' and reference is false: a corrected figure needs the reference")
        return self


class EnergySettings(Part):
    """Source of the energy figure."""

    source: Literal["auto", "nvml", "rapl", "model"] = "auto"
    """nvml reads an NVIDIA board's counter, rapl a CPU's, model computes from operations; auto takes the first that
    can be read. A study never mixes sources: auto is resolved when the study is created."""
    window_s: float = Field(default=2.0, gt=0)
    """Seconds that a counter is read over."""
    windows: int = Field(default=2, ge=1)
    """Windows that a counter is read over, one after the other: the value is their median, and their spread is kept."""
    idle_s: float = Field(default=1.0, ge=0)
    """Seconds of rest that the idle power is measured over, once in ten minutes: the energy above idle is kept beside
    the whole energy, which is the value; 0 leaves it out."""
    table: bool = False
    """Whether measured energy is taken from an additive table, as latency.source table does it for latencies; modelled
    energy is exact without one."""
    picojoules_per_mac: float = Field(default=4.6, gt=0)
    """Model only: energy of one fp32 multiply-accumulate (Horowitz, ISSCC 2014, 45 nm: 3.7 multiply + 0.9 add)."""
    picojoules_per_byte: float = Field(default=162.5, gt=0)
    """Model only: energy of one byte moved from DRAM (Horowitz, ISSCC 2014, 45 nm: 1.3 to 2.6 nJ per 64 bits,
    1.3 nJ taken)."""


class Bound(Part):
    """A constraint on one quantity. A plan that breaks it is recorded as infeasible and never enters the front."""

    at_least: float | None = None
    """Smallest allowed value."""
    at_most: float | None = None
    """Largest allowed value."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.at_least is None and self.at_most is None:
            raise ValueError("a constraint needs at_least, at_most or both")
        if self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            raise ValueError(f"at_least is {self.at_least} and at_most is {self.at_most}: no value keeps both")
        return self


class EngineSettings(Part):
    """How the plans are chosen, and how many."""

    trials: int = Field(default=100, ge=1)
    """Completed trials in the whole study, also when it is resumed; may be raised later."""
    sampler: Literal["nsga2", "nsga3", "surrogate", "tpe", "random"] = "nsga2"
    """Name of the sampler; surrogate has a model of the finished trials choose among NSGA-II's offspring what promises
    most by the second."""
    population: int | None = Field(default=None, ge=2)
    """Plans in a generation of NSGA-II or NSGA-III; null takes a fifth of the trials, at least 8 and at most 50."""
    seed: int = Field(default=0, ge=0)
    """The study's seed; every random number comes from it."""
    ladder: tuple[Ratio, ...] = (0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125)
    """Sizes that are tried first, after the dense model: shares of heads and of neuron blocks that are kept. The
    smallest comes first, and each further one halves the widest gap; if recovery.start is nearest, from the largest."""
    tilts: tuple[Ratio, ...] = (0.0, 0.5)
    """How each of these sizes is spread over the layers: 0 keeps the same ratio in each, 1 what one threshold of
    importance over all layers keeps, 0.5 lies half-way."""
    drop_blocks: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Numbers of attention and feed-forward blocks, for example [1, 2]: each size of the ladder is also tried with so
    many of the least important blocks gone and the others the wider for it."""
    failures_in_a_row: int = Field(default=10, ge=1)
    """The search stops after this many failed trials in a row."""


class Definition(Part):
    """Everything that determines a study.

    Example:
        >>> Definition(name="mine", model="bert-base-uncased", data="reviews.csv").engine.sampler
        'nsga2'
    """

    name: str = Field(min_length=1, max_length=200)
    """Name of the study: letters, digits, dot, hyphen and underscore."""
    model: str = "bert-base-uncased"
    """Checkpoint of BERT, RoBERTa, DistilBERT or ELECTRA: a name on the hub, or a folder with config.json,
    model.safetensors and a tokenizer."""
    data: str
    """Data: a data set on the hub, a folder with one file per split, or one file (CSV, TSV, JSON lines, Parquet)."""
    task: Task = Task()
    """What is classified."""
    space: SpaceSettings = SpaceSettings()
    """Which plans may be tried."""
    teacher: TeacherSettings = TeacherSettings()
    """The dense model."""
    importance: ImportanceSettings = ImportanceSettings()
    """Which heads and neurons stay."""
    recovery: RecoverySettings = RecoverySettings()
    """How a cut model is brought back."""
    supernet: SupernetSettings = SupernetSettings()
    """The super-network that plans are cut from where recovery.start is supernet."""
    ending: EndingSettings = EndingSettings()
    """When a recovery is ended early."""
    objectives: tuple[str, ...] = Field(default=("metric", "parameters", "latency_ms", "energy_mj"), min_length=1)
    """The vector a trial returns; metric stands for the task's metric."""
    constraints: dict[str, Bound] = {}
    """Bounds by quantity, for example {"parameters": {"at_most": 50000000}}."""
    latency: LatencySettings = LatencySettings()
    """Conditions of the latency measurement."""
    latencies: dict[str, LatencySettings] = {}
    """Further latencies by names of your own, for example {"single": {"batch": 1, "tokens": "selection"}}: each is
    measured in every trial, and latency_ms.single can be an objective or a constraint."""
    measuring: MeasuringSettings = MeasuringSettings()
    """How latencies are kept comparable."""
    energy: EnergySettings = EnergySettings()
    """Source of the energy figure."""
    engine: EngineSettings = EngineSettings()
    """How the plans are chosen."""

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise ValueError("a study's name starts with a letter or digit and holds letters, digits, '.', '-' and '_'")
        return name

    @field_validator("latencies")
    @classmethod
    def _check_latencies(cls, latencies: dict[str, LatencySettings]) -> dict[str, LatencySettings]:
        for name in latencies:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
                raise ValueError(
                    f"a latency is named {name!r}: such a name starts with a letter or digit and holds letters, "
                    "digits, '-' and '_'"
                )
        return latencies

    @model_validator(mode="after")
    def _check(self, info: ValidationInfo) -> Self:
        if len(set(self.objective_names)) != len(self.objective_names):
            raise ValueError(f"objectives are {list(self.objective_names)}: each may stand there once")
        if len(self.bounds) != len(self.constraints) and info.context != STORED:
            metric = self.task.metric
            raise ValueError(f"constraints name 'metric' and {metric!r}, which is the metric: write one of the two")
        asked = (*self.objective_names, *self.bounds)
        if "f1" in asked and len(self.task.labels) != 2:
            raise ValueError(f"f1 is asked for with {len(self.task.labels)} labels: f1 is for two, use accuracy")
        for name in asked:
            if name in METRICS and (name in REGRESSION_METRICS) != self.task.is_regression:
                what = "a regression" if self.task.is_regression else "a classification"
                raise ValueError(f"{name} is asked for, and the task is {what}, which {name} is not for")
        latencies = {"latency": self.latency} | {f"latencies.{name}": part for name, part in self.latencies.items()}
        if self.space.precision != ("fp32",):
            self._check_precision(latencies)
        tabled = [f"{path}.source" for path, part in latencies.items() if part.source == "table"]
        if tabled and not self.measuring.reference:
            raise ValueError(f"{tabled[0]} is 'table' and measuring.reference is false: a table needs the reference")
        if (tabled or self.energy.table) and self.space.factorises:
            raise ValueError(
                f"{tabled[0] if tabled else 'energy.table'} asks for a table and space.embedding.low is "
                f"{self.space.embedding.low:g}: a table knows heads and neurons only, measure every trial"
            )
        return self

    def _check_precision(self, latencies: dict[str, LatencySettings]) -> None:
        """Refuse what would set the conditions that a precision sets, or cannot be measured in one."""
        asked = f"space.precision is {list(self.space.precision)}"
        for path, part in latencies.items():
            if part.source == "table":
                raise ValueError(
                    f"{asked} and {path}.source is 'table': a table knows one precision, measure every trial"
                )
            if part.dtype != "float32":
                raise ValueError(
                    f"{asked} and {path}.dtype is {part.dtype!r}: the precision says it, leave it at float32"
                )
            if "int8" in self.space.precision and part.backend not in ("eager", "onnxruntime"):
                raise ValueError(
                    f"{asked} and {path}.backend is {part.backend!r}: int8 runs in ONNX Runtime on a CPU, use eager or "
                    "onnxruntime for the others"
                )
            if "bf16" in self.space.precision and part.backend == "onnxruntime":
                raise ValueError(f"{asked} and {path}.backend is 'onnxruntime': bf16 is run by PyTorch, use eager")
        if self.energy.table:
            raise ValueError(f"{asked} and energy.table is true: a table knows one precision, measure every trial")
        if "int8" in self.space.precision and "peak_memory_bytes" in (*self.objective_names, *self.bounds):
            raise ValueError(f"{asked} and peak_memory_bytes is asked for: it is not known in int8, leave it out")

    @property
    def objective_names(self) -> tuple[str, ...]:
        """The objectives with `metric` resolved to the task's metric."""
        return tuple(self.task.metric if name == "metric" else name for name in self.objectives)

    @property
    def quantity_names(self) -> tuple[str, ...]:
        """Names of all quantities that can be measured without a study script's own objectives."""
        return (*OBJECTIVES, *self.named_latencies)

    @property
    def named_latencies(self) -> dict[str, LatencySettings]:
        """The further latencies by the name of the quantity, for example `latency_ms.single`."""
        return {f"{LATENCY}.{name}": settings for name, settings in self.latencies.items()}

    @property
    def bounds(self) -> dict[str, Bound]:
        """The constraints with `metric` resolved to the task's metric."""
        return {self.task.metric if name == "metric" else name: bound for name, bound in self.constraints.items()}

    def to_json(self) -> str:
        """The whole definition as one JSON object; `from_json` gives an equal definition back."""
        return self.model_dump_json()


MAY_CHANGE = ("engine.trials", "engine.failures_in_a_row", "measuring.exclusive", "model", "data")
"""Fields that may differ when a study is resumed: when to stop, who waits for whom, and where checkpoint and data lie.
What these hold is compared by content when the study is prepared."""


def build(values: dict[str, Any], *, source: str, stored: bool = False) -> Definition:
    """Make a definition from nested values, with all errors at once.

    Args:
        values: Fields by name, nested as in the JSON text.
        source: Where the values come from, for the error message.
        stored: Whether a study was created with them.

    Returns:
        The definition.

    Raises:
        UserError: If any field is unknown or out of its range; all of them are named.
    """
    try:
        return Definition.model_validate(values, context=STORED if stored else None)
    except ValidationError as error:
        raise UserError(explain(error, source=source)) from None


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object from its keys and values: of equal keys Python's own would take the last, and say nothing.

    Raises:
        ValueError: If a key stands there twice.
    """
    keys = [key for key, _ in pairs]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise ValueError(f"the key {twice!r} stands twice in one object; leave one of them")
    return dict(pairs)


def from_json(text: str, *, source: str, stored: bool = False) -> Definition:
    """Read a definition from its JSON text.

    Args:
        text: One JSON object.
        source: Where the text comes from, for the error message.
        stored: Whether it is what a study was created with.

    Returns:
        The definition.

    Raises:
        UserError: If the text is not a JSON object, holds a key twice, or a field is unknown or out of its range.
    """
    try:
        values = json.loads(text, object_pairs_hook=once)
    except json.JSONDecodeError as error:
        raise UserError(f"{source} is not JSON (line {error.lineno}: {error.msg}); write one JSON object") from None
    except ValueError as error:
        raise UserError(f"{source}: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{source} holds a JSON {type(values).__name__}; a definition is one JSON object")
    return build(values, source=source, stored=stored)


def from_file(path: Path) -> Definition:
    """Read a definition from a JSON file.

    Raises:
        UserError: If the file cannot be read, or does not hold a definition.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the definition file '{path}' cannot be read ({error}); name a JSON file") from None
    return from_json(text, source=f"the definition file '{path}'")


def explain(error: ValidationError, *, source: str, root: type[Part] = Definition) -> str:
    """Turn pydantic's errors into one message that names each field, its value, the rule and the nearest name."""
    return f"{source}: " + "; ".join(_explain_one(dict(item), root) for item in error.errors(include_url=False))


_OF_UNION = re.compile(r"constrained-\w+|literal\[.*\]")
"""What pydantic adds to the path of a field that may be of one type or another."""


def _explain_one(item: dict[str, Any], root: type[Part]) -> str:
    path = [str(step) for step in item["loc"] if not _OF_UNION.fullmatch(str(step))]
    name = ".".join(path)
    if item["type"] == "extra_forbidden":
        prefix = name.removesuffix(path[-1])
        return unknown_name("field", name, [prefix + known for known in _fields_at(root, path[:-1])])
    if item["type"] == "missing":
        return f"field {name!r} is missing; give it a value"
    rule = item["msg"].removeprefix("Value error, ")
    value = item["input"]
    shown = "" if isinstance(value, dict | BaseModel) else f" is {value!r}"
    return f"{name}{shown}: {rule}" if name else rule


def _fields_at(root: type[Part], path: list[str]) -> list[str]:
    """Names of the fields of the part that a path of field names leads to."""
    part: Any = root
    for step in path:
        field = part.model_fields.get(step)
        part = field.annotation if field is not None else part
        if not (isinstance(part, type) and issubclass(part, BaseModel)):
            return sorted(
                LayerRanges.model_fields | Bound.model_fields | Range.model_fields | LatencySettings.model_fields
            )
    return list(part.model_fields)


def differences(stored: Definition, given: Definition) -> list[str]:
    """List what differs where it matters, one line per field.

    Args:
        stored: The definition that the study was created with.
        given: The definition that it would be resumed with.

    Returns:
        Lines `field: stored -> given`, empty when the study may be resumed. Fields in `MAY_CHANGE` are passed over.
    """
    old, new = _flatten(stored.model_dump(mode="json")), _flatten(given.model_dump(mode="json"))
    return [
        f"{name}: {json.dumps(old.get(name))} -> {json.dumps(new.get(name))}"
        for name in sorted(old | new)
        if old.get(name) != new.get(name) and name not in MAY_CHANGE
    ]


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
