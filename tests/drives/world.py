"""The world of the drives: a folder with parts, corpora, servers and overlaid recipes, where commands are run."""

import contextlib
import importlib
import io
import multiprocessing
import os
import re
import resource
import shlex
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, TypeAlias

from omegaconf import OmegaConf

from sottovoce.cli.main import main
from sottovoce.config_tree import read_tree
from tests.drives import overlay
from tests.drives.server import MODELS, Mood, Service

ROOT = Path(__file__).parents[2]
LONGEST = 3600  # seconds of a command


def recipes_in(conf: Path) -> list[str]:
    """The recipes of a folder, such as conf/pe_ft/full.yaml."""
    return sorted(str(file.relative_to(conf.parent)) for file in conf.rglob("*.yaml"))


class Broken(AssertionError):
    """A drive is red: a command failed, or what it left is not what its recipe promises."""


@dataclass(frozen=True)
class Done:
    """A command that has been run."""

    words: str
    code: int
    out: str  # standard output and error
    seconds: float  # of a processor, whatever else the machine does


@dataclass
class World:
    """`folder` is where commands run, `conf` the recipes; `start`: how a command gets its process.

    forked: from one that has imported the libraries; fresh: an interpreter of its own, as two processes that train
    together always have; here: none.
    """

    folder: Path
    conf: Path = ROOT / "conf"
    start: Literal["forked", "fresh", "here"] = "forked"
    services: dict[str, Service] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.services = {url: Service(models) for url, models in MODELS.items()}

    def close(self) -> None:
        for service in self.services.values():
            service.become("up")
            service.close()

    def part(self, *names: str) -> None:
        if missing := [name for name in names if not (self.folder / name).exists()]:
            from tests.drives.parts import save_part  # takes seconds to import

            for name in missing:
                save_part(name, self.folder)

    def corpus(self, *names: str) -> None:
        from tests.drives.corpora import save_corpus

        for name in names:
            save_corpus(name, self.folder / "data")

    def recordings(self) -> None:
        """Manifests of one's own, for recipes that name none."""
        if not (self.folder / "train.jsonl").is_file():
            from tests.drives.corpora import real_age

            real_age(self.folder)

    def own_data(self) -> None:
        """The folder of clips and the recipe of docs/data_formats.md, as they are there."""
        from tests.drives.corpora import save_corpus

        save_corpus("wavs", self.folder)
        page = (ROOT / "docs/data_formats.md").read_text("utf-8")
        recipe = page.partition("`age.yaml`:")[2].partition("```yaml\n")[2].partition("```")[0]
        (self.folder / "age.yaml").write_text(recipe)

    def lay(self, name: str) -> None:
        """Write a recipe anew, and those of a table's systems: the published one, and the overlay on top."""
        published, laid = self.conf.parent / name, self.folder / name
        tree = read_tree(published)
        for system in (tree.get("systems") or {}).values():
            self.lay(str(Path(name).parent / system["recipe"]))
        laid.parent.mkdir(parents=True, exist_ok=True)
        urls = {url: service.url for url, service in self.services.items()}
        laid.write_text(OmegaConf.to_yaml({"extends": str(published.resolve()), **overlay.overlay(tree, urls)}))

    def tree(self, name: str) -> dict[str, Any]:
        """A recipe as it is driven."""
        return read_tree(self.folder / name)

    def moods(self, moods: Mapping[str, Mood]) -> None:
        for url, service in self.services.items():
            service.become(moods.get(url, "up"))

    def filled(self, words: str) -> str:
        """A command with what documents leave to the reader: addresses, folders, ffmpeg, the last layer of a split."""
        for known, service in self.services.items():
            words = words.replace(known.replace("localhost", "server"), service.url)
        if "FFMPEG" in words:
            words = words.replace("FFMPEG", importlib.import_module("imageio_ffmpeg").get_ffmpeg_exe())
        if analysis := re.search(r"llm\.tuning\.analysis=(\S+)", words):
            from sottovoce.evaluation.layers.split import read_split  # scikit-learn takes seconds to import

            last = str(read_split(self.folder / analysis[1])[1])
            words = re.sub(r"layer=LAST\w*", f"layer={last}", words)
        return words.replace("/data/", f"{self.folder}/data/")

    def run(self, words: str) -> Done:
        """Run a command as it is typed, in the world's folder."""
        typed = shlex.split(self.filled(words))
        for word in typed:
            if word.startswith("conf/"):
                self.lay(word)
        several = any(re.match(r"trainer\.devices=[2-9]", word) for word in typed)
        return Done(words, *(_fresh if several else _STARTS[self.start])(typed, self.folder))


