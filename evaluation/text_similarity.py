"""Similarity of responses and targets: ROUGE in their words, BERTScore in the embeddings of a language model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

from sottovoce.errors import MissingError, SottovoceError, nearest
from sottovoce.evaluation.metrics import Measure, Metric, Prediction, Score, mean_measure, require
from sottovoce.paths import resolve
from sottovoce.scripts import folded, units

if TYPE_CHECKING:  # PyTorch, transformers and torchmetrics take seconds to import
    from torch import Tensor

# The layer whose cosines agree best with human judgements of translations (WMT16), as found by BERTScore's authors.
LAYERS = {
    "bert-base-uncased": 9,
    "bert-large-uncased": 18,
    "bert-base-multilingual-cased": 9,
    "roberta-base": 10,
    "roberta-large": 17,
    "roberta-large-mnli": 19,
    "distilbert-base-uncased": 5,
    "distilroberta-base": 5,
    "deberta-base-mnli": 9,
    "deberta-large-mnli": 18,
    "deberta-xlarge-mnli": 40,
}


def words_of(text: str) -> list[str]:
    """Words of ROUGE: runs of letters, marks and digits in lower case, or characters of scripts without spaces.

    Of ASCII these are the words of the reference implementation without its stemmer, which knows no others.
    """
    return units(folded(text).replace("_", " "))


def rouge_f1(kind: str, responses: Sequence[str], targets: Sequence[str]) -> list[float]:
    """F of each pair by `rouge_1`, `rouge_2` or `rouge_l`; an error where they are no pairs."""
    from torchmetrics.text.rouge import ROUGEScore

    _require_pairs(kind, responses, targets)
    key = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}[kind]
    rouge = ROUGEScore(rouge_keys=key, normalizer=lambda text: " ".join(words_of(text)))
    rouge.update(list(responses), list(targets))
    scores = [float(f) for f in getattr(rouge, f"{key}_fmeasure")]  # its state: one F a pair, before the mean
    wordless = (not words_of(target) and bool(target.strip()) for target in targets)  # such as emoji alone
    rows = zip(scores, wordless, responses, targets, strict=True)
    return [float(r.split() == t.split()) if alone else score for score, alone, r, t in rows]


def likeness_of(pairs: Iterable[tuple[str, str]]) -> dict[tuple[str, str], float]:
    """ROUGE-L of a text to another, for each pair of them; a pair that occurs often is scored once."""
    ordered = sorted(set(pairs))
    scores = rouge_f1("rouge_l", [text for text, _ in ordered], [other for _, other in ordered])
    return dict(zip(ordered, scores, strict=True))


@Metric
def rouge_1(predictions: Sequence[Prediction]) -> Measure:
    """Mean ROUGE-1 F: words that response and target share, between 0 and 1 (Lin, 2004).

    See `words_of` for words. Targets without one score 1 where the response is the same, else 0, which the notes count;
    so it is with `rouge_2` and `rouge_l`. An empty target, or one of a single word for `rouge_2`, scores 0.
    """
    return _rouge("rouge_1", predictions)


@Metric
def rouge_2(predictions: Sequence[Prediction]) -> Measure:
    """Mean ROUGE-2 F: pairs of neighbouring words that response and target share; see `rouge_1`."""
    return _rouge("rouge_2", predictions)


@Metric
def rouge_l(predictions: Sequence[Prediction]) -> Measure:
    """Mean ROUGE-L F: the longest common subsequence of words of response and target; see `rouge_1`."""
    return _rouge("rouge_l", predictions)


ROUGE: dict[str, Metric] = {"rouge_1": rouge_1, "rouge_2": rouge_2, "rouge_l": rouge_l}


def _rouge(kind: str, predictions: Sequence[Prediction]) -> Measure:
    require(predictions, kind)
    scores = rouge_f1(kind, [p.response for p in predictions], [p.target for p in predictions])
    n = 2 if kind == "rouge_2" else 1
    counts = [len(words_of(p.target)) for p in predictions]
    short = sum(count < n for count in counts)
    what = "no word" if n == 1 else f"fewer than {n} words"
    how = "can score only where the response is the same" if 0 in counts else "score 0"
    notes = f"{short} of {len(predictions)} targets have {what} and {how}" if short else ""
    return mean_measure(scores, None, notes, [p.speaker for p in predictions])


class BertScore:
    """BERTScore F1: each token meets the most similar token of the other text, by the cosine of contextual vectors.

    Zhang et al. (ICLR 2020), section 3, without idf weights and without rescaling, so that unlike texts score far
    above 0: compare systems by one model and one layer only. It agrees with the authors' `bert-score` package, in
    which the marks around a text ([CLS], [SEP]) may be met but do not count. `torchmetrics` (1.9) does not: it hides
    the marks, and mixes up pairs whose texts are of unlike lengths. SpeechEmotionLlama does not say which model and
    layer stand behind its table I.

    A text starts with a space, as words inside a text do: byte-level vocabularies (RoBERTa) write its first word
    otherwise. Nothing is downloaded: `checkpoint` is a local folder (config.json, *.safetensors, tokenizer), or a name
    in the Hugging Face cache. `layer` is 0 for the embeddings; by default it is the one in `LAYERS`, where `checkpoint`
    ends with such a name. `batch_size` pairs go through the model together.

    Raises:
        MissingError: the model or a part of it is not there; the message says where it was looked for.
        SottovoceError: `layer` is not given and not known, or the model does not have it.
    """

    def __init__(self, checkpoint: str, *, layer: int | None = None, device: str = "cpu", batch_size: int = 32) -> None:
        self.name = checkpoint.rstrip("/").rsplit("/", 1)[-1]
        self.layer = _known_layer(self.name) if layer is None else layer
        self.tokenizer, model = _load(checkpoint)
        if not 0 <= self.layer <= model.config.num_hidden_layers:
            message = f"BertScore: {checkpoint} has no layer {self.layer}; `layer` is 0 (its embeddings) to "
            raise SottovoceError(f"{message}{model.config.num_hidden_layers}", code="bad-value", where="layer")
        self.model = model.to(device).eval().requires_grad_(False)
        self.limit = self.tokenizer.model_max_length = _limit(self.tokenizer, model.config)
        self.batch_size = batch_size

    def __call__(self, predictions: Sequence[Prediction]) -> Score:
        """The score of `measure`, with its interval."""
        return self.measure(predictions).score()

    def measure(self, predictions: Sequence[Prediction]) -> Measure:
        """Mean F1 of responses and targets; empty texts score 0, and these and texts that were cut are counted."""
        require(predictions, "bert_score")
        responses, targets = [p.response for p in predictions], [p.target for p in predictions]
        notes = [f"BERTScore by {self.name}, layer {self.layer}, no idf, not rescaled"]
        if empty := sum(not (p.response.strip() and p.target.strip()) for p in predictions):
            notes.append(f"{empty} of {len(predictions)} pairs have an empty text and score 0")
        if cut := sum(self._is_cut(text) for text in [*responses, *targets]):
            notes.append(f"{cut} of {2 * len(predictions)} texts were cut after {self.limit} tokens")
        return mean_measure(self.f1(responses, targets), None, "; ".join(notes), [p.speaker for p in predictions])

    def f1(self, responses: Sequence[str], targets: Sequence[str]) -> list[float]:
        """F1 of each pair, about -1 to 1; in practice most of that range is empty."""
        _require_pairs("BertScore", responses, targets)
        scores: list[float] = []
        for start in range(0, len(responses), self.batch_size):
            part = slice(start, start + self.batch_size)
            scores += greedy_f1(*self._vectors(responses[part]), *self._vectors(targets[part])).tolist()
        return scores

    def _vectors(self, texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors of length 1 (texts, tokens, dim); which tokens are real and which of these count (texts, tokens)."""
        from torch.nn.functional import normalize

        spaced = [_spaced(text) for text in texts]
        inputs = self.tokenizer(
            spaced, padding=True, truncation=True, return_special_tokens_mask=True, return_tensors="pt"
        ).to(self.model.device)
        real = inputs["attention_mask"]
        x = self.model(input_ids=inputs["input_ids"], attention_mask=real, output_hidden_states=True)
        vectors = normalize(x.hidden_states[self.layer].float(), dim=-1)
        return vectors, real.bool(), real.bool() & ~inputs["special_tokens_mask"].bool()

    def _is_cut(self, text: str) -> bool:
        # every token but the few marks has a byte of its own, so that short texts need no second reading
        if len(text.encode()) + 4 <= self.limit:
            return False
        return len(self.tokenizer(_spaced(text), verbose=False)["input_ids"]) > self.limit


