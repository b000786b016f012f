"""What is kept of an answer: never a thought, in any family's marks; and nothing to learn from a cut or a refusal."""

from pathlib import Path

import pytest
from tests.helpers.families import save_family, tokenizer_of

from sottovoce.llms.answer_text import CUT, REFUSED, SILENT, Cut, no_target, opens_thought, without_thoughts
from sottovoce.llms.causal_lm import CausalLLM


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("I am well.", "I am well."),
        (" two\n ", " two\n "),  # as it is
        ("<think>\nOkay, six.\n</think>\n\nsix", "six"),
        ("<think>\n\n</think>\n\nsix", "six"),
        ("Okay, six.\n</think>\n\nsix", "six"),  # opened in the prompt
        ("<think>Okay, somebody says", ""),
        ("<think>a</think>one <think>b</think>two", "one two"),
        ("six <think>or seven", "six"),
        ("<THINKING>a</THINKING> six", "six"),
        ("[THINK]a[/THINK]six", "six"),
        ("<seed:think>a</seed:think>six", "six"),
        ("<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>six", "six"),
        ("I think <b>six</b>.", "I think <b>six</b>."),
    ],
)
def test_thoughts_are_taken_out(text: str, kept: str) -> None:
    assert without_thoughts(text) == kept and not isinstance(without_thoughts(text), Cut)
    cut = without_thoughts(Cut(text))
    assert cut == kept and isinstance(cut, Cut)


@pytest.mark.parametrize(
    ("prompt", "mark"),
    [("user: x\nassistant:\n", ""), ("assistant:<think>\n", "<think>"), ("assistant:<think>\n\n</think>\n\n", "")],
)
def test_a_prompt_may_leave_a_thought_open(prompt: str, mark: str) -> None:
    assert opens_thought(prompt) == mark


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("I see.", None), (Cut("I see. What will you"), CUT), (Cut(""), CUT), (" ", SILENT),
        ("As an AI, I have no weather.", REFUSED), ("I’m an artificial intelligence.", REFUSED),
    ],
)  # fmt: skip
def test_what_is_no_target(answer: str, reason: str | None) -> None:
    assert no_target(answer) == reason


def test_an_answer_that_begins_within_a_thought(tmp_path: Path) -> None:
    """As after DeepSeek-R1's template, which opens the thought in the prompt; and marks that are special tokens."""
    folder, tokenizer = save_family("qwen2", tmp_path), tokenizer_of("qwen2")
    tokenizer.chat_template = f"{tokenizer.chat_template}{{% if add_generation_prompt %}}<think>\n{{% endif %}}"
    tokenizer.save_pretrained(folder)
    llm = CausalLLM(str(folder), "float32")
    llm.load()
    ids = llm.tokenizer("Okay, six.\n</think>\n\nsix")["input_ids"]
    assert llm.chat.thought == "<think>" and llm.text_of([*ids, *llm.chat.stop_ids]) == "six"
    unfinished = llm.text_of(llm.tokenizer("Okay, si")["input_ids"])
    assert unfinished == "" and isinstance(unfinished, Cut)
    llm.chat.thought = ""
    special = llm.tokenizer("[THINK]a<|im_start|>[/THINK]<|im_start|>six")["input_ids"]
    assert llm.text_of([*special, *llm.chat.stop_ids]) == "six"
