"""A causal LM, frozen but for what a recipe unfreezes, that reads embeddings where it would read words."""

import hashlib
import json
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from undertone.errors import ConfigError, UndertoneError, nearest
from undertone.llms import composite
from undertone.llms.chat import ChatFormat, Placeholder, Segment
from undertone.llms.checkpoints import HUB, describe, reach, settings
from undertone.llms.prefixes import Prefixes
from undertone.llms.tuning import Tuning, base_name, decoder_layers, layer_numbers, lora_layers, tune

Dtype = Literal["float32", "bfloat16", "float16"]

_IGNORE = -100  # target of a position that is not in the loss


class TokenLoss(NamedTuple):
    """Negative log-likelihood in nats and float32, summed over response tokens.

    `total` is (), `tokens` counts the response tokens, `per_row` is (batch,). The mean is left to the caller, who
    knows the other ranks. `watched` is (batch, dim) where a `Watch` was given.
    """

    total: Tensor
    tokens: int
    per_row: Tensor
    watched: Tensor | None = None


class Watch(NamedTuple):
    """What is looked at inside: the mean, over some positions of each prompt, of a layer's output.

    `layer` counts from 0; `rows` holds the positions of each prompt, none of them past its end. A row without any has
    a mean of zeros.
    """

    layer: int
    rows: Sequence[Sequence[int]]


