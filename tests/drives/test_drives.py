"""The short form of the drives: the most different recipes by their fit path, and what all drives rest on."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from sottovoce.config_tree import read_tree
from tests.drives.breaks import BREAKS, Break
from tests.drives.drive import Result, drive, is_driven, turns_red
from tests.drives.overlay import kind_of, overlay
from tests.drives.plans import PLANS, in_order, unknown
from tests.drives.report import write
from tests.drives.world import ROOT, World, recipes_in

SHORT = ("dual_adapter", "best_rq", "qwen2_5_omni", "own_data")
SIZES = re.compile(  # all that the overlay may lay over a recipe
    r"trainer\.(accelerator|devices|num_nodes|strategy|enable_progress_bar)"
    r"|data\.(num_workers|corpus\.(train|validation|test))"
    r"|evaluation\.(batch_size|max_new_tokens|limit)|checkpoint_every|validate_every|steps|batch_size|warmup_steps"
    r"|stages\.\w+\.(epochs|batch_size|warmup_steps|val_checks_per_epoch)"
    r"|encoder\.(checkpoint|layers|width|feedforward|heads)|quantizer\.(codebooks|codes)"
    r"|slots\.\w+\.adapter\.(width|feedforward|heads|hidden)|cascade\.(epochs|batch_size)"
    r"|texts\.\w+|num_workers|writer\.(texts|at_once)|seeds|probe_train|folds|intent_folds|limit|(\w+\.)*base_url"
)
COMMAND = re.compile(r"(?:sottovoce ([a-z]+)|python -m lightning_modules\.(fit) --config) ?([^`\n]*)")
NO_DRIVE = {  # documented, and driven by no plan
    ("prepare", ""), ("prepare", "NAME"), ("prepare", "mine"),  # stand for corpora by name, and of one's own
    ("fit", ""),  # of each system in a shell's loop
    ("list", ""),
    ("serve", ""),  # ends when it is told to: tests/serving/test_serve.py drives it
    ("push", ""),  # to a hub of one's own: tests/serving/test_push.py
    ("demo", ""),  # it ends when it is interrupted: tests/webpage
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("drives"), start="here")
    yield made
    made.close()


def test_every_published_recipe_is_driven(tmp_path: Path) -> None:
    assert unknown(ROOT / "conf") == []
    conf = Break("conf/real_age.yaml", "seed", 2, "", "").copy(tmp_path)
    (conf / "new.yaml").write_text("name: new\n")
    assert unknown(conf) == ["conf/new.yaml"]


@pytest.mark.parametrize("name", recipes_in(ROOT / "conf"))
def test_the_overlay_is_of_sizes_alone(name: str) -> None:
    tree = read_tree(ROOT / name)
    if kind_of(tree) != "nothing":
        laid = overlay(tree, {"http://localhost:8000/v1": "http://here/v1"})
        assert [key for key in _keys(laid) if not SIZES.fullmatch(key)] == []


def _keys(node: Any, before: str = "") -> list[str]:
    if not isinstance(node, dict) or not node:
        return [before] if not isinstance(node, dict) else []
    return [key for name, value in node.items() for key in _keys(value, f"{before}.{name}".removeprefix("."))]


def test_what_documents_tell_to_type_is_driven() -> None:
    pages = [
        ROOT / "README.md",
        *(ROOT / "docs" / f"{n}.md" for n in ("corpora", "pe_ft", "speech_emotion_llama", "analysis", "data_formats")),
    ]
    told = {key for page in [*pages, *(ROOT / "conf").rglob("*.yaml")] for key in _commands(page.read_text("utf-8"))}
    driven = {key for plan in PLANS.values() for step in plan.steps for key in _commands(step.words)}
    assert len(told) > 40
    assert told - driven - NO_DRIVE == set()


def _commands(text: str) -> set[tuple[str, str]]:
    """(command, its recipe or corpus; nothing where that is anybody's) of each command in a text."""
    found = set()
    for command, fit, rest in COMMAND.findall(text):
        recipe = re.search(r"conf/[\w/]+\.yaml", rest)
        first = rest.split()[0].rstrip(",.") if rest.split() else ""
        what = (
            recipe[0] if recipe and command != "analyze" else first if (command or fit) in ("prepare", "shards") else ""
        )
        kind = f"{command or fit}, dry" if "--dry-run" in rest else command or fit
        found.add((kind, what))
    return found


def test_the_report_says_what_was_red_what_was_not_driven_and_of_which_commits(tmp_path: Path) -> None:
    steps = [(step.words, 60.0, ["seen"]) for step in PLANS["corpora"].steps]
    green = Result("corpora", False, steps, commit="abc")
    red = Result("real_age", False, [], "python: exit code 1\nand why", commit="def+")
    first, second = BREAKS[:2]
    write(
        tmp_path / "page.md",
        [green, red],
        {f"{first.recipe} {first.key}": True, f"{second.recipe} {second.key}": False},
    )
    page = (tmp_path / "page.md").read_text()
    assert "at commit abc and def+\n" in page
    assert "| corpora | - | prepare librispeech, label × 2, prepare textrolspeech, " in page and "| 7.0 min |" in page
    assert "| real_age **red: python: exit code 1** |" in page and "and why" not in page
    assert "Not driven in that run: dual_adapter, " in page
    states = re.findall(r'": (red|\*\*not red\*\*|not tried)$', page, re.M)
    assert states == ["red", "**not red**", *["not tried"] * (len(BREAKS) - 2)]


@pytest.mark.parametrize("name", SHORT)
def test_short_drive(world: World, name: str) -> None:
    for plan in in_order([name]):
        if not is_driven(world, plan.name, short=True):
            result = drive(world, plan, short=True)
            assert not result.fault, result.fault


@pytest.mark.parametrize("broken", [one for one in BREAKS if one.short], ids=lambda one: one.key)
def test_a_broken_recipe_is_red(broken: Break, world: World, tmp_path: Path) -> None:
    """After the same recipe as published was green."""
    test_short_drive(world, broken.plan)
    assert turns_red(broken, world, short=True)


@pytest.mark.parametrize("broken", BREAKS, ids=lambda one: one.key)
def test_a_break_changes_a_key_that_is_there(broken: Break, tmp_path: Path) -> None:
    conf = broken.copy(tmp_path)
    assert OmegaConf.load(conf.parent / broken.recipe) != OmegaConf.load(ROOT / broken.recipe)
    assert broken.plan in PLANS
