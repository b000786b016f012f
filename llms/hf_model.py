"""An LLM as its checkpoint has it, with what a recipe unfreezes: network, tokenizer, chat format, fingerprints."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sottovoce.errors import ConfigError, nearest
from sottovoce.llms import audio_llm
from sottovoce.llms.chat_template import ChatFormat
from sottovoce.llms.hub_checkpoints import HUB, describe, reach, settings
from sottovoce.llms.tuning import base_name, decoder_layers, layer_numbers, lora_layers, tune
from sottovoce.llms.tuning_config import Tuning

Dtype = Literal["float32", "bfloat16", "float16"]


class LoadedLLM(nn.Module):
    """Any Hugging Face causal LM with a chat template, in its own dtype, frozen but for what `tuning` names.

    `__init__` only describes; `build` makes the network without weights; `load` fetches weights and tokenizer.

    Args:
        checkpoint: a local folder, `sottovoce:` and a folder of the package, or a hub id.
        dtype: of the weights.
        trust_remote_code: run Python code that comes with the checkpoint.
        tuning: what is unfrozen; nothing if absent.

    Attributes:
        tuned: names of the weights that are unfrozen, relative to this module, once it is built or loaded.

    Raises:
        ConfigError: `dtype` is unknown, or transformers does not know the architecture.
        MissingError: the checkpoint is neither on this machine, nor published, nor on a hub that can be reached.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    chat: ChatFormat

    def __init__(
        self,
        checkpoint: str,
        dtype: Dtype = "bfloat16",
        trust_remote_code: bool = False,
        tuning: Tuning | None = None,
    ) -> None:
        super().__init__()
        if dtype not in get_args(Dtype):
            raise ConfigError(f"llm.dtype: no dtype is called {dtype!r}.{nearest(dtype, get_args(Dtype))}")
        self.checkpoint = checkpoint
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.trust_remote_code = trust_remote_code
        self.config = describe(checkpoint, trust_remote_code)
        self.dim: int = self.config.get_text_config().hidden_size
        self.tuning = tuning or Tuning()
        self.trainable_names: list[str] = []
        self.depth: int = self.config.get_text_config().num_hidden_layers
        if self.tuning.method != "frozen":
            layer_numbers(self.tuning.layers, self.depth)  # a mistake there is told before any weight is read
        if self.tuning.method == "weights" and dtype != "float32":
            raise ConfigError(
                f"llm.tuning: weights in {dtype} lose the small steps of training; set llm.dtype=float32 (with "
                "trainer.precision=bf16-mixed for speed), or method: lora"
            )
        self._before: dict[str, str] = {}  # digests of the weights that train, as the checkpoint has them

    def build(self) -> None:
        """Make the network on the current device (meta for a dry run): no weights of worth, no tokenizer."""
        model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            self.config, dtype=self.dtype, trust_remote_code=self.trust_remote_code
        )
        self.model = self._unfrozen(model)

    def load(self) -> None:
        """Fetch weights (safetensors only) and tokenizer, if they are not here. Idempotent.

        Raises:
            MissingError: they cannot be reached, or are not whole; the message says where they were looked for.
            SottovoceError: the tokenizer has no chat template.
        """
        if hasattr(self, "chat") and self.model.device.type != "meta":
            return
        tokenizer = reach(self.checkpoint, self._read_tokenizer)
        model = reach(self.checkpoint, self._read_model)
        if model.get_input_embeddings().embedding_dim != self.dim:
            raise ConfigError(
                f"llm.checkpoint: {self.checkpoint} has embeddings of {model.get_input_embeddings().embedding_dim}, "
                f"but was published with {self.dim}"
            )
        chat = ChatFormat(tokenizer, _stop_ids(model, tokenizer))
        # A checkpoint's own generation settings (sampling, a repetition penalty that cannot see speech) would leak
        # into greedy search: transformers fills in whatever a call leaves open.
        model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=False, eos_token_id=sorted(chat.stop_ids), pad_token_id=min(chat.stop_ids)
        )
        self.model, self.config = self._unfrozen(model), model.config
        self._settings = settings(self.checkpoint)
        self.tokenizer, self.chat = tokenizer, chat

    def unload(self) -> None:
        """Give back the memory of the weights, what was trained of them included, until `load` fetches them again."""
        self.model.to("meta")  # type: ignore[arg-type]  # of one overload of several

    def _unfrozen(self, model: PreTrainedModel) -> PreTrainedModel:
        """The model as `tuning` wants it, with nothing learning yet."""
        tuned = tune(_frozen(model), self.tuning)
        self.trainable_names = [f"model.{name}" for name in tuned]
        bases = {name: weight for name, weight in model.named_parameters() if name in tuned and base_name(name)}
        self._before = {} if model.device.type == "meta" else {name: _digest(bases[name]) for name in bases}
        return _frozen(model)

    @property
    def sharded(self) -> bool:
        """Whether ZeRO's stage 3 has spread the weights over processes, which then go through the model in step."""
        return any(hasattr(weight, "ds_id") for weight in self.model.parameters())

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers, in their order."""
        return decoder_layers(self.model)

    def set_trainable(self, learns: bool) -> None:
        """Let the unfrozen weights learn, or let them rest; nothing else ever does."""
        tuned = set(self.trainable_names) if learns else set()
        for name, weight in self.named_parameters():
            weight.requires_grad_(name in tuned)

    def train(self, mode: bool = True) -> "LoadedLLM":
        """A frozen LLM stays in eval mode: frozen means frozen, dropout included."""
        super().train(mode)
        if hasattr(self, "model"):
            self.model.train(mode and any(weight.requires_grad for weight in self.model.parameters()))
        return self

    def load_trained(self, weights: dict[str, Tensor]) -> None:
        """Give the unfrozen weights these values, by their names in `tuned`.

        Raises:
            RuntimeError: one is missing, unknown, or of another shape.
        """
        if missing := sorted(set(self.trainable_names) ^ set(weights)):
            raise RuntimeError(f"{len(missing)} weights of the LLM are on one side only, such as {missing[0]}")
        self.load_state_dict(weights, strict=False)

    @contextmanager
    def untuned(self) -> Iterator[None]:
        """The LLM as its checkpoint has it, for a while.

        Raises:
            ConfigError: its weights themselves have been trained, and there is no way back.
        """
        if self.tuning.method == "weights":
            raise ConfigError(
                "this LLM's own weights are trained, so it can no longer make targets as it was: give the manifest "
                "ready ones (`response` in its lines, by `sottovoce targets`), or tune by method: lora"
            )
        stacks, learns = lora_layers(self.model.modules()), any(w.requires_grad for w in self.model.parameters())
        for layer in stacks:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in stacks:
                layer.enable_adapters(True)
            self.set_trainable(learns)  # peft has switched gradients on with the maps

    def fingerprint(self) -> str:
        """A digest of weights, architecture and chat template: two LLMs with one fingerprint answer alike.

        It is the checkpoint's: what has been trained since does not change it.
        """
        return self._fingerprint(all_of_it=True)

    def frozen_fingerprint(self) -> str:
        """A digest of what must not change: everything but what is unfrozen."""
        return self._fingerprint(all_of_it=False)

    def _fingerprint(self, all_of_it: bool) -> str:
        digest = hashlib.sha256(json.dumps(self._settings, sort_keys=True).encode())
        digest.update(json.dumps(self.tokenizer.chat_template, sort_keys=True).encode())
        bases = {base_name(name): (name, weight) for name, weight in self.model.named_parameters()}
        for base, (name, weight) in sorted((base, pair) for base, pair in bases.items() if base is not None):
            if all_of_it or f"model.{name}" not in self.trainable_names:
                told = self._before[name] if name in self._before else _digest(weight)
                digest.update(f"{base} {told}".encode())
        return digest.hexdigest()

    def _read_tokenizer(self, path: str, local: bool) -> PreTrainedTokenizerBase:
        tokenizer: Any = AutoTokenizer.from_pretrained(
            path, local_files_only=local, trust_remote_code=self.trust_remote_code
        )
        tokenizer.chat_template = tokenizer.chat_template or audio_llm.processor_template(path, local)
        return cast(PreTrainedTokenizerBase, tokenizer)

    def _read_model(self, path: str, local: bool) -> PreTrainedModel:
        if audio_llm.is_composite(path, local):
            model, absent = audio_llm.read_text(path, local, self.dtype, HUB)
        else:
            model, absent = self._read(path, local)
        if absent:  # transformers would go on with random numbers
            raise HUB.missing(self.checkpoint, f"its files lack {len(absent)} weights, such as {absent[0]}")
        return model

    def _read(self, path: str, local: bool) -> tuple[PreTrainedModel, list[str]]:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=self.dtype,
            use_safetensors=True,
            local_files_only=local,
            trust_remote_code=self.trust_remote_code,
            output_loading_info=True,
        )
        model, report = loaded
        return cast(PreTrainedModel, model), sorted(report["missing_keys"])


def _digest(weight: Tensor) -> str:
    """SHA-256 of a weight's dtype, shape and bits."""
    digest = hashlib.sha256(f"{weight.dtype} {tuple(weight.shape)}".encode())
    digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _frozen(model: PreTrainedModel) -> PreTrainedModel:
    model.requires_grad_(False)
    model.train(False)
    return model


def _stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Whatever the checkpoint says ends an answer: its files do not always agree, and each is right."""
    settings = model.generation_config.eos_token_id if model.generation_config else None
    listed = settings if isinstance(settings, list) else [settings]
    return {int(token) for token in (*listed, tokenizer.eos_token_id) if token is not None}