class CausalLLM(nn.Module):
    """Any Hugging Face causal LM with a chat template, in its own dtype, frozen but for what `tuning` names.

    `__init__` only describes; `build` makes the network without weights; `load` fetches weights and tokenizer.

    Args:
        checkpoint: a local folder, `undertone:` and a folder of the package, or a hub id.
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
        self.tuning = tuning or Tuning("frozen")
        self.tuned: list[str] = []
        self.depth: int = self.config.get_text_config().num_hidden_layers
        if self.tuning.method != "frozen":
            layer_numbers(self.tuning.layers, self.depth)  # a mistake there is told before any weight is read
        if self.tuning.method == "weights" and dtype != "float32":
            raise ConfigError(
                f"llm.tuning: weights in {dtype} lose the small steps of training; set llm.dtype=float32 (with "
                "trainer.precision=bf16-mixed for speed), or method: lora"
            )
        self._prefixes = Prefixes()
        self._before: dict[str, str] = {}  # digests of the weights that train, as the checkpoint has them

    def build(self) -> None:
        """Make the network on the current device (meta for a dry run): no weights of worth, no tokenizer."""
        model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            self.config, dtype=self.dtype, trust_remote_code=self.trust_remote_code
        )
        self.model = self._unfrozen(model)

    def load(self) -> None:
        """Fetch weights (safetensors only) and tokenizer. Idempotent.

        Raises:
            MissingError: they cannot be reached, or are not whole; the message says where they were looked for.
            UndertoneError: the tokenizer has no chat template.
        """
        if hasattr(self, "chat"):
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

    def _unfrozen(self, model: PreTrainedModel) -> PreTrainedModel:
        """The model as `tuning` wants it, with nothing learning yet."""
        tuned = tune(_frozen(model), self.tuning)
        self.tuned = [f"model.{name}" for name in tuned]
        bases = {name: weight for name, weight in model.named_parameters() if name in tuned and base_name(name)}
        self._before = {} if model.device.type == "meta" else {name: _digest(bases[name]) for name in bases}
        return _frozen(model)

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers, in their order."""
        return decoder_layers(self.model)

    def learn(self, learns: bool) -> None:
        """Let the unfrozen weights learn, or let them rest; nothing else ever does."""
        tuned = set(self.tuned) if learns else set()
        for name, weight in self.named_parameters():
            weight.requires_grad_(name in tuned)

    def train(self, mode: bool = True) -> "CausalLLM":
        """A frozen LLM stays in eval mode: frozen means frozen, dropout included."""
        super().train(mode)
        if hasattr(self, "model"):
            self.model.train(mode and any(weight.requires_grad for weight in self.model.parameters()))
        return self

    def take(self, weights: dict[str, Tensor]) -> None:
        """Give the unfrozen weights these values, by their names in `tuned`.

        Raises:
            RuntimeError: one is missing, unknown, or of another shape.
        """
        if missing := sorted(set(self.tuned) ^ set(weights)):
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
                "ready ones (`response` in its lines, by `undertone targets`), or tune by method: lora"
            )
        stacks, learns = lora_layers(self.model.modules()), any(w.requires_grad for w in self.model.parameters())
        for layer in stacks:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in stacks:
                layer.enable_adapters(True)
            self.learn(learns)  # peft has switched gradients on with the maps

    def embed(self, segments: list[Segment], fills: Mapping[Hashable, Tensor]) -> Tensor:
        """A prompt as (tokens, dim) in the LLM's dtype: text from its own table, each placeholder from `fills`.

        A fill is (n, dim), n may be 0; it keeps its gradient and is cast to the LLM's dtype. It stands where the
        table's output stands, that is after the scaling of families that scale inside their table.

        Raises:
            KeyError: a placeholder has no fill.
            UndertoneError: a fill has another shape.
        """
        rows = [self._fill(part, fills) if isinstance(part, Placeholder) else self._words(part) for part in segments]
        return torch.cat([self._words([]), *rows])

    def loss(
        self,
        prompts: list[Tensor],
        responses: list[list[int]],
        prefixes: list[list[int]] | None = None,
        watch: Watch | None = None,
    ) -> TokenLoss:
        """How surprising the responses are after their prompts.

        Rows are padded on the left, so that responses end together and logits are made for the last positions only;
        rows of very different length go through the model apart.

        Args:
            prompts: each (tokens, dim), from `embed`.
            responses: token ids of each, its end-of-turn token included.
            prefixes: token ids of the text with which each prompt begins. Under a frozen LLM its keys and values are
                constants: they are computed without gradient, and once for rows that begin alike. The result is the
                same; it is left out for models that attend through sliding windows, and for those that learn.
            watch: what to look at inside; prefixes are then left out, since nothing can be seen in them.

        Raises:
            UndertoneError: no rows, a row without prompt or response, or one that the LLM's context cannot hold.
        """
        if len(prompts) != len(responses) or not prompts or not all(responses):
            raise UndertoneError(
                f"a loss needs as many responses as prompts, and a token in each: got {len(prompts)} prompts, "
                f"responses of {[len(response) for response in responses]} tokens"
            )
        self._check(prompts, [len(response) for response in responses])
        constant = prefixes is not None and all(prefixes) and not self.tuned and watch is None
        known = prefixes if constant and prefixes and self._attends_to_all() else [[]] * len(prompts)
        tails = [
            torch.cat([prompt[len(prefix) :], self._words(response)])
            for prompt, prefix, response in zip(prompts, known, responses, strict=True)
        ]
        groups = _alike([len(tail) for tail in tails])
        parts, seen = [], []
        for rows in groups:
            with self._watched(watch, rows, tails) as means:
                parts.append(
                    self._surprise([tails[i] for i in rows], [responses[i] for i in rows], [known[i] for i in rows])
                )
            seen += means
        order = torch.tensor([i for rows in groups for i in rows]).argsort().to(parts[0].device)
        per_row = torch.cat(parts)[order]
        watched = torch.cat(seen)[order] if seen else None
        return TokenLoss(per_row.sum(), sum(len(response) for response in responses), per_row, watched)

    @contextmanager
    def _watched(self, watch: Watch | None, rows: list[int], tails: list[Tensor]) -> Iterator[list[Tensor]]:
        """While a group of rows goes through the model: its means, (rows, dim), of what `watch` says."""
        means: list[Tensor] = []
        if watch is None:
            yield means
            return
        longest = max(len(tails[i]) for i in rows)
        mask = torch.zeros(len(rows), longest, device=tails[rows[0]].device)
        for row, i in enumerate(rows):
            mask[row, [longest - len(tails[i]) + place for place in watch.rows[i]]] = 1.0

        def look(_: nn.Module, __: Any, output: Any) -> None:
            states = (output[0] if isinstance(output, tuple) else output).float()
            means.append(torch.einsum("rtd,rt->rd", states, mask) / mask.sum(1, keepdim=True).clamp(min=1))

        handle = self.layers[watch.layer].register_forward_hook(look)
        try:
            yield means
        finally:
            handle.remove()

    def _surprise(self, tails: list[Tensor], responses: list[list[int]], prefixes: list[list[int]]) -> Tensor:
        """The responses' negative log-likelihood, (rows,). A tail is (tokens, dim): all after the prefix."""
        x, real = _pad_left(tails)
        past, before = self._prefixes.read(self.model, prefixes) if any(prefixes) else (None, real[:, :0])
        longest = max(len(response) for response in responses)
        logits = self.model(
            inputs_embeds=x,
            attention_mask=torch.cat([before, real], 1).long(),
            position_ids=(before.sum(1, keepdim=True) + real.cumsum(1) - 1).clamp(min=0),
            past_key_values=past,
            use_cache=past is not None,
            logits_to_keep=longest + 1,
        ).logits[:, :-1]  # (rows, longest, vocabulary): the last position predicts nothing
        padded = [[_IGNORE] * (longest - len(response)) + response for response in responses]
        targets = torch.tensor(padded, device=logits.device)
        counted = targets != _IGNORE
        nll = F.cross_entropy(logits[counted].float(), targets[counted], reduction="none")
        return nll.new_zeros(counted.shape).masked_scatter(counted, nll).sum(1)

    def _attends_to_all(self) -> bool:
        """Whether every layer sees the whole past, so that only positions matter and not the place in the cache."""
        config = self.config.get_text_config()
        kinds = getattr(config, "layer_types", None)
        if kinds is not None:
            return all(kind == "full_attention" for kind in kinds)
        return getattr(config, "sliding_window", None) is None

    @torch.no_grad()
    def generate(self, prompts: list[Tensor], max_new_tokens: int) -> list[str]:
        """The likeliest next token again and again, until the turn ends: a text per prompt of (tokens, dim).

        Texts come without special tokens and without white space around them, and do not depend on the batch.

        Raises:
            UndertoneError: a prompt is empty, or the LLM's context cannot hold it and `max_new_tokens` more.
        """
        if max_new_tokens < 1:
            raise UndertoneError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
        if not prompts:
            return []
        self._check(prompts, [max_new_tokens] * len(prompts))
        x, real = _pad_left(prompts)
        ids = self.model.generate(  # type: ignore[operator]  # GenerationMixin is not in PreTrainedModel's type
            inputs_embeds=x, attention_mask=real.long(), max_new_tokens=max_new_tokens
        )
        return [self._text(row) for row in ids.tolist()]

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
            if all_of_it or f"model.{name}" not in self.tuned:
                told = self._before[name] if name in self._before else _digest(weight)
                digest.update(f"{base} {told}".encode())
        return digest.hexdigest()

    def _read_tokenizer(self, path: str, local: bool) -> PreTrainedTokenizerBase:
        tokenizer: Any = AutoTokenizer.from_pretrained(
            path, local_files_only=local, trust_remote_code=self.trust_remote_code
        )
        tokenizer.chat_template = tokenizer.chat_template or composite.processor_template(path, local)
        return cast(PreTrainedTokenizerBase, tokenizer)

    def _read_model(self, path: str, local: bool) -> PreTrainedModel:
        if composite.is_composite(path, local):
            model, absent = composite.read_text(path, local, self.dtype, HUB)
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

    def _words(self, ids: list[int]) -> Tensor:
        table = self.model.get_input_embeddings()
        embedded: Tensor = table(torch.tensor(ids, dtype=torch.long, device=cast(Tensor, table.weight).device))
        return embedded.to(self.dtype)

    def _fill(self, placeholder: Placeholder, fills: Mapping[Hashable, Tensor]) -> Tensor:
        if placeholder.key not in fills:
            raise KeyError(f"no fill for the placeholder {placeholder.key!r}; there are fills for {list(fills)}")
        fill = fills[placeholder.key]
        if fill.ndim != 2 or fill.shape[1] != self.dim:
            raise UndertoneError(
                f"the fill for {placeholder.key!r} is {tuple(fill.shape)}, and must be (tokens, {self.dim})"
            )
        return fill.to(self.dtype)

    def _check(self, prompts: list[Tensor], extra: list[int]) -> None:
        most: int | None = getattr(self.config.get_text_config(), "max_position_embeddings", None)
        for i, (prompt, more) in enumerate(zip(prompts, extra, strict=True)):
            if not len(prompt):
                raise UndertoneError(f"prompt {i} is empty: there is nothing to answer")
            if most is not None and len(prompt) + more > most:
                raise UndertoneError(
                    f"prompt {i} has {len(prompt)} tokens, and {more} may follow: {self.checkpoint} reads {most}"
                )

    def _text(self, ids: list[int]) -> str:
        end = next((at for at, token in enumerate(ids) if token in self.chat.stop_ids), len(ids))
        return cast(str, self.tokenizer.decode(ids[:end], skip_special_tokens=True)).strip()


