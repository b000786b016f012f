"""The recipe of an analysis of layers: which utterances, and what is asked about them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field

from sottovoce.config_model import BaseRecipe, Count, Int, Seed, config_class, fault, locate_paths
from sottovoce.config_tree import TRUST
from sottovoce.errors import ConfigError


@config_class
class AnalysisRecipe(BaseRecipe):
    """Everything an analysis needs beside the bundle."""

    split: Literal["train", "validation", "test"] = Field(default="test", description="of the bundle's own recipe")
    manifest: str | None = Field(default=None, description="read instead of the split")
    root: str | None = Field(default=None, description="folder of the manifest's paths; null: its own")
    allow: list[str] = Field(default=[], description="further folders that its paths and links may lead to; [/]: any")
    task: str | None = Field(default=None, description="whose first wording is used; null: of the task that replies")
    instruction: str | None = Field(default=None, description='instead of a task\'s wording; "" for none')
    attributes: list[str] | None = Field(default=None, description="labels to probe; null: all that have two values")
    intent: str = Field(default="topic", description="what an utterance is about: its topic, or the label of this name")
    keywords: list[str] = Field(default=[], description="or: the only one of these words that its text has")
    folds: Int = Field(default=5, ge=2, description="of speakers, for the probes of attributes")
    intent_folds: Int = Field(default=3, ge=2, description="of speakers and of texts, for the probe of intents")
    encoder: bool = Field(default=True, description="probe its layers, too")
    batch_size: Int = Field(default=16, ge=1, le=10**6)
    limit: Count | None = Field(default=600, description="utterances; whole texts are drawn")
    seed: Seed = 0
    recipe: list[str] = Field(default=[], description="changes to the bundle's recipe: llm.checkpoint=/path")
    trust_remote_code: bool = Field(default=False, description="of the bundle's LLM; by the command line alone")
    out: str | None = Field(default=None, description="folder; null: `analysis`, beside the bundle")

    def locate(self, folder: Path) -> None:
        """See `BaseRecipe`."""
        locate_paths(self, folder, "manifest", "root", "allow")

    def conflicts(self) -> Iterator[ConfigError]:
        """See `BaseRecipe`."""
        if (self.root or self.allow) and not self.manifest:
            yield fault("conflict", "root" if self.root else "allow", "it belongs to a manifest, and none is named")
        if any(TRUST in change for change in self.recipe):
            told = "only the command line can trust a checkpoint's code: --trust-remote-code"
            yield fault("unsafe", "recipe", told)


load = AnalysisRecipe.load
