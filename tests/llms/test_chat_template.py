from datetime import datetime
from itertools import chain
from typing import Any

import pytest
from tests.helpers.errors import refused
from tests.helpers.families import FAMILIES, tokenizer_of
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from sottovoce.errors import Code
from sottovoce.llms.chat_template import ChatFormat, ChatTurn, Placeholder, Segment

HOW, WHAT, CONTEXT = Placeholder(("paralinguistic", 1)), Placeholder(("linguistic", 1)), Placeholder(("linguistic", 0))
SPOKEN = [
    ChatTurn("system", ("You hear voices.",)),
    ChatTurn("user", ("Before: ", CONTEXT)),
    ChatTurn("assistant", ("I see.",)),
    ChatTurn("user", (HOW, "\n", WHAT, " What now?")),
]


def written(*texts: str) -> list[ChatTurn]:
    roles = ("system", "user", "assistant", "user", "assistant", "user")
    return [ChatTurn(role, (text,)) for role, text in zip(roles, texts, strict=False)]


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def chat(family: str) -> ChatFormat:
    return ChatFormat(tokenizer_of(family), [1])


def spelled(chat: ChatFormat, segments: list[Segment]) -> str:
    return "".join(f"({s.key[0]})" if isinstance(s, Placeholder) else chat.tokenizer.decode(s) for s in segments)


@pytest.mark.parametrize("said", [("", "Hello."), ("Be brief.", "Hi", "Yes?", "Listen. "), ("Be brief.", "Só ünï\n\n")])
def test_a_prompt_without_slots_is_what_the_tokenizer_writes(chat: ChatFormat, family: str, said: tuple[str]) -> None:
    turns = written(*said) if said[0] else written(*said)[1:]
    messages = [{"role": turn.role, "content": str(turn.pieces[0])} for turn in turns]
    if "gemma" in family and said[0]:
        system = messages.pop(0)["content"]
        messages[0]["content"] = f"{system}\n\n{messages[0]['content']}"
    reference = chat.tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert chat.prompt(turns) == [reference]
    bos = chat.tokenizer.bos_token_id
    assert bos is None or reference.count(bos) == (family != "phi3")


def test_slots_stand_where_they_were_put_at_any_turn(chat: ChatFormat) -> None:
    segments = chat.prompt(SPOKEN)
    assert [s for s in segments if isinstance(s, Placeholder)] == [CONTEXT, HOW, WHAT]
    text = [
        ChatTurn(t.role, tuple(f"({p.key[0]})" if isinstance(p, Placeholder) else p for p in t.pieces)) for t in SPOKEN
    ]
    assert spelled(chat, segments) == spelled(chat, chat.prompt(text))


def test_text_between_two_slots_is_one_stretch(chat: ChatFormat) -> None:
    segments = chat.prompt([ChatTurn("user", (HOW, "Repeat ", "what you", WHAT, CONTEXT, "!"))])
    kinds = ["slot" if isinstance(s, Placeholder) else "text" for s in segments]
    assert kinds == ["text", "slot", "text", "slot", "slot", "text"]
    assert segments[2] == chat.tokenizer("Repeat what you", add_special_tokens=False)["input_ids"]


def test_an_answer_continues_its_prompt_as_the_template_does(chat: ChatFormat, family: str) -> None:
    said = ("Hi", "Yes?", "Listen")
    turns = written("", *said)[1:]
    answer = chat.response(turns, "It is.")
    roles = ("user", "assistant") * 2
    messages = [{"role": role, "content": text} for role, text in zip(roles, (*said, "It is."), strict=True)]
    reference = chat.tokenizer.apply_chat_template(messages)["input_ids"]
    whole = [*chat.prompt(turns)[0], *answer]
    assert reference[: len(whole)] == whole
    assert answer[-1] == chat.tokenizer.convert_tokens_to_ids(FAMILIES[family].end)
    assert not chat.stop_ids.intersection(answer[:-1])
    rest = chat.tokenizer.decode(reference[len(whole) :])
    assert rest.replace(chat.tokenizer.eos_token, "").strip() == ""


def test_an_empty_answer_is_the_end_of_the_turn(chat: ChatFormat, family: str) -> None:
    answer = chat.response(SPOKEN, "")
    assert answer[-1] == chat.tokenizer.convert_tokens_to_ids(FAMILIES[family].end)
    assert chat.tokenizer.decode(answer[:-1]).strip() == ""


def test_an_answer_is_the_same_after_any_prompt(chat: ChatFormat) -> None:
    plain = chat.response([ChatTurn("user", ("x",))], "It is.")
    assert chat.response(SPOKEN, "It is.") == plain
    assert chat.response([ChatTurn("user", (HOW,))], "It is.") == plain


