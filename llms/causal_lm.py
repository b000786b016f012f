"""A causal LM, frozen but for what a recipe unfreezes, that reads embeddings where it would read words."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from sottovoce.errors import SottovoceError
from sottovoce.llms.chat_template import Placeholder, Segment
from sottovoce.llms.hf_model import Dtype, LoadedLLM
from sottovoce.llms.prefix_cache import Prefixes, cache_name
from sottovoce.llms.tuning_config import Tuning

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


class CausalLLM(LoadedLLM):
    """Reads a prompt of words and speech, says how likely an answer to it is, and answers.

    Args: see `LoadedLLM`.
    """

    def __init__(
        self,
        checkpoint: str,
        dtype: Dtype = "bfloat16",
        trust_remote_code: bool = False,
        tuning: Tuning | None = None,
    ) -> None:
        super().__init__(checkpoint, dtype, trust_remote_code, tuning)
        self._prefixes = Prefixes()

    def embed(self, segments: list[Segment], fills: Mapping[Hashable, Tensor]) -> Tensor:
        """A prompt as (tokens, dim) in the LLM's dtype: text from its own table, each placeholder from `fills`.

        A fill is (n, dim), n may be 0; it keeps its gradient and is cast to the LLM's dtype. It stands where the
        table's output stands, that is after the scaling of families that scale inside their table.

        Raises:
            KeyError: a placeholder has no fill.
            SottovoceError: a fill has another shape.
        """
        return self.embed_all([segments], fills)[0]

    def embed_all(self, chats: Sequence[list[Segment]], fills: Mapping[Hashable, Tensor]) -> list[Tensor]:
        """Several prompts, see `embed`, with one look into the table for all of their text."""
        nothing, *rest = self._words([[], *(part for chat in chats for part in chat if isinstance(part, list))])
        words = iter(rest)
        return [
            torch.cat([nothing, *(next(words) if isinstance(part, list) else self._fill(part, fills) for part in chat)])
            for chat in chats
        ]

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
            SottovoceError: no rows, a row without prompt or response, or one that the LLM's context cannot hold.
        """
        if len(prompts) != len(responses) or not prompts or not all(responses):
            raise SottovoceError(
                f"a loss needs as many responses as prompts, and a token in each: got {len(prompts)} prompts, "
                f"responses of {[len(response) for response in responses]} tokens"
            )
        self._check(prompts, [len(response) for response in responses])
        sharded = self.sharded  # then each process makes the same calls: one, whatever its rows are
        constant = prefixes is not None and all(prefixes) and not self.trainable_names and watch is None and not sharded
        known = prefixes if constant and prefixes and self._attends_to_all() else [[]] * len(prompts)
        tails = [
            torch.cat([prompt[len(prefix) :], reply])
            for prompt, prefix, reply in zip(prompts, known, self._words(responses), strict=True)
        ]
        groups = [list(range(len(tails)))] if sharded else _alike([len(tail) for tail in tails])
        parts, seen = [], []
        for rows in groups:
            with self._watched(watch, rows, tails) as means:
                parts.append(
                    self._response_nll([tails[i] for i in rows], [responses[i] for i in rows], [known[i] for i in rows])
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

        # The hook computes nothing: where activations are recomputed, it would run in the forward pass alone.
        seen: list[Tensor] = []
        handle = self.layers[watch.layer].register_forward_hook(
            lambda _, __, output: seen.append(output[0] if isinstance(output, tuple) else output)
        )
        try:
            yield means
        finally:
            handle.remove()
        means += [torch.einsum("rtd,rt->rd", x.float(), mask) / mask.sum(1, keepdim=True).clamp(min=1) for x in seen]

    def _response_nll(self, tails: list[Tensor], responses: list[list[int]], prefixes: list[list[int]]) -> Tensor:
        """The responses' negative log-likelihood, (rows,). A tail is (tokens, dim): all after the prefix."""
        x, real = _pad_left(tails)
        past, before = self._prefixes.read(self.model, prefixes) if any(prefixes) else (None, real[:, :0])
        longest = max(len(response) for response in responses)
        logits = self.model(
            inputs_embeds=x,
            attention_mask=torch.cat([before, real], 1).long(),
            position_ids=(before.sum(1, keepdim=True) + real.cumsum(1) - 1).clamp(min=0),
            use_cache=past is not None,
            logits_to_keep=longest + 1,
            **{cache_name(self.model): past},
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
            SottovoceError: a prompt is empty, or the LLM's context cannot hold it and `max_new_tokens` more.
        """
        if max_new_tokens < 1:
            raise SottovoceError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
        if not prompts:
            return []
        self._check(prompts, [max_new_tokens] * len(prompts))
        x, real = _pad_left(prompts)
        ids = self.model.generate(  # type: ignore[operator]  # GenerationMixin is not in PreTrainedModel's type
            inputs_embeds=x, attention_mask=real.long(), max_new_tokens=max_new_tokens
        )
        return [self._text(row) for row in ids.tolist()]

    def _words(self, texts: Sequence[list[int]]) -> list[Tensor]:
        """The embeddings of each text, (tokens, dim), by one look into the table."""
        table = self.model.get_input_embeddings()
        ids = torch.tensor([token for text in texts for token in text], dtype=torch.long)
        embedded: Tensor = table(ids.to(cast(Tensor, table.weight).device))
        return list(torch.split(embedded.to(self.dtype), [len(text) for text in texts]))

    def _fill(self, placeholder: Placeholder, fills: Mapping[Hashable, Tensor]) -> Tensor:
        if placeholder.key not in fills:
            raise KeyError(f"no fill for the placeholder {placeholder.key!r}; there are fills for {list(fills)}")
        fill = fills[placeholder.key]
        if fill.ndim != 2 or fill.shape[1] != self.dim:
            raise SottovoceError(
                f"the fill for {placeholder.key!r} is {tuple(fill.shape)}, and must be (tokens, {self.dim})"
            )
        return fill.to(self.dtype)

    def _check(self, prompts: list[Tensor], extra: list[int]) -> None:
        most: int | None = getattr(self.config.get_text_config(), "max_position_embeddings", None)
        for i, (prompt, more) in enumerate(zip(prompts, extra, strict=True)):
            if not len(prompt):
                raise SottovoceError(f"prompt {i} is empty: there is nothing to answer")
            if most is not None and len(prompt) + more > most:
                raise SottovoceError(
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
