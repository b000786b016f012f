"""Who judges replies after a run, as a recipe says it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sottovoce.config_tree import Tree
from sottovoce.errors import ConfigError
from sottovoce.evaluation import AWARENESS_JUDGES, JUDGES
from sottovoce.llms import ENGINES
from sottovoce.registry import Registry


@dataclass
class JudgeConfig:
    """A judge of replies, and whom it asks. Replies are judged once they are written down."""

    judge: dict[str, Any] = field(default_factory=lambda: {"type": "conversation"})  # a component node
    engine: dict[str, Any] | None = None  # of a judge that asks an LLM, a component node
    tasks: list[str] = field(default_factory=lambda: ["dialogue"])  # whose replies
    slots: list[str] = field(default_factory=lambda: ["both"])  # heard how


@dataclass
class AwarenessConfig:
    """Who labels replies to paired data -1, 0 or +1 (PA-score and PA-rate), and whom that judge asks."""

    judge: dict[str, Any] = field(default_factory=lambda: {"type": "rule"})  # a component node
    engine: dict[str, Any] | None = None  # of a judge that asks an LLM, a component node


def check_judges(judges: Mapping[str, JudgeConfig], awareness: AwarenessConfig | None, where: str) -> list[str]:
    """Fill in the defaults of all components; returns what is wrong, each with its key."""
    faults: list[str] = []

    def checked(registry: Registry[Any], node: dict[str, Any], key: str) -> dict[str, Any]:
        try:
            return registry.check(node, f"{where}.{key}")
        except ConfigError as error:
            faults.append(str(error))
            return node

    for name, node in judges.items():
        node.judge = checked(JUDGES, node.judge, f"judges.{name}.judge")
        node.engine = node.engine and checked(ENGINES, node.engine, f"judges.{name}.engine")
    if awareness:
        awareness.judge = checked(AWARENESS_JUDGES, awareness.judge, "awareness.judge")
        awareness.engine = awareness.engine and checked(ENGINES, awareness.engine, "awareness.engine")
    return faults


def without_null_judges(tree: Tree) -> Tree:
    """A recipe's tree in which a null has switched off the judges that were inherited under its name."""
    evaluation = tree.get("evaluation")
    if not isinstance(evaluation, dict) or not isinstance(evaluation.get("judges"), dict):
        return tree
    kept = {name: node for name, node in evaluation["judges"].items() if node is not None}
    return {**tree, "evaluation": {**evaluation, "judges": kept}}
