"""The sections of a recipe: what each of its nodes may say."""

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from typing_extensions import Self

from sottovoce.adapters import ADAPTERS
from sottovoce.config.sources import Sources
from sottovoce.config_model import (
    Betas,
    Count,
    Float,
    Int,
    Node,
    NonNegative,
    Weight,
    config_class,
    fault,
    if_several,
    with_defaults,
    without_nulls,
)
from sottovoce.data.corpora import CORPORA
from sottovoce.encoders.cache_formats import CacheDtype
from sottovoce.encoders.layer_choice import LAST, readable
from sottovoce.errors import brief
from sottovoce.evaluation import AWARENESS_JUDGES, JUDGES, OWN_METRICS
from sottovoce.llms import ENGINES
from sottovoce.llms.tuning_config import Tuning
from sottovoce.paths import read_text, resolve
from sottovoce.scripts import nfc

CONVERSATION, RULE = {"type": "conversation"}, {"type": "rule"}  # who judges if a recipe names no `type`
SlotText: TypeAlias = Literal["caption", "transcript", "tagged"]
Carried: TypeAlias = Literal["linguistic", "paralinguistic"]  # what tasks rely on
ALL: Literal["all"] = "all"  # tasks of an utterance
LOSS = "loss"  # a stage's `monitor`
BATCH_KEYS = {"batch_size": "utterances", "batch_seconds": "seconds", "batch_tokens": "tokens"}  # and their units
ANSWERED = 4  # batches of a task in a validation, where a score is monitored
Values: TypeAlias = Annotated[list[Annotated[str, AfterValidator(nfc)]], Field(min_length=1)]
Rate: TypeAlias = Annotated[float, Field(gt=0)]  # of learning
Policy: TypeAlias = Literal["error", "skip"]

_OF_CHATS = ("conversation", "messages", "chat_template", "add_generation_prompt", "continue_final_message", "tokenize")


def _of_template(arguments: dict[str, Any]) -> dict[str, Any]:
    if reserved := sorted(set(arguments) & set(_OF_CHATS)):
        raise fault("conflict", "", f"{', '.join(reserved)}: this is decided for each prompt; leave it out")
    return arguments


TemplateArguments: TypeAlias = Annotated[dict[str, Any], AfterValidator(_of_template)]


def _template_text(template: str) -> str:
    """A text in Jinja as it is; that of a file, so that a bundle needs no file."""
    if "{" in template:
        return template
    try:
        return read_text(resolve(template))
    except (OSError, UnicodeDecodeError) as error:
        raise fault("not-found", "", f"it is neither Jinja, which has braces, nor a file of it: {error}") from None


@config_class
class LLMConfig:
    """The LLM, in a dtype of its own, frozen but for `tuning`."""

    checkpoint: str = Field(description="a hub id, a local folder, or sottovoce:<room>/<folder>")
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    trust_remote_code: bool = Field(default=False, description="run code of the checkpoint; the command line alone")
    attn_implementation: Literal["eager", "sdpa"] | None = Field(
        default=None, description="of transformers, or what it takes itself; eager trains faster on a CPU in bfloat16"
    )
    quantization: Literal["8bit", "4bit"] | None = Field(
        default=None, description="of the frozen weights, by bitsandbytes: LLM.int8() or NF4"
    )
    tuning: Tuning = Field(default_factory=Tuning)
    chat_template: Annotated[str, AfterValidator(_template_text)] | None = Field(
        default=None, description="in Jinja, or a file of it; null: the checkpoint's own"
    )
    chat_template_kwargs: TemplateArguments = Field(
        default={}, description="of the chat template; enable_thinking, where it knows that, is false unless set here"
    )


def _one_as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _tasks_per_utterance(value: object) -> object:
    if value == ALL or (type(value) is int and 1 <= value <= 10_000):
        return value
    raise fault("bad-value", "", f"must be an integer from 1 to 10,000, or {ALL}, found {brief(repr(value), 100)}")


