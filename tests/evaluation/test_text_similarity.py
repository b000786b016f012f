"""ROUGE against Google's rouge-score, BERTScore against its authors' bert-score."""

import random
import shutil
import unicodedata
from functools import partial
from pathlib import Path

import bert_score
import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer
from safetensors.torch import load_file, save_file
from tests.helpers.errors import refused
from tokenizers import ByteLevelBPETokenizer
from transformers import BertConfig, BertModel, BertTokenizer, RobertaConfig, RobertaModel, RobertaTokenizer

from sottovoce.errors import Code, MissingError
from sottovoce.evaluation import Prediction
from sottovoce.evaluation.text_similarity import ROUGE, BertScore, greedy_f1, rouge_1, rouge_2, rouge_f1, rouge_l

WORDS = "the cat sat on a warm mat and saw two small birds fly over an old grey barn".split()
SIZE = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
TOLERANCE = 1e-5


def replied(response: str, target: str) -> Prediction:
    return Prediction("u", "dialogue", "both", "", response, target)


def pairs(rows: int) -> tuple[list[str], list[str]]:
    """Responses and targets that share some words, of very different lengths."""
    draw = random.Random(4)
    targets = [draw.choices(WORDS, k=draw.choice([1, 2, 5, 14])) for _ in range(rows)]
    responses = [[draw.choice([w, w, w, draw.choice(WORDS)]) for w in t][: draw.choice([1, 9])] for t in targets]
    return [" ".join(r).capitalize() + "!" for r in responses], [", ".join(t) + "." for t in targets]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "##s", "!", ".", ","]
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(vocabulary)})
    tokenizer.model_max_length = 24
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(vocabulary), max_position_embeddings=24, initializer_range=0.3, **SIZE)
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a byte-level vocabulary, in which a word after a space is another token than one at the start."""
    folder = tmp_path_factory.mktemp("roberta")
    learner = ByteLevelBPETokenizer()
    learner.train_from_iterator([" ".join(WORDS)] * 3, 320, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    learner.save_model(str(folder))
    tokenizer = RobertaTokenizer(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"))
    tokenizer.model_max_length = 64
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    size = {"vocab_size": len(tokenizer), "max_position_embeddings": 66, "initializer_range": 0.3, **SIZE}
    RobertaModel(RobertaConfig(pad_token_id=1, **size)).save_pretrained(folder)
    return folder


def authors(checkpoint: Path, responses: list[str], targets: list[str], layer: int) -> list[float]:
    scores = bert_score.score(responses, targets, model_type=str(checkpoint), num_layers=layer, device="cpu")
    return [float(f) for f in scores[2]]


@pytest.mark.parametrize(("name", "theirs"), [("rouge_1", "rouge1"), ("rouge_2", "rouge2"), ("rouge_l", "rougeL")])
def test_rouge_is_googles(name: str, theirs: str) -> None:
    responses, targets = pairs(40)
    responses, targets = [*responses, "Two birds.", "one. two\nthree"], [*targets, "", "THREE two"]
    scorer = RougeScorer([theirs], use_stemmer=False)
    expected = [scorer.score(target, response)[theirs].fmeasure for response, target in zip(responses, targets)]  # noqa: B905
    assert 0.1 < sum(expected) / len(expected) < 0.9
    assert rouge_f1(name, responses, targets) == pytest.approx(expected, abs=TOLERANCE)
    score = ROUGE[name]([replied(*pair) for pair in zip(responses, targets, strict=True)])
    assert score.value == pytest.approx(sum(expected) / len(expected), abs=TOLERANCE)
    assert score.low < score.value < score.high and (score.n, score.baseline) == (42, None)


def test_rouge_by_hand() -> None:
    """Words 3 of 4 and 3 of 3, pairs 1 of 3 and 1 of 2, in order 2 of 4 and 2 of 3."""
    response, target = "a b c d", "c a b"
    f1 = {name: rouge_f1(name, [response], [target])[0] for name in ROUGE}
    assert f1 == pytest.approx({"rouge_1": 6 / 7, "rouge_2": 2 / 5, "rouge_l": 4 / 7})


def test_rouge_says_where_it_cannot_read() -> None:
    rows = [replied("👍", "👍"), replied("Yes!", "yes"), replied("two birds", "two birds")]
    assert (rouge_1(rows).value, rouge_2(rows).value) == pytest.approx((1, 2 / 3), abs=1e-6)
    assert rouge_1(rows).notes == "1 of 3 targets have no word and can score only where the response is the same"
    assert rouge_2(rows[1:]).notes == "1 of 2 targets have fewer than 2 words and score 0"
    assert rouge_1(rows[1:]).notes == "" and rouge_1(rows).notes == rouge_l(rows).notes
    assert rouge_1([replied("👍", "👎")]).value == rouge_1([replied("", "a")]).value == 0


@pytest.mark.parametrize(
    "text",
    [
        "你好，世界",
        "お元気ですか",
        "안녕 하세요",
        "नमस्ते दुनिया",
        "สวัสดีครับ",
        "مرحبا بالعالم",
        "Привет, мир",
        "Γειά σου",
        "שלום עולם",
    ],
)
def test_equal_texts_score_one_in_any_script(text: str) -> None:
    for kind in ROUGE:
        assert rouge_f1(kind, [text], [text]) == pytest.approx([1])
        assert rouge_f1(kind, [unicodedata.normalize("NFD", text)], [unicodedata.normalize("NFC", text)]) == [1]
        assert rouge_f1(kind, ["something else"], [text]) == [0]


def test_rouge_of_other_scripts_by_hand() -> None:
    """Chinese in characters: 4 of 5 and 4 of 6. Hindi in words, whose vowel signs count: 2 of 3 and 2 of 3."""
    chinese, hindi = ("我很高兴", "我今天很高兴"), ("यह दिन अच्छा", "यह दान अच्छा")
    assert rouge_f1("rouge_l", *([text] for text in chinese)) == pytest.approx([2 * 4 / (4 + 6)])
    assert rouge_f1("rouge_1", *([text] for text in hindi)) == pytest.approx([2 / 3])


@pytest.mark.parametrize("layer", [0, 2, 3])
def test_bert_score_is_its_authors(bert: Path, layer: int) -> None:
    responses, targets = pairs(30)
    ours = BertScore(str(bert), layer=layer, batch_size=7).f1(responses, targets)
    assert ours == pytest.approx(authors(bert, responses, targets, layer), abs=TOLERANCE)
    assert max(ours) - min(ours) > 0.1


def test_the_first_word_is_read_as_words_inside_a_text_are(roberta: Path, tmp_path: Path) -> None:
    spaced = tmp_path / "spaced"
    shutil.copytree(roberta, spaced)
    words, merges = str(roberta / "vocab.json"), str(roberta / "merges.txt")
    RobertaTokenizer(vocab=words, merges=merges, add_prefix_space=True, model_max_length=64).save_pretrained(spaced)
    responses, targets = pairs(12)
    ours = BertScore(str(roberta), layer=2).f1(responses, targets)
    assert ours == pytest.approx(BertScore(str(spaced), layer=2).f1(responses, targets), abs=TOLERANCE)
    assert ours == pytest.approx(authors(spaced, responses, targets, 2), abs=TOLERANCE)
    assert ours != pytest.approx(authors(roberta, responses, targets, 2), abs=1e-3)
    RobertaTokenizer(vocab=words, merges=merges).save_pretrained(spaced)  # without a limit of its own
    assert BertScore(str(spaced), layer=2).limit == 64  # of 66 positions, which start at 2


def test_a_pair_does_not_depend_on_the_others(bert: Path) -> None:
    responses, targets = pairs(15)
    metric = BertScore(str(bert), layer=2)
    alone = [metric.f1([r], [t])[0] for r, t in zip(responses, targets, strict=True)]
    assert metric.f1(responses, targets) == pytest.approx(alone, abs=TOLERANCE)
    assert metric.f1(responses[::-1], targets[::-1]) == pytest.approx(alone[::-1], abs=TOLERANCE)
    assert metric.f1(targets, responses) == pytest.approx(alone, abs=TOLERANCE)


def test_the_same_text_scores_one_and_an_empty_one_zero(bert: Path) -> None:
    metric = BertScore(str(bert), layer=2)
    assert metric.f1(["two birds", "", "a cat", " "], [" two birds ", "a cat", "", "."]) == pytest.approx([1, 0, 0, 0])
    score = metric([replied("two birds", "two birds"), replied(" ", "a cat")])
    assert (score.value, score.n, score.baseline) == (pytest.approx(0.5, abs=1e-6), 2, None)
    how = f"BERTScore by {bert.name}, layer 2, no idf, not rescaled"
    assert score.notes == f"{how}; 1 of 2 pairs have an empty text and score 0"


def test_cut_texts_are_counted(bert: Path) -> None:
    long = " ".join(["cat"] * 23)  # with its two marks one more than the model reads
    rows = [replied(long, long.removesuffix(" cat")), replied("cat", "a cat")]
    assert BertScore(str(bert), layer=1)(rows).notes.endswith("; 1 of 4 texts were cut after 24 tokens")
    assert "cut" not in BertScore(str(bert), layer=1)(rows[1:]).notes


def test_greedy_matching_by_hand() -> None:
    """Marks may be met but do not count; padding is neither."""
    response = torch.tensor([[[1.0, 0], [0, 1], [1, 0]]])
    target = torch.tensor([[[0.0, 1], [0.6, 0.8]]])
    real, counts = torch.tensor([[True, True, False]]), torch.tensor([[True, False, False]])
    both = torch.tensor([[True, True]])
    precision, recall = 0.6, (1 + 0.8) / 2
    expected = 2 * precision * recall / (precision + recall)
    assert greedy_f1(response, real, counts, target, both, both).item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "layer", "code"),
    [
        ("mine", None, "missing-key"),
        ("mine", -1, "bad-value"),
        ("mine", 4, "bad-value"),
        ("bert-base-uncased", None, "bad-value"),  # its best layer, 9, is known by this name
    ],
)
def test_the_layer_is_never_guessed(bert: Path, tmp_path: Path, name: str, layer: int | None, code: Code) -> None:
    shutil.copytree(bert, tmp_path / name)
    with refused(code, "layer"):
        BertScore(str(tmp_path / name), layer=layer)


def test_a_model_that_is_not_there_is_named_with_where_it_was_looked_for(tmp_path: Path) -> None:
    for checkpoint in (str(tmp_path / "nowhere"), "nobody/has-this"):
        with refused("not-found", checkpoint, MissingError) as caught:
            BertScore(checkpoint, layer=1)
        for part in ("Looked in the folder", "Hugging Face cache", "hf download"):
            assert part in str(caught.value)


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_folder_that_lacks_a_part_is_an_error(bert: Path, tmp_path: Path, file: str) -> None:
    part = tmp_path / "part"
    shutil.copytree(bert, part)
    (part / file).unlink()
    with refused("not-found", "part", MissingError):
        BertScore(str(part), layer=1)


def test_weights_that_are_not_in_the_file_are_not_made_up(bert: Path, tmp_path: Path) -> None:
    part = tmp_path / "part"
    shutil.copytree(bert, part)
    weights = load_file(part / "model.safetensors")
    headless = {name: value for name, value in weights.items() if "pooler" not in name}
    assert len(headless) < len(weights)
    save_file(headless, part / "model.safetensors", {"format": "pt"})
    BertScore(str(part), layer=1)  # the pooler stands above all layers
    del headless["encoder.layer.1.attention.self.query.weight"]
    save_file(headless, part / "model.safetensors", {"format": "pt"})
    with pytest.raises(MissingError, match=r"1 tensors are not in its files, encoder\.layer\.1\.attention"):
        BertScore(str(part), layer=1)
    (part / "model.safetensors").write_bytes(b"damaged")
    with refused("not-found", "part", MissingError):
        BertScore(str(part), layer=1)


def test_nothing_to_score_and_unequal_lists_are_errors(bert: Path) -> None:
    metric = BertScore(str(bert), layer=1)
    with refused("empty"):
        metric([])
    for f1 in (metric.f1, partial(rouge_f1, "rouge_1")):
        with refused("mismatch"):
            f1(["a", "b"], ["a"])
