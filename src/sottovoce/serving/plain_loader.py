"""A speech LLM that Sottovoce has exported, in PyTorch and transformers alone; it needs no package of Sottovoce.

    from loader import SpeechModel

    model = SpeechModel("THIS_FOLDER")
    print(model.answer(samples))                 # samples: (samples,) at 16 kHz, float, a numpy array or a tensor
    print(model.answer(samples, task="emotion"))
    tokens = model.tokens(samples)               # slot -> (tokens, llm_dim): what the LLM is given in place of words

`model.json` says what is where: the encoder, the LLM (a folder here, or a name on the hub), the slots with their
adapters, whose weights are in `adapters.safetensors` as `slot.name`, and the prompt of each task as token ids, between
which the slots' embeddings go. No code of a checkpoint is run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, WhisperFeatureExtractor, WhisperModel
from transformers.models.whisper.modeling_whisper import WhisperEncoder

SAMPLE_RATE, SAMPLES_PER_FRAME = 16_000, 320  # Hz; 20 ms


class SpeechModel:
    """Encoder, adapters and LLM of an exported folder.

    Args:
        folder: with `model.json`.
        device: such as `cpu` or `cuda`.
    """

    def __init__(self, folder: str | Path, device: str = "cpu") -> None:
        self.folder, self.device = Path(folder), torch.device(device)
        self.layout: dict[str, Any] = json.loads((self.folder / "model.json").read_text("utf-8"))
        self.encoder, self.features = self._encoder(), _features(self.layout["encoder"])
        self.slots = nn.ModuleDict({name: _slot(node) for name, node in self.layout["slots"].items()})
        self.slots.load_state_dict(load_file(self.folder / "adapters.safetensors"))
        self.slots.eval().to(self.device)
        llm = self.layout["llm"]
        place = self._place(llm["checkpoint"])
        dtype: torch.dtype = getattr(torch, llm["dtype"])
        kinds: Any = (AutoTokenizer, AutoModelForCausalLM)
        self.tokenizer = kinds[0].from_pretrained(place)
        self.llm = kinds[1].from_pretrained(place, dtype=dtype).eval().to(self.device)

    def _place(self, checkpoint: str) -> str:
        """A folder beside this file, or a name on the hub."""
        return str(self.folder / checkpoint[2:]) if checkpoint.startswith("./") else checkpoint

    def _encoder(self) -> Any:
        checkpoint: str = self.layout["encoder"]["checkpoint"]
        place = self._place(checkpoint)
        encoder: Any = WhisperEncoder if checkpoint.startswith("./") else WhisperModel
        model = encoder.from_pretrained(place, dtype=torch.float32)
        return (model if checkpoint.startswith("./") else model.encoder).eval().to(self.device)

    @torch.no_grad()
    def frames(self, samples: Any) -> Tensor:
        """(frames, layers * dim) of (samples,) at 16 kHz: window by window, without what is padding."""
        node = self.layout["encoder"]
        wave = torch.as_tensor(samples, dtype=torch.float32).reshape(-1)
        made = []
        for piece in torch.split(wave, node["window_frames"] * SAMPLES_PER_FRAME):
            mels = self.features(piece.numpy(), sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
            out = self.encoder(mels.to(self.device), output_hidden_states=True)
            states = [*out.hidden_states[:-1], out.last_hidden_state]  # the last one after the final norm
            count = -(-len(piece) // SAMPLES_PER_FRAME)
            made.append(torch.cat([states[layer][0, :count] for layer in node["layers"]], -1))
        return torch.cat(made)

    @torch.no_grad()
    def tokens(self, samples: Any) -> dict[str, Tensor]:
        """Slot -> (tokens, llm_dim)."""
        x = self.frames(samples)
        batch = Frames(x[None], torch.tensor([len(x)], device=self.device))
        return {name: slot(batch).rows()[0] for name, slot in self.slots.items()}

    @torch.no_grad()
    def answer(self, samples: Any, task: str | None = None, max_new_tokens: int = 200) -> str:
        """The answer to (samples,) at 16 kHz; `task` is one of `model.json`'s prompts, the first if absent."""
        prompts = self.layout["prompts"]
        speech, table = self.tokens(samples), self.llm.get_input_embeddings()
        parts = prompts[task or next(iter(prompts))]
        ids = [part if isinstance(part, str) else torch.tensor(part, device=self.device) for part in parts]
        rows = [speech[part].to(self.llm.dtype) if isinstance(part, str) else table(part) for part in ids]
        x = torch.cat(rows)[None]
        stop: list[int] = self.layout["llm"]["stop_ids"]
        made = self.llm.generate(
            inputs_embeds=x, attention_mask=torch.ones(x.shape[:2], device=self.device), do_sample=False,
            max_new_tokens=max_new_tokens, eos_token_id=stop, pad_token_id=stop[0],
        )[0].tolist()  # fmt: skip
        end = next((at for at, token in enumerate(made) if token in stop), None)
        return str(self.tokenizer.decode(made[:end], skip_special_tokens=True)).strip()


def _features(node: dict[str, Any]) -> Any:
    make: Any = WhisperFeatureExtractor
    seconds = node["window_frames"] * SAMPLES_PER_FRAME // SAMPLE_RATE
    return make(feature_size=node["mels"], sampling_rate=SAMPLE_RATE, chunk_length=seconds)


def _slot(node: dict[str, Any]) -> Any:
    """The adapter of a slot, with the mix of layers that it hears."""
    adapter = CLASSES[node["class"]](node["d_audio"], node["d_llm"], **node["knobs"])
    mix = node["layer_mix"]
    if mix is not None:
        adapter.layer_mix = CLASSES["LayerMix"](mix["columns"], node["d_audio"], normalize=mix["normalize"])
    adapter.register_forward_pre_hook(_mixed)
    return adapter


def _mixed(adapter: Any, given: tuple[Any]) -> Any:
    (frames,) = given
    return (Frames(adapter.layer_mix(frames.x), frames.lengths),) if hasattr(adapter, "layer_mix") else given


class ConfigError(ValueError):
    """A knob that cannot be."""

    @classmethod
    def at(cls, where: str, code: str, why: str) -> ConfigError:
        return cls(f"{where}: {why}")


class Adapter(nn.Module):
    """A map from frames of the encoder's dim to embeddings of the LLM's dim."""


class ADAPTERS:
    """Sottovoce's registry, of which only the mark at a class is left."""

    @staticmethod
    def register(name: str) -> Any:
        return lambda adapter: adapter


# Sottovoce's own classes, as they are, follow in an exported folder.
from sottovoce.frames import Frames  # noqa: E402

CLASSES: dict[str, Any] = {}
