"""What an LLM holds while it listens, and the command that analyses it, from a bundle to a split of its layers."""

import csv
import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tests.conftest import write_lines, write_tone
from tests.helpers.errors import refused
from tests.helpers.families import FAMILIES, save_family
from tests.helpers.runs import quiet_run
from torch import Tensor

from sottovoce.analysis import analyze as analyses
from sottovoce.analysis.analyses import attributes, intents
from sottovoce.analysis.analyze import analyze as analysis
from sottovoce.analysis.config import AnalysisRecipe, load
from sottovoce.analysis.hidden_states import (
    batch_states,
    cached_encoder_states,
    collect_states,
    load_states,
    save_states,
    states_key,
)
from sottovoce.cli.main import main
from sottovoce.config.recipe import Recipe
from sottovoce.data.audio import load_audio
from sottovoce.data.examples import Example, collate
from sottovoce.errors import Code, ConfigError
from sottovoce.evaluation.layers.split import read_split
from sottovoce.frames import Frames
from sottovoce.lightning_modules.bundle import write_bundle
from sottovoce.lightning_modules.run import Run
from sottovoce.llms.causal_lm import CausalLLM
from sottovoce.llms.hidden_states import HiddenStates, read_hidden_states
from sottovoce.progress import Progress

CONF = Path(__file__).parents[2] / "conf" / "analysis.yaml"
Analyze = Callable[..., int]


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def llm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> CausalLLM:
    llm = CausalLLM(str(save_family(request.param, tmp_path_factory.mktemp("llm"))), "float32")
    llm.load()
    return llm


def prompts_of(llm: CausalLLM, *lengths: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(10, 200, (n,), generator=generator).tolist() for n in lengths]
    return [llm.embed([row], {}) for row in ids]


def test_states_are_the_native_models_own(llm: CausalLLM) -> None:
    (prompt,) = prompts_of(llm, 11)
    where = [2, 3, 7]
    seen = read_hidden_states(llm, [prompt], [where])
    with torch.no_grad():
        native = llm.model(inputs_embeds=prompt[None], output_hidden_states=True)
    expected = torch.stack([state[0, where].mean(0) for state in native.hidden_states[:-1]])
    torch.testing.assert_close(seen.pooled[0, :-1], expected, rtol=1e-5, atol=1e-5)
    assert seen.pooled.shape[1] == len(llm.layers) + 1 == len(native.hidden_states)
    assert seen.tokens.tolist() == [native.logits[0, -1].argmax().item()]


def test_the_logit_lens_is_norm_and_output_embeddings(llm: CausalLLM) -> None:
    """By hand: transformers' own states, and the norm of its own module."""
    (prompt,) = prompts_of(llm, 11)
    seen = read_hidden_states(llm, [prompt], [[0]])
    with torch.no_grad():
        native = llm.model(inputs_embeds=prompt[None], output_hidden_states=True)
        token = native.logits[0, -1].argmax()
        for layer, state in enumerate(native.hidden_states[:-1]):
            logits = llm.model.lm_head(llm.model.model.norm(state[0, -1]))
            order = logits.argsort(descending=True).tolist()
            assert seen.ranks[0, layer] == order.index(token)
    assert seen.ranks[0, -1] == 0


def test_states_do_not_depend_on_batch_mates(llm: CausalLLM) -> None:
    prompts = prompts_of(llm, 5, 17, 9)
    where = [[1, 2], [0, 8, 16], [4]]
    together = read_hidden_states(llm, prompts, where)
    for row in range(3):
        alone = read_hidden_states(llm, [prompts[row]], [where[row]])
        scale = alone.pooled.abs().max().item()  # layers add up, and small numbers are what is left of large ones
        torch.testing.assert_close(together.pooled[row], alone.pooled[0], rtol=1e-4, atol=1e-6 * scale)
        assert together.ranks[row].tolist() == alone.ranks[0].tolist()
        assert together.tokens[row] == alone.tokens[0]


def test_a_prompt_without_speech_is_refused(llm: CausalLLM) -> None:
    with refused("empty"):
        read_hidden_states(llm, prompts_of(llm, 5, 5), [[1], []])


@pytest.fixture
def run(recipe: Recipe) -> Run:
    run = quiet_run(recipe)
    run.module.eval()
    return run


def spoken(run: Run, count: int = 6) -> list[Example]:
    sources = dict.fromkeys(run.module.slots, "speech")
    utterances = run.data.splits["train"].utterances[:count]
    return [Example(u, "asr", "Listen.", u.context, sources, frozenset(), None) for u in utterances]


