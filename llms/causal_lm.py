"""A causal LM with embeddings spliced into its prompts: loss, generation, pooled hidden states."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from transformers import LogitsProcessorList

from sottovoce.errors import SottovoceError
from sottovoce.llms.answer_text import Cut as Cut
from sottovoce.llms.answer_text import without_thoughts
from sottovoce.llms.chat_template import Placeholder, Segment
from sottovoce.llms.ctc_head import CTCLoss
from sottovoce.llms.greedy_search import FiniteLogits
from sottovoce.llms.hf_model import LoadedLLM
from sottovoce.llms.packed_rows import attention_kinds
from sottovoce.llms.row_batches import PrefixCache, masked_mean, pad_left, position_mask
from sottovoce.llms.row_generation import RowGenerator, generate_rows
from sottovoce.llms.row_reader import RowReader
from sottovoce.llms.top_tokens import Teaching, TopTokens, summed_divergence, top_tokens


class TokenLoss(NamedTuple):
    """Negative log-likelihood in nats and float32, summed over response tokens.

    `total` is (), `tokens` counts the response tokens, `per_row` is (batch,). The mean is left to the caller, who
    knows the other ranks. `pooled` is (batch, dim) where a `PooledLayer` was given; `ctc` is the caller's to add;
    `divergence` is (), the sum of KL over the tokens of rows with a teacher, where a `Teaching` was given.
    `row_tokens` has for each row the tokens of its response, and all that the LLM reads.
    """

    total: Tensor
    tokens: int
    per_row: Tensor
    pooled: Tensor | None = None
    ctc: CTCLoss | None = None
    divergence: Tensor | None = None
    row_tokens: Sequence[tuple[int, int]] = ()


class PooledLayer(NamedTuple):
    """Which hidden states to average: of layer `layer`, from 0, at positions of each prompt; none: a mean of zeros."""

    layer: int
    positions: Sequence[Sequence[int]]


class CausalLLM(LoadedLLM):
    """Loss of, and greedy generation after, prompts of text and speech embeddings.

    With `compiles`, losses run through `compile_layers`. With `may_pack`, their rows are packed where they can be: not
    for a model that several threads use, since a packed call changes its attention for as long as it takes.
    """

    compiles = False
    may_pack = False
    remote: RowGenerator | None = None  # generates in place of `model`

    @cached_property
    def prefix_cache(self) -> PrefixCache:
        return PrefixCache()

    def embed(self, segments: list[Segment], embeddings: Mapping[Hashable, Tensor]) -> Tensor:
        """A prompt as (tokens, dim) in the LLM's dtype: text from its own table, each placeholder from `embeddings`.

        These are (n, dim), n may be 0, by placeholder key (or `KeyError`); they keep their gradient. They replace the
        table's output, that is they come after the scaling of families that scale inside their table.
        """
        return self.embed_all([segments], embeddings)[0]

    def embed_all(self, chats: Sequence[list[Segment]], embeddings: Mapping[Hashable, Tensor]) -> list[Tensor]:
        """Several prompts, see `embed`, with one look-up for all of their text."""
        texts = [part for chat in chats for part in chat if isinstance(part, list)]
        empty, *rest = self._embed_text([[], *texts])
        text = iter(rest)
        return [
            torch.cat([empty, *(next(text) if isinstance(p, list) else self._embedded(p, embeddings) for p in chat)])
            for chat in chats
        ]

    def loss(
        self, prompts: list[Tensor], responses: list[list[int]], prefixes: list[list[int]] | None = None,
        pool: PooledLayer | None = None, teaching: Teaching | None = None,
    ) -> TokenLoss:  # fmt: skip
        """Negative log-likelihood of the responses, given their prompts.

        Rows are packed into one sequence where the model can be (`packs`). Else they are padded on the left, so that
        responses end together, and rows of very different length go through the model in separate batches. Logits are
        made for the responses alone.

        Args:
            prompts: each (tokens, dim), from `embed`.
            responses: token ids of each, its end-of-turn token included.
            prefixes: token ids of the text with which each prompt begins. Under a frozen LLM its keys and values are
                constants: they are computed without gradient, and cached. The result is the same; it is left out for
                models that attend through sliding windows, and for those that train.
            pool: hidden states to average; prefixes are then ignored, since a cache has none.
            teaching: of each response, the tokens that a teacher finds likely.

        Raises:
            SottovoceError: no rows, a row without prompt or response, or one that the LLM's context cannot hold.
        """
        if len(prompts) != len(responses) or not prompts or not all(responses):
            counts = f"{len(prompts)} prompts, responses of {[len(response) for response in responses]} tokens"
            why = f"a loss needs as many responses as prompts, and a token in each: got {counts}"
            raise SottovoceError(why, code="empty")
        self.check_lengths(prompts, [len(response) for response in responses])
        known = [[]] * len(prompts) if pool else self.cacheable(prefixes or (), len(prompts))
        tails = [
            torch.cat([prompt[len(prefix) :], reply])
            for prompt, prefix, reply in zip(prompts, known, self._embed_text(responses), strict=True)
        ]
        groups = self._reader.groups([len(tail) for tail in tails], pooled=pool is not None)
        nll, means, apart = [], [], []
        for rows in groups:
            group, replies, before = [tails[i] for i in rows], [responses[i] for i in rows], [known[i] for i in rows]
            with self._pooled(pool, rows, group) as pooled:
                of_rows, logits = self._reader.read(
                    group, replies, before, pooled=pool is not None, all_logits=teaching is not None
                )
            nll.append(of_rows)
            if teaching and logits is not None:
                taught = [teaching.rows[i] for i in rows]
                apart.append(summed_divergence(logits, replies, taught, teaching.temperature))
            means += pooled
        order = torch.tensor([i for rows in groups for i in rows]).argsort().to(nll[0].device)
        per_row = torch.cat(nll)[order]
        tokens = sum(len(response) for response in responses)
        read = [(len(reply), len(prompt) + len(reply)) for prompt, reply in zip(prompts, responses, strict=True)]
        pooled_rows = torch.cat(means)[order] if means else None
        kl = torch.stack(apart).sum() if apart else None
        return TokenLoss(per_row.sum(), tokens, per_row, pooled_rows, divergence=kl, row_tokens=read)

    @torch.no_grad()
    def top_tokens(
        self, prompts: list[Tensor], responses: list[list[int]], top_k: int, temperature: float
    ) -> list[TopTokens]:
        """What each response's tokens might have been instead, given its prompt, by this LLM; errors as in `loss`."""
        self.check_lengths(prompts, [len(response) for response in responses])
        tails = [torch.cat(pair) for pair in zip(prompts, self._embed_text(responses), strict=True)]
        found: dict[int, TopTokens] = {}
        for rows in self._reader.groups([len(tail) for tail in tails]):
            replies = [responses[i] for i in rows]
            logits = self._reader.logits([tails[i] for i in rows], replies, [[]] * len(rows))
            parts = torch.split(logits, [len(reply) for reply in replies])
            found |= {i: top_tokens(part, top_k, temperature) for i, part in zip(rows, parts, strict=True)}
        return [found[i] for i in range(len(prompts))]

    @contextmanager
    def _pooled(self, pool: PooledLayer | None, rows: list[int], tails: list[Tensor]) -> Iterator[list[Tensor]]:
        """While a group of rows goes through the model: its pooled hidden states, (rows, dim), once it has."""
        means: list[Tensor] = []
        if pool is None:
            yield means
            return
        mask = position_mask(tails, [pool.positions[i] for i in rows])
        # The hook computes nothing: where activations are recomputed, it would run in the forward pass alone.
        states: list[Tensor] = []
        handle = self.layers[pool.layer].register_forward_hook(
            lambda _, __, output: states.append(output[0] if isinstance(output, tuple) else output)
        )
        try:
            yield means
        finally:
            handle.remove()
        means += [masked_mean(state, mask) for state in states]

    @property
    def packs(self) -> bool:
        """Whether rows go through the model as one sequence; tried when it is first asked for."""
        return self._reader.packing.rows

    @cached_property
    def _reader(self) -> RowReader:
        return RowReader(self)

    def cacheable(self, prefixes: Sequence[Sequence[int]], rows: int) -> list[list[int]]:
        """Prefixes whose keys and values can be kept: all of them under a frozen LLM of full attention, or none."""
        can = len(prefixes) == rows and self.attends_to_all and not (self.trainable_names or self.sharded)
        return [list(prefix) for prefix in prefixes] if can else [[]] * rows

    @property
    def attends_to_all(self) -> bool:
        """Whether every layer attends to the whole past, so that padding inside the cache does no harm."""
        return set(attention_kinds(self.config.get_text_config())) <= {"full_attention"}

    def generate(
        self, prompts: list[Tensor], max_new_tokens: int, prefixes: Sequence[Sequence[int]] = (),
        processors: LogitsProcessorList | None = None,
    ) -> list[str]:  # fmt: skip
        """Greedy search until the turn ends: a text per prompt of (tokens, dim); errors as in `check_lengths`.

        Texts come without thoughts, special tokens and white space around them, and do not depend on the batch; one
        that did not end is a `Cut`. Logits that are not finite are a `TrainingError`.

        Args:
            prompts: see `embed`.
            max_new_tokens: of each.
            prefixes: as in `loss`: nothing changes by them but the time that it takes.
            processors: they change the logits of each step.
        """
        if max_new_tokens < 1:
            raise SottovoceError(f"max_new_tokens must be at least 1, got {max_new_tokens}", code="bad-value")
        if not prompts:
            return []
        self.check_lengths(prompts, [max_new_tokens] * len(prompts))
        if processors:
            return [self.text_of(row) for row in self.generated_ids(prompts, max_new_tokens, processors).tolist()]
        ids: list[list[int]] = [[] for _ in prompts]

        def take(row: int, token: int) -> bool:
            ids[row].append(token)
            return True

        generate_rows(self, prompts, [max_new_tokens] * len(prompts), take, prefixes)
        return [self.text_of(row) for row in ids]

    @torch.no_grad()
    def generated_ids(
        self, prompts: list[Tensor], max_new_tokens: int, processors: LogitsProcessorList | None = None, **more: Any
    ) -> Tensor:
        """The token ids of each answer, (rows, tokens), by transformers' own `generate`, which takes `more`."""
        if self.remote is not None:
            return self.remote.generated_ids(prompts, max_new_tokens)
        x, real = pad_left(prompts)
        ids: Tensor = self.model.generate(  # type: ignore[operator]  # GenerationMixin is not in PreTrainedModel's type
            inputs_embeds=x, attention_mask=real.long(), max_new_tokens=max_new_tokens,
            logits_processor=LogitsProcessorList([FiniteLogits(self), *(processors or [])]), **more,
        )  # fmt: skip
        return ids

    def text_of(self, ids: list[int]) -> str:
        """The text of generated tokens up to the end of the turn; a `Cut` where the turn did not end."""
        end = next((at for at, token in enumerate(ids) if token in self.chat.stop_ids), None)
        text = str(self.tokenizer.decode(ids[:end], skip_special_tokens=True)).strip()
        # Thoughts are marked by special tokens in some families.
        whole = self.chat.thought + str(self.tokenizer.decode(ids[:end]))
        if (kept := without_thoughts(whole)) != whole:
            for token in self.tokenizer.all_special_tokens:
                kept = kept.replace(token, "")
            text = kept.strip()
        return Cut(text) if end is None else text

    def _embed_text(self, texts: Sequence[list[int]]) -> list[Tensor]:
        """The embeddings of each text, (tokens, dim), by one look-up."""
        table = self.model.get_input_embeddings()
        ids = torch.tensor([token for text in texts for token in text], dtype=torch.long)
        embedded: Tensor = table(ids.to(cast(Tensor, table.weight).device))
        return list(torch.split(embedded.to(self.dtype), [len(text) for text in texts]))

    def token_table(self) -> Tensor:
        """The embedding of every token, (tokens, dim), as it is."""
        return cast(Tensor, self.model.get_input_embeddings().weight).detach()

    def _embedded(self, placeholder: Placeholder, embeddings: Mapping[Hashable, Tensor]) -> Tensor:
        if placeholder.key not in embeddings:
            raise KeyError(f"no embeddings for placeholder {placeholder.key!r}; there are some for {list(embeddings)}")
        x = embeddings[placeholder.key]
        if x.ndim != 2 or x.shape[1] != self.dim:
            why = f"the embeddings for {placeholder.key!r} are {tuple(x.shape)}, and must be (tokens, {self.dim})"
            raise SottovoceError(why, code="mismatch")
        return x.to(self.dtype)

    @property
    def context_length(self) -> int | None:
        """How many tokens the LLM reads, prompt and answer together; None where its configuration does not say."""
        here = getattr(self.config.get_text_config(), "max_position_embeddings", None)
        most = here if self.remote is None else self.remote.context or here
        return None if most is None else int(most)

    def check_lengths(self, prompts: list[Tensor], extra: list[int]) -> None:
        """`SottovoceError` where a prompt is empty, or the LLM's context cannot hold it and `extra` tokens behind."""
        most = self.context_length
        for i, (prompt, more) in enumerate(zip(prompts, extra, strict=True)):
            if not len(prompt):
                raise SottovoceError(f"prompt {i} is empty: there is nothing to answer", code="empty")
            if most is not None and len(prompt) + more > most:
                why = f"prompt {i} has {len(prompt)} tokens, and {more} may follow: {self.checkpoint} reads {most}"
                raise SottovoceError(why, code="bad-value")


def placeholder_spans(segments: list[Segment], embeddings: Mapping[Hashable, Tensor]) -> dict[Hashable, range]:
    """Positions of each placeholder's embeddings in the prompt that `CausalLLM.embed` makes of these segments."""
    spans: dict[Hashable, range] = {}
    end = 0
    for part in segments:
        start, end = end, end + (len(embeddings[part.key]) if isinstance(part, Placeholder) else len(part))
        if isinstance(part, Placeholder):
            spans[part.key] = range(start, end)
    return spans
