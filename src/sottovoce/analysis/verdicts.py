"""Verdicts on the tasks of a run: which part loses what a task needs, by thresholds that stand in one table."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from sottovoce.evaluation.metrics import Score

Kind = Literal["attribute", "asr", "generated"]
Code = Literal["learned", "llm", "encoder", "layers", "overfits", "adapter", "tokens", "partly", "unknown"]
# Of scores, the skill counts: 0 is chance, 1 is faultless, as (score - chance) / (1 - chance), or 1 - error rate.
THRESHOLDS = {
    "chance": 0.15,  # a skill below this is near chance; so is one whose interval reaches chance
    "say": 0.5,  # a skill of the text topline below this: the LLM cannot say it
    "kept": 0.75,  # of the skill before it a part must keep this share
    "error_rate": 1.5,  # times the error rate of the encoder's own decoder, at most, is learned
    "gain": 0.05,  # nats a token that speech must save in training before there is anything to overfit
    "overfit": 0.5,  # of what speech saves in training, the test side must save this share
}
MEANING: dict[Code, str] = {
    "learned": "learned",
    "llm": "the LLM cannot say it even from text",
    "encoder": "the encoder's frames do not carry it",
    "layers": "the encoder carries it, but not in the layers that the slot hears",
    "overfits": "it overfits",
    "adapter": "the frames carry it, the adapter's tokens lost it",
    "tokens": "the tokens carry it, the LLM does not use them",
    "partly": "partly learned",
    "unknown": "nothing to judge by",
}


@dataclass
class TaskDiagnosis:
    """All that is known of one task; scores are shares. What could not be measured is absent, and `left_out` says why.

    `frames` are probes of the encoder: `last`, `best`, and by slot what each of them hears; `tokens` are by slot.
    Of `asr` both are word probes, and `answers`, `topline` and `decoder` error rates. `loss` has nats a response token
    by side and by what fills the slots, such as `test` -> `speech`, `text`, `none`.
    """

    task: str
    kind: Kind
    metric: str  # of `answers` and `topline`
    test: int  # utterances
    train: int
    carriers: tuple[str, ...]  # the slots that carry the task
    answers: Score | None = None
    topline: Score | None = None
    told: float | None = None  # of attributes: share of the texts of the topline that have the label in them
    decoder: Score | None = None  # the encoder's own
    frames: dict[str, Score] = field(default_factory=dict)
    best_layers: list[int] = field(default_factory=list)  # by cross-validation, one for each fold
    tokens: dict[str, Score] = field(default_factory=dict)
    readings: dict[str, Score] = field(default_factory=dict)  # tokens nearest to a word of the reference
    loss: dict[str, dict[str, float]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    verdict: Code = "unknown"
    sentence: str = ""

    def judge(self) -> None:
        """Fill in the verdict and its sentence."""
        if _has_one_label(self):
            self.left_out["scores"] = "all test utterances have the same label"
        self.verdict = verdict_of(self)
        self.sentence = f"{MEANING[self.verdict]}{_figures(self)}"


def skill(score: Score, kind: Kind = "attribute") -> float:
    """0 at chance, 1 without a fault; of `asr`, 1 less the error rate."""
    if kind == "asr":
        return max(0.0, 1.0 - score.value)
    chance = score.baseline or 0.0
    return (score.value - chance) / (1.0 - chance) if chance < 1.0 else 0.0


def is_near_chance(score: Score, kind: Kind = "attribute") -> bool:
    """Whether a score tells nothing; of error rates, whether hardly a word is right."""
    if skill(score, kind) < THRESHOLDS["chance"]:
        return True
    return kind != "asr" and score.baseline is not None and score.low <= score.baseline


def verdict_of(d: TaskDiagnosis) -> Code:
    """The first of these that holds: learned, LLM, encoder, layers, overfits, adapter, tokens.

    What has not been measured decides nothing.
    """
    if d.kind == "generated":
        return _by_loss(d)
    if d.answers is None or _has_one_label(d):
        return "unknown"
    if is_learned(d):
        return "learned"
    if _cannot_say(d):
        return "llm"
    best = _most(d.frames)
    if best and is_near_chance(best) and (d.decoder is None or is_near_chance(d.decoder, "asr")):
        return "encoder"
    heard, tokens = _most(_carried(d, d.frames)), _most(_carried(d, d.tokens))
    kept = THRESHOLDS["kept"]
    if best and heard and skill(heard) < kept * skill(best):
        return "layers"
    if overfits(d.loss):
        return "overfits"
    if tokens and heard and (skill(tokens) < kept * skill(heard) or is_near_chance(tokens)):
        return "adapter"
    if tokens and not is_near_chance(tokens):
        return "tokens"
    return "unknown" if is_near_chance(d.answers, d.kind) else "partly"


def _has_one_label(d: TaskDiagnosis) -> bool:
    """Whether a guess that hears nothing is always right."""
    return d.kind == "attribute" and d.answers is not None and d.answers.baseline == 1.0


def is_learned(d: TaskDiagnosis) -> bool:
    """Whether answers to speech keep enough of what frames and tokens carry; of words, of what can be said at all."""
    if d.answers is None or is_near_chance(d.answers, d.kind):
        return False
    kept, mine = THRESHOLDS["kept"], skill(d.answers, d.kind)
    if d.kind == "asr":
        if mine < THRESHOLDS["say"] and _cannot_say(d):  # a share of next to nothing is no achievement
            return False
        if d.decoder and d.answers.value <= THRESHOLDS["error_rate"] * d.decoder.value:
            return True
        return mine >= kept * (skill(d.topline, "asr") if d.topline else 1.0)
    known = [skill(score) for score in (*d.frames.values(), *d.tokens.values())]
    return mine >= kept * max(known, default=1.0)


def _cannot_say(d: TaskDiagnosis) -> bool:
    """Whether the LLM fails even on the text, where the text tells what is asked."""
    told = d.told is None or d.told >= 0.5
    return d.topline is not None and told and skill(d.topline, d.kind) < THRESHOLDS["say"]


def overfits(loss: Mapping[str, Mapping[str, float]]) -> bool:
    """Whether speech saves nats on the training side, and on the test side far less."""
    train, test = gain(loss, "train"), gain(loss, "test")
    if train is None or test is None:
        return False
    return train > THRESHOLDS["gain"] and test < THRESHOLDS["overfit"] * train


def gain(loss: Mapping[str, Mapping[str, float]], side: str) -> float | None:
    """Nats a token that speech saves against empty slots."""
    known = loss.get(side, {})
    return known["none"] - known["speech"] if {"none", "speech"} <= known.keys() else None


def _by_loss(d: TaskDiagnosis) -> Code:
    """Of texts that no label describes: does speech save what the equivalent text saves."""
    saved, test = gain(d.loss, "test"), d.loss.get("test", {})
    if saved is None:
        return "unknown"
    most = test["none"] - test["text"] if "text" in test else None
    if saved > THRESHOLDS["gain"] and (most is None or saved >= THRESHOLDS["kept"] * most):
        return "learned"
    if overfits(d.loss):
        return "overfits"
    return "partly" if saved > THRESHOLDS["gain"] else "unknown"


def _carried(d: TaskDiagnosis, scores: Mapping[str, Score]) -> dict[str, Score]:
    """Of the slots that carry the task."""
    return {name: score for name, score in scores.items() if name in d.carriers}


def _most(scores: Mapping[str, Score]) -> Score | None:
    return max(scores.values(), key=lambda score: score.value, default=None)


def _figures(d: TaskDiagnosis) -> str:
    """What the sentence rests on."""
    unit = d.metric.partition("/")[0].upper() if d.kind == "asr" else "balanced accuracy"
    answers, topline = _shown(d.answers), _shown(d.topline)
    frames, heard = _shown(_most(d.frames)), _shown(_most(_carried(d, d.frames)))
    tokens = _shown(_most(_carried(d, d.tokens)))
    probe = "word probe" if d.kind == "asr" else "probe"
    if d.kind == "generated":
        test, train = d.loss.get("test", {}), d.loss.get("train", {})
        told = ", ".join(f"{key} {value:.2f}" for key, value in test.items())
        more = f"; training: speech {train['speech']:.2f}" if "speech" in train else ""
        return f": nats a token on the test side: {told}{more}" if told else ""
    match d.verdict:
        case "learned":
            told = f"answers {answers} {unit}"
            told += f", the encoder's own decoder {_shown(d.decoder)}" if d.decoder else f", from text {topline}"
            return f": {told}, {probe} of frames {frames}, of tokens {tokens}"
        case "llm":
            return f": from text {topline} {unit}, from speech {answers}"
        case "encoder":
            chance = _most(d.frames)
            near = f"chance {_percent(chance.baseline or 0.0)}" if chance else ""
            return f": best {probe} of a layer {frames} ({near}); from text the LLM has {topline} {unit}"
        case "layers":
            named = ", ".join(map(str, dict.fromkeys(d.best_layers)))
            keys = ", ".join(f"slots.{name}.layers" for name in d.carriers)
            return f": {probe} of layer {named} {frames}, of what is heard {heard} (see {keys})"
        case "overfits":
            sides = [(side, d.loss.get(side, {}).get("speech", float("nan"))) for side in ("train", "test")]
            told = ", ".join(f"{side} {value:.2f}" for side, value in sides)
            return f": nats a token with speech: {told}; answers {answers} {unit}"
        case "adapter":
            return f": {probe} of what the slot hears {heard}, of its tokens {tokens}"
        case "tokens":
            return f": {probe} of tokens {tokens}, answers {answers} {unit}, from text {topline}"
        case "partly":
            return f": answers {answers} {unit}, from text {topline}"
        case _:
            return "".join(f"; {what}: {why}" for what, why in d.left_out.items())


def _shown(score: Score | None) -> str:
    return "not known" if score is None else _percent(score.value)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
