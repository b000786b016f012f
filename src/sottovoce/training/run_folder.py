"""The folder of a run: it holds one recipe, and what that recipe ran on."""

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from sottovoce.config.recipe import Recipe, load
from sottovoce.config_tree import Tree, read_tree
from sottovoce.errors import ConfigError, MissingError, brief
from sottovoce.io import atomic_write

RECIPE, DATA = "recipe.yaml", "data.json"
LATER = {"layers": "last"}  # keys of slots that recipes of older runs lack, and what they meant


def open_folder(folder: Path, recipe: Tree) -> None:
    """Make the run's folder, or find in it the run that is to go on; errors as in `check_folder`."""
    check_folder(folder, recipe)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / RECIPE).is_file() or read_tree(folder / RECIPE) != _as_read(recipe):
        atomic_write(folder / RECIPE, OmegaConf.to_yaml(recipe), shared=True)  # another process may be reading it
    atomic_write(folder / "environment.json", json.dumps(environment(), indent=2) + "\n", shared=True)


def recipe_file(folder: Path) -> Path:
    """The recipe of a run; MissingError where the folder is none."""
    if not (file := folder / RECIPE).is_file():
        raise MissingError(f"{folder} is not a run: there is no {RECIPE} in it. `sottovoce fit` makes one", where=file)
    return file


def load_run(folder: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a run whose folder lies here now, whatever it was called and wherever it was trained.

    Raises:
        MissingError: the folder is no run.
        ConfigError: recipe or overrides are faulty.
    """
    recipe = load(recipe_file(folder), overrides, own=False)
    here = Path(os.path.abspath(folder))
    if os.path.abspath(recipe.folder) == str(here) and not trained_elsewhere(folder):
        return recipe
    name = Path(recipe.name)
    moved = here.parts[-len(name.parts) :] == name.parts  # or it was renamed
    home = here.parents[len(name.parts) - 1] if moved else here.parent
    return replace(recipe, output_dir=str(home), name=recipe.name if moved else here.name)


def trained_elsewhere(folder: Path) -> bool:
    """Whether a run was trained in another working directory than this, which its relative paths are relative to."""
    return _working_directory(folder) not in (Path(), Path.cwd())


@contextmanager
def where_trained(folder: Path, recipe: Recipe) -> Iterator[None]:
    """Within the block a run's relative paths lead where they led in training: to the working directory of then.

    Only where its manifests are not here and are there; paths of the command line must be absolute before.
    """
    named = [source.manifest for _, source in recipe.sources() if not Path(source.manifest).is_absolute()]
    then, now = _working_directory(folder), os.getcwd()
    if all(map(os.path.exists, named)) or not all((then / name).exists() for name in named):
        yield
        return
    os.chdir(then)
    try:
        yield
    finally:
        os.chdir(now)


def _working_directory(folder: Path) -> Path:
    with suppress(OSError, ValueError, AttributeError):
        return Path(json.loads((folder / "environment.json").read_text("utf-8")).get("folder") or ".")
    return Path()


@contextmanager
def only_run(folder: Path) -> Iterator[None]:
    """Raises ConfigError where another process has the run of this folder in hand; the system frees it when that ends.

    For the process that speaks for all of a run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".running")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        why = "another process is at this run: wait until it ends, or name this one otherwise (name=...)"
        raise ConfigError.at(folder, "conflict", why) from None
    try:
        yield
    finally:
        lock.release()


def check_data(folder: Path, sides: Mapping[str, Iterable[object]]) -> None:
    """See that a run that goes on goes on with the data that it began with: which, how long, how often.

    The order of a stage is a function of these. With others, examples would come twice or not at all, unnoticed. Before
    a stage has begun, any will do.

    Raises:
        ConfigError: one of the sides, which say what each split has in its order, has changed.
    """
    file, found = folder / DATA, {name: digest_rows(rows) for name, rows in sides.items()}
    if not file.is_file() or not begun(folder):
        atomic_write(file, json.dumps(found, indent=2) + "\n", shared=True)
        return
    began = json.loads(file.read_text("utf-8"))
    if changed := [name for name in found if found[name] != began.get(name, found[name])]:
        raise ConfigError(
            f"{folder}: the data of {', '.join(changed)} are not those that this run began with: a manifest was "
            "changed, or other clips are left out. Put them back, or name this run otherwise (name=...); a new run "
            f"starts from this one's weights with init_from={folder / 'bundle'}",
            code="mismatch",
            where=folder,
        )


