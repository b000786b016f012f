"""What an analysis of layers listens to, and what it asks."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from sottovoce.config.schema import checked
from sottovoce.config_tree import TRUST, read_tree
from sottovoce.errors import ConfigError


@dataclass
class AnalysisRecipe:
    """Everything an analysis needs beside the bundle."""

    split: Literal["train", "validation", "test"] = "test"  # of the bundle's own recipe
    manifest: str | None = None  # listened to instead
    root: str | None = None  # folder that its audio paths are relative to and stay in; null: its own
    allow: list[str] = field(default_factory=list)  # further folders that its paths and links may lead to; [/]: any
    task: str | None = None  # whose first wording the LLM is given; null: of the task that replies
    instruction: str | None = None  # instead of a task's wording; "" for none
    attributes: list[str] | None = None  # labels that are probed; null: all that have two values
    intent: str = "topic"  # what an utterance is about: its topic, or the label of this name
    keywords: list[str] = field(default_factory=list)  # or: the only one of these words that its text has
    folds: int = 5  # of speakers, for the probes of attributes
    intent_folds: int = 3  # of speakers and of texts, for the probe of intents: squared, probes a layer
    batch_size: int = 16
    limit: int | None = 600  # utterances; whole texts are drawn, since pairs share their words
    seed: int = 0
    recipe: list[str] = field(default_factory=list)  # changes to the bundle's recipe: llm.checkpoint=/path
    trust_remote_code: bool = False  # of the bundle's LLM; by the command line alone
    out: str | None = None  # folder; null: `analysis`, beside the bundle

    def plain(self) -> dict[str, Any]:
        """As nested dicts, to keep beside the results."""
        return asdict(self)


def load(path: Path, overrides: Iterable[str] = ()) -> AnalysisRecipe:
    """Read and check the recipe of an analysis.

    Raises:
        ConfigError: with every fault.
    """
    recipe = checked(AnalysisRecipe, read_tree(path, overrides), str(path))
    faults = [
        f"{path}: {key}: must be at least {least}, found {value}"
        for key, least in (("folds", 2), ("intent_folds", 2), ("batch_size", 1), ("limit", 1))
        if (value := getattr(recipe, key)) is not None and value < least
    ]
    if (recipe.root or recipe.allow) and not recipe.manifest:
        faults.append(f"{path}: {'root' if recipe.root else 'allow'}: it belongs to a manifest, and none is named")
    if any(TRUST in change for change in recipe.recipe):
        faults.append(f"{path}: recipe: only the command line can trust a checkpoint's code: --trust-remote-code")
    if faults:
        raise ConfigError("\n".join(faults))
    return recipe
