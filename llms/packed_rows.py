"""Rows of different length packed into one sequence for a causal LM: padding is in attention alone.

Linear maps, norms and logits then see real tokens only, and go once through the weights for all rows. Attention is
computed in batches of rows of like length, by the implementation that the LLM has (eager, or PyTorch's SDPA).
"""

import itertools
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from sottovoce.llms.row_batches import PrefixCache, group_by_length

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "sottovoce_packed"  # of the attention implementation, among those of transformers
TOLERANCE = {torch.float32: 1e-3}  # of logits, as a share of them
COARSE = 0.1  # in other dtypes

_log = logging.getLogger("sottovoce.llms")
_rows: "ContextVar[PackedRows]" = ContextVar("_rows")


class Batch:
    """Rows of like length, as attention sees them: (rows, heads, longest, dim), padded on the right.

    Args:
        start: of its first token in the packed sequence.
        lengths: tokens of each row.
        past: keys and values of a layer, (rows, heads, tokens, dim), padded on the left; None without prefixes.
        before: (rows, tokens), True where a prefix has a token.
    """

    def __init__(self, start: int, lengths: Sequence[int], past: Any, before: Tensor) -> None:
        self.rows, self.longest = len(lengths), max(lengths)
        self.past, self.before = past, before
        self._masks: dict[tuple[int | None, torch.dtype], Tensor] = {}
        device = before.device
        slots = torch.arange(self.longest, device=device)
        self.place = torch.cat([row * self.longest + slots[:n] for row, n in enumerate(lengths)])
        # What pads a row is its last token again: nobody looks at it, and what it sees is dropped.
        starts = itertools.accumulate(lengths[:-1], initial=start)
        self.taken = torch.cat([at + slots.clamp(max=n - 1) for at, n in zip(starts, lengths, strict=True)])

    def padded(self, x: Tensor) -> Tensor:
        """(1, heads, tokens, dim) of the packed sequence as (rows, heads, longest, dim)."""
        flat = x[0].transpose(0, 1)
        # Not `index_copy` into zeros, which keeps `x` for the backward pass.
        whole = flat.index_select(0, self.taken)
        return whole.view(self.rows, self.longest, *flat.shape[1:]).transpose(1, 2)

    def mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """(rows, 1, longest, prefix + longest), to be added to scores: 0 where a token may look, at the prefix and up
        to itself.

        With a window, at so many tokens, itself included; there are no prefixes then.
        """
        if (window, dtype) not in self._masks:
            causal = torch.ones(self.longest, self.longest, dtype=torch.bool, device=self.before.device).tril()
            if window is not None:
                causal = causal.triu(1 - window)
            shape = (self.rows, 1, self.longest, -1)
            seen = torch.cat([self.before[:, None, None].expand(shape), causal.expand(shape)], 3)
            zeros = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
            # Numbers for SDPA, too: of True and False it would make, and keep, numbers in each layer.
            self._masks[window, dtype] = zeros.masked_fill(~seen, torch.finfo(dtype).min)
        return self._masks[window, dtype]


class PackedRows:
    """Rows of (tokens, dim), one behind the other, each after its prefix, whose keys and values are cached.

    Attributes:
        x: (1, tokens, dim).
        positions: (1, tokens), of each token in its own row.
        starts: of each row in the sequence.
    """

    def __init__(
        self, model: "PreTrainedModel", tails: Sequence[Tensor], prefixes: list[list[int]], cache: PrefixCache
    ) -> None:
        self.lengths = lengths = [len(tail) for tail in tails]
        device = tails[0].device
        self.base = str(model.config._attn_implementation)
        self.kinds = attention_kinds(model.config.get_text_config())
        self.layers_seen: list[int] = []
        self.batches: list[Batch] = []
        self.starts = [0] * len(tails)
        order = []
        at = 0
        for group in group_by_length(lengths):
            known = [prefixes[row] for row in group]
            past, before = cache.batch(model, known) if any(known) else (None, torch.ones(len(group), 0, device=device))
            self.batches.append(Batch(at, [lengths[row] for row in group], past, before.bool()))
            for row in group:
                self.starts[row] = at
                at += lengths[row]
            order += group
        self.x = torch.cat([tails[row] for row in order])[None]
        places = [torch.arange(lengths[row], device=device) + len(prefixes[row]) for row in order]
        self.positions = torch.cat(places)[None]

    def inputs(self) -> dict[str, Any]:
        """Arguments of the model."""
        return {"inputs_embeds": self.x, "position_ids": self.positions, "use_cache": False}

    def before_last(self, counts: Sequence[int]) -> Tensor:
        """(tokens,): where the last `counts` tokens of each row are predicted, each at the one before it."""
        ends = [start + length - 1 for start, length in zip(self.starts, self.lengths, strict=True)]
        places = [torch.arange(end - n, end, device=self.x.device) for end, n in zip(ends, counts, strict=True)]
        return torch.cat(places)

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **arguments: Any) -> Tensor:
        """Attention of one layer, (1, tokens, heads, dim), from (1, heads, tokens, dim)."""
        layer = int(cast(Any, module).layer_idx)
        self.layers_seen.append(layer)
        attention = _implementation(self.base, module)
        window = arguments.get("sliding_window")
        if window is None and self.kinds[layer] != "full_attention":
            raise NotImplementedError(f"layer {layer} does not tell its window")
        found = []
        for batch in self.batches:
            q, k, v = (batch.padded(x) for x in (query, key, value))
            if batch.past is not None:
                past = batch.past.layers[layer]
                k, v = torch.cat([past.keys.to(k), k], 2), torch.cat([past.values.to(v), v], 2)
            near = window if window is not None and window < batch.longest else None
            mask = batch.mask(near, q.dtype)
            out = attention(module, q, k, v, mask, **arguments)[0]
            found.append(out.flatten(0, 1).index_select(0, batch.place))
        return torch.cat(found)[None]