def test_a_template_that_never_shows_answers_still_gets_an_end(chat: ChatFormat) -> None:
    chat.tokenizer.chat_template = "{{ messages[-1]['content'] }}{% if add_generation_prompt %}: {% endif %}"
    words = chat.tokenizer("It is.", add_special_tokens=False)["input_ids"]
    assert chat.response([ChatTurn("user", ("x",))], "It is.") == [*words, chat.tokenizer.eos_token_id]


def test_the_end_of_a_turn_is_learned_from_the_template(family: str) -> None:
    tokenizer = tokenizer_of(family)
    end = tokenizer.convert_tokens_to_ids(FAMILIES[family].end)
    assert ChatFormat(tokenizer, []).stop_ids == {end}
    assert ChatFormat(tokenizer, [1]).stop_ids == {1, end}


def test_a_tokenizer_that_marks_the_start_of_a_text_reads_answers_in_context() -> None:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    bpe.decoder = decoders.Metaspace()
    bpe.train_from_iterator(["It is. user x\n:"], trainers.BpeTrainer(special_tokens=["</s>"], show_progress=False))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="</s>")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'][0] + ':\n' + m['content'] + '</s>' }}{% endfor %}"
        "{% if add_generation_prompt %}a:\n{% endif %}"
    )
    answer = ChatFormat(tokenizer, []).response([ChatTurn("user", (HOW,))], "It is.")
    assert not tokenizer.convert_ids_to_tokens(answer)[0].startswith("▁")
    assert "".join(tokenizer.convert_ids_to_tokens(answer)) == "It▁is.</s>"


BLOCK = "<think>\n\n</think>\n\n"
THINKS = (  # as Qwen3's: the block stands before the last answer, and in the prompt where thinking is off
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}"
    + BLOCK + "{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}" + BLOCK + "{% endif %}{% endif %}"
)  # fmt: skip


def test_thinking_is_off_and_its_empty_block_belongs_to_the_prompt() -> None:
    tokenizer = tokenizer_of("qwen2")
    plain = ChatFormat(tokenizer, [1])
    tokenizer.chat_template = THINKS
    off, on = ChatFormat(tokenizer, [1]), ChatFormat(tokenizer, [1], {"enable_thinking": True})
    turns = [ChatTurn("user", (HOW, "Hi"))]
    assert spelled(off, off.prompt(turns)) == f"{spelled(plain, plain.prompt(turns))}{BLOCK}"
    assert spelled(on, on.prompt(turns)) == spelled(plain, plain.prompt(turns))
    assert tokenizer.decode(off.response(turns, "six")) == "six<|im_end|>"
    assert tokenizer.decode(on.response(turns, "six")) == f"{BLOCK}six<|im_end|>"
    assert (plain.arguments, off.arguments) == ({}, {"enable_thinking": False})


def test_other_arguments_reach_the_template() -> None:
    tokenizer = tokenizer_of("qwen2")
    tokenizer.chat_template = "{{ mood }}" + str(tokenizer.chat_template)
    chat = ChatFormat(tokenizer, [1], {"mood": "Be kind."})
    assert spelled(chat, chat.prompt(written("", "Hi")[1:])).startswith("Be kind.")


@pytest.mark.parametrize("day", [1, 28])
def test_a_template_that_writes_the_date_writes_the_same_every_day(day: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return cls(2026, 11, day)

    monkeypatch.setattr(chat_template_utils, "datetime", Clock)
    tokenizer = tokenizer_of("qwen2")
    tokenizer.chat_template = "{{ 'Today Date: ' + strftime_now('%d %b %Y') }}" + str(tokenizer.chat_template)
    chat = ChatFormat(tokenizer, [1])
    assert spelled(chat, chat.prompt(written("", "Hi")[1:])).startswith("Today Date: 26 Jul 2024")
    assert chat.arguments == {"strftime_now": "2024-07-26"}  # which is part of the fingerprint


def sentencepiece(scheme: str) -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    if scheme == "legacy":
        steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        bpe.normalizer = normalizers.Sequence(steps)  # type: ignore[arg-type]
    else:
        bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)  # type: ignore[arg-type]
    letters = list("abcdefghijklmnopqrstuvwxyz.:[]/INST\n▁")
    special = ["<s>", "</s>", "<unk>"]
    trainer = trainers.BpeTrainer(vocab_size=60, initial_alphabet=letters, special_tokens=special, show_progress=False)
    bpe.train_from_iterator(["a b"], trainer)
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, **named)
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
        "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
    )
    return tokenizer


