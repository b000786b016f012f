"""The plans: for every published recipe, the documented commands in the documented order, and what each must leave."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from tests.drives import starter
from tests.drives.checks import (
    analysed,
    answers,
    benched,
    compared,
    every_line,
    exported,
    files,
    fitted,
    judged_rows,
    manifests,
    pretrained,
    says,
    scored,
    tabled,
)
from tests.drives.server import MODELS, Mood
from tests.drives.world import Check, Step, recipes_in

FIRST, SECOND = MODELS  # addresses of the servers
GONE: Mapping[str, Mood] = {FIRST: "absent", SECOND: "locked"}
TROUBLED: Mapping[str, Mood] = {FIRST: "troubled", SECOND: "troubled"}
FIT = "python -m lightning_modules.fit --config"
DDP = "trainer.devices=2 trainer.strategy=ddp"
ZERO_2 = "trainer.devices=2 trainer.strategy=deepspeed_stage_2"
CLIP = "manifests/librispeech/source/test-clean/4/7/4-7-0000.flac"
EMOTIONS = (
    "[neutral, angry, disgusted, fearful, happy, sad, bored, confused, sarcastic, laughing, projected, sleepy, whisper]"
)
MEASURED = ("labels.pitch", "labels.tempo", "labels.energy")
TRAINED = ("baseline_1", "baseline_2", "v1", "v2", "v3")
TUNED = ("frozen", "selective", "full", "selective_adch", "full_adch")
VOICEBENCH_RUN = (
    f"{FIT} conf/pe_ft/qwen2_5_omni_vanilla.yaml name=pe_ft_voicebench evaluation.voicebench.manifests="
    'manifests/voicebench evaluation.voicebench.engine=\'{type: openai, base_url: "http://server:8000/v1", '
    "model: gpt-4o-mini}' evaluation.voicebench.max_new_tokens=16"
)
OMNI, KIMI, QWEN2_AUDIO = "Qwen/Qwen2.5-Omni-7B", "moonshotai/Kimi-Audio-7B-Instruct", "Qwen/Qwen2-Audio-7B-Instruct"


@dataclass(frozen=True)
class Plan:
    """Commands of some recipes, after those of the plans in `needs`; `parts` and `corpora` must be there."""

    name: str
    recipes: tuple[str, ...]  # patterns, such as conf/pe_ft/full*.yaml
    steps: Sequence[Step]
    needs: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    corpora: tuple[str, ...] = ()
    recordings: bool = False
    own_data: bool = False

    def drives(self, recipe: str) -> bool:
        return any(fnmatch(recipe, pattern) for pattern in self.recipes)


def _trained(config: str, *more: str, moods: Mapping[str, Mood] = {}, judged: bool = False, said: str = "") -> Step:
    """`fit`, its weights and its scores."""
    words = " ".join([FIT, config, *more])
    checks: tuple[Check, ...] = (fitted(config, *more), scored(config, *more, judged=judged))
    return Step(words, (*checks, says(said)) if said else checks, moods)


def _tried(config: str) -> Step:
    return Step(f"{FIT} {config} --dry-run", (says("what trains, what is frozen"),))


CORPORA = Plan(
    "corpora",
    (),
    [
        Step(
            "sottovoce prepare librispeech --source /data/LibriSpeech --out manifests/librispeech",
            (
                manifests(
                    "manifests/librispeech",
                    {"train": 12, "validation": 4, "test-clean": 2, "test-other": 2},
                    ["gender"],
                ),
            ),
        ),
        *(
            Step(
                f"sottovoce label manifests/librispeech/{split}.jsonl"
                f" --out manifests/librispeech/{split}-labelled.jsonl --allow / --workers 1",
                (every_line(f"manifests/librispeech/{split}-labelled.jsonl", *MEASURED),),
            )
            for split in ("train", "validation")
        ),
        Step(
            "sottovoce prepare textrolspeech --source /data/TextrolSpeech --out manifests/textrolspeech",
            (
                manifests("manifests/textrolspeech", {"train": 12, "validation": 2, "test": 2}),
                *(
                    every_line(f"manifests/textrolspeech/{split}.jsonl", "caption", *map("labels.{}".format, names))
                    for names in [("gender", "pitch", "tempo", "energy", "emotion")]
                    for split in ("train", "validation", "test")
                ),
            ),
        ),
        Step(
            "sottovoce prepare meld --source /data/MELD.Raw --out manifests/meld ffmpeg=FFMPEG",
            (manifests("manifests/meld", {"train": 3, "validation": 3, "test": 3}, ["emotion"]),),
        ),
        Step(
            "sottovoce prepare styletalk --source /data/StyleTalk --out manifests/styletalk",
            (
                manifests("manifests/styletalk", {"train": 18, "validation": 2, "test": 6, "test-reversed": 6}),
                every_line("manifests/styletalk/train.jsonl", "caption", "context"),
            ),
        ),
        Step(
            "sottovoce prepare dailytalk --source /data/dailytalk --out manifests/dailytalk",
            (manifests("manifests/dailytalk", {"train": 7, "validation": 2}, ["gender", "emotion"]),),
        ),
    ],
    corpora=("LibriSpeech", "TextrolSpeech", "MELD.Raw", "StyleTalk", "dailytalk"),
)

VOICEBENCH = Plan(
    "voicebench",
    (),
    [
        Step(
            "sottovoce prepare voicebench --source /data/voicebench --out manifests/voicebench",
            (manifests("manifests/voicebench", {"alpacaeval_full": 2, "commoneval": 2, "sd-qa-usa": 2, "ifeval": 2}),),
        )
    ],
    corpora=("voicebench",),
)

DUAL_ADAPTER = Plan(
    "dual_adapter",
    ("conf/dual_adapter.yaml",),
    [
        _tried("conf/dual_adapter.yaml"),
        Step(
            "sottovoce estimate --config conf/dual_adapter.yaml --gpu h100 --utterances 240000 --seconds 6",
            (says("GB"),),
        ),
        _trained("conf/dual_adapter.yaml", moods=GONE, said="sottovoce judge runs/dual_adapter"),
        Step("sottovoce judge runs/dual_adapter", moods=TROUBLED),
        Step(
            "sottovoce judge runs/dual_adapter",
            (
                scored("conf/dual_adapter.yaml", judged=True),
                judged_rows("conf/dual_adapter.yaml", "qwen"),
                judged_rows("conf/dual_adapter.yaml", "llama"),
                says("As published"),
            ),
        ),
        Step(
            "sottovoce evaluate runs/dual_adapter --stage disentangle",
            (scored("conf/dual_adapter.yaml", folder="evaluation/disentangle"),),
        ),
        Step(f"sottovoce chat runs/dual_adapter/bundle --once --audio {CLIP}", (answers(),)),
        _trained("conf/dual_adapter.yaml", "name=dual_adapter_ddp", *DDP.split(), judged=True),
        _trained("conf/dual_adapter.yaml", "name=dual_adapter_zero2", *ZERO_2.split(), judged=True),
        Step(
            "sottovoce compare runs/dual_adapter runs/dual_adapter_ddp runs/dual_adapter_zero2",
            (compared("runs/comparison", "dual_adapter", "dual_adapter_ddp", "dual_adapter_zero2", published=True),),
        ),
    ],
    ("corpora",),
    ("large-v3.pt", "Qwen/Qwen2.5-7B-Instruct"),
)  # fmt: skip

OTHER_LLMS = Plan(
    "other_llms",
    ("conf/dual_adapter_llama.yaml", "conf/dual_adapter_32b.yaml"),
    [
        _tried("conf/dual_adapter_llama.yaml"),
        _trained("conf/dual_adapter_llama.yaml", moods=TROUBLED, judged=True),
        _tried("conf/dual_adapter_32b.yaml"),
        _trained("conf/dual_adapter_32b.yaml", "trainer.devices=2", "trainer.strategy=deepspeed_stage_3", judged=True),
    ],
    ("corpora",),
    ("large-v3.pt", "meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen2.5-32B-Instruct"),
)

STYLETALK = Plan(
    "qwen2_audio_styletalk",
    ("conf/qwen2_audio_styletalk.yaml",),
    [_trained("conf/qwen2_audio_styletalk.yaml", judged=True)],
    ("corpora",),
    (QWEN2_AUDIO,),
)

TABLE_IV = Plan(
    "dual_adapter_table",
    ("conf/table_dual_adapter.yaml",),
    [Step("sottovoce table conf/table_dual_adapter.yaml", (tabled("conf/table_dual_adapter.yaml"),))],
    ("dual_adapter", "other_llms", "qwen2_audio_styletalk"),
    ("large-v3.pt", "Qwen/Qwen2.5-7B-Instruct", "meta-llama/Llama-3.1-8B-Instruct", QWEN2_AUDIO),
)

PRETRAINING = Plan(
    "best_rq",
    ("conf/best_rq.yaml", "conf/best_rq_small.yaml"),
    [
        Step(
            "sottovoce prepare librispeech --source /data/LibriSpeech --out manifests/speech",
            (manifests("manifests/speech", {"train": 12, "validation": 4}),),
        ),
        Step("sottovoce pretrain --config conf/best_rq.yaml --dry-run", (says("trains, is kept"),)),
        Step("sottovoce pretrain --config conf/best_rq.yaml", (pretrained("conf/best_rq.yaml"),)),
        *(
            Step(
                f"sottovoce pretrain --config conf/best_rq.yaml name=best_rq_{name} {how}",
                (pretrained("conf/best_rq.yaml", f"name=best_rq_{name}", *how.split()),),
            )
            for name, how in (("ddp", DDP), ("zero2", ZERO_2))
        ),
        Step(
            "sottovoce pretrain --config conf/best_rq_small.yaml "
            "data.train='[{folder: /data/LibriSpeech/train-clean-100}]' "
            "data.validation='[{folder: /data/LibriSpeech/dev-clean}]'",
            (pretrained("conf/best_rq_small.yaml"),),
        ),
    ],
    corpora=("LibriSpeech",),
)

EXPRESSIVE = Plan(
    "expressive",
    (),
    [
        Step(
            "sottovoce prepare expresso --source /data/expresso --out manifests/expressive"
            f" hold_out='{{validation: [ex03], test: [ex04]}}' emotions='{EMOTIONS}'",
            (
                manifests("manifests/expressive", {"train": 38, "validation": 18, "test": 18}, ["emotion", "gender"]),
                every_line("manifests/expressive/test.jsonl", "labels.emotion", "text"),
            ),
        ),
        Step(
            "sottovoce prepare librispeech --source /data/LibriSpeech --out manifests/aligned",
            (manifests("manifests/aligned", {"train": 12, "validation": 4}),),
        ),
        *(
            Step(
                "sottovoce targets manifests/expressive/test.jsonl --out manifests/expressive/targets.jsonl"
                " --kind response --engine openai base_url=http://server:8000/v1 model=NAME",
                checks, moods, code,
            )
            for moods, code, checks in (
                (GONE, 2, ()),
                (TROUBLED, 0, ()),
                ({}, 0, (says("18 targets"), every_line("manifests/expressive/targets.jsonl", "response"))),
            )
        ),
        Step(
            "sottovoce targets manifests/expressive/targets.jsonl --out manifests/expressive/both.jsonl"
            " --kind plain --engine openai base_url=http://server:8000/v1 model=NAME",
            (says("18 targets"), every_line("manifests/expressive/both.jsonl", "response", "responses.plain")),
        ),
    ],
    corpora=("expresso", "LibriSpeech"),
)  # fmt: skip

TABLE_8B = Plan(
    "speech_emotion_llama",
    ("conf/speech_emotion_llama/*.yaml",),
    [
        _tried("conf/speech_emotion_llama/baseline_1.yaml"),
        *(
            Step(
                "sottovoce table conf/speech_emotion_llama/table_8b.yaml engine.base_url=http://server:8000/v1",
                checks, moods,
            )
            for moods, checks in (
                (TROUBLED, tuple(fitted(f"conf/speech_emotion_llama/{name}.yaml") for name in TRAINED)),
                (
                    {},
                    (
                        tabled("conf/speech_emotion_llama/table_8b.yaml"),
                        *(
                            scored(f"conf/speech_emotion_llama/{name}.yaml")
                            for name in (*TRAINED, "cascade_1", "cascade_2")
                        ),
                    ),
                ),
            )
        ),
    ],
    ("expressive", "best_rq"),
    ("meta-llama/Meta-Llama-3-8B-Instruct", "roberta-large"),
)  # fmt: skip

TABLE_DEMO = Plan(
    "speech_emotion_llama_demo",
    ("conf/speech_emotion_llama/demo/*.yaml", "conf/speech_emotion_llama/table.yaml"),
    [
        Step(
            "sottovoce table conf/speech_emotion_llama/table.yaml seeds=[1]",
            (tabled("conf/speech_emotion_llama/table.yaml"),),
        ),
        Step(f"{FIT} conf/speech_emotion_llama/demo/v3.yaml seed=1", (says("is done"),)),
    ],
)

PAIRED = Plan(
    "paired_data",
    ("conf/paired_data.yaml",),
    [
        Step("sottovoce paired --config conf/paired_data.yaml --dry-run", (says("held_out: 70 texts"),)),
        *(
            Step(
                "sottovoce paired --config conf/paired_data.yaml writer.engine.base_url=http://server:8000/v1"
                " synthesizer.base_url=http://server:8001/v1",
                checks, moods, code,
            )
            for moods, code, checks in (
                (GONE, 2, ()),
                (TROUBLED, 0, ()),
                (
                    {}, 0,
                    (
                        manifests("manifests/pe_ft", {"train": 24, "validation": 6, "test": 12, "held_out": 140}),
                        *(
                            every_line(f"manifests/pe_ft/{split}.jsonl", "response", "answers", "category", "topic")
                            for split in ("train", "validation", "test", "held_out")
                        ),
                    ),
                ),
            )
        ),
    ],
)  # fmt: skip

PAIRED_DEMO = Plan(
    "paired_data_demo",
    ("conf/paired_data_demo.yaml",),
    [
        Step(
            "sottovoce paired --config conf/paired_data_demo.yaml",
            (every_line("paired_demo/train.jsonl", "response"), files("paired_demo/held_out.jsonl")),
        )
    ],
)


def _audio_llm(kind: str, checkpoint: str, *more: str) -> Plan:
    """A finished audio LLM: as it is, tuned, compared, exported; the paper's table; layers by its own analysis."""
    run, config = f"runs/pe_ft_{kind}", f"conf/pe_ft/{kind}"
    table, runs = f"conf/pe_ft/table_{kind}.yaml", f"{run}_table/seed-0"
    auto = (
        f"name=pe_ft_{kind}_table/seed-0/auto",
        "llm.tuning.layers=auto",
        f"llm.tuning.analysis={runs}/vanilla/analysis/layers.json",
        "auxiliary_head.layer=LAST",
        "published=null",
    )
    beside = [f"{runs}/{name}" for name in ("vanilla", "pe_ft", "layers_all", "auto")]
    steps = [
        _trained(f"{config}_vanilla.yaml", moods=GONE, said=f"sottovoce judge {run}_vanilla"),
        Step(
            f"sottovoce judge {run}_vanilla evaluation.awareness.engine.base_url=http://server:8000/v1",
            (scored(f"{config}_vanilla.yaml", judged=True),),
            TROUBLED,
        ),
        _tried(f"{config}.yaml"),
        _trained(f"{config}.yaml", judged=True),
        Step(f"sottovoce compare {run}_vanilla {run}", (compared("runs/comparison", published=kind != "qwen2_audio"),)),
        Step(
            f"sottovoce export {run}/bundle --out exported/{kind}",
            (exported(f"exported/{kind}", checkpoint, f"{config}.yaml"),),
        ),
        Step(f"sottovoce table {table}", (tabled(table), compared(f"{run}_table"))),
        Step(
            f"sottovoce analyze {runs}/vanilla/bundle --config conf/analysis.yaml manifest=manifests/pe_ft/train.jsonl",
            (analysed(f"{runs}/vanilla/analysis"),),
        ),
        _trained(f"{config}.yaml", *auto, judged=True),
        Step(f"sottovoce compare {' '.join(beside)}", (compared(f"{runs}/comparison"),)),
    ]
    if kind == "qwen2_5_omni":
        steps.append(Step(VOICEBENCH_RUN, (benched("runs/pe_ft_voicebench/evaluation"),), {FIRST: "troubled"}))
    needs = ("paired_data", *(("voicebench",) if kind == "qwen2_5_omni" else ()))
    return Plan(kind, (f"{config}.yaml", f"{config}_*.yaml", table), steps, needs, (checkpoint, *more))


