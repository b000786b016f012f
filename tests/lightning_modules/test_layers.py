"""Slots that hear other layers than the last: their mixes, the cache, bundles, and what a mix learns."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import write_lines, write_tone
from tests.helpers.errors import refused
from tests.helpers.runs import Fit, Write, quiet_run, run_killed
from torch import Tensor, nn

from sottovoce.cli.main import main
from sottovoce.config import recipe as recipes
from sottovoce.data.examples import Example, collate
from sottovoce.encoders import ENCODERS, Encoder
from sottovoce.encoders.base import fingerprint
from sottovoce.encoders.feature_cache import layers_fingerprint
from sottovoce.errors import BundleError, ConfigError
from sottovoce.frames import Frames
from sottovoce.lightning_modules.bundle import CARD, bundle_weights, read_bundle, write_bundle
from sottovoce.lightning_modules.run import Run
from sottovoce.lightning_modules.speech_llm import SpeechLLM
from sottovoce.training.slot_layers import layer_weights

MIXES = {"paralinguistic": ("all", False), "linguistic": ("last", False)}
CHOICES: list[dict[str, tuple[str, bool]]] = [
    {"paralinguistic": ("1", False), "linguistic": ("1", False)},  # nothing to pick or mix
    {"paralinguistic": ("1", False), "linguistic": ("last", False)},
    MIXES,
    {"paralinguistic": ("0-2", True), "linguistic": ("1", True)},
]


def layered(tree: dict[str, Any], layers: dict[str, tuple[str, bool]] = MIXES) -> dict[str, Any]:
    """The tiny recipe, whose Whisper has two layers."""
    slots = {
        name: {**slot, "layers": layers[name][0], "layer_norm": layers[name][1]} for name, slot in tree["slots"].items()
    }
    return {**tree, "slots": slots}


def drawn(run: Run, count: int = 5, **changes: Any) -> list[Example]:
    drawing = run.example_sampler("joint", cut=True)
    examples = [drawing(u, 0, 0) for u in run.data.splits["train"].utterances[:count]]
    return [replace(e, **changes) for e in examples if e is not None]


def mix_of(module: SpeechLLM, slot: str) -> nn.Parameter:
    logits = module.adapters[slot].layer_mix.logits
    assert isinstance(logits, nn.Parameter)
    return logits


@pytest.mark.parametrize("layers", CHOICES)
def test_the_loss_does_not_depend_on_the_batch_or_the_cache(
    tree: dict[str, Any], layers: dict[str, tuple[str, bool]]
) -> None:
    run = quiet_run(layered(tree, layers))
    module, examples = run.module, drawn(run)
    live = run.audio_reader.__class__(module.encoder, None, 60.0, module.layers)
    module.eval()
    with torch.no_grad():
        for adapter in module.adapters.values():
            for name, weight in adapter.named_parameters():
                if name.startswith("layer_mix"):
                    weight.copy_(0.1 * torch.arange(len(weight)))
        together = module.loss(collate(examples, run.audio_reader.read)).per_row
        alone = torch.cat([module.loss(collate([e], run.audio_reader.read)).per_row for e in examples])
        heard = module.loss(collate(examples, live.read)).per_row
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(together, heard, rtol=2e-3, atol=2e-3)  # the cache is float16


def test_a_slot_hears_its_own_layers_alone(tree: dict[str, Any]) -> None:
    """By hand: the encoder's states, softmax over the numbers, and the adapter as it is without a mix."""
    module = quiet_run(layered(tree, {"paralinguistic": ("1-2", True), "linguistic": ("1", False)})).module.eval()
    batch = Frames.pad([torch.randn(9_000) * 0.1, torch.randn(16_000) * 0.1])
    with torch.no_grad():
        mix_of(module, "paralinguistic").copy_(torch.tensor([0.05, -0.05]))
        (share, rest) = layer_weights(module.slot_layers, module.adapters)["paralinguistic"].values()
        assert share > rest > 0 and share + rest == pytest.approx(1)
        states = module.encoder.hidden_states(*batch)
        norm = [torch.nn.functional.layer_norm(s.x, (module.encoder.dim,)) for s in states]
        expected = {"paralinguistic": share * norm[1] + rest * norm[2], "linguistic": states[1].x}
        encoded = module.encoded(batch)
        for slot, x in expected.items():
            out, by_hand = module.adapt(slot, encoded), module.adapters[slot](Frames(x, encoded.lengths))
            for row, other in zip(out.rows(), by_hand.rows(), strict=True):
                torch.testing.assert_close(row, other, rtol=1e-4, atol=1e-5)


