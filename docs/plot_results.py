"""`python docs/plot_results.py`: docs/pictures/results.svg, what each slot carries alone, from docs/results.md."""

import re
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

DOCS = Path(__file__).parent
CARRIER = {"asr": "linguistic"} | dict.fromkeys(("gender", "pitch", "tempo", "energy", "emotion"), "paralinguistic")
SYSTEMS = {"three stages": "#1f6f8b", "without ERR": "#e8a33d"}


def scores() -> dict[tuple[str, str], list[tuple[float, float, float]]]:
    """(task, slot) -> mean, lowest and highest of the seeds, for each system, in percent."""
    found = {}
    for part in (DOCS / "results.md").read_text("utf-8").split("\n## "):
        slot = re.match(r"The (\w+) slot alone", part)
        for row in (line.split("|") for line in part.splitlines() if slot and line.startswith("| ")):
            cells = [re.fullmatch(r" ([\d.]+) \(([\d.]+)-([\d.]+)\) ", cell) for cell in row[3:5]]
            if slot and all(cells):
                found[row[1].strip(), slot[1]] = [tuple(map(float, cell.groups())) for cell in cells if cell]
    return found  # type: ignore[return-value]


def main() -> None:
    table = scores()
    plt.rcParams.update({"font.family": "sans-serif", "font.size": 11, "svg.fonttype": "none", "svg.hashsalt": "0"})
    figure, axes = plt.subplots(figsize=(8, 3.2), layout="constrained")
    for offset, (number, (name, colour)) in zip((-0.2, 0.2), enumerate(SYSTEMS.items()), strict=True):
        for place, (task, slot) in enumerate(CARRIER.items()):
            mean, low, high = table[task, slot][number]
            if task == "asr":  # words right, so that more is better everywhere
                mean, low, high = 100 - mean, 100 - high, 100 - low
            label = name if place == 0 else None
            error = [[mean - low], [high - mean]]
            axes.bar(place + offset, mean, 0.36, color=colour, yerr=error, ecolor="#555", capsize=3, label=label)
    axes.set_xticks(range(len(CARRIER)), [f"{t}\n{s}" for t, s in CARRIER.items()], fontsize=9)
    axes.set_ylabel("right, % (asr: 100 - WER)")
    axes.set_ylim(0, 105)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title("A task heard through its own slot alone (mean and range of 3 seeds)", fontsize=11)
    figure.legend(frameon=False, ncols=2, loc="outside lower center")
    figure.savefig(DOCS / "pictures" / "results.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