def places(segments: list[Segment], fills: Mapping[Hashable, Tensor]) -> dict[Hashable, range]:
    """Where each placeholder's embeddings stand in the prompt that `CausalLLM.embed` makes of these segments."""
    found: dict[Hashable, range] = {}
    end = 0
    for part in segments:
        start, end = end, end + (len(fills[part.key]) if isinstance(part, Placeholder) else len(part))
        if isinstance(part, Placeholder):
            found[part.key] = range(start, end)
    return found


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


def _alike(lengths: list[int]) -> list[list[int]]:
    """Row numbers in groups within which the shortest row is at least 3/4 as long as the longest."""
    order = sorted(range(len(lengths)), key=lambda row: lengths[row])
    groups: list[list[int]] = []
    for row in reversed(order):
        if groups and lengths[row] >= 0.75 * lengths[groups[-1][0]]:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def _pad_left(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows of (tokens, dim) as (batch, tokens, dim) that end together, and (batch, tokens), True where real."""
    longest = max(len(row) for row in rows)
    x = torch.stack([F.pad(row, (0, 0, longest - len(row), 0)) for row in rows])
    lengths = torch.tensor([len(row) for row in rows], device=x.device)
    return x, torch.arange(longest, device=x.device) >= longest - lengths[:, None]
