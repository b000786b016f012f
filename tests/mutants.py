"""Mutation test of the numbers: `python -m tests.mutants [--list] [PATTERN]` breaks each entry of mutants.yaml alone.

A mutant is one changed expression in a temporary copy of the project. The tests that are responsible must fail there; a
mutant that they let pass survives, and its number could be wrong tomorrow without anybody noticing. PATTERN is part of a
file's name or of the old text. This is no part of the suite: all mutants together take half an hour.
"""

import argparse
import contextlib
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import yaml

ROOT = Path(__file__).parents[1]
TIMEOUT = 1200  # seconds, after which tests that hang count as failed
FAILED, PASSED = 1, 0  # exit codes of pytest; any other says that the tests did not run


class Mutant(NamedTuple):
    """A change of one file, and the tests that must notice."""

    file: str
    old: str
    new: str
    tests: list[str]

    @property
    def title(self) -> str:
        return f"{self.file}: {self.old!r} -> {self.new!r}"


def read_mutants() -> list[Mutant]:
    """All entries of mutants.yaml.

    Raises:
        SystemExit: an entry is stale: its text is not in its file exactly once.
    """
    mutants = []
    for group in yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text("utf-8")):
        mutants += [Mutant(group["file"], old, new, group["tests"].split()) for old, new in group["mutants"]]
    counts = [(m, (ROOT / m.file).read_text("utf-8").count(m.old) if (ROOT / m.file).is_file() else 0) for m in mutants]
    if stale := [f"{m.title}: found {count} times" for m, count in counts if count != 1]:
        sys.exit("stale entries:\n" + "\n".join(stale))
    return mutants


@contextlib.contextmanager
def broken(copy: Path, mutant: Mutant) -> Iterator[None]:
    """The copy with one mutant in it, while the block runs."""
    file = copy / mutant.file
    text = file.read_text("utf-8")
    file.write_text(text.replace(mutant.old, mutant.new), "utf-8")
    try:
        yield
    finally:
        file.write_text(text, "utf-8")


def run_tests(copy: Path, tests: list[str]) -> int:
    """The exit code of pytest in the copy, in a process of its own; FAILED if it hangs."""
    process = get_context("fork").Process(target=_pytest, args=(copy, tests))  # with the libraries imported already
    process.start()
    process.join(TIMEOUT)
    if process.is_alive():
        process.kill()
        return FAILED
    return process.exitcode if process.exitcode is not None else -1


def _pytest(copy: Path, tests: list[str]) -> None:
    import pytest

    os.chdir(copy)
    sys.path[:0] = [str(copy / "src"), str(copy)]
    for name in [name for name in sys.modules if name.split(".")[0] == "tests"]:
        del sys.modules[name]
    with contextlib.redirect_stdout(io.StringIO()):
        code = pytest.main(["-q", "-x", "-p", "no:cacheprovider", *tests])
    os._exit(int(code))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("pattern", nargs="?", default="", help="part of a file's name or of the old text")
    parser.add_argument("--list", action="store_true", help="print the mutants and run nothing")
    arguments = parser.parse_args()
    mutants = [m for m in read_mutants() if arguments.pattern in m.file or arguments.pattern in m.old]
    if arguments.list:
        print("\n".join(mutant.title for mutant in mutants))
        return
    sys.dont_write_bytecode = True  # a mutant and its original may have one size and one second
    import lightning  # noqa: F401

    survivors = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        skipped = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "runs", "notebooks")
        shutil.copytree(ROOT, copy, symlinks=True, ignore=skipped)
        for number, mutant in enumerate(mutants, 1):
            with broken(copy, mutant):
                code = run_tests(copy, mutant.tests)
            told = {FAILED: "killed", PASSED: "SURVIVED"}.get(code, f"pytest ended with {code}")
            print(f"{number:3}/{len(mutants)} {told:8} {mutant.title}", flush=True)
            survivors += [mutant] if code != FAILED else []
    print(f"{len(survivors)} of {len(mutants)} mutants survived")
    sys.exit(bool(survivors))


if __name__ == "__main__":
    main()
