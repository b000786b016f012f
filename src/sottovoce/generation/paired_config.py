"""What paired data are made of: texts, the attributes that their right answers hang on, and voices that say them."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from sottovoce.config.schema import checked
from sottovoce.config_tree import read_tree
from sottovoce.data.paired_texts import HELD_OUT
from sottovoce.data.tts import SYNTHESIZERS
from sottovoce.errors import ConfigError, nearest
from sottovoce.llms import ENGINES

SPLITS = ("train", "validation", "test")
ANY = "any"  # voices that say every label of an attribute: then each text is said by one and the same voice


@dataclass
class CategoryConfig:
    """An attribute that the right answer may hang on."""

    values: list[str] = MISSING  # its labels
    realisations: int | None = None  # labels in which one text is spoken, drawn for each text; null: all


@dataclass
class WriterConfig:
    """An LLM that writes questions and their answers."""

    engine: dict[str, Any] = MISSING  # a component node
    topics: dict[str, list[str]] = MISSING  # category -> what is asked about
    texts: int = MISSING  # questions that are asked for in each category
    at_once: int = 20  # of them in one answer
    attempts: int = 3  # at an answer that cannot be used
    longest_text: int = 30  # words
    longest_answer: int = 80
    temperature: float = 1.0
    max_new_tokens: int = 1024
    questions: str = "sottovoce:data/prompts/pe_ft/question.txt"
    answers: str = "sottovoce:data/prompts/pe_ft/answer.txt"


@dataclass
class PairedRecipe:
    """Everything paired data need. They are written to the folder `out`."""

    out: str = MISSING
    categories: dict[str, CategoryConfig] = MISSING
    files: list[str] = field(default_factory=list)  # JSONL of texts with their answers
    writer: WriterConfig | None = None
    synthesizer: dict[str, Any] = MISSING  # a component node
    voices: dict[str, dict[str, dict[str, list[str]]]] = MISSING  # split -> category -> label, or `any` -> voices
    shares: dict[str, float] = field(default_factory=lambda: {"train": 0.8, "validation": 0.1, "test": 0.1})
    texts: dict[str, int] = field(default_factory=dict)  # split -> at most as many texts of each category
    held_out_topics: list[str] = field(default_factory=list)  # topics or groups; they stand in held_out.jsonl alone
    num_workers: int = 2
    seed: int = 0

    @property
    def values(self) -> dict[str, list[str]]:
        return {name: node.values for name, node in self.categories.items()}

    def voices_of(self, split: str, category: str, label: str) -> list[str]:
        """Who may say a label; held-out topics are said by the voices of the test where they have none of their own."""
        by = self.voices.get(split, {} if split != HELD_OUT else self.voices["test"]).get(category, {})
        return by.get(label) or by.get(ANY, [])

    def plain(self) -> dict[str, Any]:
        """As nested dicts."""
        return asdict(self)


def load(path: Path, overrides: Iterable[str] = ()) -> PairedRecipe:
    """Read and check the recipe of paired data.

    Raises:
        ConfigError: with every fault.
    """
    recipe = checked(PairedRecipe, read_tree(path, overrides), str(path))
    faults = [f"{path}: {fault}" for check in (_numbers, _names, _voices) for fault in check(recipe)]
    try:
        recipe.synthesizer = SYNTHESIZERS.check(recipe.synthesizer, f"{path}: synthesizer")
    except ConfigError as error:
        faults.append(str(error))
    try:
        if recipe.writer:
            recipe.writer.engine = ENGINES.check(recipe.writer.engine, f"{path}: writer.engine")
    except ConfigError as error:
        faults.append(str(error))
    if faults:
        raise ConfigError("\n".join(faults))
    return recipe


def _numbers(recipe: PairedRecipe) -> Iterator[str]:
    if recipe.num_workers < 1:
        yield f"num_workers: must be at least 1, found {recipe.num_workers}"
    for name, node in recipe.categories.items():
        if len(node.values) < 2 or len(set(node.values)) < len(node.values):
            yield f"categories.{name}.values: two or more different labels are needed, found {node.values}"
        elif node.realisations is not None and not 2 <= node.realisations <= len(node.values):
            yield f"categories.{name}.realisations: 2 to {len(node.values)} are possible, found {node.realisations}"
    if sorted(recipe.shares) != sorted(SPLITS) or not all(0 <= share < 2**31 for share in recipe.shares.values()):
        yield f"shares: one of 0 or more is needed for each of {', '.join(SPLITS)}, found {recipe.shares}"
    elif sum(recipe.shares.values()) <= 0:
        yield "shares: all of them are 0"
    if not recipe.files and recipe.writer is None:
        yield "files, writer: no text comes from anywhere; name a file, or an LLM that writes"
    if recipe.writer:
        least = {"texts": 1, "at_once": 1, "attempts": 1, "longest_text": 3, "longest_answer": 3, "max_new_tokens": 1}
        for key, number in least.items():
            if getattr(recipe.writer, key) < number:
                yield f"writer.{key}: must be at least {number}, found {getattr(recipe.writer, key)}"


def _names(recipe: PairedRecipe) -> Iterator[str]:
    for where, names, known in (
        ("texts", list(recipe.texts), SPLITS),
        ("voices", list(recipe.voices), (*SPLITS, HELD_OUT)),
        ("writer.topics", list(recipe.writer.topics) if recipe.writer else [], list(recipe.categories)),
    ):
        yield from (f"{where}: unknown {name!r}.{nearest(name, known)}" for name in names if name not in known)
    for split, categories in recipe.voices.items():
        for category, by in categories.items():
            if category not in recipe.categories:
                yield f"voices.{split}: unknown category {category!r}.{nearest(category, recipe.categories)}"
                continue
            known = [*recipe.categories[category].values, ANY]
            yield from (
                f"voices.{split}.{category}: unknown label {label!r}.{nearest(label, known)}"
                for label in by
                if label not in known
            )


def _voices(recipe: PairedRecipe) -> Iterator[str]:
    """Every label can be said on every side, and no voice of the training side is heard on another."""
    if "test" not in recipe.voices:
        yield "voices: none for the split 'test'"
        return
    for split in (name for name in SPLITS if recipe.shares.get(name)):
        for category, labels in recipe.values.items():
            for label in labels:
                if not recipe.voices_of(split, category, label):
                    yield f"voices.{split}.{category}: none for {label!r}, and none for {ANY!r}"
    trained = _all_voices(recipe, "train")
    for split in ("validation", "test", HELD_OUT):
        for voice in sorted(trained & _all_voices(recipe, split)):
            yield f"voices.{split}: {voice!r} is a voice of the training side, too; unseen voices are needed"


def _all_voices(recipe: PairedRecipe, split: str) -> set[str]:
    return {name for by in recipe.voices.get(split, {}).values() for names in by.values() for name in names}