def greedy_f1(
    response: Tensor, response_real: Tensor, response_counts: Tensor,
    target: Tensor, target_real: Tensor, target_counts: Tensor,
) -> Tensor:  # fmt: skip
    """F of the greedy matching of Zhang et al. (2020), section 3, between vectors of length 1: (pairs,).

    Vectors are (pairs, tokens, dim). Of each token, (pairs, tokens), `real` is whether it may be met, and `counts`
    whether it looks for a partner; a text without one that counts scores 0.
    """
    cosine = response @ target.transpose(1, 2)  # (pairs, tokens, other tokens)
    precision = _mean_where(response_counts, cosine.masked_fill(~target_real[:, None, :], -math.inf).amax(dim=2))
    recall = _mean_where(target_counts, cosine.masked_fill(~response_real[:, :, None], -math.inf).amax(dim=1))
    f = 2 * precision * recall / (precision + recall)
    return f.masked_fill(~(response_counts.any(dim=1) & target_counts.any(dim=1)), 0.0).nan_to_num(0.0)


def _mean_where(counts: Tensor, values: Tensor) -> Tensor:
    return (values * counts).sum(dim=1) / counts.sum(dim=1)


def _spaced(text: str) -> str:
    return f" {text.strip()}" if text.strip() else ""


def _require_pairs(metric: str, responses: Sequence[str], targets: Sequence[str]) -> None:
    if len(responses) != len(targets):
        raise SottovoceError(f"{metric}: {len(responses)} responses for {len(targets)} targets", code="mismatch")


