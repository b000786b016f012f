"""The recipe of paired data: texts, the attributes that their right answers hang on, and voices that say them."""

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from sottovoce import config_model
from sottovoce.config_model import BaseRecipe, Count, Int, Node, NonNegative, Seed, config_class, fault, unknown
from sottovoce.data.paired_texts import HELD_OUT
from sottovoce.data.tts import SYNTHESIZERS
from sottovoce.errors import ConfigError
from sottovoce.llms import ENGINES

SPLITS = ("train", "validation", "test")
ANY = "any"  # voices that say every label of an attribute: then each text is said by one and the same voice
SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}


@config_class
class CategoryConfig:
    """An attribute that the right answer may hang on."""

    values: Annotated[list[str], Field(min_length=2)] = Field(description="its labels")
    realisations: Int | None = Field(default=None, ge=2, description="labels drawn for each text; null: all")


@config_class
class WriterConfig:
    """An LLM that writes questions and their answers."""

    engine: Annotated[Node, ENGINES] = Field(description="a component")
    topics: dict[str, list[str]] = Field(description="category -> what is asked about")
    texts: Count = Field(description="questions that are asked for in each category")
    at_once: Count = Field(default=20, description="of them in one answer")
    attempts: Count = Field(default=3, description="at an answer that cannot be used")
    longest_text: Int = Field(default=30, ge=3, description="words")
    longest_answer: Int = Field(default=80, ge=3, description="words")
    temperature: NonNegative = 1.0
    max_new_tokens: Count = 1024
    questions: str = Field(default="sottovoce:data/prompts/pe_ft/question.txt", description="the prompt for questions")
    answers: str = Field(default="sottovoce:data/prompts/pe_ft/answer.txt", description="the prompt for answers")


@config_class
class PairedRecipe(BaseRecipe):
    """Everything paired data need. They are written to the folder `out`."""

    out: str
    categories: dict[str, CategoryConfig]
    files: list[str] = Field(default=[], description="JSONL of texts with their answers")
    writer: WriterConfig | None = None
    synthesizer: Annotated[Node, SYNTHESIZERS] = Field(description="a component")
    voices: dict[str, dict[str, dict[str, list[str]]]] = Field(
        description="split -> category -> label, or `any` -> voices"
    )
    shares: Annotated[dict[str, NonNegative], config_model.with_defaults(SHARES)] = Field(
        default=SHARES, description="split -> its share of the texts"
    )
    texts: dict[str, Int] = Field(default={}, description="split -> at most as many texts of each category")
    held_out_topics: list[str] = Field(default=[], description="topics or groups; they stand in held_out.jsonl alone")
    num_workers: Int = Field(default=2, ge=1, le=1024, description="synthesising processes")
    seed: Seed = 0

    @property
    def values(self) -> dict[str, list[str]]:
        return {name: node.values for name, node in self.categories.items()}

    def voices_of(self, split: str, category: str, label: str) -> list[str]:
        """Who may say a label; held-out topics are said by the voices of the test where they have none of their own."""
        by = self.voices.get(split, {} if split != HELD_OUT else self.voices["test"]).get(category, {})
        return by.get(label) or by.get(ANY, [])

    def conflicts(self) -> Iterator[ConfigError]:
        """See `BaseRecipe`."""
        for name, node in self.categories.items():
            where, count = f"categories.{name}", len(node.values)
            if len(set(node.values)) < count:
                yield fault("bad-value", f"{where}.values", f"different labels are needed, found {node.values}")
            elif (node.realisations or 0) > count:
                told = f"2 to {count} are possible, found {node.realisations}"
                yield fault("bad-value", f"{where}.realisations", told)
        if sum(self.shares.values()) <= 0:
            yield fault("bad-value", "shares", "all of them are 0")
        if not self.files and self.writer is None:
            told = "no text comes from anywhere; name a file, or in `writer` an LLM that writes"
            yield fault("missing-key", "files", told)
        yield from self._unknown_names()
        yield from self._voice_conflicts()

    def _unknown_names(self) -> Iterator[ConfigError]:
        yield from unknown("shares", self.shares, SPLITS, "split")
        yield from unknown("texts", self.texts, SPLITS, "split")
        yield from unknown("voices", self.voices, (*SPLITS, HELD_OUT), "split")
        yield from unknown("writer.topics", self.writer.topics if self.writer else (), self.categories, "category")
        for split, categories in self.voices.items():
            yield from unknown(f"voices.{split}", categories, self.categories, "category")
            for category, by in categories.items():
                if category in self.categories:
                    known = [*self.categories[category].values, ANY]
                    yield from unknown(f"voices.{split}.{category}", by, known, "label")

    def _voice_conflicts(self) -> Iterator[ConfigError]:
        """Every label can be said on every side, and no voice of the training side is heard on another."""
        if "test" not in self.voices:
            yield fault("missing-key", "voices.test", "voices are needed for this split")
            return
        labels = [(category, label) for category, node in self.categories.items() for label in node.values]
        for split in (name for name in SPLITS if self.shares.get(name)):
            for category, label in labels:
                if not self.voices_of(split, category, label):
                    told = f"no voice for {label!r}, and none for {ANY!r}"
                    yield fault("missing-key", f"voices.{split}.{category}", told)
        trained = self._all_voices("train")
        for split in ("validation", "test", HELD_OUT):
            for voice in sorted(trained & self._all_voices(split)):
                told = f"{voice!r} is a voice of the training side, too; unseen voices are needed"
                yield fault("conflict", f"voices.{split}", told)

    def _all_voices(self, split: str) -> set[str]:
        return {name for by in self.voices.get(split, {}).values() for names in by.values() for name in names}


load = PairedRecipe.load