def _environment(folder: Path) -> dict[str, str]:
    own = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "NO_PROXY": "127.0.0.1", "COLUMNS": "200"}
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HOME": str(folder / "huggingface"), **own}


Outcome: TypeAlias = tuple[int, str, float]  # exit code, what it said, seconds


def _fresh(typed: list[str], folder: Path) -> Outcome:
    program = folder / "sottovoce"  # as pip writes it
    program.write_text("import sys\nfrom sottovoce.cli.main import main\nsys.exit(main())\n")
    words = [sys.executable, *([str(program)] if typed[0] == "sottovoce" else []), *typed[1:]]
    how: dict[str, Any] = {"cwd": folder, "env": _environment(folder), "stdin": subprocess.DEVNULL}
    before = _spent(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=LONGEST, text=True, errors="replace", **how
    )
    return done.returncode, done.stdout, _spent(resource.RUSAGE_CHILDREN) - before


def _spent(whose: int) -> float:
    usage = resource.getrusage(whose)
    return usage.ru_utime + usage.ru_stime


def _arguments(typed: list[str]) -> list[str]:
    return ["fit", *typed[3:]] if typed[0] == "python" else typed[1:]


def _forked(typed: list[str], folder: Path) -> Outcome:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.drives.preload"])
    receiver, sender = context.Pipe(duplex=False)
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".out") as said:
        process = context.Process(target=_command, args=(_arguments(typed), str(folder), said.name, sender))
        process.start()
        process.join(LONGEST)
        if process.exitcode is None:
            process.kill()
            process.join()
        seconds = receiver.recv() if receiver.poll() else 0.0
        return process.exitcode or 0, Path(said.name).read_text("utf-8", "replace"), seconds


def _command(arguments: list[str], folder: str, said: str, sender: Connection) -> None:
    """In the process of a command."""
    os.chdir(folder)
    os.environ.update(_environment(Path(folder)))
    where = os.open(said, os.O_WRONLY)
    os.dup2(where, 1)
    os.dup2(where, 2)
    try:
        code = main(arguments)
    finally:
        sender.send(_spent(resource.RUSAGE_SELF) + _spent(resource.RUSAGE_CHILDREN))
    sys.exit(code)


def _here(typed: list[str], folder: Path) -> Outcome:
    """In this process, which has imported everything already."""
    before = time.process_time()
    with inside(folder), contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        try:
            code = main(_arguments(typed))
        except SystemExit as stop:
            code = int(stop.code or 0)
        except Exception:
            traceback.print_exc()
            code = 1
    return code, out.getvalue(), time.process_time() - before


_STARTS = {"forked": _forked, "fresh": _fresh, "here": _here}


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    before, environment = Path.cwd(), dict(os.environ)
    os.chdir(folder)
    os.environ.update(_environment(folder))
    try:
        yield
    finally:
        os.chdir(before)
        os.environ.clear()
        os.environ.update(environment)


Check = Callable[[World, Done], str]  # says what it has seen, or raises `Broken`


@dataclass(frozen=True)
class Step:
    """A documented command, the moods of the servers meanwhile, and what is held against what it leaves."""

    words: str
    checks: tuple[Check, ...] = ()
    moods: Mapping[str, Mood] = field(default_factory=dict)
    code: int = 0

    def take(self, world: World) -> "tuple[Done, list[str]]":
        """Run it, and say what was checked; `Broken` if something does not hold."""
        world.moods(self.moods)
        done = world.run(self.words)
        if done.code != self.code or "Traceback" in done.out:
            raise Broken(f"{self.words}: exit code {done.code}, {self.code} was due\n{done.out[-6000:]}")
        seen = []
        for check in self.checks:
            try:
                seen.append(check(world, done))
            except Broken as fault:
                raise Broken(f"{self.words}: {fault}\n{done.out[-3000:]}") from None
        return done, seen
