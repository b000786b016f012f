"""JSON Schema of every kind of recipe, and the page of their keys: `python -m sottovoce.cli.recipe_schema`."""

import json
from collections.abc import Iterator
from pkgutil import resolve_name
from typing import Any

from pydantic import TypeAdapter

KINDS = {  # command -> its recipe's class
    "fit": "sottovoce.config.recipe:Recipe",
    "pretrain": "sottovoce.config.best_rq:PretrainRecipe",
    "paired": "sottovoce.generation.paired_config:PairedRecipe",
    "analyze": "sottovoce.analysis.config:AnalysisRecipe",
    "table": "sottovoce.comparison.table_config:TableRecipe",
}
_MANY = 10**6  # a limit that is only against slips, and not shown
HEAD = """# Every key of every recipe

A recipe is a YAML file. `extends: FILE` (or a list of files; `sottovoce:conf/…` is a packaged one) builds it on
others: mappings merge, lists are replaced, a node that changes its `type` starts afresh, and null switches an entry
of `slots`, `stages` and `evaluation.judges` off; of other mappings, name what is to go with the weight 0
(`stages.s.tasks={dialogue: 1, asr: 0}`). `key.sub=value` on the command line overrides any key;
`--print-config` shows the result. A component is a mapping of `type` and the knobs of that component, which
`sottovoce list` shows.

**What a stage is made of.** An epoch goes through every training manifest `weight` times, or as often as the stage's
`parts` says for a manifest of that `name`; `parts` holds for validation, too. Of the tasks that an utterance can serve,
one is drawn by the weights in `tasks` (`tasks_per_utterance` times); `all`: each as often as its weight says, in
validation once. Draws of every task and part are printed; one that nobody serves is refused.

**Completion in an editor.** `sottovoce schema fit > fit.schema.json` writes a JSON Schema. With the YAML language
server (VS Code, Neovim, Emacs), a recipe whose first line is `# yaml-language-server: $schema=fit.schema.json` is
completed and checked as it is written.

Written by `python -m sottovoce.cli.recipe_schema > docs/recipe.md`.
"""


def schema(kind: str) -> dict[str, Any]:
    """JSON Schema of the recipes of a kind."""
    return TypeAdapter(resolve_name(KINDS[kind])).json_schema()


def print_schema(kind: str) -> None:
    """Print a JSON Schema for editors. It demands no key, since `extends` may bring any."""
    whole = schema(kind)
    for node in (whole, *whole.get("$defs", {}).values()):
        node.pop("required", None)
    files = [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]
    extends = {"anyOf": files, "description": "files that this one builds on"}
    whole["properties"] = {"extends": extends, **whole["properties"]}
    print(json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **whole}, indent=2))


def reference() -> str:
    """The page of all keys, in Markdown."""
    return HEAD + "".join(f"\n## `sottovoce {kind}`\n" + "".join(_tables(schema(kind))) for kind in KINDS)


def _tables(whole: dict[str, Any]) -> Iterator[str]:
    """A table for each mapping of known keys."""
    places: dict[str, list[str]] = {}
    defs = whole.get("$defs", {})
    _collect(whole, "", places, defs)
    for name, node in {"": whole, **{name: defs[name] for name in places}}.items():
        if name:
            yield f"\n### {', '.join(f'`{place}`' for place in places[name])}\n"
        yield f"\n{node['description'].splitlines()[0]}\n\nkey|type|default|meaning\n---|---|---|---\n"
        for key, value in node["properties"].items():
            default = f"`{json.dumps(value['default'])}`" if "default" in value else ""
            default = "**needed**" if key in node.get("required", ()) else default
            cells = (f"`{key}`", _type(value), default, value.get("description", "").replace("<", "&lt;"))
            yield "|".join(cell.replace("|", "\\|") for cell in cells) + "\n"


def _collect(node: dict[str, Any], place: str, places: dict[str, list[str]], defs: dict[str, Any]) -> None:
    """Where each named mapping of a schema stands, such as `stages.NAME`, in the order of the keys."""
    for key, value in node.get("properties", {}).items():
        for inner, below in _references(value):
            path = f"{place}{key}{below}"
            known = inner in places
            places.setdefault(inner, []).append(path)
            if not known:
                _collect(defs[inner], f"{path}.", places, defs)


def _references(value: dict[str, Any], below: str = "") -> Iterator[tuple[str, str]]:
    if "$ref" in value:
        yield value["$ref"].rpartition("/")[2], below
    for inner in value.get("anyOf", ()):
        yield from _references(inner, below)
    for key, step in (("items", "[]"), ("additionalProperties", ".NAME")):
        if isinstance(value.get(key), dict):
            yield from _references(value[key], below + step)


def _type(value: dict[str, Any]) -> str:
    if "anyOf" in value:
        return " or ".join(_type(inner) for inner in value["anyOf"])
    if "allOf" in value:
        return "component"
    if "const" in value:
        return f"`{value['const']}`"
    if "enum" in value:
        return ", ".join(f"`{name}`" for name in value["enum"])
    if "$ref" in value:
        return "mapping"
    kind = value.get("type", "any")
    if kind == "array":
        return f"list of {_type(value['items'])}"
    if kind == "object":
        inner = value.get("additionalProperties")
        return f"mapping to {_type(inner)}" if isinstance(inner, dict) else "mapping"
    words = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {value[key]:,}" for key, sign in words.items() if value.get(key, _MANY) < _MANY]
    return f"{kind} {', '.join(limits)}".strip()


if __name__ == "__main__":
    print(reference(), end="")
