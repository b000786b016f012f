"""A recipe: one YAML file that says everything a run needs, checked whole before any weight is read."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from omegaconf import MISSING

from sottovoce.adapters import ADAPTERS
from sottovoce.config.judges import AwarenessConfig, JudgeConfig, check_judges, without_null_judges
from sottovoce.config.limits import beyond_limits
from sottovoce.config.schema import checked
from sottovoce.config.trainer import reserved_arguments
from sottovoce.config.tuning import TuningConfig, check_tuning
from sottovoce.config_tree import Tree, read_tree
from sottovoce.data.corpora import CORPORA
from sottovoce.data.tasks import TASKS
from sottovoce.encoders import ENCODERS
from sottovoce.errors import ConfigError, nearest

Source = Literal["speech", "text", "none"]  # what fills a slot
SOURCES: tuple[Source, ...] = ("speech", "text", "none")
SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}  # as transformers call them
ENCODER, LLM = "encoder", "llm"  # among the names of what a stage trains, beside the slots


@dataclass
class LLMConfig:
    """The LLM, in a dtype of its own, frozen but for `tuning`."""

    checkpoint: str = MISSING  # a hub id, a local folder, or sottovoce:<room>/<folder>
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    trust_remote_code: bool = False
    tuning: TuningConfig = field(default_factory=TuningConfig)


@dataclass
class SlotConfig:
    """One slot of a spoken turn: the adapter that fills it from speech, and the text that is equivalent."""

    adapter: dict[str, Any] = MISSING  # a component node: `type` and its knobs
    text: Literal["caption", "transcript", "tagged"] = MISSING  # tagged: "<emotion> transcript"
    before: str = ""  # what the LLM's own format writes before speech; {number} counts the clips of a chat
    after: str = ""  # and behind it


@dataclass
class SourceConfig:
    """A manifest, how many times an epoch goes through it, and which tasks it may serve."""

    manifest: str = MISSING
    weight: float = 1.0  # 2: twice an epoch; 0.25: another quarter each epoch
    tasks: list[str] | None = None  # null: every task that its utterances have labels for
    root: str | None = None  # folder that audio paths are relative to and stay in; null: the manifest's own
    allow: list[str] = field(default_factory=list)  # further folders that its paths and links may lead to; [/]: any
    name: str | None = None  # of a part: weighted by stages (`parts`), and scored apart on the test side


@dataclass
class DataConfig:
    """Where utterances come from and how they are read."""

    corpus: dict[str, Any] | None = None  # a component that makes the manifests, instead of the lists below
    train: list[SourceConfig] = field(default_factory=list)
    validation: list[SourceConfig] = field(default_factory=list)
    test: list[SourceConfig] = field(default_factory=list)
    policy: Literal["error", "skip"] = "error"  # of faulty lines and clips: stop, or leave out, count and name
    cache: str | None = ".cache/sottovoce"  # folder of encoder outputs and LLM targets; null: encode every time
    validate: Literal["eager", "lazy"] = "eager"  # of training lines and clips: all at first, or each when drawn
    max_seconds: float = 60.0  # longer clips are faulty
    num_workers: int = 0  # processes that read audio


@dataclass
class StageConfig:
    """One stage of the curriculum. It starts from the best checkpoint of the stage before it."""

    tasks: dict[str, float] = MISSING  # task -> weight: how often it is drawn, of those that an utterance can serve
    parts: dict[str, float] | None = None  # named part of the data -> its `weight` in this stage
    err: dict[str, float] | None = None  # Equivalence Replacement Regularization: source -> weight
    train: list[str] | None = None  # slots whose adapters learn; `encoder`, `llm` if they do; null: all slots
    lr: float = MISSING
    warmup_steps: int = 0
    lr_schedule: Literal["linear", "cosine", "constant"] = "linear"
    weight_decay: float = 0.05
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 1e-8
    grad_clip: float = 1.0  # gradient norm
    epochs: int = 3
    batch_size: int = 48  # utterances a step and process
    tasks_per_utterance: int = (
        1  # tasks drawn from each utterance of a batch; they share its pass through encoder and adapters
    )
    val_checks_per_epoch: int = 1


@dataclass
class CascadeConfig:
    """A recogniser of emotion (TLTR) that is trained on the frozen encoder; its label stands before the speech."""

    pool: int = 20  # frames whose mean is a step in time
    width: int | None = None  # of its blocks; null: the encoder's
    epochs: int = 30
    batch_size: int = 48
    lr: float = 5e-5
    weight_decay: float = 0.01
    patience: int = 5  # epochs without a better balanced accuracy


@dataclass
class HeadConfig:
    """The auxiliary dual-level classification head of PE-FT (ADCH), for stages in which the LLM learns."""

    layer: int = MISSING  # whose output it reads, counted from 0
    categories: dict[str, list[str]] = MISSING  # category -> its attribute values, as the manifests name them
    weight: float = 0.5  # of its loss


@dataclass
class EvaluationConfig:
    """What is scored on the test side."""

    tasks: list[str] | None = None  # null: every task of the stages
    slots: list[str] | None = None  # both, text, or a slot that is heard alone; null: all of them
    batch_size: int = 48
    max_new_tokens: int = 200
    limit: int | None = None  # utterances a task; null: all
    text: dict[str, str] = field(default_factory=dict)  # slot -> the text that targets are made of, if not its own
    task_overrides: dict[str, dict[str, Any]] = field(
        default_factory=dict
    )  # task -> knobs it is scored with, if others
    judges: dict[str, JudgeConfig] = field(default_factory=dict)  # name -> who judges replies
    awareness: AwarenessConfig | None = None  # who labels replies to paired data; null: the rule
    retention: str | None = None  # a JSONL file of text prompts, which the LLM is asked before training and after


@dataclass
class Recipe:
    """Everything a run needs. `name` is the folder under `runs/` that it leaves behind."""

    name: str = MISSING
    seed: int = 0
    encoder: dict[str, Any] = MISSING
    llm: LLMConfig = field(default_factory=LLMConfig)
    slots: dict[str, SlotConfig] = MISSING  # in this order in a spoken turn
    instructions: Literal["system", "user"] = "system"  # a turn of their own, or before the speech in its turn
    init_from: str | None = None  # a bundle whose trained weights the first stage starts from
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)  # knobs of tasks, such as their choices
    data: DataConfig = field(default_factory=DataConfig)
    stages: dict[str, StageConfig] = MISSING  # run in this order; {}: `init_from` is scored as it is
    auxiliary_head: HeadConfig | None = None
    cascade: CascadeConfig | None = None
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    trainer: dict[str, Any] = field(default_factory=dict)  # keyword arguments of lightning.Trainer
    checkpoint_every: int = 50  # steps between checkpoints that a killed run resumes from
    output_dir: str = "runs"

    @property
    def folder(self) -> Path:
        return Path(self.output_dir) / self.name

    @property
    def trains_encoder(self) -> bool:
        """Whether the encoder learns in some stage; otherwise its outputs can be kept and it is no part of a bundle."""
        return any(ENCODER in (node.train or []) for node in self.stages.values())

    @property
    def trains_llm(self) -> bool:
        """Whether the LLM learns in some stage."""
        return any(LLM in (node.train or []) for node in self.stages.values())

    @property
    def modes(self) -> list[str]:
        """The choices of slots that are scored: both (all of them heard), each alone, and text in place of speech."""
        alone = list(self.slots) if len(self.slots) > 1 else []
        return self.evaluation.slots or ["both", *alone, "text"]

    def plain(self) -> Tree:
        """The whole recipe as nested dicts, to print, to save, and to put into checkpoints."""
        return asdict(self)


def load(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe with all that it extends and apply `key.sub=value` overrides.

    Raises:
        ConfigError: with every fault of the recipe, each with file, key, what was found and what is accepted.
    """
    overrides = list(overrides)
    tree = read_tree(Path(path), overrides)
    for key in (text.partition("=")[0] for text in overrides if text.endswith("=null")):
        _check_switched_off(read_tree(Path(path), [o for o in overrides if o != f"{key}=null"]), key)
    return parse(tree, str(path))