PE_FT_DEMO = Plan(
    "pe_ft_demo",
    tuple(
        f"conf/pe_ft/{name}.yaml"
        for name in ("_aligned", "_tuned", "frozen", "selective", "selective_adch", "full", "full_adch", "late")
    ),
    [
        *(
            _trained(f"conf/pe_ft/{name}.yaml", "seed=1")
            for name in ("_aligned", *TUNED, "late")
        ),
        Step(
            "sottovoce analyze runs/pe_ft/seed-1/aligned/bundle --config conf/analysis.yaml limit=24",
            (analysed("runs/pe_ft/seed-1/aligned/analysis"),),
        ),
        Step(
            "sottovoce compare "
            + " ".join(f"runs/pe_ft/seed-1/{name}" for name in TUNED),
            (compared("runs/pe_ft/seed-1/comparison", *TUNED),),
        ),
        Step(
            "sottovoce export runs/pe_ft/seed-1/selective/bundle --out exported/selective",
            (files("exported/selective/model.safetensors"),),
        ),
    ],
)  # fmt: skip

QUICKSTART = Plan(
    "quickstart",
    ("conf/quickstart.yaml", "conf/analysis.yaml"),
    [
        _trained("conf/quickstart.yaml"),
        Step(f"sottovoce chat runs/quickstart/bundle --once --audio {CLIP}", (answers(),)),
        Step(
            "sottovoce analyze runs/quickstart/bundle --config conf/analysis.yaml",
            (analysed("runs/quickstart/analysis"),),
        ),
        Step(
            "sottovoce diagnose runs/quickstart --limit 40",
            (files(*(f"runs/quickstart/diagnosis/diagnosis.{kind}" for kind in ("json", "md"))),),
        ),
    ],
    ("corpora",),
)