def _known_layer(name: str) -> int:
    if name in LAYERS:
        return LAYERS[name]
    message = f"BertScore: no layer is known to be best in {name!r}; give `layer`.{nearest(name, LAYERS)}"
    raise SottovoceError(message, code="missing-key", where="layer")


def _limit(tokenizer: Any, config: Any) -> int:
    """How many tokens the model can read; a tokenizer that was saved without a limit says a number beyond all."""
    said, positions = int(tokenizer.model_max_length), getattr(config, "max_position_embeddings", None)
    return said if positions is None or said <= positions else positions - 2  # RoBERTa's positions start at 2


def _load(checkpoint: str) -> tuple[Any, Any]:
    """Tokenizer and model from files of this machine; every tensor of the model must be among them."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModel, AutoTokenizer

    folder = resolve(checkpoint)
    where = str(folder) if folder.is_dir() else checkpoint
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, local_files_only=True)
        model, loading = AutoModel.from_pretrained(
            where, local_files_only=True, output_loading_info=True, dtype=torch.float32
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise _missing(checkpoint, str(error).strip().split("\n")[0] or type(error).__name__) from None
    # the pooler stands above all layers, and masked language models come without
    absent = sorted(name for name in cast(set[str], loading["missing_keys"]) if "pooler" not in name)
    if absent:
        raise _missing(checkpoint, f"{len(absent)} tensors are not in its files, {absent[0]} the first of them")
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # transformers makes up an empty vocabulary
        raise _missing(checkpoint, "its tokenizer has no words; is tokenizer.json there?")
    return tokenizer, model


def _missing(checkpoint: str, why: str) -> MissingError:
    from huggingface_hub import constants

    return MissingError(
        f"BertScore: the model {checkpoint} cannot be loaded: {why}.\n"
        f"Looked in the folder {resolve(checkpoint).absolute()} and in the Hugging Face cache "
        f"{constants.HF_HUB_CACHE}.\nPoint at a folder with config.json, *.safetensors and the tokenizer, or fetch a "
        f"published one first: hf download FacebookAI/roberta-large",
        where=checkpoint,
    )
