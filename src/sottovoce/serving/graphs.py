"""`sottovoce export --format pt2` and `onnx`: encoder and adapters as graphs, for any batch and number of frames."""

import json
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from sottovoce.encoders.base import Encoder
from sottovoce.errors import ConfigError, MissingError, SottovoceError, brief, first_line
from sottovoce.frames import Frames
from sottovoce.io import atomic_folder
from sottovoce.lightning_modules.bundle import make_readable
from sottovoce.lightning_modules.speech_llm import SpeechLLM
from sottovoce.serving.encoder_graphs import encoder_graph
from sottovoce.serving.export import check_free
from sottovoce.training.slot_layers import MIX

TOLERANCE = 1e-4  # between an output of a graph and ours, at most
LAYOUT = "graphs.json"
_SIZES = ((2, 53), (1, 17), (3, 200), (1, 1))  # clips and frames that an adapter's graph is tried on
_LARGE = 1 << 30  # bytes of weights, from which ONNX keeps them in a file beside the graph, which holds 2 GiB at most


class AdapterGraph(nn.Module):
    """A slot's adapter, and the mix of layers that it hears, from tensors to tensors.

    `x` is (clips, frames, layers * dim), y (clips, tokens, llm_dim); of a row's tokens y_lengths count, and those
    behind are padding, of which there is more than an adapter itself makes: frames of zeros are added behind, so that
    a clip is longer than any stride, for which a graph would otherwise be made.
    """

    def __init__(self, module: SpeechLLM, slot: str) -> None:
        super().__init__()
        self.adapter = module.adapters[slot]
        sizes = [size for part in self.adapter.modules() for size in _strides(part)]
        self.margin = 2 * max([1, *sizes])

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        frames = Frames(F.pad(x, (0, 0, 0, self.margin)), lengths)
        mix = getattr(self.adapter, MIX, None)
        out = self.adapter(frames if mix is None else Frames(mix(frames.x), lengths))
        return out.x, out.lengths


@dataclass(frozen=True)
class Part:
    """What becomes a graph: its module, what it must be equal to, and inputs to try both on."""

    name: str  # of its file
    where: str  # the recipe's key
    graph: nn.Module
    ours: Callable[[Tensor, Tensor], Frames]
    trials: list[tuple[Tensor, Tensor]]
    told: dict[str, Any]  # what goes in and out


def export_graphs(module: SpeechLLM, folder: Path, kind: str) -> list[str]:
    """Write `encoder` and `adapter-<slot>` as torch.export's programs (pt2) or ONNX, each equal to ours to 1e-4.

    What goes in and out is told in `graphs.json`. The LLM is not written: `--format plain`, or none, does that.

    Raises:
        ConfigError: an encoder or adapter cannot be traced.
        MissingError: packages of the extra `onnx` are missing.
        SottovoceError: `folder` holds something, or a graph's outputs differ from ours.
    """
    check_free(folder)
    if kind == "onnx":
        _check_onnx()
    parts = [encoder_part(module), *(adapter_part(module.eval(), slot) for slot in module.slots)]
    told: dict[str, Any] = {}
    with atomic_folder(folder) as draft:
        for part in parts:
            file = draft / f"{part.name}.{kind}"
            worst = write_graph(part, file)
            told[file.name] = {**part.told, "difference": worst}
        (draft / LAYOUT).write_text(json.dumps(told, indent=2) + "\n", "utf-8")
        make_readable(draft)
    return [f"{folder / name}: within {node['difference']:.1g} of what it is here" for name, node in told.items()]


@torch.no_grad()
def write_graph(part: Part, *files: Path) -> float:
    """Write a part as each file's ending says, read it again, and return how far its outputs are from ours, at most.

    Raises:
        ConfigError: it cannot be traced.
        SottovoceError: its outputs differ by more than 1e-4, or cannot be had for some number of clips or frames.
    """
    graph, sizes = part.graph.eval(), ({0: Dim.AUTO, 1: Dim.AUTO}, {0: Dim.AUTO})
    try:
        program = torch.export.export(graph, part.trials[0], dynamic_shapes=sizes, strict=False)
        runs = [_onnx(program, file, graph) if file.suffix == ".onnx" else _program(program, file) for file in files]
    except Exception as error:  # whatever a module does that tracing cannot follow
        why = f"it cannot be written as a graph: {brief(first_line(error), 300)}"
        raise ConfigError.at(part.where, "conflict", why) from None
    try:
        worst = max(_difference(run(*trial), part.ours(*trial)) for run in runs for trial in part.trials)
    except Exception as error:  # a size that the graph was made for, and no other
        raise SottovoceError.at(part.where, "mismatch", f"as a graph: {brief(first_line(error), 300)}") from None
    if not worst <= TOLERANCE:
        raise SottovoceError.at(part.where, "mismatch", f"as a graph it differs by {worst:.2g} from what it is here")
    return worst