REAL_AGE = Plan(
    "real_age",
    ("conf/real_age.yaml",),
    [
        _trained(
            "conf/real_age.yaml",
            *(f"'data.{split}=[{{manifest: {split}.jsonl}}]'" for split in ("train", "validation", "test")),
        )
    ],
    recordings=True,
)

OWN_DATA = Plan(  # docs/data_formats.md, "From a folder to scores"
    "own_data",
    (),
    [
        Step(
            "sottovoce manifest wavs --out mine --label age=age_group --split-by speaker --validation 0.2 --test 0.2",
            (
                every_line("mine/train.jsonl", "speaker", "labels.age"),
                files("mine/validation.jsonl", "mine/test.jsonl"),
            ),
        ),
        Step(
            "sottovoce fit --config age.yaml", (fitted("age.yaml"), scored("age.yaml"), files("runs/age/report.html"))
        ),
        Step("sottovoce show runs/age --wrong", (says("of 6 answers"),)),
        Step("sottovoce predict runs/age/bundle wavs --task age --out ages.csv", (files("ages.csv"),)),
        Step("sottovoce chat runs/age/bundle --audio wavs/a1.wav --task age --once", (answers(),)),
    ],
    own_data=True,
)

STARTER = Plan("starter", ("conf/starter/*.yaml",), starter.STEPS, ("corpora",), starter.PARTS, starter.CORPORA)

PLANS = {
    plan.name: plan
    for plan in (
        CORPORA, DUAL_ADAPTER, OTHER_LLMS, STYLETALK, TABLE_IV, PAIRED, VOICEBENCH, _audio_llm("qwen2_5_omni", OMNI),
        _audio_llm("kimi_audio", KIMI, "THUDM/glm-4-voice-tokenizer"), _audio_llm("qwen2_audio", QWEN2_AUDIO),
        PRETRAINING, EXPRESSIVE, TABLE_8B, QUICKSTART, PE_FT_DEMO, PAIRED_DEMO, TABLE_DEMO, REAL_AGE, OWN_DATA, STARTER,
    )
}  # fmt: skip


def unknown(conf: Path) -> list[str]:
    """Recipes that no plan drives."""
    return [name for name in recipes_in(conf) if not any(plan.drives(name) for plan in PLANS.values())]


def in_order(names: Sequence[str]) -> list[Plan]:
    """These plans after all that they need."""
    found: dict[str, Plan] = {}
    for name in names:
        for plan in (*in_order(PLANS[name].needs), PLANS[name]):
            found[plan.name] = plan
    return list(found.values())
