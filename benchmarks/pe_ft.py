"""PE-FT on the embedded default over several seeds: the last part of docs/results.md, and a comparison page.

    python benchmarks/pe_ft.py --seeds 1 2 3

For each seed: the model that answers by content alone (conf/pe_ft/_aligned.yaml), then from it, on the same paired
data: nothing tuned, the first four layers of seven, all of them, both again with the auxiliary head, and the last four
layers. What the choice of layers is worth is also asked with fewer of them: the first three and the last three, the
first two and the last two. The layers of the first seed's model are analysed, too. Runs that are finished are used as
they are.
"""

import argparse
import statistics
import textwrap
from pathlib import Path

import numpy as np
from shared import cell, origin, read, sottovoce, table

from sottovoce.evaluation.awareness import groups
from sottovoce.evaluation.bootstrap import bootstrap, ratio
from sottovoce.evaluation.records import read_predictions

RUNS = Path("runs/pe_ft")
SYSTEMS = ("frozen", "selective", "full", "selective_adch", "full_adch", "late")
WANTED = {"age": 95, "gender": 95, "emotion": 75, "child safety": 95}  # PA-rate after selective tuning, in percent
LAYERS = {"layers-0-2": "0-2", "layers-4-6": "4-6", "layers-0-1": "0-1", "layers-5-6": "5-6"}  # as `selective`, fewer
EARLY_AND_LATE = (("selective", "late", 4), ("layers-0-2", "layers-4-6", 3), ("layers-0-1", "layers-5-6", 2))
TITLE = "# PE-FT on the embedded default"  # what stands before it in the document is not ours


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=SYSTEMS)
    parser.add_argument("--out", type=Path, default=Path("docs/results.md"))
    arguments = parser.parse_args()
    for seed in arguments.seeds:
        runs = {system.removeprefix("_"): [f"conf/pe_ft/{system}.yaml"] for system in ("_aligned", *arguments.systems)}
        for name, layers in LAYERS.items():
            runs[name] = ["conf/pe_ft/selective.yaml", f"name=pe_ft/seed-{seed}/{name}", f"llm.tuning.layers={layers}"]
        for name, recipe in runs.items():
            if not (RUNS / f"seed-{seed}" / name / "evaluation/results.json").is_file():
                sottovoce("fit", "--config", *recipe, f"seed={seed}")
    first = RUNS / f"seed-{arguments.seeds[0]}"
    if not (first / "aligned/analysis/layers.json").is_file():
        manifest = next(Path(".cache/sottovoce/corpora").glob("paired_world-*-test-*-pairs*")) / "manifest.jsonl"
        sottovoce("analyze", str(first / "aligned/bundle"), "--config", "conf/analysis.yaml", f"manifest={manifest}")
    compared = [str(RUNS / f"seed-{seed}" / system) for system in arguments.systems for seed in arguments.seeds]
    sottovoce("compare", *compared, "--out", str(RUNS / "comparison"))
    before = arguments.out.read_text("utf-8").partition(TITLE)[0] if arguments.out.is_file() else ""
    arguments.out.write_text(before + page(arguments.seeds, arguments.systems), "utf-8")


def page(seeds: list[int], systems: list[str]) -> str:
    """The document: every score of every system, the mean over seeds with the lowest and the highest."""
    runs = {system: [RUNS / f"seed-{seed}" / system for seed in seeds] for system in systems}
    scored: list[tuple[str, object, str, str]] = []
    for task, wanted in WANTED.items():
        scored += (f"{task}, PA-score", "", task, "pa_score"), (f"{task}, PA-rate", wanted, task, "pa_rate")
    scored.append(("text retention, right before", "", "retention", "right_before"))
    scored.append(("change of it", "", "retention", "right_change"))
    rows = [
        [name, goal, *(cell([100 * score(run, task, metric) for run in own], " to ") for own in runs.values())]
        for name, goal, task, metric in scored
    ]
    for key, name in (("trainable", "trained parameters"), ("seconds_per_step", "seconds a step, for orientation")):
        rows.append([name, "", *(costs(own, key) for own in runs.values())])
    split = read(RUNS / f"seed-{seeds[0]}" / "aligned/analysis/layers.json")["words"]
    text = f"`sottovoce analyze` (conf/analysis.yaml, paired test side), seed {seeds[0]}'s aligned model: {split}"
    return f"""{TITLE}

{origin("pe_ft.py", seeds, runs[systems[0]][0])}. In percent; each cell is the mean over {len(seeds)} seeds (lowest to
highest). PA-score is the mean of the rule judge's labels -1, 0, +1; PA-rate the share of +1 (docs/pe_ft.md).
Child safety: topics that no paired training text is about; the child's side.

{table(["", "wanted", *systems], rows)}

{textwrap.fill(text, 118)}

## Early layers or late ones

PA-rate and change of text retention, mean of {len(seeds)} seeds. The last rows of each pair are first minus
last, in points, with the 95 % interval over test utterances, each with the mean of its seeds.

{choice(seeds)}
"""


def choice(seeds: list[int]) -> str:
    """What the choice of layers is worth: as many first as last ones, on the same test utterances."""
    rows = []
    for early, late, count in EARLY_AND_LATE:
        for system, name in ((early, "first"), (late, "last")):
            runs = [RUNS / f"seed-{seed}" / system for seed in seeds]
            values = [statistics.mean(100 * score(run, task, "pa_rate") for run in runs) for task in WANTED]
            values.append(statistics.mean(100 * statistics.mean(hits_of(run, None).values()) for run in runs))
            values.append(statistics.mean(100 * score(run, "retention", "right_change") for run in runs))
            rows.append([f"{name} {count}", *(f"{value:.1f}" for value in values)])
        rows.append(["difference", *(difference(seeds, early, late, task) for task in (*WANTED, None)), ""])
    return table(["tuned, of 7", *WANTED, "all replies", "retention"], rows)


def hits_of(run: Path, task: str | None) -> dict[str, float]:
    """1 for each test utterance whose reply is right for its speaker, else 0; of one task, or of all replies."""
    found = groups(read_predictions(run / "evaluation"))
    return {p.id: float(p.awareness == 1) for group in found if task in (None, group.name) for p in group.rows}


def difference(seeds: list[int], early: str, late: str, task: str | None) -> str:
    pairs = [(hits_of(RUNS / f"seed-{s}" / early, task), hits_of(RUNS / f"seed-{s}" / late, task)) for s in seeds]
    rows = np.array([[statistics.mean(one[i] - other[i] for one, other in pairs), 1.0] for i in pairs[0][0]])
    low, high = bootstrap(rows, ratio)
    return f"{100 * rows[:, 0].mean():.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def score(run: Path, task: str, metric: str) -> float:
    return next(r["value"] for r in read(run / "evaluation/results.json") if (r["task"], r["metric"]) == (task, metric))


def costs(runs: list[Path], key: str) -> str:
    """Mean over runs of what the only stage's report says; 0 where nothing was trained."""
    known = [float(read(file)[key]) for run in runs for file in run.glob("stages/*/done.json")]
    middle = statistics.mean(known) if known else 0.0
    return f"{middle:,.0f}" if middle >= 100 else f"{middle:.2g}"


if __name__ == "__main__":
    main()
