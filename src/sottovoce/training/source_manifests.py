"""The manifests of a recipe's data: its own, those of a corpus, and those that data in other formats become."""

from dataclasses import replace
from pathlib import Path

from sottovoce.config.recipe import SPLITS, Recipe
from sottovoce.config.sources import SourceConfig
from sottovoce.data.corpora import CORPORA
from sottovoce.data.sources.cached import cached_manifests
from sottovoce.data.sources.convert import Request
from sottovoce.data.sources.kinds import foreign_kind, told_kind
from sottovoce.data.sources.rows import side
from sottovoce.errors import ConfigError, ManifestError, MissingError, nearest
from sottovoce.paths import usable

Nodes = dict[str, list[SourceConfig]]


def source_manifests(recipe: Recipe) -> tuple[Nodes, list[str]]:
    """Each side's nodes, all of which name a manifest that is there; and notes on what was converted.

    Raises:
        MissingError: manifests are not there; says which, and what to do. Or no row of other data can be used.
        ManifestError: what is called a manifest is a folder of something else.
        ConfigError: other data have no such split or column.
    """
    if recipe.data.corpus is not None:
        folder = Path(recipe.data.cache or recipe.folder) / "corpora"
        made = CORPORA.build(recipe.data.corpus).prepare(folder)
        # a component of our own or a plug-in has made these just now, perhaps with a link to where a corpus lies
        return {name: [SourceConfig(manifest=str(made[name]), allow=["/"])] for name in SPLITS if name in made}, []
    nodes: Nodes = {name: getattr(recipe.data, name) for name in SPLITS}
    named = [node.manifest for own in nodes.values() for node in own if node.manifest]
    for name in named:
        if usable(name).is_dir() and (kind := foreign_kind(usable(name))):
            raise ManifestError.at(name, "mismatch", told_kind(Path(name), kind))
    if absent := [name for name in named if not usable(name).is_file()]:
        told = (
            "Make those of a published corpus with `sottovoce prepare` (docs/corpora.md), those of other data with "
            "`sottovoce manifest` (docs/data_formats.md), point at your own with data.train=FILE (docs/manifest.md), "
            "or run conf/quickstart.yaml, which speaks its own data."
        )
        places = [f"  {name} (looked for {Path(name).absolute()}, and beside the recipe)" for name in absent]
        raise MissingError("\n".join(["manifests are missing:", *places, told]), where=absent[0])
    notes: list[str] = []
    return {name: [_read(recipe, name, i, notes) for i in range(len(own))] for name, own in nodes.items()}, notes


def _read(recipe: Recipe, name: str, number: int, notes: list[str]) -> SourceConfig:
    """The node of one manifest; data in another format are converted where they have not been."""
    nodes: list[SourceConfig] = getattr(recipe.data, name)
    node = nodes[number]
    if node.manifest:
        return node
    several = sum(not other.manifest for other in nodes) > 1  # whose ids may be alike
    prefix = "".join(f"{part}-" for part in (Path(node.place).name.partition(".")[0], node.subset) if part and several)
    request = Request(
        node.place, "lhotse" if node.cuts else None, split=node.split, subset=node.subset, columns=node.columns,
        labels=node.labels, values=node.map, root=node.root, prefix=prefix,
    )  # fmt: skip
    where = f"data.{name}[{number}]"
    try:
        made, told = cached_manifests(request, Path(recipe.data.cache or recipe.folder) / "sources")
    except ConfigError as error:
        raise ConfigError.at(f"{where}.{error.where}", error.code, error) from None
    notes += told
    wanted = side(node.split) if node.split else name
    chosen = made.get(wanted) or (next(iter(made.values())) if len(made) == 1 and not node.split else None)
    if chosen is None:
        told_split = f"{node.place} has no split {wanted!r}.{nearest(wanted, made)}"
        raise ConfigError.at(f"{where}.split", "unknown-name", f"{told_split}; name one by `split`")
    return replace(node, manifest=str(chosen), allow=["/"], root=None)  # what it was made of lies where it lay
