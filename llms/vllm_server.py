"""A frozen LLM in an unchanged vLLM server: prompts go there as embeddings, token ids come back.

The server is `vllm serve CHECKPOINT --enable-prompt-embeds`, of vLLM 0.10.2 or later (`return_token_ids`).
"""

import base64
import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from sottovoce.errors import Code, ConfigError, SottovoceError, brief
from sottovoce.llms.chat_template import ChatTurn
from sottovoce.llms.row_generation import RowState, Take
from sottovoce.openai_client import checked_url, read_key

if TYPE_CHECKING:
    from sottovoce.llms.causal_lm import CausalLLM

PROBES = ("What is a voice?", "Count from one to five: naïve cafés, 北京, 1234.")
PROBED = 8  # tokens of an answer to each
SURE = 4  # of these, which a tuned LLM's server must say, too
GREEDY = {  # vLLM takes what is absent from the checkpoint's generation_config.json
    "temperature": 0.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0,
    "frequency_penalty": 0.0, "n": 1, "skip_special_tokens": False,
}  # fmt: skip


class VLLMServer:
    """Generates in place of a local LLM; see `row_generation.RowGenerator`.

    Args:
        url: of its API, such as http://localhost:8000/v1.
        stop_ids: tokens that end an answer.
        model: as the server calls it; the only one that it has, if None.
        key_env: the environment variable of its key; None: it wants none.
        timeout: seconds until an answer begins, and between two of its tokens.

    Raises:
        ConfigError: the URL is none, or the server has no such model.
        SottovoceError: the server cannot be reached.
    """

    def __init__(
        self, url: str, stop_ids: frozenset[int], *, model: str | None = None, key_env: str | None = None,
        timeout: float = 60.0,
    ) -> None:  # fmt: skip
        import openai

        self.url, self.stop_ids = checked_url("url", url), stop_ids
        key = read_key("url", key_env)
        self._headers: Any = {} if key else {"Authorization": openai.Omit()}
        self._sdk = openai.OpenAI(base_url=self.url, api_key=key or "none", timeout=timeout, max_retries=2)
        with self._told():
            served = {each.id: each for each in self._sdk.models.list(extra_headers=self._headers).data}
        if (len(served) != 1) if model is None else (model not in served):
            told = f"{self.url} serves {', '.join(served) or 'nothing'}: name one of them with served_model"
            raise ConfigError.at("served_model", "unknown-name", told)
        self.model = model or next(iter(served))
        self.context: int | None = getattr(served[self.model], "max_model_len", None)

    def generated_ids(self, prompts: Sequence[Tensor], max_new_tokens: int) -> Tensor:
        """The token ids of each answer, (rows, tokens), filled up with a stop token."""
        rows: list[list[int]] = [[] for _ in prompts]

        def take(row: int, token: int) -> bool:
            rows[row].append(token)
            return True

        self.generate_rows(prompts, [max_new_tokens] * len(prompts), take)
        longest, stop = max(map(len, rows), default=0), min(self.stop_ids)
        return torch.tensor([row + [stop] * (longest - len(row)) for row in rows], dtype=torch.long)

    def generate_rows(self, prompts: Sequence[Tensor], limits: Sequence[int], take: Take) -> None:
        """See `row_generation.generate_rows`: a request for each prompt, all at once; the server batches them."""
        state = RowState(limits, self.stop_ids, take)
        if len(prompts) == 1:
            self._row(0, prompts[0], state)
            return
        with ThreadPoolExecutor(max(1, len(prompts)), "vllm") as pool:
            for done in [pool.submit(self._row, row, prompt, state) for row, prompt in enumerate(prompts)]:
                done.result()

    def _row(self, row: int, prompt: Tensor, state: RowState) -> None:
        import openai
        from openai.types import Completion

        body = {
            # No `prompt` beside the embeddings, not even an empty one: it would be answered, too.
            "model": self.model, "prompt_embeds": _packed(prompt), "max_tokens": state.limits[row], "stream": True,
            "stop_token_ids": sorted(self.stop_ids), "return_token_ids": True, **GREEDY,
        }  # fmt: skip
        with self._told():
            chunks = self._sdk.post(
                "/completions",
                cast_to=Completion,
                body=body,
                stream=True,
                stream_cls=openai.Stream[Completion],
                options={"headers": self._headers},
            )
            with chunks:  # closed early, the server gives the request up
                for chunk in chunks:
                    for choice in chunk.choices:
                        ids = getattr(choice, "token_ids", None)
                        if ids is None and choice.text:
                            told = f"{self.url} tells no token ids: it must be vLLM 0.10.2 or later"
                            raise SottovoceError(told, code="mismatch", where="url")
                        if not all([state.add(row, token) for token in ids or []]):
                            return
        if not state.ended[row]:
            state.add(row, min(self.stop_ids))  # the server's own end of the turn, which it does not tell

    def tokens_of(self, text: str) -> list[int] | None:
        """How the server's tokenizer reads a text; None where it does not say."""
        import openai

        asked = {"model": self.model, "prompt": text, "add_special_tokens": False}
        try:
            place = f"{self.url.removesuffix('/v1')}/tokenize"
            found: Any = self._sdk.post(place, cast_to=object, body=asked, options={"headers": self._headers})
        except openai.APIError:
            return None
        return list(found["tokens"]) if isinstance(found, dict) and "tokens" in found else None

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Errors of the SDK and of the connection as our own."""
        import openai

        try:
            yield
        except SottovoceError:
            raise
        except openai.APIStatusError as error:
            said = f"HTTP {error.status_code} from {self.url}: {brief(' '.join(error.message.split()), 300)}"
            hint = "; it needs --enable-prompt-embeds" if "embed" in said and error.status_code == 400 else ""
            code: Code = "mismatch" if error.status_code in (400, 422) else "unavailable"
            raise SottovoceError(said + hint, code=code, where="url") from None
        except Exception as error:
            if not isinstance(error, (openai.APIError, ValueError)) and not _of_http(error):
                raise
            told = f"{self.url} does not answer: {type(error).__name__}"
            raise SottovoceError(told, code="unavailable", where="url") from None


def hand_over(llm: "CausalLLM", server: VLLMServer) -> list[str]:
    """Let the server generate in place of a loaded LLM, of which the embedding table alone stays; what to be told.

    Before that it is asked what this LLM can check: how it reads a text, and how it answers two.

    Raises:
        SottovoceError: it serves another LLM, or cannot be reached.
    """
    read = server.tokens_of(PROBES[1])
    if read is not None and read != llm.chat.token_ids(PROBES[1]):
        raise _other(llm, server, "its tokenizer reads a text otherwise")
    prompts = [llm.embed(llm.chat.prompt([ChatTurn("user", (text,))]), {}).detach() for text in PROBES]
    here = llm.generated_ids(prompts, PROBED).tolist()
    try:
        there = server.generated_ids(prompts, PROBED).tolist()
    except SottovoceError as error:
        if error.code != "mismatch":
            raise
        raise _other(llm, server, str(error)) from None
    same = [_same(mine, other, llm.chat.stop_ids) for mine, other in zip(here, there, strict=True)]
    tuned = bool(llm.trainable_names)
    if max(same) == 0 or (tuned and min(same) < SURE):
        raise _other(llm, server, f"it answers {PROBES[0]!r} otherwise")
    notices = ["this bundle tunes its LLM: the server must serve what `sottovoce export` wrote of it"] if tuned else []
    if min(same) < PROBED:
        told = f"{server.url} answers otherwise than this LLM from token {min(same) + 1} on; another dtype may do that"
        notices.append(told)
    llm.remote, llm.model = server, cast(Any, _Table(llm.model.get_input_embeddings()))
    return notices


class _Table(nn.Module):
    """What stays of an LLM: its embeddings."""

    def __init__(self, table: nn.Module) -> None:
        super().__init__()
        self.table = table

    def get_input_embeddings(self) -> nn.Module:
        return self.table


def _of_http(error: Exception) -> bool:
    """Whether it is one of the SDK's HTTP library, whichever it has."""
    return type(error).__module__.partition(".")[0].startswith("http")


def _same(mine: list[int], other: list[int], stop_ids: frozenset[int]) -> int:
    """How many tokens agree from the first on; all of them where both end."""
    for at, (one, two) in enumerate(zip(mine, other, strict=False)):
        if one in stop_ids and two in stop_ids:
            break
        if one != two:
            return at
    return PROBED


def _other(llm: "CausalLLM", server: VLLMServer, why: str) -> ConfigError:
    wanted = "what `sottovoce export` writes of this bundle" if llm.trainable_names else llm.checkpoint
    told = f"{server.model} at {server.url} is not the LLM of this bundle: {why}. It must serve {wanted}"
    return ConfigError.at("url", "mismatch", told)


def _packed(prompt: Tensor) -> str:
    """(tokens, dim) as vLLM reads it."""
    file = io.BytesIO()
    torch.save(prompt.detach().cpu().clone(), file)  # a clone, or the whole batch that it is a row of is written
    return base64.b64encode(file.getvalue()).decode()