def test_the_mean_is_over_the_speech_of_the_utterance_alone(run: Run) -> None:
    """The input of the LLM at these positions is what the adapters made of this clip, and nothing else."""
    example = spoken(run)[5]  # it stands after a turn that is spoken, too
    assert any(turn.audio for turn in example.context)
    batch = collate([example], run.audio_reader.read)
    with torch.no_grad():
        seen = batch_states(run.module, batch)
        own = run.data.splits["train"].utterances[5]
        alone = collate([Example(own, "asr", "", (), example.sources, frozenset(), None)], run.audio_reader.read)
        frames = run.module.encoded(alone.audio)
        made = torch.cat([run.module.adapt(slot, frames).rows()[0] for slot in run.module.slots])
    torch.testing.assert_close(seen.pooled[0, 0], made.mean(0), rtol=1e-5, atol=1e-5)


def test_observed_states_keep_their_order_whatever_the_batch(run: Run) -> None:
    examples = spoken(run)
    with Progress(console=Console(quiet=True)) as progress:
        one, three = (collect_states(run.module, examples, run.audio_reader.read, size, progress) for size in (1, 3))
    scale = one.pooled.abs().amax(-1, keepdim=True)  # a number may be the small difference of large ones
    torch.testing.assert_close(one.pooled / scale, three.pooled / scale, rtol=0, atol=1e-5)
    assert one.tokens.tolist() == three.tokens.tolist()