def _check_switched_off(tree: Tree, key: str) -> None:
    """Raises ConfigError where a null on the command line names nothing that could be switched off."""
    *group, name = key.split(".")
    node: Any = tree if group in (["stages"], ["slots"], ["evaluation", "judges"]) else None
    for part in group if node is not None else ():
        node = node.get(part) if isinstance(node, dict) else None
    if isinstance(node, dict) and name not in node:
        raise ConfigError(f"override {key}=null: there is no {name!r} in {'.'.join(group)}.{nearest(name, list(node))}")


def parse(tree: Tree, source: str = "recipe") -> Recipe:
    """Check a tree and fill in every default; see `load`."""
    tree = dict(tree)
    for group in ("slots", "stages"):  # a null switches an inherited entry off
        if isinstance(tree.get(group), dict):
            tree[group] = {name: node for name, node in tree[group].items() if node is not None}
    tree = without_null_judges(tree)
    recipe = checked(Recipe, tree, source)
    if faults := _check_components(recipe, source):
        raise ConfigError("\n".join(faults))
    return recipe


def _check_components(recipe: Recipe, source: str) -> list[str]:
    faults: list[str] = []

    def attempt(check: Any, *arguments: Any) -> Any:
        try:
            return check(*arguments)
        except ConfigError as error:
            faults.append(str(error))

    recipe.encoder = attempt(ENCODERS.check, recipe.encoder, f"{source}: encoder") or recipe.encoder
    for name, slot in recipe.slots.items():
        slot.adapter = attempt(ADAPTERS.check, slot.adapter, f"{source}: slots.{name}.adapter") or slot.adapter
    if recipe.data.corpus and (named := [s for s in ("train", "validation", "test") if getattr(recipe.data, s)]):
        faults.append(f"{source}: data: its corpus makes the manifests, so those of {', '.join(named)} would not be "
                      "heard: data.corpus=null takes your own")  # fmt: skip
    if recipe.data.corpus:
        recipe.data.corpus = attempt(CORPORA.check, recipe.data.corpus, f"{source}: data.corpus") or recipe.data.corpus
    faults += [*_check_names(recipe, source), *check_tuning(recipe, source)]
    faults += check_judges(recipe.evaluation.judges, recipe.evaluation.awareness, f"{source}: evaluation")
    faults += [f"{source}: {fault}" for fault in (*beyond_limits(recipe), *reserved_arguments(recipe.trainer))]
    for name in sorted({*recipe.tasks, *used_tasks(recipe)} & set(TASKS.names())):
        node = {"type": name, **recipe.tasks.get(name, {})}
        recipe.tasks[name] = attempt(TASKS.check, node, f"{source}: tasks.{name}") or node
        attempt(TASKS.build, recipe.tasks[name])
        if name in recipe.evaluation.task_overrides:
            attempt(TASKS.build, {**recipe.tasks[name], **recipe.evaluation.task_overrides[name]})
    return faults