def _rates(value: object) -> object:
    """A learning rate, or one for each part."""
    rates = value if isinstance(value, dict) else {"": value}
    for part, rate in rates.items():
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not rate > 0:
            told = f"must be a positive number, found {brief(repr(rate), 100)}{if_several(rate)}"
            raise fault("bad-value", str(part), told)
    if not rates:
        raise fault("bad-value", "", "must be a positive number, or one for each part that learns")
    return value


@config_class
class SlotConfig:
    """One slot of a spoken turn: the adapter that fills it from speech, and the text that is equivalent."""

    adapter: Annotated[Node, ADAPTERS] = Field(description="a component: `type` and its knobs")
    text: SlotText = Field(description='tagged: "<emotion> transcript"')
    layers: Annotated[str, AfterValidator(readable)] = Field(
        default=LAST, description="of the encoder: last, 2, 1-4, 2,5-6 or all; several are mixed by learned weights"
    )
    layer_norm: bool = Field(default=False, description="each layer has mean 0 and variance 1 before it is mixed")
    ctc_compression: bool = Field(default=False, description="the LLM's tokens that `ctc` reads there, without blanks")
    before: str = Field(default="", description="what the LLM's format has before speech; {number} counts clips")
    after: str = Field(default="", description="and behind it")
    carries: Annotated[
        list[Carried] | None, BeforeValidator(_one_as_list, json_schema_input_type=Carried | list[Carried] | None)
    ] = Field(default=None, description="whose tasks' speech ERR keeps; null: the slot's name")


@config_class
class DataConfig:
    """Where utterances come from and how they are read."""

    corpus: Annotated[Node, CORPORA] | None = Field(default=None, description="makes the manifests, not these lists")
    train: Sources = Field(default=[])
    validation: Sources = Field(default=[])
    test: Sources = Field(default=[])
    policy: Policy = Field(default="error", description="of faulty lines, rows and clips: stop, or leave out")
    cache: str | None = Field(default=".cache/sottovoce", description="for encoder outputs and LLM targets; null: none")
    cache_dtype: CacheDtype = Field(default="float16", description="of encoder outputs; int8: a scale a channel")
    prepare_workers: Int | None = Field(
        default=None, ge=0, le=256, description="more processes that encode clips before training; null: as many as pay"
    )
    validate: Literal["eager", "lazy"] = Field(
        default="eager", description="training clips: all at first, or when drawn"
    )
    max_seconds: Float = Field(default=60.0, ge=0, le=3600, description="longer clips are faulty")
    target_max_new_tokens: Count | None = Field(
        default=None, description="of targets that the LLM makes; null: evaluation's"
    )
    num_workers: Int = Field(default=0, ge=0, le=1024, description="processes that read audio")


@config_class
class DistillConfig:
    """KL divergence, over response tokens, from the frozen LLM that reads the text that is equivalent to the speech."""

    weight: NonNegative = Field(default=1.0, description="of the divergence beside the response's loss")
    top_k: Count = Field(default=100, description="likeliest tokens that are kept of the LLM; the rest is one number")
    temperature: Float = Field(default=2.0, gt=0, le=1000, description="of both; its square is a factor of the loss")


