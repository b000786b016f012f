"""The data nodes of a recipe: manifests, and data in other formats that become manifests."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from pydantic import BeforeValidator, Field

from sottovoce.config_model import Weight, config_class, fault, locate_paths
from sottovoce.errors import Code, ConfigError


@config_class
class SourceConfig:
    """A manifest, or data that becomes one; how many times an epoch goes through it, and which tasks it may serve."""

    manifest: str = Field(default="", description="a JSONL file; or instead `dataset` or `cuts`")
    dataset: str | None = Field(
        default=None, description="what `sottovoce manifest` reads: a file, a folder, or a name on the hub"
    )
    cuts: str | None = Field(default=None, description="a CutSet of Lhotse, or a Shar folder")
    split: str | None = Field(default=None, description="of `dataset`; null: this side's, or the only one")
    subset: str | None = Field(default=None, description="of `dataset` on the hub: its configuration")
    columns: dict[str, str] = Field(default={}, description="key of a manifest -> column of `dataset`")
    labels: dict[str, str] = Field(default={}, description="attribute -> column of `dataset`")
    map: dict[str, dict[str, str]] = Field(
        default={}, description="attribute -> value -> label: {age: {kid: child, 0-12: child}}"
    )
    weight: Weight = Field(default=1.0, description="2: twice an epoch; 0.25: another quarter each epoch")
    tasks: list[str] | None = Field(default=None, description="null: every task that its utterances have labels for")
    root: str | None = Field(default=None, description="folder of the manifest's paths; null: its own")
    allow: list[str] = Field(default=[], description="further folders that its paths and links may lead to; [/]: any")
    name: str | None = Field(default=None, description="of a part, for `parts` of stages; scored apart")
    task_overrides: dict[str, dict[str, Any]] = Field(
        default={}, description="task -> knobs for this manifest: prompts, words or the metric of its language"
    )
    captions: str | None = Field(default=None, description="file of captions with attributes in braces; null: English")

    @property
    def place(self) -> str:
        """What it names: a manifest, or data in another format."""
        return self.manifest or self.dataset or self.cuts or ""

    def conflicts(self, where: str) -> Iterator[ConfigError]:
        """What is wrong between its keys; `where` is the recipe's key for it."""
        if sum(bool(given) for given in (self.manifest, self.dataset, self.cuts)) != 1:
            code: Code = "conflict" if self.place else "missing-key"
            yield fault(code, f"{where}.manifest", "give a manifest, or instead of it `dataset` or `cuts`")
        of_dataset = [key for key in ("split", "subset", "columns", "labels", "map") if getattr(self, key)]
        if self.manifest and of_dataset:
            yield fault(
                "conflict", f"{where}.{of_dataset[0]}", "it belongs to a `dataset`; a manifest has keys of ours"
            )
        if self.place and not self.manifest and self.allow:
            yield fault("conflict", f"{where}.allow", "it belongs to a manifest; clips of other data may lie anywhere")

    def locate(self, folder: Path) -> None:
        """See `BaseRecipe.locate`."""
        locate_paths(self, folder, "manifest", "dataset", "cuts", "root", "allow", "captions")


def _one_source(value: object) -> object:
    """`data.train=FILE` means a list of one, and a file in a list is a manifest."""
    nodes = [value] if isinstance(value, str | dict) else value
    return (
        [{"manifest": node} if isinstance(node, str) else node for node in nodes] if isinstance(nodes, list) else nodes
    )


Sources: TypeAlias = Annotated[
    list[SourceConfig],
    BeforeValidator(_one_source, json_schema_input_type=list[SourceConfig | str] | SourceConfig | str),
]