def test_the_encoders_states_are_means_over_each_clip(run: Run, tmp_path: Path) -> None:
    examples, file, encoder = spoken(run), tmp_path / "encoder.safetensors", run.module.encoder
    with Progress(console=Console(quiet=True)) as progress:
        states = cached_encoder_states(run.module, examples, {"encoder": "a"}, file, progress)
        again = cached_encoder_states(run.module, examples, {"encoder": "a"}, file, progress)
        others = cached_encoder_states(run.module, examples[:2], {"encoder": "a"}, file, progress)
    assert states.shape == (len(examples), encoder.depth + 1, encoder.dim) and torch.equal(states, again)
    for row, example in enumerate(examples):
        clip = torch.from_numpy(load_audio(example.utterance.clip, encoder.sample_rate))
        alone = torch.stack([s.x[0].mean(0) for s in encoder.hidden_states(*Frames.pad([clip]))])
        torch.testing.assert_close(states[row], alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(others, states[:2], rtol=1e-4, atol=1e-5)


def test_kept_states_are_used_for_the_same_question_only(run: Run, tmp_path: Path) -> None:
    examples, file = spoken(run, 2), tmp_path / "states.safetensors"
    inside = HiddenStates(torch.rand(2, 3, 4), torch.ones(2, 3, dtype=torch.int32), torch.tensor([4, 5]))
    key = states_key({"llm": "a"}, examples)
    assert load_states(file, key) is None
    save_states(file, key, inside)
    again = load_states(file, key)
    assert again is not None and torch.equal(again.pooled, inside.pooled) and torch.equal(again.tokens, inside.tokens)
    assert load_states(file, states_key({"llm": "b"}, examples)) is None
    assert load_states(file, states_key({"llm": "a"}, examples[::-1])) is None
    file.write_bytes(b"\x00" * 50)
    assert load_states(file, key) is None


@pytest.fixture
def bundle(run: Run, tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "run" / "bundle", run.module, [])


@pytest.fixture
def paired(tmp_path: Path) -> Path:
    """6 texts, 2 of each of 3 things, each said by 6 speakers of two genders, whose pitch tells which."""
    lines = []
    for i in range(36):
        text, speaker = i % 6, i // 6
        write_tone(tmp_path / f"{i}.wav", 0.4 + 0.05 * text, 120 + 300 * (speaker % 2) + 5 * speaker)
        words, labels = (
            f"{('lamp', 'book', 'key')[text % 3]} number {text}",
            {"gender": ("male", "female")[speaker % 2]},
        )
        lines.append({"id": str(i), "audio": f"{i}.wav", "text": words, "speaker": f"s{speaker}", "labels": labels})
    return write_lines(tmp_path / "paired.jsonl", lines)


@pytest.fixture
def analyze(bundle: Path, paired: Path) -> Analyze:
    words = ["analyze", str(bundle), "--config", str(CONF), "keywords=[lamp,book,key]", f"manifest={paired}"]
    return lambda *changes: main([*words, *changes])


def test_a_bundle_is_analysed_from_its_speech_to_a_split(
    analyze: Callable[..., int], bundle: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[Any] = []
    monkeypatch.setattr(analyses, "on_device", lambda part: nullcontext(moved.append(part)))
    assert analyze("folds=3", "intent_folds=2") == 0
    assert len(moved) == 1  # the whole model, where a GPU is
    folder = bundle.parent / "analysis"
    told = json.loads((folder / "layers.json").read_text())
    assert set(told["curves"]) == {
        "gender probe", "intent probe", "intent similarity", "gender similarity", "logit lens",
    }  # fmt: skip
    assert told["left_out"] == {} and told["layers"] == 2
    assert all(len(curve[key]) == 3 for curve in told["curves"].values() for key in ("value", "low", "high", "chance"))
    assert told["curves"]["logit lens"]["value"][-1] == 1.0
    assert told["heard"]["utterances"] == 36 and told["heard"]["texts"] == 6 and told["model"]["trained"]
    assert read_split(folder / "layers.json") == (0, 1)
    assert (folder / "layers.png").read_bytes().startswith(b"\x89PNG")
    page = (folder / "layers.html").read_text()
    assert "data:image/png;base64," in page and "http" not in page and told["words"] in page
    for curve in told["curves"].values():
        assert all(f"{value:.3f}" in page for value in curve["value"])
    heard = told["encoder"]["curves"]
    assert set(heard) == {"gender probe", "intent probe"} and told["encoder"]["layers"] == 2
    assert all(len(curve["value"]) == 3 for curve in heard.values())
    assert all(f"{value:.3f}" in page for curve in heard.values() for value in curve["value"])
    assert "encoder layer 2" in page and "encoder layer 3" not in page
    with (folder / "layers.csv").open() as stream:
        rows = {(row["state"], row["analysis"]): float(row["value"]) for row in csv.DictReader(stream)}
    assert len(rows) == 3 * (len(told["curves"]) + 2)
    assert rows["encoder layer 2", "gender probe"] == heard["gender probe"]["value"][2]
    assert rows["encoder input", "gender probe"] == heard["gender probe"]["value"][0]
    assert rows["layer 1", "gender probe"] == told["curves"]["gender probe"]["value"][2]
    shown = capsys.readouterr().out
    assert "split" in shown and "layers.html" in shown and "layers.csv" in shown
    files = [folder / "states.safetensors", folder / "encoder_states.safetensors"]
    stamps = [file.stat().st_mtime_ns for file in files]
    assert analyze("folds=3", "intent_folds=2", "seed=1", "encoder=false") == 0  # the same states, other folds
    assert json.loads((folder / "layers.json").read_text())["encoder"]["curves"] == {}
    assert analyze("folds=3", "intent_folds=2", "seed=1") == 0
    assert [file.stat().st_mtime_ns for file in files] == stamps
    assert analyze("folds=3", "intent_folds=2", "recipe=[slots.paralinguistic.layers=1]") == 0  # no weight says so
    assert files[0].stat().st_mtime_ns != stamps[0]
    assert json.loads((folder / "layers.json").read_text())["curves"] != told["curves"]


def test_what_the_data_do_not_allow_is_left_out_and_told(
    analyze: Callable[..., int], bundle: Path, capsys: Any
) -> None:
    assert analyze("keywords=[lamp]", "intent_folds=2", "limit=13", "folds=2") == 0
    told = json.loads((bundle.parent / "analysis" / "layers.json").read_text())
    assert set(told["left_out"]) == {"intent probe", "intent similarity"} and told["heard"]["utterances"] == 12
    assert "left out  intent probe" in capsys.readouterr().out


MISTAKES: dict[str, tuple[Code, str]] = {
    "attributes=[gendr]": ("unknown-name", "attributes"),
    "intent_folds=1": ("bad-value", "intent_folds"),
    "manifest=nowhere.jsonl": ("not-found", "nowhere.jsonl"),
    "keywords=[window]": ("empty", "keywords"),
    "batches=3": ("unknown-key", "batches"),
    "task=emotin": ("unknown-name", "--task"),
}


def test_a_name_that_matches_nothing_is_an_error(bundle: Path, paired: Path) -> None:
    words = ["keywords=[lamp,book,key]", f"manifest={paired}"]
    for change, (code, where) in MISTAKES.items():
        with refused(code, where):
            analysis(str(bundle), str(CONF), [*words, change])


def test_intents_are_topics_labels_or_keywords(run: Run) -> None:
    utterances = run.data.splits["train"].utterances[:4]
    assert intents(utterances, AnalysisRecipe(intent="emotion")) == ["neutral", "happy", "sad", "angry"]
    assert intents(utterances, AnalysisRecipe(keywords=["lamp", "tea"])) == ["lamp", None, None, "tea"]
    assert intents(utterances, AnalysisRecipe()) == [u.topic for u in utterances]
    assert attributes(utterances, AnalysisRecipe(intent="emotion")) == ["gender"]
    with refused("unknown-name", "intent", ConfigError) as caught:
        intents(utterances, AnalysisRecipe(intent="emotoin"))
    assert "Did you mean 'emotion'" in str(caught.value)


def test_the_recipe_of_an_analysis_is_checked(tmp_path: Path) -> None:
    file = tmp_path / "analysis.yaml"
    mistakes: dict[str, Code] = {
        "folds: 1": "bad-value",
        "root: there": "conflict",
        "recipe: [llm.trust_remote_code=true]": "unsafe",
    }
    for line, code in mistakes.items():
        file.write_text(line)
        with refused(code, line.partition(":")[0], ConfigError):
            load(file)
    assert load(CONF) == AnalysisRecipe()
