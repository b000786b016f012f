"""The plan of conf/starter: corpora that a newcomer can download, the dual adapter, PE-FT's rows, and made speech."""

from collections.abc import Sequence

from tests.drives.checks import compared, every_line, files, fitted, manifests, says, scored, tabled
from tests.drives.world import Step

FIT = "python -m lightning_modules.fit --config"
CORPORA = ("speechocean762", "crema_d", "emodb", "texts.txt")
PARTS = ("base.pt", "HuggingFaceTB/SmolLM2-135M-Instruct")
PROMPT = "sottovoce:data/prompts/speech_emotion_llama/spoken_feeling.txt"
ROWS = ("frozen", "selective", "full")


def _paired(corpus: str, category: str) -> list[Step]:
    return [
        Step(
            f"sottovoce targets manifests/{corpus}/{split}.jsonl --kind answers category={category}"
            f" --out manifests/{corpus}/{split}-paired.jsonl",
            (every_line(f"manifests/{corpus}/{split}-paired.jsonl", "category", "answers"),),
        )
        for split in ("train", "validation", "test")
    ]


def _recorded(side: str) -> str:
    nodes = (f"{{manifest: manifests/{corpus}/{side}.jsonl, allow: [/]}}" for corpus in ("speechocean762", "emodb"))
    return f"'data.{side}=[{', '.join(nodes)}]'"


def _felt(split: str) -> Step:
    file = f"manifests/crema_d/{split}-responses.jsonl"
    return Step(
        f"sottovoce targets manifests/crema_d/{split}.jsonl --prompt {PROMPT} --out {file}"
        " --engine openai base_url=http://server:8000/v1 model=NAME",  # a random LLM would never come to an end
        (every_line(file, "response", "labels.emotion"),),
    )


RECORDED = tuple(_recorded(side) for side in ("train", "validation", "test"))
STEPS: Sequence[Step] = [
    Step(
        "sottovoce prepare speechocean762 --source /data/speechocean762 --out manifests/speechocean762",
        (manifests("manifests/speechocean762", {"train": 11, "validation": 1, "test": 12}, ["age"]),),
    ),
    Step(
        "sottovoce prepare crema_d --source /data/crema_d --out manifests/crema_d",
        (manifests("manifests/crema_d", {"train": 21, "validation": 7, "test": 7}, ["emotion", "gender"]),),
    ),
    Step(
        "sottovoce prepare emodb --source /data/emodb --out manifests/emodb",
        (manifests("manifests/emodb", {"train": 27, "validation": 18, "test": 18}),),
    ),
    Step(f"{FIT} conf/starter/dual_adapter.yaml --dry-run", (says("what trains, what is frozen"),)),
    Step(
        f"{FIT} conf/starter/dual_adapter.yaml",
        (fitted("conf/starter/dual_adapter.yaml"), scored("conf/starter/dual_adapter.yaml")),
    ),
    Step(
        " ".join((f"{FIT} conf/starter/recorded.yaml", *RECORDED)),
        (fitted("conf/starter/recorded.yaml", *RECORDED), scored("conf/starter/recorded.yaml", *RECORDED)),
    ),
    *_paired("speechocean762", "age"),
    *_paired("crema_d", "emotion"),
    *(
        Step(
            f"{FIT} conf/starter/pe_ft_{row}.yaml",
            (fitted(f"conf/starter/pe_ft_{row}.yaml"), scored(f"conf/starter/pe_ft_{row}.yaml")),
        )
        for row in ROWS
    ),
    Step(
        "sottovoce table conf/starter/table.yaml seeds=[1]",
        (tabled("conf/starter/table.yaml"), compared("runs/starter/pe_ft", *ROWS)),
    ),
    *map(_felt, ("train", "validation", "test")),
    Step(
        f"{FIT} conf/starter/speech_emotion_llama.yaml",
        (fitted("conf/starter/speech_emotion_llama.yaml"), scored("conf/starter/speech_emotion_llama.yaml")),
    ),
    Step(
        "sottovoce speak /data/texts.txt --out made --voice female=en-us+f2 --voice male=en-us+m1",
        (every_line("made/manifest.jsonl", "text", "speaker", "labels.gender"), files("made/manifest.jsonl")),
    ),
]