def digest_rows(rows: Iterable[object]) -> str:
    """The SHA-256 of a split's rows, in hexadecimal."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(f"{row}\n".encode())
    return digest.hexdigest()


# Keys on which no weight depends. Of the evaluation, the results say what they were made with.
FREE = (
    "name", "output_dir", "checkpoint_every", "trainer", "evaluation", "data.test", "data.num_workers", "data.cache",
    "data.prepare_workers", "data.policy", "data.max_seconds", "data.target_max_new_tokens", "tasks.asr.metric",
    "tasks.asr.normalizer", "published", "llm.attn_implementation", "callbacks", "compile", "logging",
)  # fmt: skip
FREE_IN_STAGES = ("batch_size", "accumulate_grad_batches")  # checkpoints hold their product
# Of tasks whose targets the run's LLM makes
OF_TARGETS = ("evaluation.text", "evaluation.max_new_tokens", "data.target_max_new_tokens")
OF_STEPS = ("trainer.limit_train_batches", "trainer.overfit_batches", "trainer.gradient_clip_algorithm")
GENERATED = ("dialogue", "response", "caption")
SHOWN = 8  # keys that differ


def begun(folder: Path) -> list[str]:
    """The stages of a run that have weights, in their order; `steps` of a pre-training."""
    files = [file for name in ("last.ckpt", "best.ckpt", "done.json") for file in folder.glob(f"stages/*/{name}")]
    names = {file.parent.name for file in files}
    numbered = sorted((int(number), stage) for number, _, stage in (name.partition("-") for name in names))
    return [stage for _, stage in numbered] or ["steps"] * (folder / "last.ckpt").is_file()


def check_folder(folder: Path, recipe: Tree) -> None:
    """Raises ConfigError where the folder holds a run whose weights depend on what this recipe says otherwise.

    What they do not depend on may change: where and how it runs, in which shares a step is taken, what is scored, and
    stages that have not begun. A folder without weights may be taken by any recipe.
    """
    file = folder / RECIPE
    stages = begun(folder)
    if not file.is_file() or not (stages or (folder / "ser.safetensors").is_file()):
        return
    before, now = (_weights_depend_on(tree, stages) for tree in (read_tree(file), _as_read(recipe)))
    either = ((key, before.get(key), now.get(key)) for key in {**before, **now})
    differ = [key for key, old, new in either if old != new and not (is_off(old) and is_off(new))]
    if not differ:
        return
    lines = [f"  {key}: {_shown(before.get(key))} in the run, {_shown(now.get(key))} now" for key in differ[:SHOWN]]
    lines += [f"  and {len(differ) - SHOWN} more"] * (len(differ) > SHOWN)
    raise ConfigError(
        "\n".join([f"{folder}: the weights of this run depend on what the recipe now says otherwise:", *lines])
        + "\nGive back what it began with, or name this run otherwise (name=...); a new run starts from this one's "
        f"weights with init_from={folder / 'bundle'}",
        code="mismatch",
        where=differ[0],
    )


def _weights_depend_on(recipe: Tree, stages: Sequence[str]) -> dict[str, Any]:
    """Key -> value of all that made a run's weights so far. What is null is left out: an update may bring an option."""
    learned = {task for name in stages for task in _stage(recipe, name).get("tasks", ())}
    free = list(FREE)
    if "stages" not in recipe:
        free.remove("trainer")  # in pre-training it says how many utterances a step has
    else:
        free += [f"stages.{name}" for name in recipe["stages"] if name not in stages]
        free += [f"stages.{name}.{key}" for name in stages for key in FREE_IN_STAGES]
        free += [f"tasks.{name}" for name in recipe["tasks"] if name not in learned and not recipe.get("cascade")]
    bound = {*OF_STEPS, *(OF_TARGETS if learned.intersection(GENERATED) else ())}
    if recipe.get("data", {}).get("target_max_new_tokens"):  # in place of the evaluation's
        bound.discard("evaluation.max_new_tokens")
    found = {key: value for key, value in _leaves(recipe) if _is_under(key, bound) or not _is_under(key, free)}
    for slot, (key, meant) in product(recipe.get("slots", ()), LATER.items()):
        if found.get(name := f"slots.{slot}.{key}") == meant:
            del found[name]
    if found.get("data.cache_dtype") == "float16":  # in which runs kept features before there was a choice
        del found["data.cache_dtype"]
    order = [name for name in recipe.get("stages", ()) if name in stages]
    return {**found, "stages": ", ".join(order)} if order else found


def is_off(value: Any) -> bool:
    """Whether an option says no more than recipes of older runs, which lack it."""
    return value is None or value is False


def _is_under(key: str, keys: Iterable[str]) -> bool:
    return any(f"{key}.".startswith(f"{one}.") for one in keys)


def _as_read(recipe: Tree) -> Tree:
    """As it comes back from its file: tuples are lists there."""
    read: Tree = json.loads(json.dumps(recipe))
    return read


def _stage(recipe: Tree, name: str) -> Tree:
    stage: Tree = recipe.get("stages", {}).get(name) or {}
    return stage


def _leaves(tree: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict):
        for name, value in tree.items():
            yield from _leaves(value, f"{key}.{name}" if key else str(name))
    elif isinstance(tree, list):
        yield key, [dict(_leaves(entry)) if isinstance(entry, dict) else entry for entry in tree]
    elif tree is not None:
        yield key, tree


def _shown(value: Any) -> str:
    return "absent" if value is None else brief(value, 100)


PACKAGES = ("sottovoce", "torch", "lightning", "transformers", "openai-whisper", "torchmetrics", "jiwer", "deepspeed")


def environment() -> dict[str, object]:
    """Everything beside the recipe and the data that a number may depend on."""
    cpu = platform.processor() or platform.machine()
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "commit": _git("rev-parse", "HEAD"),
        "changed files": len((_git("status", "--porcelain") or "").splitlines()),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else cpu,
        "threads": torch.get_num_threads(),
        "folder": os.getcwd(),  # which relative paths of the recipe are relative to
    }


def _version(package: str) -> str | None:
    with suppress(PackageNotFoundError):
        return version(package)
    return None


def _git(*arguments: str) -> str | None:
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.check_output(
            ["git", *arguments], cwd=Path(__file__).parent, stderr=subprocess.DEVNULL, text=True, timeout=10
        ).strip()
    return None
