"""Train the quickstart over several seeds, with and without ERR, and write docs/results.md.

    python benchmarks/results.py --seeds 1 2 3

For each seed: the whole curriculum; its stage 1 alone; and the same curriculum without ERR, from the same stage 1.
"""

import argparse
import shutil
import statistics
from pathlib import Path

from shared import cell, origin, read, sottovoce, table

RUNS = Path("runs/results")
LATER = "# PE-FT on the embedded default"  # the part of the document that benchmarks/pe_ft.py writes
SYSTEMS = ("three stages", "stages without ERR", "stage 1 only")
ROWS = [("asr", "wer"), *((task, "balanced_accuracy") for task in ("gender", "pitch", "tempo", "energy", "emotion"))]
ROWS += [("dialogue", "emotion_fit"), ("dialogue", "rouge_l")]
METRICS = {"wer": "WER", "balanced_accuracy": "balanced accuracy", "emotion_fit": "fits", "rouge_l": "ROUGE-L"}
WANTED = {  # of the three stages; a slot alone is to be as good at its own tasks (WER within 1 point, others within 5)
    ("asr", "wer"): "at most 10", ("gender", "balanced_accuracy"): "95", ("dialogue", "emotion_fit"): "85",
    **{(task, "balanced_accuracy"): "85" for task in ("pitch", "tempo", "energy", "emotion")},
}  # fmt: skip
SLOTS = ("both", "paralinguistic", "linguistic", "text")
Scores = dict[tuple[str, str, str], float]  # (task, metric, slots) -> value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--out", type=Path, default=Path("docs/results.md"))
    arguments = parser.parse_args()
    scores: dict[str, list[Scores]] = {system: [] for system in SYSTEMS}
    for seed in arguments.seeds:
        whole, plain = RUNS / f"err-{seed}", RUNS / f"plain-{seed}"
        fit(whole, seed)
        sottovoce("evaluate", str(whole), "--stage", "joint")
        if not (plain / "stages").is_dir():  # the same stage 1, so that only ERR differs
            shutil.copytree(whole / "stages" / "1-joint", plain / "stages" / "1-joint")
        fit(plain, seed, "stages.disentangle.err=null", "stages.holistic.err=null")
        scores["three stages"].append(scores_of(whole / "evaluation"))
        scores["stages without ERR"].append(scores_of(plain / "evaluation"))
        scores["stage 1 only"].append(scores_of(whole / "evaluation" / "joint"))
    kept = "".join(arguments.out.read_text("utf-8").partition(LATER)[1:]) if arguments.out.is_file() else ""
    text = page(scores, arguments.seeds, RUNS / f"err-{arguments.seeds[0]}")
    arguments.out.write_text(f"{text}\n{kept}" if kept else text, "utf-8")


def fit(folder: Path, seed: int, *overrides: str) -> None:
    """Train a run, or find it finished."""
    run = f"output_dir={folder.parent}", f"name={folder.name}", f"seed={seed}"
    sottovoce("fit", "--config", "conf/quickstart.yaml", *run, *overrides)


def scores_of(folder: Path) -> Scores:
    return {(r["task"], r["metric"], r["slots"]): r["value"] for r in read(folder / "results.json")}


def page(scores: dict[str, list[Scores]], seeds: list[int], run: Path) -> str:
    """The document: a table a choice of slots, systems side by side, mean and range over seeds."""
    n = {r["n"] for r in read(run / "evaluation" / "results.json")}
    head = f"""# Results on the embedded default

{origin("results.py", seeds, run)}, commit {str(read(run / "environment.json")["commit"])[:12]}.
Test side: {", ".join(map(str, sorted(n)))} utterances of speakers and sentences
that neither the adapters nor the frozen parts have met. Each cell is the mean over {len(seeds)} seeds
(lowest to highest), in percent; for the word error rate less is better. `fits` is the share of replies that fit the
speaker's emotion.

Three systems: all three stages; the same stages without ERR, from the same stage 1; and stage 1 alone, which hears
everything, but not where it should: without one slot it loses what the other is supposed to carry. The last table says
how far ERR undoes that. A small synthetic world shows the mechanism; the paper's systems have not been trained here.
The seed draws data, initial weights and order; the frozen parts are the same.
"""
    return "\n".join([head, *(under(scores, slots) for slots in SLOTS), spread(scores)])


def under(scores: dict[str, list[Scores]], slots: str) -> str:
    """All metrics of the systems under one choice of slots."""
    told = {
        "both": "Both slots",
        "paralinguistic": "The paralinguistic slot alone",
        "linguistic": "The linguistic slot alone",
        "text": "Text in place of speech (the topline; the same for all systems)",
    }
    systems = SYSTEMS[:1] if slots == "text" else SYSTEMS
    goals = int(slots == "both")  # whether there is a column of what was wanted
    rows = []
    for task, metric in ROWS:
        wanted = [WANTED.get((task, metric), "")] * goals
        cells = [cell([100 * s[task, metric, slots] for s in scores[system]]) for system in systems]
        rows.append([task, METRICS[metric], *wanted, *cells])
    return f"## {told[slots]}\n\n{table(['task', 'metric', *['wanted'] * goals, *systems], rows, 2)}\n"


def spread(scores: dict[str, list[Scores]]) -> str:
    """What taking the other slot away costs: the entanglement that ERR is there to undo."""
    rows = []
    for task, metric in ROWS[:6]:
        alone, sign = ("linguistic", 100) if task == "asr" else ("paralinguistic", -100)
        lost = [[s[task, metric, alone] - s[task, metric, "both"] for s in scores[system]] for system in SYSTEMS]
        rows.append([task, *(f"{sign * statistics.mean(points):.1f}" for points in lost)])
    return f"""## What the slot that does not carry the task is worth

Points lost when it is taken away, the mean over seeds; near 0 is disentangled.

{table(["task", *SYSTEMS], rows)}
"""


if __name__ == "__main__":
    main()
