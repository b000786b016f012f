"""The paper's recipe asks for what the documented commands write, and for nothing else."""

import re
import shlex
from collections import Counter
from pathlib import Path

import pytest
import soundfile
from tests.helpers.corpora import FFMPEG, dailytalk, librispeech, meld, style_row, styletalk, table, textrolspeech, tone

from sottovoce.cli.main import main
from sottovoce.config import recipe as recipes
from sottovoce.data.batch_sampler import BatchSampler
from sottovoce.data.corpora import CORPORA
from sottovoce.data.corpora.published import Published
from sottovoce.data.examples import slot_text
from sottovoce.lightning_modules.run import example_sampler_of
from sottovoce.training.splits import build_tasks, read_splits
from sottovoce.training.stage_rows import count_draws, stage_rows

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
RECIPE = CONF / "dual_adapter.yaml"


def documented() -> list[list[str]]:
    """The commands of docs/corpora.md that make what the recipe reads."""
    _, _, after = (ROOT / "docs/corpora.md").read_text("utf-8").partition("## Those of the dual-adapter paper")
    return [shlex.split(line) for line in re.findall(r"(?m)^    sottovoce (.+)$", after.partition("\n## ")[0])]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Miniature corpora, and the documented commands on them."""
    home = tmp_path_factory.mktemp("corpora")
    librispeech(home / "librispeech")
    table(home / "textrolspeech/caption/random_train.csv", textrolspeech(home / "textrolspeech"))
    meld(home / "meld")
    (home / "tone.raw").write_bytes(soundfile.read(tone(home / "tone.flac"), dtype="int16")[0].tobytes())
    (home / "ffmpeg").write_text(FFMPEG)
    (home / "ffmpeg").chmod(0o755)
    styletalk(home / "styletalk", [style_row("music_1", 0), style_row("music_1", 1)])
    dailytalk(home / "dailytalk", {"0": [1, 0, 1], "23": [0, 1]})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        for command, name, *options in documented():
            if command == "prepare":
                options[options.index("--source") + 1] = name
                options += [f"ffmpeg={home / 'ffmpeg'}"] if name == "meld" else []
            assert main([command, name, *options]) == 0
    return home


@pytest.mark.parametrize("name", ["dual_adapter", "dual_adapter_llama"])
def test_every_manifest_is_a_split_that_a_corpus_writes(name: str) -> None:
    """Or its labelled copy."""
    data = recipes.load(CONF / f"{name}.yaml").data
    for node in (*data.train, *data.validation, *data.test):
        _, corpus, file = Path(node.manifest).parts
        cls = CORPORA.get(corpus)
        assert issubclass(cls, Published) and file.removesuffix(".jsonl").removesuffix("-labelled") in cls.expected
        assert node.manifest == f"manifests/{corpus}/{file}"
    assert len({node.name for node in data.test}) == len(data.test)


def test_the_documented_commands_are_all_that_the_recipe_needs(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe reads every line of every manifest."""
    monkeypatch.chdir(prepared)
    material = read_splits(recipes.load(RECIPE))
    assert material.faults == []
    assert {name: len(split.utterances) for name, split in material.splits.items()} == {
        "train": 4 + 12 + 3 + 36 + 3, "validation": 4 + 2 + 3 + 4 + 2, "test": 2 + 2 + 2 + 3 + 2 + 2
    }  # fmt: skip
    test = material.splits["test"]
    assert {name: list(test.names.values()).count(name) for name in test.names.values()} == {
        "test-clean": 2, "test-other": 2, "textrolspeech": 2, "meld": 3, "styletalk": 2, "styletalk reversed": 2
    }  # fmt: skip


def test_gap_7_the_recipes_head_and_the_readme_list_the_labelling() -> None:
    head = [shlex.split(line) for line in re.findall(r"(?m)^#   sottovoce (label .+)$", RECIPE.read_text("utf-8"))]
    assert head == [words for words in documented() if words[0] == "label"] and len(head) == 2
    (shown,) = re.findall(r"(?m)^    sottovoce (label .+?)(?:  .*)?$", (ROOT / "README.md").read_text("utf-8"))
    assert shlex.split(shown) == head[0][: len(shlex.split(shown))]


def test_gap_7_err_has_many_captions_for_librispeech(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of the voice of rows that learn words; the corpus alone tells the speaker's gender and no more."""
    monkeypatch.chdir(prepared)
    recipe = recipes.load(RECIPE)
    drawing = example_sampler_of(recipe, build_tasks(recipe), "disentangle", cut=True)
    rows = stage_rows(read_splits(recipe).splits["train"], recipe.stages["disentangle"], drawing, training=True)
    drawn = [example for u in rows.utterances for epoch in range(20) if (example := drawing(u, epoch, 0))]
    replaced = [e for e in drawn if e.task == "asr" and e.sources["paralinguistic"] == "text"]
    captions = {slot_text(example.utterance, "caption") for example in replaced}
    assert len(captions) > 2 and all(" pitch" in str(caption) for caption in captions)


@pytest.mark.parametrize("stage", ["joint", "disentangle"])
def test_gap_8_each_attribute_of_each_utterance_is_asked_three_times(
    stage: str, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Section IV-C, three full epochs: five questions of each TextrolSpeech utterance, one of LibriSpeech."""
    monkeypatch.chdir(prepared)
    recipe = recipes.load(RECIPE)
    node, train = recipe.stages[stage], read_splits(recipe).splits["train"]
    drawing = example_sampler_of(recipe, build_tasks(recipe), stage, cut=True)
    rows = stage_rows(train, node, drawing, training=True)
    order = BatchSampler(rows.seconds, rows.weights, node.batch_size, node.epochs, recipe.seed, groups=rows.groups)
    drawn = [drawing(rows.utterances[number], batch.epoch, 0) for batch in order for number in batch.numbers]
    asked = Counter((example.utterance.id, example.task) for example in drawn if example)
    assert set(asked.values()) == {3}
    parts = Counter((train.names[name], task) for name, task in asked.elements())
    assert parts == {
        ("librispeech", "asr"): 3 * 4, ("meld", "emotion"): 3 * 3,
        **{("textrolspeech", task): 3 * 12 for task in ("gender", "pitch", "tempo", "energy", "emotion")},
    }  # fmt: skip
    assert sum(found.draws for found in count_draws(train, node, drawing)[0].values()) == len(drawn)


def test_a_format_is_no_corpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", "csv", "--source", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "sottovoce manifest" in capsys.readouterr().err