def test_the_last_layer_is_as_if_there_were_no_choice(tree: dict[str, Any]) -> None:
    """Weights by name and value, cache files, and losses; whether it is called `last` or by its number."""
    plain, by_number = quiet_run(tree), quiet_run(layered(tree, dict.fromkeys(tree["slots"], ("2", False))))
    states = plain.module.adapters.state_dict(), by_number.module.adapters.state_dict()
    assert list(states[0]) == list(states[1]) and not any("layer_mix" in name for name in states[0])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert plain.audio_reader.cache and by_number.audio_reader.cache
    assert plain.audio_reader.cache.folder == by_number.audio_reader.cache.folder
    encoder, cpu = plain.module.encoder, torch.device("cpu")
    assert plain.audio_reader.cache.folder.name == f"{layers_fingerprint(encoder, (2,), cpu)[:16]}-float16"


def test_the_cache_holds_the_layers_that_slots_hear_and_no_other(tree: dict[str, Any]) -> None:
    folders, dim = set(), 32
    for layers, width in (("last", dim), ("1", 2 * dim), ("all", 2 * dim), ("0,2", 2 * dim), ("0-2", 3 * dim)):
        run = quiet_run(layered(tree, {"paralinguistic": (layers, False), "linguistic": ("last", False)}))
        cache = run.audio_reader.cache
        assert cache is not None
        folders.add(cache.folder)
        assert set(cache.shards.places) == set(run.audio_reader.keys.values())
        assert {cache.get(key).shape[1] for key in cache.shards.places} == {width}
        clip = run.data.splits["train"].utterances[0].clip
        states = run.module.encoder.hidden_states(*Frames.pad([torch.from_numpy(run.audio_reader._load(clip))]))
        expected = torch.cat([states[layer].x[0] for layer in run.module.layers], -1)
        torch.testing.assert_close(run.audio_reader.read(clip), expected, rtol=1e-3, atol=1e-4)  # it is float16
    assert len(folders) == 4  # `1` and `all` make the same union


def test_a_mix_learns_with_its_adapter_and_is_frozen_with_it(tree: dict[str, Any]) -> None:
    run = quiet_run(layered(tree, dict.fromkeys(tree["slots"], ("all", False))))
    run.module.start_stage("joint", 10)
    run.module.train()
    for slot, other in (("linguistic", "paralinguistic"), ("paralinguistic", "linguistic")):
        run.module.zero_grad()
        both = {"paralinguistic": "speech", "linguistic": "speech"}
        examples = drawn(run, trains=frozenset({slot}), sources=both)
        run.module.loss(collate(examples, run.audio_reader.read)).total.backward()  # type: ignore[no-untyped-call]
        learned = mix_of(run.module, slot).grad
        assert learned is not None and learned.abs().min() > 0 and mix_of(run.module, other).grad is None
    assert {id(w) for w in run.module.trainable_parameters()} >= {id(mix_of(run.module, s)) for s in run.module.slots}
    run.module.recipe.stages["joint"].train = ["linguistic"]
    run.module.start_stage("joint", 10)
    assert not mix_of(run.module, "paralinguistic").requires_grad and mix_of(run.module, "linguistic").requires_grad


@pytest.mark.parametrize(
    ("layers", "code", "told"), [("3", "bad-value", "1-2"), ("1-9", "bad-value", "1-2"), ("first", "bad-value", "last")]
)
def test_layers_that_cannot_be_heard_are_refused_before_weights_are_read(
    tree: dict[str, Any], layers: str, code: Any, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SpeechLLM, "configure_model", lambda self: pytest.fail("weights were read"))
    with refused(code, "slots.paralinguistic.layers", ConfigError) as caught:
        quiet_run(layered(tree, {"paralinguistic": (layers, False), "linguistic": ("last", False)}))
    assert told in str(caught.value)


def test_a_mix_is_kept_by_checkpoints_and_bundles(tree: dict[str, Any], fit: Fit, capsys: Any) -> None:
    changes = layered(tree)
    changes = {"slots": changes["slots"], "stages": {"joint": tree["stages"]["joint"]}}
    folder = fit(**changes)
    bundle = folder / "bundle"
    name = "adapters.paralinguistic.layer_mix.logits"
    learned = bundle_weights(bundle)[name]
    assert learned.abs().min() > 0  # it has moved
    module = read_bundle(bundle)
    assert torch.equal(mix_of(module, "paralinguistic"), learned)
    weights = layer_weights(module.slot_layers, module.adapters)["paralinguistic"]
    card = (bundle / CARD).read_text()
    assert all(f"{weight:.3f}" in card for weight in weights.values()) and "| paralinguistic |" in card
    assert (folder / "evaluation" / "layer_weights.png").read_bytes().startswith(b"\x89PNG")
    clip = recipes.load(folder / "recipe.yaml").data.test[0].manifest
    audio = Path(clip).parent / json.loads(Path(clip).read_text().splitlines()[0])["audio"]
    assert main(["chat", str(bundle), "--audio", str(audio), "--once"]) == 0
    assert "answer" in capsys.readouterr().out
    told = (bundle / "recipe.yaml").read_text()
    (bundle / "recipe.yaml").write_text(told.replace("layers: all\n    layer_norm", "layers: last\n    layer_norm"))
    with refused("mismatch", "", BundleError):  # weights of a mix that the recipe does not know
        read_bundle(bundle)


