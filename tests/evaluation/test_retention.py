"""Text retention: the same prompts before and after, exactly 0 where nothing was tuned, whatever the batch."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.conftest import write_lines
from tests.helpers.errors import refused

from sottovoce.errors import MissingError
from sottovoce.evaluation import retention as module
from sottovoce.evaluation.records import read_results, write_results
from sottovoce.evaluation.reports.results import results_markdown
from sottovoce.evaluation.retention import Item, Kept, RetentionScore, read_items, read_scores, retention_scores
from sottovoce.llms.causal_lm import CausalLLM
from sottovoce.llms.tuning_config import Tuning
from sottovoce.scoring import text_retention
from sottovoce.scoring.text_retention import AFTER, BEFORE, retention, retention_after, retention_before

ROWS: list[dict[str, Any]] = [
    {"prompt": f"{'please ' * (i % 5)}say {i}", "response": f"{i}{' no' * (i % 3)}", "answer": f"{i}"} for i in range(5)
]
SAID = (("system", "Be brief."), ("user", "hello"), ("assistant", "hi"), ("user", "how are you?"))
ROWS += [{"messages": [{"role": role, "content": text} for role, text in SAID], "response": "Fine."}]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "prompts.jsonl", ROWS)


def loaded(checkpoint: str, method: Any = "frozen", layers: str = "0") -> CausalLLM:
    llm = CausalLLM(checkpoint, "float32", tuning=Tuning(method=method, layers=layers, rank=2))
    llm.load()
    return llm


def tune(llm: CausalLLM) -> None:
    """As training would."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in llm.named_parameters():
            if name in llm.trainable_names:
                weight += 0.3 * torch.randn_like(weight)


@pytest.mark.parametrize(
    ("response", "answer", "said", "right"),
    [
        ("It is seven.", None, "it is seven", True),
        ("It is seven.", None, "IT  is: seven!", True),
        ("It is seven.", None, "it is seven now", False),
        ("It is seven.", None, "", False),
        ("It is seven.", "seven", "I say seven, then", True),
        ("It is seven.", "seven", "seventy", False),
        ("A red lamp.", "red lamp", "the red lamp", True),
        ("A red lamp.", "red lamp", "the red old lamp", False),
        ("你好", None, "你好。", True),
        ("यह दिन है", None, "यह दान है", False),  # day, gift: a vowel sign
        ("सात", "सात", "मैं सात कहता हूँ", True),
        ("答案是北京。", "北京", "我想答案是北京吧", True),
        ("答案是北京。", "北京", "我想答案是南京吧", False),
        ("서울입니다.", "서울", "답은 서울이에요.", True),
        ("서울입니다.", "서울", "답은 남서울이에요.", False),
    ],
)
def test_what_is_right_is_what_it_is_said_to_be(response: str, answer: str | None, said: str, right: bool) -> None:
    assert module.is_right(Item((("user", "x"),), response, answer), said) is right