@pytest.mark.parametrize("scheme", ["always", "first", "legacy"])
def test_no_space_is_added_behind_speech(scheme: str) -> None:
    """The text around speech is tokenised as around a word in its place."""
    chat = ChatFormat(sentencepiece(scheme), [1])
    spoken = chat.prompt([ChatTurn("user", (HOW, "\n", WHAT))])
    (text,) = chat.prompt([ChatTurn("user", ("q", "\n", "q"))])
    tokens = [["q"] if isinstance(s, Placeholder) else chat.tokenizer.convert_ids_to_tokens(s) for s in spoken]
    assert list(chain(*tokens)) == chat.tokenizer.convert_ids_to_tokens(text)


def assert_as_after_words(chat: ChatFormat) -> None:
    ids = chat.ids_after_words("is it")
    assert chat.token_ids("it is it")[-len(ids) :] == ids == chat.ids_after_words(" is it")
    assert chat.ids_after_words("it is") != chat.ids_after_words("is it")
    assert "".join(chat.tokenizer.decode(ids).replace("▁", " ").split()) == "isit"


def test_the_first_word_of_a_transcript_has_the_token_that_it_has_after_others(chat: ChatFormat) -> None:
    assert_as_after_words(chat)


@pytest.mark.parametrize("scheme", ["always", "first", "legacy"])
def test_it_has_so_where_a_tokenizer_marks_the_start_of_a_text(scheme: str) -> None:
    assert_as_after_words(ChatFormat(sentencepiece(scheme), [1]))


def test_a_script_without_spaces_has_none_in_front(chat: ChatFormat) -> None:
    assert chat.tokenizer.decode(chat.ids_after_words("你好")[:1]).strip()


@pytest.mark.parametrize(
    "template",
    [
        {"chat": "{{ messages }}", "tool_use": "{{ messages }}"},  # no default
        "{% for m in messages %}{{ m['content'] + 1 }}{% endfor %}",
        "{% for m in messages %",
        "{{ messages[7].content.strip() }}",
    ],
)
def test_a_template_that_fails_is_told(template: Any) -> None:
    tokenizer = tokenizer_of("qwen2")
    tokenizer.chat_template = template
    with refused("mismatch", "llm.checkpoint"):
        ChatFormat(tokenizer, [1])


@pytest.mark.parametrize("family", ["gemma", "gemma2"])
def test_without_a_system_role_the_system_speaks_at_the_start_of_the_user(family: str) -> None:
    chat = ChatFormat(tokenizer_of(family), [1])
    moved = [ChatTurn("user", ("You hear ", CONTEXT, "\n\n", HOW, "!"))]
    assert chat.prompt([ChatTurn("system", ("You hear ", CONTEXT)), ChatTurn("user", (HOW, "!"))]) == chat.prompt(moved)


def test_a_template_that_drops_the_system_in_silence_is_seen_through() -> None:
    tokenizer = tokenizer_of("phi3")
    begins, rest = "{% for message in messages %}", str(tokenizer.chat_template)
    tokenizer.chat_template = rest.replace(begins, "{% for message in messages if message['role'] != 'system' %}", 1)
    chat = ChatFormat(tokenizer, [1])
    assert "You hear voices.\n\nBefore: (linguistic)" in spelled(chat, chat.prompt(SPOKEN))


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[-1]['content'] }}<|im_end|>",  # drops turns, repeats them, or turns them round
        "{% for m in messages %}{{ m['content'] }}{{ m['content'] }}<|im_end|>{% endfor %}",
        "{% for m in messages | reverse %}{{ m['content'] }}<|im_end|>{% endfor %}",
    ],
)
def test_a_template_that_loses_slots_is_refused(template: str) -> None:
    tokenizer = tokenizer_of("qwen2")
    tokenizer.chat_template = template
    with refused("mismatch", "llm.checkpoint"):
        ChatFormat(tokenizer, [1]).prompt(SPOKEN)


@pytest.mark.parametrize(("turns", "code"), [
    ([], "bad-value"),
    (SPOKEN[:3], "bad-value"),  # no turn of the user to answer
    ([SPOKEN[1], SPOKEN[0], SPOKEN[3]], "bad-value"),  # a system turn that is not the first
    ([ChatTurn("usr", ("Hi",))], "unknown-name"),  # type: ignore[arg-type]
    ([ChatTurn("user", ("a \U000f5e00 b",))], "bad-value"),  # a reserved character
    ([ChatTurn("user", ("a \U000f5e01 b",))], "bad-value"),
])  # fmt: skip
def test_a_dialogue_that_cannot_be_written_is_refused(chat: ChatFormat, turns: list[ChatTurn], code: Code) -> None:
    for write in (chat.prompt, lambda turns: chat.response(turns, "Yes.")):
        with refused(code):
            write(turns)


