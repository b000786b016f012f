"""Encoders and adapters as graphs of torch.export and ONNX: equal to ours for any batch and number of frames."""

import json
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from tests.adapters.test_adapters import EVERY, SMALL
from tests.conftest import CONFORMER
from tests.helpers.errors import refused
from torch import Tensor, nn

from sottovoce.cli.main import main
from sottovoce.config.recipe import parse
from sottovoce.encoders import ENCODERS
from sottovoce.frames import Frames
from sottovoce.lightning_modules.bundle import read_bundle
from sottovoce.lightning_modules.speech_llm import SpeechLLM
from sottovoce.serving import graphs
from sottovoce.serving.encoder_graphs import encoder_graph
from sottovoce.serving.graphs import TOLERANCE, Part, adapter_part, encoder_part, export_graphs, write_graph

SHALLOW = {**CONFORMER, "layers": 1}  # to trace one takes seconds
KINDS = pytest.mark.parametrize("kind", ["pt2", "onnx"])


def model(
    tree: dict[str, Any], adapter: dict[str, Any], encoder: dict[str, Any] | None = None, **slot: Any
) -> SpeechLLM:
    """One slot, whose adapter is random and no longer small."""
    torch.manual_seed(1)
    slots = {"speech": {"adapter": adapter, "text": "transcript", "carries": "linguistic", **slot}}
    learns = ["speech", *(["llm"] if "tuning" in tree["llm"] else [])]
    stages = {"one": {"tasks": {"asr": 1}, "lr": 1e-3, "train": learns}}
    module = SpeechLLM(parse({**tree, "slots": slots, "stages": stages, **({"encoder": encoder} if encoder else {})}))
    with torch.no_grad():
        for weight in module.adapters.parameters():
            weight += 0.05 * torch.randn(weight.shape)
    return module.eval()


@EVERY
def test_every_adapter_is_a_graph(name: str, tree: dict[str, Any], tmp_path: Path) -> None:
    """What `write_graph` compares are clips from one frame on, one alone and several."""
    part = adapter_part(model(tree, {"type": name, **SMALL.get(name, {})}), "speech")
    assert write_graph(part, tmp_path / "adapter.pt2", tmp_path / "adapter.onnx") <= TOLERANCE
    sizes = [trial[0].shape[:2] for trial in part.trials]
    assert (1, 1) in sizes and len({clips for clips, _ in sizes}) == len({frames for _, frames in sizes}) - 1 > 2


def test_a_mix_of_layers_goes_along(tree: dict[str, Any], tmp_path: Path) -> None:
    module = model(tree, {"type": "frame_stacking_mlp", "hidden": 16}, layers="all", layer_norm=True)
    part = adapter_part(module, "speech")
    assert part.told["x"] == ["clips", "frames", 2 * module.encoder.dim]
    write_graph(part, tmp_path / "adapter.pt2", tmp_path / "adapter.onnx")


@pytest.mark.parametrize(
    ("knobs", "layers"), [({"window": "full"}, "last"), ({"window": "longest"}, "1-2"), (SHALLOW, "0,1")],
    ids=["whisper", "whisper, masked", "conformer"],
)  # fmt: skip
def test_encoders_are_graphs_from_the_samples_on(
    knobs: dict[str, Any], layers: str, tree: dict[str, Any], tmp_path: Path
) -> None:
    node = knobs if "type" in knobs else {**tree["encoder"], **knobs}
    module = model(tree, {"type": "linear"}, node, layers=layers)
    module.encoder.load()
    write_graph(encoder_part(module), tmp_path / "encoder.pt2", tmp_path / "encoder.onnx")


def test_a_bundle_is_written_as_graphs_that_other_programs_run(tiny_run: Path, tmp_path: Path) -> None:
    """Chained by hand: samples through the encoder's graph, its frames through an adapter's."""
    out, bundle = tmp_path / "graphs", tiny_run / "bundle"
    assert main(["export", str(bundle), "--to", str(out), "--format", "onnx"]) == 0
    told = json.loads((out / "graphs.json").read_text())
    assert {*told} == {"encoder.onnx", "adapter-paralinguistic.onnx", "adapter-linguistic.onnx"}
    assert (
        all(node["difference"] <= TOLERANCE for node in told.values()) and told["encoder.onnx"]["most_samples"] == 16000
    )
    module = read_bundle(bundle)
    waves = Frames.pad([torch.sin(torch.arange(count) / 9) for count in (15_000, 4_321)])
    with module.encoder.in_float32():
        frames = module.encoder(*waves)
    x, lengths = (part.numpy() for part in waves)
    for slot in module.slots:
        heard = onnxruntime.InferenceSession(out / "encoder.onnx").run(None, {"x": x, "lengths": lengths})
        graph = onnxruntime.InferenceSession(out / f"adapter-{slot}.onnx")
        theirs = Frames(*map(torch.from_numpy, graph.run(None, dict(zip(("x", "lengths"), heard, strict=True)))))
        ours = module.adapt(slot, frames)
        for one, other in zip(theirs.rows(), ours.rows(), strict=True):
            torch.testing.assert_close(one, other, atol=TOLERANCE, rtol=0)


class Bent(nn.Module):
    """A graph for parts that cannot be one, or that come out otherwise."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        if self.how == "asks" and float(x.sum()) > 0:
            x = x + 1
        if self.how == "fixed":
            x = x.reshape(2, 53, -1)
        return (x + 1e-3 if self.how == "differs" else x), lengths


@KINDS
@pytest.mark.parametrize(("how", "code"), [("asks", "conflict"), ("fixed", "mismatch"), ("differs", "mismatch")])
def test_what_is_no_graph_or_another_is_refused(
    how: str, code: Any, kind: str, tree: dict[str, Any], tmp_path: Path
) -> None:
    trials = adapter_part(model(tree, {"type": "linear"}), "speech").trials
    part = Part("bent", "slots.speech.adapter", Bent(how), Frames, trials, {})
    with refused(code, "slots.speech.adapter"):
        write_graph(part, tmp_path / f"bent.{kind}")


def test_refusals_leave_nothing(tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with refused("conflict", "encoder.type"):
        encoder_graph(ENCODERS.build({"type": "hf", "checkpoint": "microsoft/wavlm-large"}), "hf", (1,))
    rounded = model(tree, {"type": "linear"}, {**tree["encoder"], "dtype": "bfloat16"})
    with refused("conflict", "encoder.dtype"):
        export_graphs(rounded, tmp_path / "out", "pt2")
    monkeypatch.setattr(graphs, "find_spec", lambda name: None)
    with refused("unavailable", "--format onnx"):
        export_graphs(rounded, tmp_path / "out", "onnx")
    assert not (tmp_path / "out").exists()
