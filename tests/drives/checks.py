"""What a command must leave: files, rows, scores, weights. Read from disk, and held against a recipe."""

import csv
import json
import shlex
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from sottovoce.config import recipe as recipes
from sottovoce.config.recipe import Recipe
from tests.drives.world import Broken, Check, Done, World, inside

REPLIES = {"dialogue": ["rouge_l"], "response": ["rouge_1", "rouge_2", "rouge_l"]}
REPLIES["caption"] = REPLIES["response"]


def due(holds: object, told: object) -> None:
    """`Broken` where something does not hold."""
    if not holds:
        raise Broken(str(told))


def lines_of(file: Path) -> list[dict[str, Any]]:
    due(file.is_file(), f"{file} is not there")
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def says(*words: str) -> Check:
    """The command's output has these words."""

    def check(world: World, done: Done) -> str:
        told = " ".join(done.out.split())
        for word in words:
            due(word in told, f"it does not say {word!r}")
        return f"says {', '.join(words)}"

    return check


def manifests(out: str, splits: dict[str, int], labels: Iterable[str] = ()) -> Check:
    """So many lines a split, each with a clip that is there; these labels occur; nothing is damaged."""

    def check(world: World, done: Done) -> str:
        folder, heard = world.folder / out, Counter[str]()
        for split, count in splits.items():
            rows = lines_of(folder / f"{split}.jsonl")
            due(len(rows) == count, f"{out}/{split}.jsonl has {len(rows)} lines, {count} were due")
            due(all((folder / row["audio"].partition("#")[0]).is_file() for row in rows), f"{out}: a clip is not there")
            heard.update(name for row in rows for name in row.get("labels") or {})
        due(set(labels) <= set(heard), f"{out} has the labels {sorted(heard)}, {sorted(labels)} were due")
        if (report := folder / "report.json").is_file():
            faults = json.loads(report.read_text("utf-8"))["problems"]
            due(not {"damaged", "faulty row"} & set(faults), faults)
        return f"{sum(splits.values())} lines in {', '.join(splits)}"

    return check


def every_line(file: str, *keys: str) -> Check:
    """Each line of a manifest has these keys, such as labels.pitch or response."""

    def check(world: World, done: Done) -> str:
        rows = lines_of(world.folder / file)
        for key in keys:
            for row in rows:
                node: Any = row
                for part in key.split("."):
                    node = (node or {}).get(part)
                due(node, f"{file}: {row['id']} has no {key}")
        return f"{len(rows)} lines with {', '.join(keys)}"

    return check


def fitted(config: str, *more: str) -> Check:
    """Each stage has made all its steps and moved all that it trains, and nothing else; the bundle holds that."""

    def check(world: World, done: Done) -> str:
        recipe = _recipe(world, config, more)
        folder = world.folder / recipe.folder
        before: dict[str, Tensor] = {}
        for number, (name, stage) in enumerate(recipe.stages.items(), 1):
            place = folder / "stages" / f"{number}-{name}"
            report = json.loads((place / "done.json").read_text("utf-8"))
            due(report["steps"] > 0 and not report["skipped"], f"stage {name}: {report}")
            told = (f"stage {number} of {len(recipe.stages)}: {name}", f"stage {name} is done")
            due(any(words in done.out for words in told), f"stage {name} is not told")
            best: dict[str, Tensor] = torch.load(place / "best.ckpt", weights_only=False)["state_dict"]
            train = [*(stage.train or recipe.slots), *(["ctc_head"] if stage.ctc else [])]
            learns = [weight for key, weight in best.items() if _learns(key, train)]
            due(sum(w.numel() for w in learns) == report["trainable"], f"stage {name} trains {report['trainable']}")
            moments = _moments(place / "last.ckpt")
            due(len(moments) == len(learns), f"stage {name}: {len(moments)} of {len(learns)} tensors were optimised")
            due(
                moments and all(bool(m.any()) for m in moments),
                f"stage {name}: a tensor that trains never had a gradient",
            )
            for key in before.keys() & best.keys():
                moved = not torch.equal(before[key], best[key])
                due(_learns(key, train) or not moved, f"stage {name}: {key} moved, and does not train")
            due(not before or any(not torch.equal(before[k], best[k]) for k in before), f"stage {name} moved nothing")
            before = best
        bundle = folder / "bundle"
        if recipe.stages or recipe.untuned:
            kept = load_file(bundle / "trained.safetensors")
            due({"llm"} <= json.loads((bundle / "fingerprints.json").read_text()).keys(), "no fingerprint of the LLM")
            due(not before or bool(kept), "the bundle is empty")
            if (layers := _layers(kept)) or recipe.trains_llm:
                due(layers == _tuned(recipe, len(layers)), f"LoRA lies on layers {sorted(layers)}")
        elif bundle.exists():
            raise Broken("a bundle of a run that trains nothing and takes the weights of another")
        if not recipe.stages:
            return f"no stage; {f'a bundle of {len(kept)} tensors' if recipe.untuned else 'the weights of another run'}"
        return f"{', '.join(recipe.stages)}: all that trains had gradients; frozen prints equal; bundle"

    return check