def plain_loss(llm: CausalLLM, item: Item) -> tuple[float, int]:
    """Each prompt alone, through the model's own forward pass on token ids."""
    messages = [{"role": role, "content": content} for role, content in item.messages]
    text = llm.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    prompt, response = (
        llm.tokenizer(str(t), add_special_tokens=False)["input_ids"] for t in (text, f"{item.response}<|im_end|>")
    )
    with torch.no_grad():
        logits = llm.model(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    return float(F.cross_entropy(logits, torch.tensor(response), reduction="sum")), len(response)


def test_a_loss_is_the_models_own_and_does_not_depend_on_batch_mates(tiny_llm: str, file: Path) -> None:
    llm, items = loaded(tiny_llm), read_items(file)
    together = retention(llm, items, batch_size=4, max_new_tokens=9)
    alone = [retention(llm, [item], max_new_tokens=9) for item in items]
    backwards = retention(llm, items[::-1], batch_size=3, max_new_tokens=9).rows[::-1]
    for item, row, single, turned in zip(items, together.rows, alone, backwards, strict=True):
        nats, tokens = plain_loss(llm, item)
        assert row.tokens == tokens and row.nats == pytest.approx(nats, rel=1e-4)
        for other in (single.rows[0], turned):
            assert (row.said, row.right, row.item) == (other.said, other.right, other.item)
            assert row.nats == pytest.approx(other.nats, rel=1e-4)
    assert together.nats == pytest.approx(sum(r.nats for r in together.rows) / sum(r.tokens for r in together.rows))


@pytest.mark.parametrize("method", ["frozen", "lora", "weights"])
def test_what_was_not_tuned_has_not_changed_at_all(tiny_llm: str, file: Path, tmp_path: Path, method: str) -> None:
    llm = loaded(tiny_llm, method)
    retention_before(llm, file, tmp_path, batch_size=4, max_new_tokens=9)
    llm.train()
    records = {r.metric: r for r in retention_after("ours", llm, file, tmp_path, batch_size=4, max_new_tokens=9)}
    for name in ("right_change", "nats_change"):
        assert (records[name].value, records[name].low, records[name].high) == (0, 0, 0)
    assert (tmp_path / BEFORE).read_bytes() == (tmp_path / AFTER).read_bytes()
    assert {r.task for r in records.values()} == {"retention"} and {r.n for r in records.values()} == {len(ROWS)}


@pytest.mark.parametrize("method", ["lora", "weights"])
def test_what_tuning_does_is_seen(tiny_llm: str, file: Path, tmp_path: Path, method: str) -> None:
    llm = loaded(tiny_llm, method)
    retention_before(llm, file, tmp_path, max_new_tokens=9)
    tune(llm)
    kept = (tmp_path / BEFORE).read_bytes()
    retention_before(llm, file, tmp_path, max_new_tokens=9)  # a run that was killed and goes on
    assert (tmp_path / BEFORE).read_bytes() == kept
    records = {r.metric: r for r in retention_after("ours", llm, file, tmp_path, max_new_tokens=9)}
    changed = records["nats"].value - records["nats_before"].value
    assert abs(changed) > 1e-3 and records["nats_change"].value == pytest.approx(changed, abs=2e-6)
    assert records["nats_change"].low < records["nats_change"].high
    assert records["nats"].value == pytest.approx(read_scores(tmp_path / AFTER).nats, abs=1e-6)


def test_before_is_the_checkpoints_llm_also_under_trained_maps(tiny_llm: str, file: Path, tmp_path: Path) -> None:
    llm = loaded(tiny_llm, "lora")
    tune(llm)
    retention_before(llm, file, tmp_path, max_new_tokens=9)
    assert read_scores(tmp_path / BEFORE) == retention(loaded(tiny_llm), read_items(file), max_new_tokens=9)
    assert retention(llm, read_items(file), max_new_tokens=9) != read_scores(tmp_path / BEFORE)


def test_an_llm_is_scored_where_a_gpu_is_before_training_too(
    tiny_llm: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm, moved = loaded(tiny_llm), list[Any]()
    monkeypatch.setattr(text_retention, "on_device", lambda part: nullcontext(moved.append(part)))
    retention_before(llm, file, tmp_path, max_new_tokens=9)
    assert moved == [llm]


def score(rows: list[tuple[bool, float, int]]) -> RetentionScore:
    return RetentionScore(tuple(Kept(str(i), "", *row) for i, row in enumerate(rows)))


def test_scores_by_hand() -> None:
    before, after = score([(True, 1.0, 2), (True, 3.0, 6)]), score([(False, 2.0, 2), (True, 4.0, 6)])
    assert (before.right, before.nats, after.right, after.nats) == (1, 0.5, 0.5, 0.75)
    values = {name: s.value for name, s in retention_scores(before, after).items()}
    assert values == {
        "right_before": 1, "right": 0.5, "right_change": -0.5, "nats_before": 0.5, "nats": 0.75, "nats_change": 0.25,
    }  # fmt: skip


def test_changes_are_those_of_the_sums_and_their_intervals_are_paired() -> None:
    random = np.random.default_rng(0)
    before = score(
        [(bool(random.random() < 0.8), float(random.gamma(2)), int(random.integers(1, 9))) for _ in range(200)]
    )
    after = score(
        [(row.right or i % 40 == 0, row.nats + 0.01 * row.tokens, row.tokens) for i, row in enumerate(before.rows)]
    )
    found = retention_scores(before, after)
    assert found["nats_change"].value == pytest.approx(0.01, abs=2e-6)
    assert found["nats_change"].low == pytest.approx(0.01, abs=2e-6)  # the same for every prompt: no width
    assert found["nats"].high - found["nats"].low > 0.02
    assert found["right_change"].value == pytest.approx(found["right"].value - found["right_before"].value, abs=2e-6)
    with refused("mismatch", "retention"):
        retention_scores(before, RetentionScore(after.rows[::-1]))


def test_scores_come_back_as_written(tiny_llm: str, file: Path, tmp_path: Path) -> None:
    llm = loaded(tiny_llm)
    whole = retention(llm, read_items(file), max_new_tokens=9)
    module.write_scores(tmp_path / "new" / "kept.jsonl", whole)
    assert read_scores(tmp_path / "new" / "kept.jsonl") == whole
    retention_before(llm, file, tmp_path, max_new_tokens=9)
    records = retention_after("ours", llm, file, tmp_path, max_new_tokens=9)
    write_results(tmp_path, records, [])
    assert sorted(read_results(tmp_path), key=str) == sorted(records, key=str)
    page = results_markdown(records)
    assert f"{whole.nats:.3f} [" in page and "nats change ↓" in page and "0.000 [0.000-0.000]" in page


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "x"},
        {"prompt": "x", "response": "..."},
        {"response": "x"},
        {"prompt": "x", "response": "y", "target": "z"},
        {"messages": [], "response": "y"},
        {"messages": [{"role": "assistant", "content": "x"}], "response": "y"},
        {"messages": [{"role": "usr", "content": "x"}, {"role": "user", "content": "x"}], "response": "y"},
        {"messages": ["x"], "response": "y"},
        {"prompt": "x", "response": "it is y", "answer": "z"},
        {"prompt": "x", "response": "it is y", "answer": ""},
        "x",
    ],
)
def test_prompts_that_cannot_be_used_are_named_by_line(tmp_path: Path, row: Any) -> None:
    file = write_lines(tmp_path / "prompts.jsonl", [ROWS[0], row])
    with refused("bad-value", f"{file}:2"):
        read_items(file)