def encoder_part(module: SpeechLLM) -> Part:
    """The encoder; `ConfigError` where it is no graph, see `encoder_graph`."""
    encoder = module.encoder
    graph, most = encoder_graph(encoder, str(module.recipe.encoder["type"]), module.layers)
    rows = [wave[:most] for wave in test_waves(encoder)]
    pairs = [Frames.pad(rows), Frames.pad(rows[:1]), Frames.pad(rows[2:])]
    told = {
        "x": ["clips", "samples"], "lengths": ["clips"], "y": ["clips", "frames", len(module.layers) * encoder.dim],
        "sample_rate": encoder.sample_rate, "most_samples": most,
    }  # fmt: skip

    def ours(x: Tensor, lengths: Tensor) -> Frames:
        with encoder.in_float32():
            return encoder.layer_frames(x, lengths, module.layers)

    return Part("encoder", "encoder", graph.to(module.device), ours, [(pair.x, pair.lengths) for pair in pairs], told)


def adapter_part(module: SpeechLLM, slot: str) -> Part:
    """A slot's adapter with what it hears."""
    width, generator = len(module.layers) * module.encoder.dim, torch.Generator().manual_seed(0)
    trials = []
    for clips, frames in _SIZES:
        x = torch.randn(clips, frames, width, generator=generator)
        lengths = torch.randint(1, frames + 1, (clips,), generator=generator)
        lengths[0] = frames
        trials.append((x.to(module.device), lengths.to(module.device)))
    told = {"x": ["clips", "frames", width], "lengths": ["clips"], "y": ["clips", "tokens", module.llm.dim]}

    def ours(x: Tensor, lengths: Tensor) -> Frames:
        return module.adapt(slot, Frames(x, lengths))

    return Part(f"adapter-{slot}", f"slots.{slot}.adapter", AdapterGraph(module, slot), ours, trials, told)


def test_waves(encoder: Encoder) -> list[Tensor]:
    """Clips to try an encoder on, (samples,) each: tones in noise, short, longer, and longer than many a window."""
    generator = torch.Generator().manual_seed(0)
    waves = []
    for seconds, hertz in ((0.7, 140.0), (1.0, 210.0), (0.31, 300.0), (4.6, 180.0)):
        at = torch.arange(int(seconds * encoder.sample_rate)) / encoder.sample_rate
        noise = 0.01 * torch.randn(len(at), generator=generator)
        waves.append(0.3 * torch.sin(2 * math.pi * hertz * at) * (1 + 0.3 * torch.sin(6 * math.pi * at)) + noise)
    return waves


def _strides(part: nn.Module) -> Iterator[int]:
    """How many frames a part of an adapter takes at once, as far as its attributes tell."""
    for name in ("stack", "stride", "window", "kernel", "kernel_size"):
        value = getattr(part, name, 0)
        yield from (size for size in (value if isinstance(value, tuple) else (value,)) if isinstance(size, int))


def _difference(theirs: Sequence[Tensor], ours: Frames) -> float:
    """The largest between real frames of the two; infinite where their numbers differ."""
    if theirs[1].tolist() != ours.lengths.tolist():
        return math.inf
    pairs = zip(Frames(*theirs).rows(), ours.rows(), strict=True)
    return max((float((a - b.cpu()).abs().max()) for a, b in pairs if b.numel()), default=0.0)


def _program(program: ExportedProgram, file: Path) -> Callable[[Tensor, Tensor], Sequence[Tensor]]:
    torch.export.save(program, file)
    run: Any = torch.export.load(file).module()
    return lambda x, lengths: [part.cpu() for part in run(x, lengths)]


def _onnx(program: ExportedProgram, file: Path, graph: nn.Module) -> Callable[[Tensor, Tensor], Sequence[Tensor]]:
    import onnxruntime

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision, which nothing here is of
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = torch.onnx.export(
            program, dynamo=True, input_names=["x", "lengths"], output_names=["y", "y_lengths"], verbose=False
        )
    assert made is not None
    size = sum(weight.numel() * weight.element_size() for weight in graph.state_dict().values())
    made.save(file, external_data=size > _LARGE)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])

    def run(x: Tensor, lengths: Tensor) -> list[Tensor]:
        given = {"x": x.cpu().numpy(), "lengths": lengths.cpu().numpy()}
        return [torch.from_numpy(part) for part in session.run(None, given)]

    return run


def _check_onnx() -> None:
    absent = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if absent:
        why = f"{', '.join(absent)} is not installed: pip install 'sottovoce[onnx]'"
        raise MissingError.at("--format onnx", "unavailable", why)