def _learns(key: str, train: Iterable[str]) -> bool:
    """Whether a tensor belongs to what a stage trains."""
    part, _, rest = key.partition(".")
    name = rest.partition(".")[0] if part == "adapters" else "llm" if part == "auxiliary_head" else part
    return name in train


def _moments(file: Path) -> list[Tensor]:
    """Second moments of the optimizer, which every strategy writes alike: 0 where a weight never had a gradient."""
    states = torch.load(file, weights_only=False)["optimizer_states"]
    return [moments["exp_avg_sq"] for state in states for moments in state["state"].values()]


def _layers(weights: Iterable[str]) -> set[int]:
    """Layers of the LLM that tensors lie in."""
    parts = (name.split(".layers.")[1] for name in weights if name.startswith("llm.") and ".layers." in name)
    return {int(part.partition(".")[0]) for part in parts}


def _tuned(recipe: Recipe, most: int) -> set[int]:
    """The layers that a recipe names, such as 0-14; `all`: every one below `most`."""
    layers = str(recipe.llm.tuning.layers)
    if layers == "all":
        return set(range(most))
    found: set[int] = set()
    for part in layers.split(","):
        first, _, last = part.strip().partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


def _recipe(world: World, config: str, more: Iterable[str]) -> Recipe:
    with inside(world.folder):
        return recipes.load(config, shlex.split(world.filled(" ".join(more))))


def promised(recipe: Recipe, world: World) -> dict[tuple[str, str, str], int]:
    """(task, metric, slots) -> how many rows, by the recipe's test side and the labels in its manifests."""
    tasks = recipe.evaluation.tasks or recipes.used_tasks(recipe)
    serving: Counter[tuple[str, str]] = Counter()  # (task, part) -> utterances; manifests of one name are one part
    for node in recipe.data.test:
        rows = lines_of(world.folder / node.manifest)
        for task in tasks:
            if node.tasks is not None and task not in node.tasks:
                continue
            serving[task, node.name or ""] += sum(_serves(row, task) for row in rows)
    return {
        (f"{task} ({part})" if part else task, metric, mode): min(recipe.evaluation.limit or count, count)
        for (task, part), count in serving.items() if count for metric in _metrics(task) for mode in recipe.modes
    }  # fmt: skip


def _metrics(task: str) -> list[str]:
    return ["wer"] if task == "asr" else REPLIES.get(task, ["accuracy", "balanced_accuracy"])


def _serves(row: dict[str, Any], task: str) -> bool:
    return bool(row.get("text")) if task in ("asr", *REPLIES) else task in (row.get("labels") or {})


