"""Who judges replies after a run, as a recipe says it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from undertone.errors import ConfigError
from undertone.evaluation.judge import JUDGES
from undertone.llms.engines import ENGINES
from undertone.tree import Tree


@dataclass
class JudgeNode:
    """A judge of replies, and whom it asks. Replies are judged once they are written down."""

    judge: dict[str, Any] = field(default_factory=lambda: {"type": "conversation"})  # a component node
    engine: dict[str, Any] | None = None  # of a judge that asks an LLM, a component node
    tasks: list[str] = field(default_factory=lambda: ["dialogue"])  # whose replies
    slots: list[str] = field(default_factory=lambda: ["both"])  # heard how


def check_judges(judges: Mapping[str, JudgeNode], where: str) -> list[str]:
    """Fill in the defaults of all components; returns what is wrong, each with its key."""
    faults = []
    for name, node in judges.items():
        try:
            node.judge = JUDGES.check(node.judge, f"{where}.{name}.judge")
        except ConfigError as error:
            faults.append(str(error))
        try:
            node.engine = node.engine and ENGINES.check(node.engine, f"{where}.{name}.engine")
        except ConfigError as error:
            faults.append(str(error))
    return faults


def without_null_judges(tree: Tree) -> Tree:
    """A recipe's tree in which a null has switched off the judges that were inherited under its name."""
    evaluation = tree.get("evaluation")
    if not isinstance(evaluation, dict) or not isinstance(evaluation.get("judges"), dict):
        return tree
    kept = {name: node for name, node in evaluation["judges"].items() if node is not None}
    return {**tree, "evaluation": {**evaluation, "judges": kept}}