def test_a_plain_bundle_says_nothing_of_layers(tree: dict[str, Any], tmp_path: Path) -> None:
    module = quiet_run(tree).module
    assert "ayer" not in (write_bundle(tmp_path / "bundle", module, []) / CARD).read_text().split("## Use")[0]


def test_a_killed_run_with_a_mix_goes_on_to_the_same_weights(
    tree: dict[str, Any], fit: Fit, write_recipe: Write, tmp_path: Path
) -> None:
    changes = {"slots": layered(tree)["slots"], "stages": {"joint": tree["stages"]["joint"]}}
    whole = bundle_weights(fit(output_dir=str(tmp_path / "whole"), **changes) / "bundle")
    changes["output_dir"] = str(tmp_path / "killed")
    run_killed(4, "fit", "--config", write_recipe(**changes))
    again = bundle_weights(fit(**changes) / "bundle")
    assert whole.keys() == again.keys()
    assert [name for name in whole if not torch.equal(whole[name], again[name])] == []


DEPTH, DIM = 4, 16


class PlantedEncoder(Encoder):
    """Five frames of noise a clip, its own in every layer; one layer also has whether the tone is high."""

    carrier: int

    def __init__(self) -> None:
        super().__init__()
        self.sample_rate, self.frame_rate, self.dim, self.depth = 16_000, 5.0, DIM, DEPTH
        self.network = nn.Linear(1, 1)

    def build(self) -> None: ...

    def load(self) -> None:
        self.loaded = True

    def fingerprint(self) -> str:
        return fingerprint(nn.Module(), "planted")

    def forward(self, waveform: Tensor, lengths: Tensor) -> Frames:
        return self._read_layers(waveform, lengths, (self.depth,))

    def _read_layers(self, waveform: Tensor, lengths: Tensor, layers: Sequence[int]) -> Frames:
        return Frames.pad([self._clip(clip, layers) for clip in Frames(waveform, lengths).rows()])

    def _clip(self, clip: Tensor, layers: Sequence[int]) -> Tensor:
        noise = torch.Generator().manual_seed(int(clip.abs().sum() * 1e4))
        states = torch.randn(DEPTH + 1, 5, DIM, generator=noise)
        crossings = (clip[1:] * clip[:-1] < 0).float().mean() * self.sample_rate / 2  # in Hz
        states[self.carrier, :, 0] += 4.0 if crossings > 300 else -4.0
        return torch.cat([states[layer] for layer in layers], -1)


@pytest.mark.parametrize("carrier", [2, 3])
def test_a_mix_finds_the_layer_that_carries_the_label(
    carrier: int, tree: dict[str, Any], fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only one layer in the middle knows who speaks; equal weights at the start, trained by the task alone."""
    monkeypatch.setattr(PlantedEncoder, "carrier", carrier, raising=False)
    monkeypatch.setitem(ENCODERS._classes, "planted", PlantedEncoder)
    data = dict(tree["data"])
    for split, count in (("train", 32), ("validation", 4), ("test", 4)):
        lines = []
        for i in range(count):
            name = f"{split}-{i}.wav"
            write_tone(tmp_path / name, 0.3, (200 if i % 2 else 500) + 2 * i + len(split))
            labels = {"gender": ("female", "male")[i % 2]}
            lines.append({"id": f"{split}-{i}", "audio": name, "text": "hello", "speaker": f"{split}{i}",
                          "labels": labels})  # fmt: skip
        data[split] = [{"manifest": str(write_lines(tmp_path / f"{split}.jsonl", lines))}]
    adapter = {"type": "pooled_soft_prompt", "tokens": 2, "feedforward": 16, "dropout": 0.0}
    slot = {"adapter": adapter, "text": "caption", "layers": "all"}
    stage = {"tasks": {"gender": 1}, "lr": 1e-2, "epochs": 60, "batch_size": 8}
    changed = {"encoder": {"type": "planted"}, "slots": {"voice": slot}, "data": data, "stages": {"joint": stage}}
    module = read_bundle(fit(**changed) / "bundle")
    weights = layer_weights(module.slot_layers, module.adapters)["voice"]
    assert weights[carrier] > 0.4 and all(weights[carrier] > 1.5 * weights[other] for other in {1, 2, 3, 4} - {carrier})