def used_tasks(recipe: Recipe) -> list[str]:
    """Every task that a stage trains or the evaluation scores, in order of first use."""
    used = [task for stage in recipe.stages.values() for task in stage.tasks]
    return list(dict.fromkeys([*used, *(recipe.evaluation.tasks or [])]))


def _check_names(recipe: Recipe, source: str) -> list[str]:
    """A name that matches nothing is an error: slots, tasks, sources."""
    faults = []

    def known(where: str, names: Iterable[str], accepted: Iterable[str], kind: str) -> None:
        accepted = list(accepted)
        for name in names:
            if name not in accepted:
                faults.append(f"{source}: {where}: there is no {kind} {name!r}.{nearest(name, accepted)}")

    known("tasks", recipe.tasks, TASKS.names(), "task")
    parts = sorted({node.name for node in (*recipe.data.train, *recipe.data.validation) if node.name})
    for name, stage in recipe.stages.items():
        known(f"stages.{name}.tasks", stage.tasks, TASKS.names(), "task")
        known(f"stages.{name}.train", stage.train or [], [*recipe.slots, ENCODER, LLM], "slot")
        known(f"stages.{name}.err", stage.err or {}, SOURCES, "source")
        known(f"stages.{name}.parts", stage.parts or {}, parts, "part, `name` of a manifest,")
        faults += _check_stage(stage, f"{source}: stages.{name}")
    modes = ["both", "text", *recipe.slots]
    known("evaluation.slots", recipe.evaluation.slots or [], modes, "choice of slots")
    known("evaluation.tasks", recipe.evaluation.tasks or [], TASKS.names(), "task")
    for split in ("train", "validation", "test"):
        for i, node in enumerate(getattr(recipe.data, split)):
            known(f"data.{split}[{i}].tasks", node.tasks or [], TASKS.names(), "task")
    for name in {ENCODER, LLM} & set(recipe.slots):
        faults.append(f"{source}: slots.{name}: a slot cannot have this name, since `train` means the {name} by it")
    if not recipe.slots:
        faults.append(f"{source}: slots: a spoken turn needs at least one")
    if not recipe.stages and not (recipe.init_from and recipe.evaluation.tasks):
        faults.append(
            f"{source}: stages: a run needs at least one, or `init_from` and `evaluation.tasks`, to score a bundle"
        )
    if recipe.cascade and (recipe.stages or "emotion" not in recipe.tasks):
        faults.append(f"{source}: cascade: it needs the task `emotion`, whose labels it learns, and no stages")
    known("evaluation.task_overrides", recipe.evaluation.task_overrides, recipe.tasks, "task of this recipe")
    known("evaluation.text", recipe.evaluation.text, recipe.slots, "slot")
    known("evaluation.text", recipe.evaluation.text.values(), ("caption", "transcript", "tagged"), "equivalent text")
    return faults


def _check_stage(stage: StageConfig, where: str) -> list[str]:
    faults = []
    for key, weights in (("tasks", stage.tasks), ("err", stage.err)):
        if weights is not None and (not weights or min(weights.values()) < 0 or sum(weights.values()) <= 0):
            faults.append(f"{where}.{key}: weights must not be negative, and one must be positive; found {weights}")
    if stage.err and not any(stage.err.get(source, 0) > 0 for source in ("speech", "none")):
        faults.append(
            f"{where}.err: an utterance may lack the text of a slot, so `speech` or `none` needs a weight, too; found "
            f"{stage.err}"
        )
    if stage.err is not None and ENCODER in (stage.train or []):
        faults.append(
            f"{where}: err freezes adapters example by example, but the encoder serves them all: take `{ENCODER}` out "
            "of trains, or err out of the stage"
        )
    if stage.lr <= 0:
        faults.append(f"{where}.lr: must be positive, found {stage.lr}")
    return faults
