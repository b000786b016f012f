"""What answers take: the scoring of a finished run, and the replies of an LLM to texts, this build against another.

    python benchmarks/answer_speed.py --against ../before [--run runs/quickstart] [--limit 60] [--texts 500]

The other build is a checkout (`git worktree add ../before COMMIT`). Each measurement is a command in a process of its
own, on one thread; the sides take turns, and CPU seconds are told beside those of the clock:

scores   `sottovoce evaluate` on a copy of the run without its results: `--limit` rows of each task under every choice
         of slots
targets  `sottovoce targets` of as many texts of the run's training side, by the run's LLM; and of one, for its start

Both builds must be able to read the run: take one that the older has trained. A first round may encode the test side.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from shared import table

HERE = Path(__file__).parents[1]
CODE = "import sys; from sottovoce.cli.main import main; sys.exit(main(sys.argv[1:]))"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, required=True, help="a checkout of another build")
    parser.add_argument("--run", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--limit", type=int, default=60, help="rows a task")
    parser.add_argument("--texts", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    sides = {"this": HERE, "other": arguments.against.resolve()}
    recipe = yaml.safe_load((arguments.run / "recipe.yaml").read_text("utf-8"))
    took: dict[tuple[str, str], list[Took]] = {}
    results: dict[tuple[str, str], Any] = {}
    with tempfile.TemporaryDirectory() as name:
        texts, one = dialogues(recipe, Path(name), arguments.texts), Path(name) / "one.jsonl"
        one.write_text(texts.read_text("utf-8").partition("\n")[0] + "\n", "utf-8")
        for turn in range(arguments.rounds):
            for side, checkout in list(sides.items())[:: -1 if turn % 2 else 1]:
                copy = Path(name) / "run"
                shutil.copytree(arguments.run, copy)
                for scores in copy.glob("evaluation*"):
                    shutil.rmtree(scores)
                out = Path(name) / "targets.jsonl"
                llm = [f"checkpoint={recipe['llm']['checkpoint']}", f"dtype={recipe['llm']['dtype']}"]
                replies = ["--out", str(out), "--max-new-tokens", "40", *llm]
                commands = {
                    "scores": ["evaluate", str(copy), f"evaluation.limit={arguments.limit}"],
                    "one target": ["targets", str(one), *replies],
                    "targets": ["targets", str(texts), *replies],
                }
                for what, command in commands.items():
                    forget(out)
                    seconds = measured(checkout, command)
                    took.setdefault((what, side), []).append(seconds)
                    print(f"round {turn + 1}, {what}, {side} build: {seconds.cpu:.1f} CPU s", file=sys.stderr)
                rows = [json.loads(line) for line in next(copy.rglob("predictions.jsonl")).read_text().splitlines()]
                results["scores", side] = {(r["task"], r["slots"], r["id"]): r["response"] for r in rows}
                results["targets", side] = out.read_text("utf-8")
                shutil.rmtree(copy)
    rows = []
    for (what, side), each in took.items():
        clock, cpu = (statistics.median(values) for values in zip(*each, strict=True))
        rows.append((what, side, f"{clock:.1f}", f"{cpu:.1f}"))
    print(f"{time.strftime('%Y-%m-%d')}, {arguments.rounds} rounds, one thread")
    print(table(("what", "build", "s", "CPU s"), rows, words=2))
    for what in ("scores", "targets"):
        this, other = (statistics.median(cpu for _, cpu in took[what, side]) for side in sides)
        same = results[what, "this"] == results[what, "other"]
        print(f"{what}: {this / other:.2f} of the other build's CPU time, {'the same' if same else 'other'} answers")
    this, other = (
        statistics.median(
            whole.cpu - start.cpu for whole, start in zip(took["targets", s], took["one target", s], strict=True)
        )
        for s in sides
    )
    print(f"targets beyond the first: {this / other:.2f}")


def forget(out: Path) -> None:
    """Delete targets that were written before, with what was kept beside them."""
    for file in out.parent.glob(f"{out.name}*"):
        shutil.rmtree(file) if file.is_dir() else file.unlink()


def dialogues(recipe: dict[str, Any], folder: Path, count: int) -> Path:
    """A manifest of the texts of the run's training side, by its caption and words, without replies."""
    sources = recipe["data"]["train"] or sorted(Path(recipe["data"]["cache"]).glob("corpora/*-train-*/*.jsonl"))
    found = []
    for source in sources:
        file = Path(source["manifest"] if isinstance(source, dict) else source)
        for line in file.read_text("utf-8").splitlines():
            row = json.loads(line)
            row.pop("response", None)
            row["audio"] = str(file.parent / row["audio"])
            found.append(row)
    picked = found[:: max(1, len(found) // count)][:count]
    out = folder / "texts.jsonl"
    out.write_text("".join(json.dumps(row) + "\n" for row in picked), "utf-8")
    return out


class Took(NamedTuple):
    """Seconds that a command took, imports included."""

    clock: float
    cpu: float


def measured(checkout: Path, arguments: list[str]) -> Took:
    """What a command of a checkout takes."""
    place = os.pathsep.join(map(str, (checkout / "src", checkout)))
    environment = {**os.environ, "PYTHONPATH": place, "OMP_NUM_THREADS": "1"}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([sys.executable, "-c", CODE, *arguments], env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Took(time.perf_counter() - start, cpu)


if __name__ == "__main__":
    main()
