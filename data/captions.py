"""Style captions: how something is said, in a sentence that stands for the sound of a voice."""

from collections.abc import Mapping, Sequence

from sottovoce.data.utterance import Utterance


def style_caption(utterance: Utterance) -> str | None:
    """How the utterance is said, in words: its own caption, or one made of its labels; None where it has neither."""
    return utterance.caption or (caption_from(utterance.labels) if utterance.labels else None)


def caption_from(labels: Mapping[str, str]) -> str:
    """Style labels as a sentence, such as "A sad female voice with high pitch, slow tempo and low energy.".

    Emotion and gender come before the voice; pitch, tempo, energy and any further attribute after it. What has no
    label is not mentioned.
    """
    before = [labels[name] for name in ("emotion", "gender") if name in labels]
    measured = ("pitch", "tempo", "energy")
    rest = [name for name in labels if name not in ("emotion", "gender", *measured)]
    after = [f"{labels[name]} {name}" for name in (*measured, *rest) if name in labels]
    voice = " ".join([*before, "voice"])
    article = "An" if voice[0].lower() in "aeiou" else "A"
    return f"{article} {voice}{' with ' if after else ''}{_listed(after)}."


def _listed(parts: Sequence[str]) -> str:
    *most, last = parts or [""]
    return f"{', '.join(most)} and {last}" if most else last
