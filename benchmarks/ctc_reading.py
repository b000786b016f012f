"""How a frozen LLM reads words that CTC found in speech: docs/decisions/36-ctc-before-the-llm.md.

    python benchmarks/ctc_reading.py --bundle BUNDLE --manifest FILE --root DIR [--limit 100] [--slot linguistic]

The bundle has a slot with `ctc_compression`; its task `asr` may have few-shot examples. Word error rates of the slot
alone: of CTC's own greedy reading; of the LLM that is given every frame, frames without blanks and repeats, means of
token embeddings by posteriors to some power, or the tokens themselves; and of the LLM that reads the true text, each
with no few-shot examples, half of them, and all. Nothing is trained.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from shared import table
from torch import Tensor

from sottovoce.data.audio import load_audio
from sottovoce.data.utterance import Utterance
from sottovoce.evaluation.metrics import Prediction
from sottovoce.evaluation.records import score_all
from sottovoce.frames import Frames
from sottovoce.lightning_modules.bundle import read_bundle
from sottovoce.lightning_modules.speech_llm import SpeechLLM
from sottovoce.llms.chat_template import ChatTurn, Piece
from sottovoce.serving.chat import speech
from sottovoce.serving.questions import opening, question

Read = Callable[[Frames], Frames]  # adapter outputs of one clip -> what the LLM is given
BATCH, MAX_NEW_TOKENS = 32, 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("bundle", "manifest", "root"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--slot", default="linguistic")
    arguments = parser.parse_args()
    module = read_bundle(arguments.bundle).eval()
    lines_of = map(json.loads, arguments.manifest.read_text("utf-8").splitlines())
    said = [Utterance(line["id"], arguments.root / line["audio"], line["text"], line["speaker"], 0.0)
            for line in lines_of if line["text"]]  # fmt: skip
    said = sorted(said[:: max(1, len(said) // arguments.limit)], key=lambda u: len(str(u.text)))
    with torch.no_grad():
        frames = [adapted(module, arguments.slot, u) for u in said]
        greedy = [module.llm.chat.tokenizer.decode(tokens_of(module, x)) for x in frames]
        lines = [("CTC's greedy reading", shown(said, greedy), "", "")]
        for name, read in ways(module).items():
            given = [read(x).x[0] for x in frames]
            lines.append((name, *(shown(said, answers(module, arguments.slot, given, share)) for share in (0, 0.5, 1))))
        texts = [str(u.text) for u in said]
        lines.append(
            ("the text", *(shown(said, answers(module, arguments.slot, texts, share)) for share in (0, 0.5, 1)))
        )
    print(table(("given to the LLM", "no examples", "half", "all"), lines, words=1))


def adapted(module: SpeechLLM, slot: str, utterance: Utterance) -> Frames:
    wave = torch.from_numpy(load_audio(Path(str(utterance.audio))))
    return module.adapt_frames(slot, module.encoded(Frames.pad([wave])))


def tokens_of(module: SpeechLLM, speech: Frames) -> list[int]:
    """The tokens that are likeliest in each frame, without blanks and repeats."""
    classes = classes_of(module, speech)
    return [int(c) - 1 for i, c in enumerate(classes) if c and (not i or c != classes[i - 1])]


def classes_of(module: SpeechLLM, speech: Frames) -> list[int]:
    assert module.ctc_head is not None
    return [int(c) for c in module.ctc_head(speech.x[0], module.llm.token_table()).argmax(1)]


def ways(module: SpeechLLM) -> dict[str, Read]:
    def spoken(x: Frames) -> Frames:
        classes = classes_of(module, x)
        kept = [i for i, c in enumerate(classes) if c and (not i or c != classes[i - 1])] or [0]
        return Frames.pad([x.x[0, kept]])

    def tokens(x: Frames) -> Frames:
        ids = tokens_of(module, x) or [0]
        return Frames.pad([module.llm.token_table()[torch.tensor(ids)].float()])

    def power(sharpness: float) -> Read:
        def read(x: Frames) -> Frames:
            assert module.ctc_head is not None
            table = module.llm.token_table().float()
            kept = spoken(x).x[0]
            posteriors = (sharpness * module.ctc_head(kept, table)[:, 1:]).softmax(1)
            return Frames.pad([posteriors @ table])

        return read

    powers = {f"posteriors to the power of {sharpness:g}": power(sharpness) for sharpness in (1.0, 2.0, 3.0)}
    return {"every frame": lambda x: x, "without blanks and repeats": spoken, **powers, "tokens": tokens}


def answers(module: SpeechLLM, slot: str, given: list[Tensor] | list[str], share: float) -> list[str]:
    """The LLM's, after so large a share of the few-shot examples."""
    turns, before = opening(module.recipe, question(module.recipe, "asr", None).instruction)
    first = [turn for turn in turns if turn.role == "system"]
    shots = turns[len(first) :]
    asked = [*first, *shots[: 2 * round(share * len(shots) / 2)]]
    told: list[str] = []
    for start in range(0, len(given), BATCH):
        part = given[start : start + BATCH]
        clips = [Path(f"clip-{i}") for i in range(len(part))]
        chats = [
            [*asked, ChatTurn("user", (*before, *(pieces(clip, slot, each))))]
            for clip, each in zip(clips, part, strict=True)
        ]
        prompts = [module.llm.chat.prompt(chat) for chat in chats]
        keys = [[piece.key for piece in chat[-1].pieces if hasattr(piece, "key")] for chat in chats]
        filled = {key: x for own, x in zip(keys, part, strict=True) for key in own if isinstance(x, Tensor)}
        told += module.llm.generate(module.llm.embed_all(prompts, filled), MAX_NEW_TOKENS)
    return told


def pieces(clip: Path, slot: str, given: Tensor | str) -> Iterator[Piece]:
    yield from (given,) if isinstance(given, str) else speech(clip, [slot])


def shown(said: list[Utterance], answers: list[str]) -> str:
    rows = [
        Prediction(u.id, "asr", "both", "", answer, str(u.text), speaker=u.speaker)
        for u, answer in zip(said, answers, strict=True)
    ]
    (record,) = [record for record in score_all("", rows) if record.metric == "wer"]
    return f"{100 * record.value:.1f}"


if __name__ == "__main__":
    main()