def scored(config: str, *more: str, judged: bool = False, folder: str = "evaluation", least: int = 1) -> Check:
    """Every score that the recipe promises: by its test side, and by what it has published; judges' once `judged`."""

    def check(world: World, done: Done) -> str:
        recipe = _recipe(world, config, more)
        place = world.folder / recipe.folder / folder
        records = json.loads((place / "results.json").read_text("utf-8"))
        found = {(r["task"], r["metric"], r["slots"]): r["n"] for r in records}
        wanted = promised(recipe, world)
        for key, count in wanted.items():
            due(0 < found.get(key, 0) <= count, f"{' '.join(key)} has {found.get(key, 0)} rows, {count} were due")
            due(found[key] == count or key[1].startswith("rouge"), f"{' '.join(key)} has {found[key]} rows of {count}")
        for task in recipe.evaluation.tasks or recipes.used_tasks(recipe):
            told = {key[1] for key in found if key[0].partition(" (")[0] == task}
            due(set(_metrics(task)) <= told, f"{task} has the scores {sorted(told)}")
        published = {
            (task, metric, slots)
            for slots, by_task in recipe.published.items()
            for task, scores in by_task.items()
            for metric in scores
        }
        for key in sorted(published):
            waits = not judged and ("/" in key[1] or key[1].startswith("pa_"))  # for a judge
            waits |= key[0] == "voicebench" and recipe.evaluation.voicebench is None  # which is off by default
            due(key in found or waits, f"published, and not scored: {' '.join(key)}")
        for name, judge in recipe.evaluation.judges.items() if judged else ():
            aspects = {key[1] for key in found if key[1].endswith(f"/{name}")}
            due(aspects, f"no score by the judge {name}; {judge.judge['type']}")
        if judged and recipe.evaluation.awareness and any(key[1].startswith("rouge") for key in found):
            due({"pa_score", "pa_rate"} <= {key[1] for key in found}, "no PA-score, no PA-rate")
        answers = lines_of(place / "predictions.jsonl")
        due(len(found) >= least and answers, "no scores")
        return (
            f"{len(found)} scores, {len(wanted)} by the test side, {len(published)} published; {len(answers)} answers"
        )

    return check


def judged_rows(config: str, name: str) -> Check:
    """Every reply that a judge is to score has a score: the records' n is that of the replies."""

    def check(world: World, done: Done) -> str:
        recipe = _recipe(world, config, ())
        place = world.folder / recipe.folder / "evaluation"
        records = json.loads((place / "results.json").read_text("utf-8"))
        answers = lines_of(place / "predictions.jsonl")
        node = recipe.evaluation.judges[name]
        total = sum(row["task"] in node.tasks and row["slots"] in node.slots for row in answers)
        for metric in {r["metric"] for r in records if r["metric"].endswith(f"/{name}")}:
            count = sum(r["n"] for r in records if r["metric"] == metric)
            due(count == total, f"{metric} has {count} of {total} replies")
        return f"{name}: {total} replies"

    return check


def compared(folder: str, *systems: str, published: bool = False) -> Check:
    """A page and a table in which every system has scores, and differences are there."""

    def check(world: World, done: Done) -> str:
        place = world.folder / folder
        due((place / "comparison.html").stat().st_size > 10_000, "the page is empty")
        with (place / "comparison.csv").open() as stream:
            rows = list(csv.DictReader(stream))
        kinds = Counter(row["kind"] for row in rows)
        of = {row["system"] for row in rows if row["kind"] == "score"}
        due(not systems or set(systems) == of, f"systems {sorted(of)}, {sorted(systems)} were due")
        due(kinds["difference"] > 0, f"no difference: {dict(kinds)}")
        due(not published or kinds["published"] > 0, "no published numbers")
        return ", ".join(f"{count} {kind} rows" for kind, count in kinds.items())

    return check


def tabled(config: str) -> Check:
    """Every system of a table has each column that the paper has."""

    def check(world: World, done: Done) -> str:
        from sottovoce.comparison.table_config import load
        from sottovoce.evaluation.reports.compare import COLUMNS

        with inside(world.folder):
            table = load(Path(config))
        with (world.folder / table.folder / "comparison.csv").open() as stream:
            rows = [row for row in csv.DictReader(stream) if row["kind"] == "score"]
        found = {(row["system"], row["task"], row["metric"], row["slots"]) for row in rows}
        for name, system in table.systems.items():
            due(any(key[0] == name for key in found), f"{name} has no score")
            for column in system.paper:
                due((name, *COLUMNS[column][0]) in found, f"{name} has no {column}")
            for slots, tasks in system.published.items():
                for task, metric in ((t, m) for t, scores in tasks.items() for m in scores if t != "voicebench"):
                    due((name, task, metric, slots) in found, f"{name} has no {task} {metric} {slots}")
        due(not table.picture or (world.folder / table.folder / "tokens.png").is_file(), "no picture")
        return f"{len(table.systems)} systems, {len(found)} scores, all that the paper has"

    return check


