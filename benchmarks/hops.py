"""Files and functions of ours that run: in one steady training step, and from the command to the first loss.

    python benchmarks/hops.py

`sys.setprofile` counts them in `python -m lightning_modules.fit` on the tiny recipe of the tests; prints Markdown. What
is counted are functions that are called: not module and class bodies, nor what dataclasses generate.
"""

import inspect
import json
import os
import runpy
import subprocess
import sys
import tempfile
from collections import Counter
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from shared import table

ROOT = Path(__file__).resolve().parents[1]
STEADY = 3  # the step from whose end to the next one's end we count: no validation, checkpoint or log line is in it
Calls = Counter[tuple[str, str]]  # calls by (file, function)


class Profiler:
    """Calls of our functions, by `sys.setprofile`; stops the process when the steady step is over."""

    def __init__(self) -> None:
        self.before, self.step = Calls(), Calls()
        self._steps, self._first_loss = 0, False

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event not in ("call", "return") or not code.co_flags & inspect.CO_OPTIMIZED:  # bodies of modules and classes
            return
        if not (file := own_path(code.co_filename)):
            return
        if event == "call":
            counts = self.step if self._steps == STEADY else self.before if not self._first_loss else Calls()
            counts[file, code.co_qualname] += 1
        elif code.co_qualname == "SpeechLLM.loss":
            self._first_loss = True
        elif code.co_qualname == "SpeechLLM.training_step":
            self._steps += 1
            if self._steps > STEADY:
                sys.setprofile(None)
                counted = [[[*key, n] for key, n in calls.items()] for calls in (self.before, self.step)]
                print(json.dumps(counted), flush=True)
                os._exit(0)


@cache
def own_path(name: str) -> str:
    """A source file's path from the root of the checkout; "" for files of other packages, tests and generated code."""
    path = Path(os.path.realpath(name))
    if not name.endswith(".py") or not path.is_relative_to(ROOT):
        return ""
    parts = path.relative_to(ROOT).parts
    return "" if parts[0] in (".venv", "tests", "benchmarks") else "/".join(parts)


def measure(recipe: str) -> NoReturn:
    """Run the command under the profiler, in this process."""
    sys.argv = ["fit", "--config", recipe]
    sys.setprofile(Profiler())
    runpy.run_module("lightning_modules.fit", run_name="__main__")
    raise SystemExit("the run has ended before its steady step")


def tiny_recipe(folder: Path) -> Path:
    """The recipe of the tests, with random weights and a few tones as speech, in `folder`."""
    import torch
    import whisper
    from tests.conftest import save_family, tiny_tree, write_manifest
    from whisper.model import ModelDimensions

    llm = str(save_family("qwen2", folder))
    dims = ModelDimensions(80, 50, 32, 4, 2, 100, 16, 32, 4, 2)
    torch.save({"dims": vars(dims), "model_state_dict": whisper.model.Whisper(dims).state_dict()}, folder / "tiny.pt")
    counts = {"train": 24, "validation": 5, "test": 6}
    manifests = {split: write_manifest(folder, split, count) for split, count in counts.items()}
    file = folder / "recipe.yaml"
    file.write_text(json.dumps({**tiny_tree(llm, str(folder / "tiny.pt"), manifests, folder), "checkpoint_every": 100}))
    return file


def report(title: str, calls: Calls) -> str:
    """Markdown: functions and calls of each file, in the order in which the files are first entered."""
    files: dict[str, list[int]] = {}
    for (file, _), count in calls.items():
        files.setdefault(file, []).append(count)
    rows = [(file, len(counts), f"{sum(counts):,}") for file, counts in files.items()]
    title += f": **{len(files)} files, {len(calls)} functions**"
    return f"{title}\n\n{table(('file', 'functions', 'calls'), rows)}\n"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        recipe = tiny_recipe(Path(folder))
        paths = os.pathsep.join([str(ROOT), str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
        command, environment = [sys.executable, __file__, str(recipe)], {**os.environ, "PYTHONPATH": paths}
        said = subprocess.check_output(command, cwd=ROOT, env=environment, text=True)
    counted = json.loads(said.splitlines()[-1])
    before, step = (Calls({(file, name): n for file, name, n in rows}) for rows in counted)
    print(report("One steady training step, loader included", step))
    print(report("From the command to the first loss", before))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    if len(sys.argv) > 1:
        measure(sys.argv[1])
    main()