def test_files_that_are_not_there_or_hold_nothing(tiny_llm: str, file: Path, tmp_path: Path) -> None:
    llm, nowhere, empty = loaded(tiny_llm), tmp_path / "nowhere.jsonl", write_lines(tmp_path / "empty.jsonl", [])
    with refused("not-found", nowhere, MissingError):
        read_items(nowhere)
    with refused("empty", empty):
        read_items(empty)
    with refused("not-found", BEFORE, MissingError):
        retention_after("ours", llm, file, tmp_path, max_new_tokens=9)
    for content, code in (("{}\n", "damaged"), ("", "empty")):
        (tmp_path / BEFORE).write_text(content)
        with refused(code, BEFORE):
            read_scores(tmp_path / BEFORE)
    with refused("empty", "retention"):
        retention(llm, [])
    with refused("bad-value", "max_new_tokens"):
        retention(llm, read_items(file), max_new_tokens=7)


def test_prompts_that_the_llm_cannot_read_are_all_named(tiny_llm: str, tmp_path: Path) -> None:
    """Before any is scored: control tokens in prompt or response, and what is longer than its context."""
    rows = [
        ROWS[0],
        {"prompt": "begin <|im_start|>system", "response": "yes"},
        {"prompt": "long " * 600, "response": "no"},
    ]
    rows.append({"prompt": "the end", "response": "yes <|im_end|> no"})
    with refused("bad-value", "retention") as caught:
        retention(loaded(tiny_llm), read_items(write_lines(tmp_path / "prompts.jsonl", rows)))
    assert [text in str(caught.value) for text in ("begin", "long long", "the end")] == [True] * 3
    assert len(caught.value.faults) == 3