def files(*names: str) -> Check:
    """These are there, and not empty."""

    def check(world: World, done: Done) -> str:
        for name in names:
            due((world.folder / name).is_file() and (world.folder / name).stat().st_size, f"{name} is not there")
        return ", ".join(Path(name).name for name in names)

    return check


def analysed(folder: str) -> Check:
    """Five analyses of every layer, and the split."""

    def check(world: World, done: Done) -> str:
        place = world.folder / folder
        page = json.loads((place / "layers.json").read_text("utf-8"))
        due(any(place.glob("*.png")) and any(place.glob("*.html")), f"no picture or page: {list(place.iterdir())}")
        return f"{', '.join(page)}"

    return check


def exported(folder: str, source: str, config: str, *more: str) -> Check:
    """A checkpoint of the same tensors: those of tuned layers differ, and every other bit is as it was."""

    def check(world: World, done: Done) -> str:
        recipe = _recipe(world, config, more)
        old, new = _tensors(world.folder / source), _tensors(world.folder / folder)
        due(old.keys() == new.keys(), f"tensors differ: {sorted(old.keys() ^ new.keys())[:4]}")
        changed = {name for name in old if not torch.equal(old[name], new[name])}
        layers = {int(name.split(".layers.")[1].partition(".")[0]) for name in changed if ".layers." in name}
        due(changed and all(".layers." in name and "audio_tower" not in name for name in changed), sorted(changed)[:4])
        due(layers <= _tuned(recipe, 10**3), f"layers {sorted(layers)} have changed")
        return f"{len(changed)} of {len(old)} tensors changed, all in layers {recipe.llm.tuning.layers}"

    return check


def _tensors(folder: Path) -> dict[str, Tensor]:
    found = [load_file(file) for file in sorted(folder.glob("*.safetensors"))]
    return {name: weight for each in found for name, weight in each.items()}


def answers(*words: str) -> Check:
    """`chat` has answered something."""

    def check(world: World, done: Done) -> str:
        due(done.out.strip(), "no answer")
        return f"an answer of {len(done.out.split())} words"

    return check


def pretrained(config: str, *more: str) -> Check:
    """All steps are made, every tensor had gradients, and the encoder is there for recipes to name."""

    def check(world: World, done: Done) -> str:
        from sottovoce.config.best_rq import load

        recipe = load(world.folder / config, list(more))
        folder = world.folder / recipe.folder
        report = json.loads((folder / "done.json").read_text("utf-8"))
        due(report["steps"] == recipe.steps and not report["skipped"], report)
        due({"val/loss", "val/accuracy", "val/blind_loss"} <= report.keys(), report)
        moments = _moments(folder / "last.ckpt")
        encoder = load_file(folder / "encoder/conformer.safetensors")
        due(len(moments) >= len(encoder), f"{len(moments)} tensors were optimised")
        due(moments and all(bool(m.any()) for m in moments), "a tensor never had a gradient")
        return f"{report['steps']} steps, {len(encoder)} tensors of the encoder"

    return check


def benched(folder: str) -> Check:
    """VoiceBench's overall score and one for each of its nine subsets, which is a rating where answers are open."""

    def check(world: World, done: Done) -> str:
        records = json.loads((world.folder / folder / "results.json").read_text("utf-8"))
        found = {
            r["task"] for r in records if r["task"].startswith("voicebench") and r["metric"] in ("score", "rating")
        }
        due("voicebench" in found and len(found) == 10, f"scores of {sorted(found)}")
        return "VoiceBench: nine subsets and their mean"

    return check