@config_class
class StageConfig:
    """One stage of the curriculum. It starts from the best checkpoint of the stage before it."""

    tasks: dict[str, NonNegative] = Field(description="task -> how often it is drawn for an utterance")
    parts: dict[str, Weight] | None = Field(default=None, description="`name` in the data -> its `weight` here")
    err: dict[str, NonNegative] | None = Field(default=None, description="equivalence replacement: source -> weight")
    ctc: dict[str, NonNegative] | None = Field(
        default=None, description="slot -> weight of a loss that reads its transcript in its embeddings"
    )
    response_weight: NonNegative = Field(default=1.0, description="of the response's loss; 0: the LLM is not run")
    train: list[str] | None = Field(default=None, description="slots that learn, and `encoder`, `llm`; null: all slots")
    distill: DistillConfig | None = Field(default=None, description="from the LLM that reads the equivalent text")
    lr: Annotated[float | dict[str, float], BeforeValidator(_rates, json_schema_input_type=Rate | dict[str, Rate])] = (
        Field(description="or one for each of `train`; heads then have the highest")
    )
    warmup_steps: Int = Field(default=0, ge=0, le=10**9)
    lr_schedule: Literal["linear", "cosine", "constant"] = "linear"
    weight_decay: NonNegative = 0.05
    betas: Betas = Field(default=[0.9, 0.999])
    eps: NonNegative = 1e-8
    grad_clip: NonNegative = Field(default=1.0, description="gradient norm")
    epochs: Int = Field(default=3, ge=1, le=100_000)
    batch_size: Count | None = Field(default=None, description="utterances a batch and process; 48, without a budget")
    batch_seconds: Float | None = Field(default=None, gt=0, le=10**6, description="or its seconds of audio, padded")
    batch_tokens: Count | None = Field(default=None, description="or its tokens of prompt and response, padded")
    accumulate_grad_batches: Int = Field(default=1, ge=1, le=10**6, description="batches of a process that make a step")
    tasks_per_utterance: Annotated[int | Literal["all"], BeforeValidator(_tasks_per_utterance)] = Field(
        default=1, description="drawn from each utterance; all: each of them"
    )
    val_checks_per_epoch: Int = Field(default=1, ge=1, le=10_000)
    monitor: str | None = Field(
        default=None, description="whose best checkpoint is kept: loss (null), or a score, such as asr/wer"
    )
    monitor_batches: Count | None = Field(
        default=None, description="batches of each task answered in a validation, for scores; null: 4 if one is needed"
    )
    patience: Count | None = Field(default=None, description="validations without a better one that end the stage")

    @model_validator(mode="after")
    def _one_measure(self) -> Self:
        """A batch has one measure: a number of utterances, if nothing is said."""
        given = [key for key in BATCH_KEYS if getattr(self, key) is not None]
        if len(given) > 1:
            told = f"{' and '.join(given)} are given, and a batch has one measure: set the others to null"
            raise fault("conflict", given[-1], told)
        if not given:
            self.batch_size = 48
        return self

    @property
    def budget(self) -> float | None:
        """Seconds or tokens of a batch and process; None where it has a number of utterances."""
        return self.batch_seconds or self.batch_tokens

    @property
    def answered(self) -> int:
        """Batches of each task that a validation answers."""
        return self.monitor_batches or (ANSWERED if self.monitor not in (None, LOSS) else 0)

    @property
    def draws(self) -> int:
        """Of a row: where rows are utterances with one task, that is it."""
        return self.tasks_per_utterance if isinstance(self.tasks_per_utterance, int) else 1


@config_class
class CascadeConfig:
    """A recogniser of emotion (TLTR) that is trained on the frozen encoder; its label stands before the speech."""

    pool: Int = Field(default=20, ge=1, le=100_000, description="frames whose mean is a step in time")
    width: Int | None = Field(default=None, description="of its blocks; null: the encoder's")
    recognizer: str | None = Field(default=None, description="a cascade's run, whose recogniser and encoder are taken")
    most_clips: Count | None = Field(default=None, description="of a side, to learn from; null: 50,000")
    epochs: Int = Field(default=30, ge=1, le=100_000)
    batch_size: Int = Field(default=48, ge=1, le=10**6)
    lr: Float = Field(default=5e-5, gt=0)
    weight_decay: NonNegative = 0.01
    patience: Int = Field(default=5, ge=0, le=100_000, description="epochs without a better balanced accuracy")


@config_class
class HeadConfig:
    """The auxiliary dual-level classification head of PE-FT (ADCH), for stages in which the LLM learns."""

    layer: Int = Field(description="whose output it reads, counted from 0")
    categories: dict[str, Values] = Field(min_length=1, description="category -> its values in the manifests")
    weight: Float = Field(default=0.5, description="of its loss")


