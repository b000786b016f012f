"""PE-FT on recorded children and adults: the LLM as it is, its early layers tuned, and all layers tuned.

    python benchmarks/recorded_pe_ft.py --data DIR --whisper FILE --llm FOLDER [--parts 1 2 3 4 5] [--seeds 1 2 3]
        [--systems frozen selective full] [--runs DIR] [--answers DIR]

Readers of speechocean762 alone, in the parts of recorded_people.py: nobody who is tested is in training. Each clip has
an answer to a child and one to an adult (`sottovoce targets … --kind answers category=age`); the right one hangs on
the voice, since tested texts are read by children and by adults. An adapter learns words and age under the frozen LLM
(conf/starter/pe_ft_frozen.yaml); from there LoRA learns to answer in layers 0-15 of 30 (pe_ft_selective.yaml), or in
all (pe_ft_full.yaml). `retention` are 70 prompts in text, before and after.

Answers are kept as those of recorded_people.py are, in the folder of --answers, and not trained for again.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from real_speech import PARTS, read
from recorded_people import ACTORS, DIGITS, READERS, Sides, kept
from recorded_scores import shown
from shared import read as read_json
from shared import sottovoce, table

from sottovoce.evaluation.metrics import Prediction
from sottovoce.evaluation.records import read_predictions, score_all
from sottovoce.io import atomic_write

SYSTEMS = ("frozen", "selective", "full")
METRICS = {"pa_score": "PA-score", "pa_rate": "PA-rate"}
OWN = {  # of each row; a part of all three took 50 minutes of a shared core
    "frozen": ["stages.joint.tasks={asr: 1, age: 1, gender: 0, emotion: 0}", "stages.joint.epochs=4"],
    "selective": ["stages.pe_ft.epochs=2"],
    "full": ["stages.pe_ft.epochs=2"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("data", "whisper", "llm"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/recorded_pe_ft"))
    parser.add_argument("--answers", type=Path, default=Path(__file__).with_suffix(""))
    parser.add_argument("--parts", type=int, nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=SYSTEMS)
    arguments = parser.parse_args()
    data = {name: read(arguments.data, name) for name in (*READERS, ACTORS, DIGITS)}
    rows = []
    for system in arguments.systems:
        parts = [(seed, part) for seed in arguments.seeds for part in arguments.parts]
        told = [answered(arguments, data, system, *part) for part in parts]
        scores = {record.metric: shown(record) for record in score_all("", [p for own, _ in told for p in own])}
        before, after = ([kept_right[key] for _, kept_right in told] for key in ("before", "after"))
        rows.append([
            system, *(scores[metric] for metric in METRICS),
            *(f"{100 * sum(right) / len(right):.1f}" for right in (before, after)),
        ])  # fmt: skip
    page = table(("", *METRICS.values(), "text prompts right before", "after"), rows) + "\n"
    atomic_write(arguments.runs / "results.md", page)
    print(page)


def answered(
    arguments: argparse.Namespace, data: dict[str, Any], system: str, seed: int, part: int
) -> tuple[list[Prediction], dict[str, float]]:
    """Replies to the people tested, and the shares of text prompts answered rightly; of a file if they are kept."""
    file = arguments.answers / f"{system}-{seed}-{part}.jsonl"
    text = file.with_suffix(".json")  # retention

    def make() -> list[Prediction]:
        folder = train(arguments, Sides(data, part), system, seed, part) / "evaluation"
        scores = {r["metric"]: r["value"] for r in read_json(folder / "results.json") if r["task"] == "retention"}
        share = {"before": scores["right_before"], "after": scores["right_before"] + scores["right_change"]}
        atomic_write(text, json.dumps(share) + "\n")
        return read_predictions(folder)

    return kept(file, make), read_json(text)


def train(arguments: argparse.Namespace, side: Sides, system: str, seed: int, part: int) -> Path:
    """Train a row after those it begins with, or find it finished; returns its folder."""
    runs = arguments.runs / f"part-{part}"
    base = [f"output_dir={runs}", f"seed={seed}", f"encoder.checkpoint={arguments.whisper}"]
    base += [f"llm.checkpoint={arguments.llm}", "compile=true", *manifests(arguments, side, runs)]
    for row in dict.fromkeys(("frozen", system)):
        sottovoce("fit", "--config", f"sottovoce:conf/starter/pe_ft_{row}.yaml", *base, *OWN[row])
    return runs / "starter/pe_ft" / f"seed-{seed}" / system


def manifests(arguments: argparse.Namespace, side: Sides, runs: Path) -> list[str]:
    """Readers with an age, and the answer to each, as the sides of a recipe."""
    texts = {row["audio"]: row["text"].lower() for name in READERS for row in read(arguments.data, name)}
    overrides = []
    for name in ("train", "validation", "test"):
        lines = [
            {
                **line, "audio": str(arguments.data.resolve() / line["id"]), "text": texts[line["id"]],
                "labels": {"age": line["labels"]["age"]},
            }
            for line in getattr(side, name)["readers"] if "age" in line["labels"]
        ]  # fmt: skip
        file, paired = runs / f"{name}.jsonl", runs / f"{name}-paired.jsonl"
        text = "".join(json.dumps(line) + "\n" for line in lines)
        if not paired.is_file() or file.read_text("utf-8") != text:
            atomic_write(file, text)
            paired.unlink(missing_ok=True)
            sottovoce("targets", str(file), "--kind", "answers", "category=age", "--out", str(paired))
        tasks = ["response"] if name == "test" else ["asr", "age", "response"]
        node = {"manifest": str(paired), "tasks": tasks, "allow": ["/"]}
        overrides.append(f"data.{name}={json.dumps([node])}")
    return overrides


if __name__ == "__main__":
    main()
