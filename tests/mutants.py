"""Mutation test of the numbers: `python -m tests.mutants [--list] [PATTERN]` makes each change of mutants.yaml alone.

The tests that are responsible must fail in a temporary copy of the project with one expression changed; a mutant that
they let pass survives, and its number could be wrong tomorrow without anybody noticing. PATTERN is a regular
expression for file and old text. This is no part of the suite: all mutants together take half an hour.
"""

import argparse
import compileall
import contextlib
import io
import os
import re
import shutil
import sys
import tempfile
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import yaml

ROOT = Path(__file__).parents[1]
TIMEOUT = 1200  # seconds, after which tests that hang count as failed
PASSED, FAILED = 0, 1  # exit codes of pytest; any other says that the tests did not run


class Mutant(NamedTuple):
    """A change of one file, and the tests that must notice."""

    file: str
    old: str
    new: str
    tests: list[str]


def read_mutants() -> list[Mutant]:
    """All entries of mutants.yaml.

    Raises:
        SystemExit: an entry is stale: its old text is not in its file exactly once.
    """
    groups = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text("utf-8"))
    mutants = [Mutant(g["file"], old, new, g["tests"].split()) for g in groups for old, new in g["mutants"]]
    if stale := [f"{m.file}: {m.old}" for m in mutants if (ROOT / m.file).read_text("utf-8").count(m.old) != 1]:
        sys.exit("stale entries:\n" + "\n".join(stale))
    return mutants


def run_tests(copy: Path, mutant: Mutant) -> int:
    """The exit code of pytest in a copy with one mutant; FAILED if it hangs."""
    file = copy / mutant.file
    text, stat = file.read_text("utf-8"), file.stat()
    file.write_text(text.replace(mutant.old, mutant.new), "utf-8")
    process = get_context("fork").Process(target=_pytest, args=(copy, mutant.tests))  # which has imported the libraries
    process.start()
    process.join(TIMEOUT)
    if process.is_alive():
        process.kill()
    file.write_text(text, "utf-8")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # its bytecode is valid again
    return FAILED if process.exitcode is None else process.exitcode


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
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("pattern", nargs="?", default="")
    parser.add_argument("--list", action="store_true", help="print the mutants and run nothing")
    arguments = parser.parse_args()
    mutants = [m for m in read_mutants() if re.search(arguments.pattern, f"{m.file}: {m.old}")]
    if arguments.list:
        print("\n".join(f"{m.file}: {m.old} -> {m.new}" for m in mutants))
        return
    for library in ("pytest", "lightning", "omegaconf", "peft", "sklearn.linear_model", "torchmetrics.text", "whisper"):
        import_module(library)  # once, and not for each mutant
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"

    codes = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        skipped = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "runs", "notebooks")
        shutil.copytree(ROOT, copy, symlinks=True, ignore=skipped)
        compileall.compile_dir(copy, quiet=2)
        sys.dont_write_bytecode = True
        for number, mutant in enumerate(mutants, 1):
            codes.append(run_tests(copy, mutant))
            outcome = {FAILED: "killed", PASSED: "SURVIVED"}.get(codes[-1], f"pytest ended with {codes[-1]}")
            print(f"{number:3}/{len(mutants)} {outcome:8} {mutant.file}: {mutant.old} -> {mutant.new}", flush=True)
    print(f"{codes.count(FAILED)} of {len(mutants)} mutants were killed")
    sys.exit(codes.count(FAILED) < len(mutants))


if __name__ == "__main__":
    main()
