"""The paper's recipe asks for the prepared corpora, and for nothing else."""

from pathlib import Path

import pytest
import soundfile
from tests.helpers.corpora import FFMPEG, dailytalk, librispeech, meld, style_row, styletalk, table, textrolspeech, tone

from sottovoce.cli.main import main
from sottovoce.config import recipe as recipes
from sottovoce.data.corpora import CORPORA
from sottovoce.data.corpora.published import Published
from sottovoce.training.splits import read_splits

CONF = Path(__file__).parents[2] / "conf"


@pytest.mark.parametrize("name", ["dual_adapter", "dual_adapter_llama"])
def test_every_manifest_is_a_split_that_a_corpus_writes(name: str) -> None:
    data = recipes.load(CONF / f"{name}.yaml").data
    for node in (*data.train, *data.validation, *data.test):
        _, corpus, file = Path(node.manifest).parts
        cls = CORPORA.get(corpus)
        assert issubclass(cls, Published) and file.removesuffix(".jsonl") in cls.expected
        assert node.manifest == f"manifests/{corpus}/{file}"
    assert len({node.name for node in data.test}) == len(data.test)


def test_five_commands_are_all_that_the_recipe_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Miniature corpora through the command line, and then the recipe reads every line of every manifest."""
    monkeypatch.chdir(tmp_path)
    librispeech(tmp_path / "librispeech")
    table(tmp_path / "textrolspeech/caption/random_train.csv", textrolspeech(tmp_path / "textrolspeech"))
    meld(tmp_path / "meld")
    (tmp_path / "tone.raw").write_bytes(soundfile.read(tone(tmp_path / "tone.flac"), dtype="int16")[0].tobytes())
    (tmp_path / "ffmpeg").write_text(FFMPEG)
    (tmp_path / "ffmpeg").chmod(0o755)
    styletalk(tmp_path / "styletalk", [style_row("music_1", 0), style_row("music_1", 1)])
    dailytalk(tmp_path / "dailytalk", {"0": [1, 0, 1], "23": [0, 1]})
    for name in ("librispeech", "textrolspeech", "meld", "styletalk", "dailytalk"):
        knobs = [f"ffmpeg={tmp_path / 'ffmpeg'}"] if name == "meld" else []
        assert main(["prepare", name, "--source", name, "--out", f"manifests/{name}", *knobs]) == 0
    material = read_splits(recipes.load(CONF / "dual_adapter.yaml"))
    assert material.faults == []
    assert {name: len(split.utterances) for name, split in material.splits.items()} == {
        "train": 4 + 12 + 3 + 36 + 3, "validation": 4 + 2 + 3 + 4 + 2, "test": 2 + 2 + 2 + 3 + 2 + 2
    }  # fmt: skip
    test = material.splits["test"]
    assert {name: list(test.names.values()).count(name) for name in test.names.values()} == {
        "test-clean": 2, "test-other": 2, "textrolspeech": 2, "meld": 3, "styletalk": 2, "styletalk reversed": 2
    }  # fmt: skip