def attention_kinds(config: Any) -> list[str]:
    """What transformers calls each layer's attention, by the configuration of a text model."""
    usual = "full_attention" if getattr(config, "sliding_window", None) is None else "sliding_attention"
    return list(getattr(config, "layer_types", None) or [usual] * config.num_hidden_layers)


def packed_logits(
    model: "PreTrainedModel", tails: Sequence[Tensor], counts: Sequence[int], prefixes: list[list[int]],
    cache: PrefixCache, seen: list[int] | None = None,
) -> Tensor:  # fmt: skip
    """(tokens, vocabulary): logits for the last `counts` tokens of each tail, of (tokens, dim), after its prefix.

    `seen` is given the numbers of the layers that attended.
    """
    rows = PackedRows(model, tails, prefixes, cache)
    with _attending(model, rows):
        logits = model(**rows.inputs(), logits_to_keep=rows.before_last(counts)).logits[0]
    if seen is not None:
        seen += rows.layers_seen
    return cast(Tensor, logits)


def packed_states(
    model: "PreTrainedModel", tails: Sequence[Tensor], counts: Sequence[int], prefixes: list[list[int]],
    cache: PrefixCache,
) -> Tensor:  # fmt: skip
    """(tokens, dim): the hidden states of which the output layer makes these logits."""
    rows = PackedRows(model, tails, prefixes, cache)
    with _attending(model, rows):
        states = model.get_decoder()(**rows.inputs()).last_hidden_state[0]
    return cast(Tensor, states[rows.before_last(counts)])


def can_pack(model: "PreTrainedModel", depth: int, arguments: Mapping[str, Any], logits: Tensor) -> bool:
    """Whether all mixing of tokens is by attention that can be packed.

    It is tried: `arguments` of `packed_logits` must come to `logits`, through attention of `depth` layers.
    """
    if model.config._attn_implementation not in ("eager", "sdpa"):
        return False
    seen: list[int] = []
    try:
        found = packed_logits(model, **arguments, seen=seen)
    except Exception as error:  # of code that is not ours, and was not made for it
        _log.debug(f"rows are not packed: {error}")
        return False
    if sorted(seen) != list(range(depth)):
        _log.debug(f"rows are not packed: attention of layers {sorted(seen)} of {depth} was seen")
        return False
    return _alike(found, logits, "rows are not packed")


def has_plain_head(model: "PreTrainedModel", arguments: Mapping[str, Any]) -> bool:
    """Whether logits are nothing but a frozen linear map of `packed_states`; tried with `arguments` of these."""
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear or any(weight.requires_grad for weight in head.parameters()):
        return False
    taken: list[Tensor] = []
    given: list[Tensor] = []

    def louder(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        taken.append(inputs[0][0])
        given.append(1_000 * output)  # so that a cap behind the head is seen
        return given[0]

    handle = head.register_forward_hook(louder)
    try:
        logits = packed_logits(model, **arguments)
        states = packed_states(model, **arguments)
    except Exception as error:
        _log.debug(f"logits are made at once: {error}")
        return False
    finally:
        handle.remove()
    told = "logits are made at once"
    return _alike(logits, given[0][0], told) and _alike(states, taken[0], told)


def _alike(found: Tensor, expected: Tensor, told: str) -> bool:
    right = expected.float()
    distance = (found.float() - right).norm() / (right - right.mean(-1, keepdim=True)).norm().clamp(min=1e-9)
    try:
        off = float(distance)
    except RuntimeError:  # tensors without values, by which a step is estimated
        return True
    if off > TOLERANCE.get(expected.dtype, COARSE):
        _log.debug(f"{told}: they would be {100 * off:.1f} % off")
    return off <= TOLERANCE.get(expected.dtype, COARSE)


def _implementation(name: str, module: nn.Module) -> Any:
    """Attention by the name that transformers has for it; eager is each model's own."""
    from transformers import AttentionInterface

    if name == "eager":
        return cast(Any, sys.modules[type(module).__module__]).eager_attention_forward
    return AttentionInterface()[name]


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **arguments: Any
) -> tuple[Tensor, None]:
    return _rows.get().attend(module, query, key, value, **arguments), None


@contextmanager
def _attending(model: "PreTrainedModel", rows: PackedRows) -> Iterator[None]:
    """While the block runs, `model` attends by `rows`."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _attention)
    configs = {id(c): c for c in (getattr(part, "config", None) for part in model.modules()) if c is not None}
    before = {key: config._attn_implementation for key, config in configs.items()}
    token = _rows.set(rows)
    try:
        for config in configs.values():
            config._attn_implementation = NAME
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation = before[key]
        _rows.reset(token)
