"""A Hugging Face causal LM with selective tuning: network, tokenizer, chat template, fingerprints."""

import hashlib
import inspect
import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from sottovoce.audio_llm_layouts import KIMI
from sottovoce.errors import ConfigError, nearest
from sottovoce.hub import WEIGHTS
from sottovoce.llms import hub_checkpoints
from sottovoce.llms.chat_template import ChatFormat
from sottovoce.llms.hub_checkpoints import HUB, SETTINGS
from sottovoce.llms.quantization import (
    Quantization,
    check_fits_tuning,
    keep_gradients,
    loading_arguments,
    source_of,
    stand_in,
)
from sottovoce.llms.tuning import base_name, decoder_layers, layer_numbers, lora_layers, passed_over, tune
from sottovoce.llms.tuning_config import Tuning
from sottovoce.tensor_files import update_digest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Dtype = Literal["float32", "bfloat16", "float16"]


class LoadedLLM(nn.Module):
    """A Hugging Face causal LM with a chat template, frozen but for what `tuning` names.

    `__init__` only describes; `build` makes the network without weights; `load` fetches weights and tokenizer.

    Args:
        checkpoint: a local folder, `sottovoce:` and a folder of the package, or a hub id.
        dtype: of the weights.
        trust_remote_code: run Python code that comes with the checkpoint.
        tuning: what may train; nothing if absent.
        chat_template_kwargs: see `ChatFormat`.
        attn_implementation: of transformers, such as eager.
        chat_template, quantization: in Jinja, in place of the checkpoint's; of the frozen weights.

    Attributes:
        trainable_names: of the weights that may train, relative to this module, once it is built or loaded.
        passed_over: what of the tuned layers stays frozen, in words; None where nothing worth a word does.

    Raises:
        ConfigError: `dtype` or architecture is unknown or cannot answer embeddings; quantised weights would train.
        MissingError: the checkpoint is neither on this machine, nor published, nor on a hub that can be reached.
    """

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    chat: ChatFormat

    def __init__(
        self, checkpoint: str, dtype: Dtype = "bfloat16", trust_remote_code: bool = False, tuning: Tuning | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None, attn_implementation: str | None = None,
        chat_template: str | None = None, quantization: Quantization | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if dtype not in get_args(Dtype):
            why = f"no dtype is called {dtype!r}.{nearest(dtype, get_args(Dtype))}"
            raise ConfigError.at("llm.dtype", "unknown-name", why)
        self.checkpoint = checkpoint
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.trust_remote_code, self.attn_implementation = trust_remote_code, attn_implementation
        self.chat_template, self.quantization = chat_template, quantization
        self.config = hub_checkpoints.describe(checkpoint, trust_remote_code)
        self.dim: int = self.config.get_text_config().hidden_size
        if getattr(self.config.get_text_config(), "hidden_size_per_layer_input", 0):
            why = f"{checkpoint} ({self.config.model_type}) embeds each token once more for every layer, which speech "
            raise ConfigError.at(HUB.key, "mismatch", f"{why}has no token for: take another LLM")
        self.tuning = tuning or Tuning()
        self.chat_template_kwargs = chat_template_kwargs or {}
        self.trainable_names: list[str] = []
        self.passed_over: str | None = None
        self.depth: int = self.config.get_text_config().num_hidden_layers
        if self.tuning.method != "frozen":
            layer_numbers(self.tuning.layers, self.depth)  # a mistake there is reported before any weight is read
        if self.tuning.method == "weights" and dtype != "float32":
            why = f"weights in {dtype} lose the small steps of training; set llm.dtype=float32 (with "
            why += "trainer.precision=bf16-mixed for speed), or llm.tuning.method=lora"
            raise ConfigError.at("llm.dtype", "conflict", why)
        check_fits_tuning(quantization, self.tuning.method, self.config)
        self._pretrained: dict[str, str] = {}  # digests of the weights that train, before training

    def build(self) -> None:
        """Make the network without its weights, on the current device (meta for a dry run); no tokenizer."""
        from transformers import AutoModelForCausalLM

        arguments: dict[str, Any] = {"dtype": self.dtype, "trust_remote_code": self.trust_remote_code}
        model = AutoModelForCausalLM.from_config(self.config, **arguments)  # type: ignore[no-untyped-call]
        self._check_takes_embeddings(model)
        if self.quantization:
            stand_in(model, self.quantization)
        self.model = self._tuned(model)

    def load(self) -> None:
        """Fetch weights (safetensors only) and tokenizer. Idempotent.

        Raises:
            MissingError: they cannot be reached, or are not whole; the message says where they were looked for.
            SottovoceError: the tokenizer has no chat template, or one with tokens that the LLM lacks.
        """
        if hasattr(self, "chat") and self.model.device.type != "meta":
            return
        from transformers import GenerationConfig

        folder = HUB.snapshot(self.checkpoint, (*SETTINGS, *WEIGHTS))
        hub_checkpoints.check_no_lora(self.checkpoint, folder)
        tokenizer, model = self.read_tokenizer(folder), self._read_model(folder)
        if (dim := model.get_input_embeddings().embedding_dim) != self.dim:
            why = f"{self.checkpoint} has embeddings of {dim}, but was published with {self.dim}"
            raise ConfigError.at(HUB.key, "mismatch", why)
        self._check_takes_embeddings(model)
        chat = self.chat_format(tokenizer, hub_checkpoints.stop_ids(model, tokenizer))
        embeddings: Any = model.get_input_embeddings()
        count = embeddings.num_embeddings
        if (largest := chat.largest_id()) >= count:
            token = tokenizer.convert_ids_to_tokens(largest)
            why = f"the chat template of {self.checkpoint} writes {token!r}, token {largest} of its tokenizer, and its "
            raise ConfigError.at(HUB.key, "mismatch", f"{why}weights have {count}: they do not belong together")
        # A checkpoint's own generation settings (sampling, a repetition penalty that cannot see speech) would leak
        # into greedy search: transformers fills in whatever a call leaves open.
        model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=False, eos_token_id=sorted(chat.stop_ids), pad_token_id=min(chat.stop_ids)
        )
        self.model, self.config = self._tuned(model), model.config
        self._settings = hub_checkpoints.settings(folder) | source_of(self.quantization, folder)
        self.tokenizer, self.chat = tokenizer, chat

    def chat_format(self, tokenizer: "PreTrainedTokenizerBase", stop_ids: Collection[int]) -> ChatFormat:
        """The chat format with this LLM's arguments of the template."""
        return ChatFormat(tokenizer, stop_ids, self.chat_template_kwargs)

    def _check_takes_embeddings(self, model: "PreTrainedModel") -> None:
        """`ConfigError` where `generate` takes token ids alone, by the rule of transformers."""
        prepare = inspect.signature(model.prepare_inputs_for_generation)  # type: ignore[arg-type]  # of GenerationMixin
        if "inputs_embeds" not in prepare.parameters:
            why = f"{self.checkpoint} is a {type(model).__name__}, which transformers lets generate from token ids "
            raise ConfigError.at(HUB.key, "mismatch", f"{why}alone, not from speech: take another LLM")

    def unload(self) -> None:
        """Free the memory of the weights, trained ones included; `load` fetches the checkpoint's again."""
        if self.quantization:  # those cannot be moved there
            with torch.device("meta"):
                return self.build()
        self.model.to("meta")  # type: ignore[arg-type]  # of one overload of several

    def _tuned(self, model: "PreTrainedModel") -> "PreTrainedModel":
        """The model with LoRA where `tuning` wants it, and without gradients yet."""
        if self.attn_implementation:
            try:
                model.set_attn_implementation(self.attn_implementation)
            except ValueError as error:
                raise ConfigError.at("llm.attn_implementation", "mismatch", f"{self.checkpoint}: {error}") from None
        self.passed_over = passed_over(model, self.tuning)
        tuned = tune(_frozen(model), self.tuning)
        self.trainable_names = [f"model.{name}" for name in tuned]
        bases = {name: weight for name, weight in model.named_parameters() if name in tuned and base_name(name)}
        self._pretrained = {} if model.device.type == "meta" else {name: _digest(bases[name]) for name in bases}
        model.get_output_embeddings().register_forward_pre_hook(_contiguous)
        return _frozen(model)

    @property
    def sharded(self) -> bool:
        """Whether ZeRO's stage 3 has sharded the weights, so that all processes must run the model in lockstep."""
        return any(hasattr(weight, "ds_id") for weight in self.model.parameters())

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers, in their order."""
        return decoder_layers(self.model)

    def set_trainable(self, trainable: bool) -> None:
        """Switch gradients of the weights named by `tuning` on or off; all others have none."""
        tuned = set(self.trainable_names) if trainable else set()
        for name, weight in self.named_parameters():
            weight.requires_grad_(name in tuned)

    def train(self, mode: bool = True) -> "LoadedLLM":
        """As in `nn.Module`, but a frozen LLM stays in eval mode: no dropout."""
        super().train(mode)
        if hasattr(self, "model"):
            self.model.train(mode and any(weight.requires_grad for weight in self.model.parameters()))
        return self

    def load_trained(self, weights: dict[str, Tensor]) -> None:
        """Set the trained weights, by their names in `trainable_names`; `RuntimeError` where they do not fit."""
        if missing := sorted(set(self.trainable_names) ^ set(weights)):
            raise RuntimeError(f"{len(missing)} weights of the LLM are on one side only, such as {missing[0]}")
        self.load_state_dict(weights, strict=False)

    @contextmanager
    def untuned(self) -> Iterator[None]:
        """Run the LLM as pretrained meanwhile, with LoRA switched off; `ConfigError` if its own weights are trained."""
        if self.tuning.method == "weights":
            why = "the LLM's own weights are trained, so it can no longer make targets as it was: give the manifest "
            why += "ready ones (`response` in its lines, by `sottovoce targets`), or tune by method: lora"
            raise ConfigError.at("llm.tuning.method", "conflict", why)
        layers = lora_layers(self.model.modules()) if self.tuning.method == "lora" else []
        trainable = any(weight.requires_grad for weight in self.model.parameters())
        for layer in layers:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in layers:
                layer.enable_adapters(True)
            self.set_trainable(trainable)  # peft has switched gradients on with the maps

    def fingerprint(self, *, frozen: bool = False) -> str:
        """SHA-256 of the pretrained weights (`frozen`: of those that never train), architecture and chat template.

        The template's arguments are part of it. Equal ones give equal answers.
        """
        digest = hashlib.sha256(json.dumps(self._settings, sort_keys=True).encode())
        digest.update(json.dumps(self.tokenizer.chat_template, sort_keys=True).encode())
        if self.chat.arguments:
            digest.update(json.dumps(self.chat.arguments, sort_keys=True).encode())
        bases = {base_name(name): (name, weight) for name, weight in self.model.named_parameters()}
        for base, (name, weight) in sorted((base, pair) for base, pair in bases.items() if base is not None):
            if not self.quantization and (not frozen or f"model.{name}" not in self.trainable_names):
                digest.update(f"{base} {self._pretrained.get(name) or _digest(weight)}".encode())
        return digest.hexdigest()

    def read_tokenizer(self, folder: Path) -> "PreTrainedTokenizerBase":
        """The tokenizer in a checkpoint's folder, with the chat template; errors as in `load`."""
        from transformers import AutoTokenizer

        with hub_checkpoints.loading(self.checkpoint):
            if self.config.model_type == KIMI:
                from sottovoce.llms.kimi_audio import read_tokenizer

                return read_tokenizer(folder)
            tokenizer: Any = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=self.trust_remote_code
            )
            own = tokenizer.chat_template or hub_checkpoints.processor_template(folder)
            tokenizer.chat_template = self.chat_template or own
        return cast("PreTrainedTokenizerBase", tokenizer)

    def _read_model(self, folder: Path) -> "PreTrainedModel":
        with hub_checkpoints.loading(self.checkpoint):
            if not hub_checkpoints.is_composite(folder):
                more = loading_arguments(self.quantization, self.dtype) if self.quantization else {}
                model, absent = hub_checkpoints.read_model(folder, self.dtype, self.trust_remote_code, more)
            elif self.quantization:
                raise ConfigError.at("llm.quantization", "conflict", "the text model of an audio LLM is not quantised")
            else:
                model, absent = hub_checkpoints.read_text(folder, self.dtype, HUB)
        if absent:  # transformers would go on with random numbers
            raise HUB.missing(self.checkpoint, f"its files lack {len(absent)} weights, such as {absent[0]}")
        keep_gradients(model)
        return model


def _digest(weight: Tensor) -> str:
    digest = hashlib.sha256()
    update_digest(digest, weight)
    return digest.hexdigest()


def _frozen(model: "PreTrainedModel") -> "PreTrainedModel":
    model.requires_grad_(False)
    model.train(False)
    return model


def _contiguous(head: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Sliced hidden states, of which torch multiplies each row apart (findings/frozen_linear_of_a_slice.sh).

    By way of two dimensions: one row of a slice counts as contiguous, and keeps strides that are taken for a slice's.
    """
    return tuple(x.reshape(-1, x.shape[-1]).contiguous().view(x.shape) for x in inputs)
