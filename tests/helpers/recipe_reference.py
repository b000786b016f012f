"""`python -m tests.helpers.recipe_reference > docs/recipe.md`: every key, from the fields' comments."""

import ast
from collections.abc import Iterator
from pathlib import Path

SOURCES = ("recipe.py", "tuning.py", "judges.py")
PLACES = {
    "Recipe": "A recipe", "LLMConfig": "`llm`", "TuningConfig": "`llm.tuning`", "SlotConfig": "`slots.NAME`",
    "DataConfig": "`data`", "SourceConfig": "An entry of `data.train`, `validation` or `test`",
    "StageConfig": "`stages.NAME`",
    "HeadConfig": "`adch`", "CascadeConfig": "`cascade`", "EvaluationConfig": "`evaluation`",
    "JudgeConfig": "`evaluation.judges.NAME`", "AwarenessConfig": "`evaluation.awareness`",
}  # fmt: skip
ROOM = Path(__file__).parents[2] / "src" / "sottovoce" / "config"
HEAD = """# Every key of a recipe

A recipe is a YAML file. `extends: FILE` (or a list of files) builds it on others: mappings merge, lists are replaced,
a node that changes its `type` starts afresh, and null switches an entry of `slots`, `stages` and `evaluation.judges`
off. `key.sub=value` on the command line overrides any key; `--print-config` shows the result. Knobs of components
(encoders, adapters, tasks, corpora) are shown by `sottovoce list`; recipes of `sottovoce pretrain` and `sottovoce
paired` have keys of their own, in the heads of their files in `conf/`.

**What a stage is made of.** An epoch goes through every training manifest `weight` times, or as often as the stage's
`parts` says for a manifest of that `name`; `parts` holds for validation, too. Utterances that no task of the stage
can use are left out, and their number is printed. Of the tasks that one utterance can serve, one is drawn by the
weights in `tasks` (`draws` times).

Written by `python -m tests.helpers.recipe_reference > docs/recipe.md`.
"""


def rows(node: ast.ClassDef, text: list[str]) -> Iterator[tuple[str, str, str, str]]:
    """Name, type, default and comment of each field."""
    for one in node.body:
        if isinstance(one, ast.AnnAssign):
            default = ast.unparse(one.value) if one.value else ""
            if default.startswith("field("):
                default = default.partition("default_factory=")[2].removesuffix(")").removeprefix("lambda: ")
                default = {"dict": "{}", "list": "[]"}.get(default, "its own" if default.endswith("Node") else default)
            last = text[(one.end_lineno or one.lineno) - 1]
            comment = last.rpartition("  # ")[2] if "  # " in last else ""
            told = {"MISSING": "**needed**", "None": "null"}.get(default, default)
            yield ast.unparse(one.target), ast.unparse(one.annotation), told, comment


def reference() -> str:
    """The whole page."""
    found = {}
    for file in SOURCES:
        source = (ROOM / file).read_text("utf-8")
        for node in ast.parse(source).body:
            if isinstance(node, ast.ClassDef) and node.decorator_list:
                found[node.name] = node, source.splitlines()
    parts = [HEAD]
    for name, place in PLACES.items():
        node, text = found.pop(name)
        title = (ast.get_docstring(node) or "").split("\n\n")[0].replace("\n", " ")
        parts.append(f"\n## {place}\n\n{title}\n\n| key | type | default | |\n|---|---|---|---|\n")
        for key, kind, default, comment in rows(node, text):
            cells = (f"`{key}`", f"`{kind}`", default, comment.replace("<", "&lt;"))
            parts.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n")
    if found:
        raise KeyError(f"no place for {', '.join(found)}")
    return "".join(parts)


if __name__ == "__main__":
    print(reference(), end="")
