from itertools import chain

import pytest
from tests.helpers.errors import refused
from tests.helpers.families import FAMILIES, tokenizer_of
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

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
