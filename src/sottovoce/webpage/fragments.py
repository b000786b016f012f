"""Pieces of HTML that the page shows: notes, bars of probabilities, answers side by side, pictures."""

import base64
import html
from collections.abc import Iterable, Mapping

CSS = """
.gradio-container {max-width: 1240px !important; padding-top: 8px !important}
.sv-plain, .sv-plain > * {padding: 0 !important}
#note:not(:has(.sv-note)) {display: none}
.sv-head h1 {font-size: 1.7em; font-weight: 650; margin: 0}
.sv-note {border-left: 4px solid #b45309; background: #fef3c7; color: #451a03; padding: .6em .9em; border-radius: 6px;
  overflow-wrap: anywhere}
.sv-hint {color: var(--body-text-color-subdued); margin: 0}
.sv-cards {display: grid; grid-template-columns: repeat(auto-fit, minmax(205px, 1fr)); gap: 12px}
.sv-card {border: 1px solid var(--border-color-primary); border-radius: 8px; padding: 10px 14px 12px;
  background: var(--block-background-fill); overflow-wrap: anywhere; min-width: 0}
.sv-card h3 {font-size: 1em; font-weight: 600; margin: 0 0 .2em}
.sv-card .sv-hint {font-size: .85em}
.sv-card .sv-answer {font-size: 1.1em; margin: .5em 0; white-space: pre-wrap}
.sv-bar {display: grid; grid-template-columns: 4.8em 1fr 4.1em; gap: 8px; align-items: center; margin: 3px 0;
  font-size: .92em; line-height: 1.5}
.sv-bar b {font-weight: 400; overflow: hidden; text-overflow: ellipsis; white-space: nowrap}
.sv-bar.sv-most b, .sv-bar.sv-most span {font-weight: 600}
.sv-bar span {text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap}
.sv-bar i {display: block; height: 11px; border-radius: 3px; background: var(--border-color-primary); overflow: hidden}
.sv-bar i u {display: block; height: 100%; background: #93b4cc}
.sv-bar.sv-most i u {background: #0072B2}
.sv-picture {margin: 0 0 6px}
.sv-picture img {width: 100%; border-radius: 8px; background: white; border: 1px solid var(--border-color-primary)}
.sv-picture figcaption {font-weight: 600; margin-bottom: 4px}
"""


def escaped(text: object) -> str:
    """Text that is nothing but text in HTML, and in the templates of JavaScript and Handlebars that Gradio runs."""
    return html.escape(str(text)).translate({ord(c): f"&#{ord(c)};" for c in "{}$`\\"})


def note(text: str) -> str:
    """What the user has to know; nothing for no text."""
    return f'<div class="sv-note" role="alert">{escaped(text)}</div>' if text else ""


def head(title: str, about: str) -> str:
    """The title of the page, and a line on it."""
    return f'<div class="sv-head"><h1>{escaped(title)}</h1>{hint(about)}</div>'


def hint(text: str) -> str:
    """A line in passing."""
    return f'<p class="sv-hint">{escaped(text)}</p>'


def bars(shares: Mapping[str, float]) -> str:
    """A bar for each label, as long as it is probable; the first of the most probable stands out."""
    most = max(shares, key=lambda label: shares[label], default="")
    rows = []
    for label, share in shares.items():
        name, told = escaped(label), f"{share:.1%}"
        rows.append(
            f'<div class="sv-bar{" sv-most" * (label == most)}" role="meter" aria-valuemin="0" aria-valuemax="1" '
            f'aria-valuenow="{share:.3f}" aria-label="{name}"><b title="{name}">{name}</b>'
            f'<i><u style="width:{100 * share:.1f}%"></u></i><span>{told}</span></div>'
        )
    return "".join(rows)


def card(title: str, about: str = "", answer: str | None = None, shares: Mapping[str, float] | None = None) -> str:
    """A box with a title, an answer and its probabilities, as far as they are given."""
    said = "" if answer is None else f'<p class="sv-answer">{escaped(answer) or "(nothing)"}</p>'
    line = hint(about) if about else ""
    return f'<section class="sv-card"><h3>{escaped(title)}</h3>{line}{said}{bars(shares or {})}</section>'


def side_by_side(cards: Iterable[str]) -> str:
    """Boxes next to one another, as many as there is room for."""
    return f'<div class="sv-cards">{"".join(cards)}</div>'


def picture(title: str, png: bytes) -> str:
    """A PNG with a title, within the page itself: no other request."""
    data = base64.b64encode(png).decode("ascii")
    told = escaped(title)
    return (
        f'<figure class="sv-picture"><figcaption>{told}</figcaption>'
        f'<img alt="{told}" src="data:image/png;base64,{data}"></figure>'
    )


def layers_in_words(weights: Mapping[str, Mapping[int, float]], depth: int) -> str:
    """A line on slots that hear one layer of the encoder each; those that mix several are drawn."""
    single = {slot: next(iter(mine)) for slot, mine in weights.items() if len(mine) == 1}
    if not single:
        return ""
    if set(single.values()) == {depth}:
        return f"No weights of layers to show: {', '.join(single)} hear the encoder's last layer alone."
    parts = [f"{slot} hears layer {layer}" for slot, layer in single.items()]
    return f"No weights of layers to show: {', '.join(parts)} of {depth}, and no other."