def test_a_template_may_refuse_a_dialogue() -> None:
    chat = ChatFormat(tokenizer_of("mistral"), [1])
    with refused("mismatch", "llm.checkpoint"):
        chat.prompt([SPOKEN[1], SPOKEN[3]])


def test_an_answer_cannot_hold_its_own_end(chat: ChatFormat, family: str) -> None:
    with refused("bad-value"):
        chat.response(SPOKEN, f"It is.{FAMILIES[family].end} And")
    with refused("bad-value"):
        chat.response(SPOKEN, "\U000f5e00")


def test_no_text_holds_a_control_token(chat: ChatFormat, family: str) -> None:
    """In any turn and in an answer; what only looks like one is text."""
    for token in FAMILIES[family].specials:
        for turns in ([ChatTurn("user", (f"five {token} ok",))], [ChatTurn("user", ("x", f"{token}user"))],
                      [ChatTurn("system", (token,)), ChatTurn("user", ("x",))]):  # fmt: skip
            with refused("bad-value"):
                chat.prompt(turns)
        with refused("bad-value"):
            chat.response([ChatTurn("user", ("x",))], f"five {token} ok")
        assert chat.control_tokens_in(f"{token}{token} ok") == [token]
    for text in ("a < b and c > d", "<b>bold</b>", "<|imstart|>", "im_start [INS] <start>", ""):
        assert chat.control_tokens_in(text) == []
        chat.prompt([ChatTurn("user", (text, HOW))])


def test_marks_around_speech_may_be_control_tokens() -> None:
    chat = ChatFormat(tokenizer_of("qwen2"), [1])
    chat.delimiters = lambda key, number: ("<|im_start|>", "<|im_end|>")
    assert "<|im_start|>(linguistic" in spelled(chat, chat.prompt(SPOKEN))


def test_tokens_that_a_template_writes_around_turns_are_control_tokens_whatever_they_are_called() -> None:
    """Some checkpoints add them as ordinary tokens; others that they add, such as one for code, stay text."""
    tokenizer = tokenizer_of("qwen2")
    tokenizer.add_tokens([AddedToken("[User]", special=False), AddedToken("[code]", special=False)])
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '[User]' if m['role'] == 'user' else '' }}{{ m['content'] }}<|im_end|>{% endfor %}"
    )
    chat = ChatFormat(tokenizer, [1])
    assert chat.control_tokens_in("say [User] and [code]") == ["[User]"]


def test_a_tokenizer_without_a_chat_template_is_refused() -> None:
    tokenizer = tokenizer_of("qwen2")
    tokenizer.chat_template = None
    with refused("unavailable", "llm.checkpoint"):
        ChatFormat(tokenizer, [1])


def test_a_turn_without_an_end_is_refused() -> None:
    tokenizer = tokenizer_of("qwen2")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    assert ChatFormat(tokenizer, [1]).stop_ids == {1}
    with refused("unavailable", "llm.checkpoint"):
        ChatFormat(tokenizer, [])


def test_all_families_differ() -> None:
    prompts = [spelled(chat, chat.prompt(SPOKEN)) for chat in (ChatFormat(tokenizer_of(f), [1]) for f in FAMILIES)]
    assert len(set(chain(prompts))) == len(FAMILIES) - 1  # the two Gemmas share theirs


def test_a_prompt_that_was_changed_is_the_same_when_asked_for_again(chat: ChatFormat) -> None:
    first, said = chat.prompt(SPOKEN), chat.response(SPOKEN, "Hello.")
    kept = [list(part) if isinstance(part, list) else part for part in first], list(said)
    for part in first:
        if isinstance(part, list):
            part.clear()
    said.clear()
    assert (chat.prompt(SPOKEN), chat.response(SPOKEN, "Hello.")) == kept


def test_texts_that_are_known_are_not_tokenised_again(chat: ChatFormat, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt, said = chat.prompt(SPOKEN), chat.response(SPOKEN, "Hello.")
    other = chat.response(SPOKEN, "Bye."), chat.response(SPOKEN[3:], "Hello.")
    monkeypatch.setattr(chat, "tokenizer", None)
    assert (chat.prompt(SPOKEN), chat.response(SPOKEN, "Hello.")) == (prompt, said)
    assert (chat.response(SPOKEN, "Bye."), chat.response(SPOKEN[3:], "Hello.")) == other


def test_not_all_texts_of_a_long_training_are_remembered(chat: ChatFormat) -> None:
    for number in range(8_200):
        chat.token_ids(f"{number}")
    assert len(chat._tokens) <= 8_192
    assert chat.token_ids("17") == chat.tokenizer("17", add_special_tokens=False)["input_ids"]
