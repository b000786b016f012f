"""A recipe: one YAML file that says everything a run needs, checked whole before any weight is read."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from sottovoce.adapters import ADAPTERS
from sottovoce.config import sections
from sottovoce.config.logging_config import LoggingConfig
from sottovoce.config.sources import SourceConfig
from sottovoce.config.stage_conflicts import ENCODER as ENCODER
from sottovoce.config.stage_conflicts import LLM as LLM
from sottovoce.config.stage_conflicts import stage_conflicts
from sottovoce.config.trainer_arguments import Callbacks, TrainerArguments
from sottovoce.config_model import BaseRecipe, Count, Node, Seed, config_class, fault, located, unknown
from sottovoce.data.overrides import Overrides
from sottovoce.data.own_attribute import build_task
from sottovoce.data.tasks import PLAIN, PLAIN_TEACHER, TASKS
from sottovoce.encoders import ENCODERS
from sottovoce.errors import ConfigError, SottovoceError
from sottovoce.evaluation.reports.results import METRICS
from sottovoce.llms.tuning_config import AUTO

Source = Literal["speech", "text", "none"]  # what fills a slot
SOURCES: tuple[Source, ...] = ("speech", "text", "none")
SPLITS = ("train", "validation", "test")


@config_class
class Recipe(BaseRecipe):
    """Everything a run needs. `name` is the folder under `output_dir` that it leaves behind."""

    groups = ("stages", "slots", "evaluation.judges", "evaluation.metrics")

    name: str
    seed: Seed = 0
    encoder: Annotated[Node, ENCODERS] = Field(description="a component: `type` and its knobs")
    llm: sections.LLMConfig = Field()
    slots: sections.Slots = Field(min_length=1, description="in this order in a spoken turn")
    instructions: Literal["system", "user"] = Field(
        default="system", description="a turn of their own, or before the speech"
    )
    init_from: str | None = Field(default=None, description="a bundle, whose weights the first stage starts from")
    tasks: dict[str, dict[str, Any]] = Field(default={}, description="knobs of tasks, such as their choices")
    data: sections.DataConfig = Field(default_factory=sections.DataConfig)
    stages: sections.Stages = Field(description="run in this order; {}: `init_from`, or the checkpoint, as it is")
    auxiliary_head: sections.HeadConfig | None = None
    cascade: sections.CascadeConfig | None = None
    evaluation: sections.EvaluationConfig = Field(default_factory=sections.EvaluationConfig)
    trainer: TrainerArguments = Field(
        default={}, description="keyword arguments of lightning.Trainer, to which a stage is one epoch"
    )
    callbacks: Callbacks = Field(
        default=[], description="of your own: module:Class, ./file.py:Class, or `type` and arguments"
    )
    compile: bool = Field(default=False, description="torch.compile of the LLM, as stages run it")
    logging: LoggingConfig = Field(default_factory=LoggingConfig)
    checkpoint_every: Count = Field(default=50, description="steps between checkpoints to resume from")
    output_dir: str = "runs"
    published: sections.Published = Field(
        default={}, description="slots -> task -> score -> [value, half of its interval] of a paper, beside ours"
    )

    @property
    def folder(self) -> Path:
        return Path(self.output_dir) / self.name

    def sources(self) -> Iterator[tuple[str, SourceConfig]]:
        """Every manifest of the data, and where the recipe names it."""
        for split in SPLITS:
            yield from ((f"data.{split}[{i}]", node) for i, node in enumerate(getattr(self.data, split)))

    def locate(self, folder: Path) -> None:
        """See `BaseRecipe`."""
        for _, node in self.sources():
            node.locate(folder)

    @property
    def untuned(self) -> bool:
        """Whether the model is what its checkpoints are: nothing is trained, and nothing of another run is taken."""
        return not self.stages and not self.init_from

    @property
    def trains_encoder(self) -> bool:
        """Whether the encoder learns in some stage; otherwise its outputs can be kept and it is no part of a bundle."""
        return any(ENCODER in (node.train or []) for node in self.stages.values())

    @property
    def trains_llm(self) -> bool:
        """Whether the LLM learns in some stage."""
        return any(LLM in (node.train or []) for node in self.stages.values())

    @property
    def carries(self) -> dict[str, frozenset[str]]:
        """What each slot carries, by its `carries` or its name."""
        return {name: frozenset[str]([name] if s.carries is None else s.carries) for name, s in self.slots.items()}

    @property
    def target_max_new_tokens(self) -> int:
        """Tokens of a target that the LLM makes, at most: one that does not end within them is left out."""
        return self.data.target_max_new_tokens or self.evaluation.max_new_tokens

    @property
    def modes(self) -> list[str]:
        """The choices of slots that are scored: both (all of them heard), each alone, and text in place of speech."""
        alone = list(self.slots) if len(self.slots) > 1 else []
        return self.evaluation.slots or ["both", *alone, "text"]

    def conflicts(self) -> Iterator[ConfigError]:
        """See `BaseRecipe`; tasks are filled in, and the layers that an analysis has found."""
        yield from self._unknown_names()
        for name in {ENCODER, LLM} & set(self.slots):
            yield fault("conflict", f"slots.{name}", f"`train` means the {name} by this name: give the slot another")
        if not self.stages and not self.evaluation.tasks:
            told = "a run needs at least one, or `evaluation.tasks`, to score a model as it is"
            yield fault("missing-key", "stages", told)
        if self.untuned:
            yield from self._parts_without_weights()
        if self.cascade and (self.stages or "emotion" not in self.tasks):
            told = "it needs the task `emotion`, whose labels it learns, and no stages"
            yield fault("conflict", "cascade", told)
        if self.data.corpus and (named := [split for split in SPLITS if getattr(self.data, split)]):
            told = f"the corpus makes the manifests, so those of {', '.join(named)} would not be read: "
            yield fault("conflict", "data.corpus", f"{told}data.corpus=null takes your own")
        for name, stage in self.stages.items():
            yield from stage_conflicts(stage, f"stages.{name}", self)
            yield from self._carrier_conflicts(stage, f"stages.{name}.err")
            for slot in (slot for slot in stage.ctc or {} if slot in self.slots):
                if self.slots[slot].text == "caption":
                    told = f"the text of {slot} is a caption, which nobody says: take a slot with `text: transcript`"
                    yield fault("conflict", f"stages.{name}.ctc.{slot}", told)
        yield from self._compression_conflicts()
        yield from self._tuning_conflicts()
        yield from self._complete_tasks()
        yield from self._kind_conflicts()

    def _compression_conflicts(self) -> Iterator[ConfigError]:
        """Slots that are compressed by a head that nothing teaches."""
        taught = {slot for stage in self.stages.values() for slot, weight in (stage.ctc or {}).items() if weight}
        for name in [name for name, slot in self.slots.items() if slot.ctc_compression]:
            if name not in taught and not self.init_from:
                told = f"nothing teaches what is a blank: give a stage `ctc: {{{name}: 1}}`"
                yield fault("conflict", f"slots.{name}.ctc_compression", told)

    def _carrier_conflicts(self, stage: sections.StageConfig, where: str) -> Iterator[ConfigError]:
        """ERR in a stage of whose tasks no slot carries one: it would replace nothing."""
        tasks = [name for name, weight in stage.tasks.items() if weight > 0 and name in self._known_tasks()]
        carried = frozenset[str]().union(*self.carries.values())
        if stage.err is not None and tasks and not any(self._relies_on(name) in carried for name in tasks):
            told = f"no slot carries a task of this stage ({', '.join(tasks)}), so nothing would be replaced: say "
            yield fault("conflict", where, f"{told}`carries: linguistic` or `paralinguistic` in the slots")

    def _known_tasks(self) -> list[str]:
        """Tasks by the name of their type, and those of the recipe's own names."""
        return [*TASKS.names(), *(name for name, knobs in self.tasks.items() if "type" in knobs)]

    def _relies_on(self, task: str) -> str:
        try:
            return TASKS.get(str(self.tasks.get(task, {}).get("type", task))).relies_on
        except ConfigError:  # told elsewhere
            return ""

    def _kind_conflicts(self) -> Iterator[ConfigError]:
        """Ready targets of one kind where the LLM, which answers the slots' texts, makes those of another."""
        slots, knobs = {name: slot.text for name, slot in self.slots.items()}, self.tasks.get("response", {})
        heard = slots | self.evaluation.text
        own = self.evaluation.task_overrides.get("response", {})
        uses = [("tasks.response", slots, knobs)] if any(s.tasks.get("response") for s in self.stages.values()) else []
        if "response" in (self.evaluation.tasks or used_tasks(self)):
            uses += [("evaluation.task_overrides.response" if own else "tasks.response", heard, knobs | own)]
        for place, source in self.sources():
            texts, above = (heard, knobs | own) if place.startswith("data.test") else (slots, knobs)
            if changed := source.task_overrides.get("response"):
                uses += [(f"{place}.task_overrides.response", texts, above | changed)]
        for where, texts, node in uses:
            kind, styled = node.get("kind"), set(texts.values()) != {"transcript"}
            if kind is not None and styled == (kind == PLAIN):
                told = f"{kind} targets {'do not know' if styled else 'know'} how it was said, and "
                told += f"{'a' if styled else 'no'} slot's text tells it: change one of the two"
                yield fault("conflict", f"{where}.kind", told)

    def _parts_without_weights(self) -> Iterator[ConfigError]:
        """Parts that an untuned model would have at random."""
        told = "nothing trains it, so that it would be random: name stages, or a bundle in `init_from`"
        if "checkpoint" in self.encoder and self.encoder["checkpoint"] is None:
            yield fault("conflict", "encoder.checkpoint", f"without a checkpoint, {told}")
        for name, slot in self.slots.items():
            kind = slot.adapter["type"]
            if not ADAPTERS.get(kind).pretrained:
                yield fault("conflict", f"slots.{name}.adapter", f"{kind} has no weights of its own and {told}")

    def _unknown_names(self) -> Iterator[ConfigError]:
        evaluation = self.evaluation
        parts = sorted({node.name for node in (*self.data.train, *self.data.validation) if node.name})
        known = self._known_tasks()
        for error in unknown("tasks", self.tasks, known, "task"):
            yield fault("unknown-name", error.where, f"{error}. One of your own has a type, such as `type: attribute`")
        for name, stage in self.stages.items():
            yield from unknown(f"stages.{name}.tasks", stage.tasks, known, "task")
            yield from unknown(f"stages.{name}.train", stage.train or [], [*self.slots, ENCODER, LLM], "slot")
            yield from unknown(f"stages.{name}.err", stage.err or {}, SOURCES, "source")
            yield from unknown(f"stages.{name}.ctc", stage.ctc or {}, self.slots, "slot")
            yield from unknown(f"stages.{name}.parts", stage.parts or {}, parts, "part, `name` of a manifest,")
        yield from unknown("evaluation.slots", evaluation.slots or [], ["both", "text", *self.slots], "choice of slots")
        yield from unknown("evaluation.tasks", evaluation.tasks or [], known, "task")
        for split in SPLITS:
            for i, node in enumerate(getattr(self.data, split)):
                yield from unknown(f"data.{split}[{i}].tasks", node.tasks or [], known, "task")
        own = [*self.tasks, *used_tasks(self)]
        yield from unknown("evaluation.task_overrides", evaluation.task_overrides, own, "task of this recipe")
        for name, node in evaluation.metrics.items():
            yield from unknown(f"evaluation.metrics.{name}.tasks", node.tasks, own, "task of this recipe")
            if not name.isidentifier() or name in METRICS:
                told = "a metric of one's own has a name of its own: letters, digits and _"
                yield fault("conflict", f"evaluation.metrics.{name}", told)
        yield from unknown("evaluation.text", evaluation.text, self.slots, "slot")
        yield from unknown("published", self.published, ["both", "text", *self.slots], "choice of slots")
        for slots, tasks in self.published.items():
            for task, scores in tasks.items():
                names = [score.partition("/")[0] for score in scores]  # `cs_content/qwen` is by a judge of that name
                yield from unknown(f"published.{slots}.{task}", names, METRICS, "score")
        for where, node in self.sources():
            yield from node.conflicts(where)
            yield from unknown(f"{where}.task_overrides", node.task_overrides, own, "task of this recipe")

    def _tuning_conflicts(self) -> Iterator[ConfigError]:
        """Whether what is unfrozen also learns, and `layers: auto` has an analysis to go by, which is read here."""
        tuning, head = self.llm.tuning, self.auxiliary_head
        if self.trains_llm != (tuning.method != "frozen"):
            told = "a stage trains `llm`: say what of it learns" if self.trains_llm else "no stage has `llm` in `train`"
            yield fault("conflict", "llm.tuning.method", f"it is {tuning.method!r}, but {told}")
        if tuning.layers == AUTO and tuning.analysis is None:
            yield fault("missing-key", "llm.tuning.analysis", "layers: auto needs it, a file of `sottovoce analyze`")
        elif tuning.layers == AUTO and tuning.method != "frozen":
            from sottovoce.evaluation.layers.split import read_split  # scikit-learn takes seconds to import

            try:
                first, last = read_split(Path(str(tuning.analysis)))
                tuning.layers = f"{first}-{last}"
            except SottovoceError as error:
                yield fault(error.code or "bad-value", "llm.tuning.analysis", str(error))
        if head and not self.trains_llm:
            yield fault("conflict", "auxiliary_head", "no stage has `llm` in `train`, which its loss is for")
        for category, values in (head.categories if head else {}).items():
            if choices := self._choices(category):
                where = f"auxiliary_head.categories.{category}"
                yield from unknown(where, values, choices, f"choice of the task {category}, whose labels these are,")

    def _choices(self, task: str) -> list[str]:
        """The labels of an attribute that manifests may have; none if it is no attribute that a task asks about."""
        try:
            return list(TASKS.filled({"type": task, **self.tasks.get(task, {})}).get("choices", ()))
        except ConfigError:  # told elsewhere, or no task
            return []

    def _complete_tasks(self) -> Iterator[ConfigError]:
        """Fill in the knobs of every task that is used, and see that it can be built."""
        for knobs in (self.tasks, self.evaluation.task_overrides, *(node.task_overrides for _, node in self.sources())):
            if (knobs.get("response") or {}).get("kind") == PLAIN:
                knobs["response"].setdefault("teacher", PLAIN_TEACHER)
        for name in sorted(name for name in {*self.tasks, *used_tasks(self)} if name in self._known_tasks()):
            node = {"type": name, **self.tasks.get(name, {})}
            changed = self.evaluation.task_overrides.get(name)
            try:
                self.tasks[name] = TASKS.filled(node)
                build_task(name, self.tasks[name])
                if changed is not None:
                    build_task(name, {**self.tasks[name], **changed})
            except ConfigError as error:
                yield from located(error, "" if str(error.where).startswith("tasks.") else f"tasks.{name}")
        for where, source in self.sources():
            known = {name: knobs for name, knobs in source.task_overrides.items() if name in self.tasks}
            try:
                Overrides.of(self.tasks, known, source.captions)
            except ConfigError as error:
                yield from located(error, where)


load, parse = Recipe.load, Recipe.parse


def used_tasks(recipe: Recipe) -> list[str]:
    """Every task that a stage trains or the evaluation scores, in order of first use."""
    used = [task for stage in recipe.stages.values() for task in stage.tasks]
    return list(dict.fromkeys([*used, *(recipe.evaluation.tasks or [])]))