@config_class
class JudgeConfig:
    """A judge of replies, and whom it asks. Replies are judged once they are written down."""

    judge: Annotated[Node, with_defaults(CONVERSATION), JUDGES] = Field(default=CONVERSATION, validate_default=True)
    engine: Annotated[Node, ENGINES] | None = Field(default=None, description="of a judge that asks an LLM")
    tasks: list[str] = Field(default=["dialogue"], description="whose replies")
    slots: list[str] = Field(default=["both"], description="heard how")


@config_class
class OwnMetricConfig:
    """A metric of one's own: a class whose instances give an answer its value, and the tasks whose answers."""

    metric: Annotated[Node, OWN_METRICS] = Field(description="./file.py:Class or module:Class, and its arguments")
    tasks: list[str] = Field(default=[], description="whose answers; empty: all")
    better: Literal["higher", "lower"] = Field(default="higher", description="which values are better")


Slots: TypeAlias = Annotated[dict[str, SlotConfig], without_nulls(SlotConfig)]
Numbers: TypeAlias = Annotated[list[Float], Field(min_length=1, max_length=2)]
Scores: TypeAlias = Annotated[dict[str, Numbers], without_nulls(Numbers)]
Published: TypeAlias = Annotated[
    dict[str, Annotated[dict[str, Scores], without_nulls(Scores)]],
    BeforeValidator(lambda value: {} if value is None else value, json_schema_input_type=dict[str, Any] | None),
]
Stages: TypeAlias = Annotated[dict[str, StageConfig], without_nulls(StageConfig)]
OwnMetrics: TypeAlias = Annotated[dict[str, OwnMetricConfig], without_nulls(OwnMetricConfig)]
Judges: TypeAlias = Annotated[dict[str, JudgeConfig], without_nulls(JudgeConfig)]


@config_class
class AwarenessConfig:
    """Who labels replies to paired data -1, 0 or +1 (PA-score and PA-rate), and whom that judge asks."""

    judge: Annotated[Node, with_defaults(RULE), AWARENESS_JUDGES] = Field(default=RULE, validate_default=True)
    engine: Annotated[Node, ENGINES] | None = Field(default=None, description="of a judge that asks an LLM")


@config_class
class VoiceBenchConfig:
    """VoiceBench, answered after the LLM is tuned and with what it was before."""

    manifests: str = Field(description="folder that `sottovoce prepare voicebench` has written")
    engine: Annotated[Node, ENGINES] | None = Field(default=None, description="of the judge; null: judge later")
    accents: Values = Field(default=["usa"], description="of SD-QA")
    limit: Count | None = Field(default=None, description="prompts a subset; null: all")
    max_new_tokens: Int = Field(default=1024, ge=1, le=10**6)
    panda: Literal["rule", "pedant"] = Field(default="rule", description="of SD-QA; pedant: by the package qa_metrics")
    open_rubric: str | None = Field(default=None, description="file with {prompt}, {response}; null: our own")
    qa_rubric: str | None = Field(default=None, description="file with {prompt}, {reference}, {response}")


@config_class
class EvaluationConfig:
    """What is scored on the test side."""

    tasks: list[str] | None = Field(default=None, description="null: every task of the stages")
    slots: list[str] | None = Field(default=None, description="both, text, or a slot alone; null: all of them")
    batch_size: Int = Field(default=48, ge=1, le=10**6)
    max_new_tokens: Int = Field(default=200, ge=1, le=10**6)
    limit: Count | None = Field(default=None, description="utterances a task; null: all")
    text: dict[str, SlotText] = Field(default={}, description="slot -> the text that targets are made of, if another")
    task_overrides: dict[str, dict[str, Any]] = Field(default={}, description="task -> knobs that it is scored with")
    judges: Judges = Field(default={}, description="name -> who judges replies")
    metrics: OwnMetrics = Field(default={}, description="name -> a metric of one's own, beside those of the tasks")
    awareness: AwarenessConfig | None = Field(default=None, description="labels replies to paired data; null: the rule")
    retention: str | None = Field(default=None, description="JSONL of text prompts, asked before and after training")
    voicebench: VoiceBenchConfig | None = Field(default=None, description="spoken prompts, before and after training")
