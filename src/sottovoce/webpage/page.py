"""The page: a clip and a question on the left, and what is made of them in tabs on the right. By Gradio."""

from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from typing import Any

import gradio as gr
from gradio.themes.utils.fonts import Font

from sottovoce.errors import SottovoceError
from sottovoce.webpage import fragments, pictures
from sottovoce.webpage.examples import Example
from sottovoce.webpage.fragments import card, hint, note, picture, side_by_side
from sottovoce.webpage.listener import Asked, Listener, Told, told_plainly

TITLE = "Sottovoce"
MAX_FILE = "100mb"
NO_QUESTION = "empty: the task in its own words"
_WORK: dict[str, Any] = {
    "concurrency_id": "model",
    "concurrency_limit": 1,
    "api_visibility": "private",
}  # one after another
_SYSTEM = [Font(name) for name in ("system-ui", "Segoe UI", "Liberation Sans", "sans-serif")]
_MONO = [Font(name) for name in ("ui-monospace", "Liberation Mono", "monospace")]
Handler = Callable[..., Iterator[tuple[str, ...]]]


def looks() -> dict[str, Any]:
    """What `launch` is given besides the address: fonts of the system, and nothing that asks another server."""
    theme = gr.themes.Default(
        primary_hue="blue", secondary_hue="blue", neutral_hue="slate", font=_SYSTEM, font_mono=_MONO
    ).set(button_primary_background_fill="#0072B2", button_primary_background_fill_hover="#005a8d")
    return {
        "theme": theme, "css": fragments.CSS, "share": False, "ssr_mode": False, "footer_links": [], "quiet": True,
        "enable_monitoring": False, "max_file_size": MAX_FILE, "pwa": False, "mcp_server": False,
    }  # fmt: skip


class Page:
    """What the buttons do: each is given clip, task and question, and yields HTML, the note to the user last."""

    def __init__(self, listener: Listener, against: Listener | None = None) -> None:
        self.listener, self.against = listener, against

    def ask(self, file: str | None, task: str | None, own: str | None) -> Iterator[tuple[str, ...]]:
        """The answer as it comes, and the question as the LLM reads it."""
        asked = Asked(task, own)
        wording = self.listener.wording(asked)
        for said in self.listener.stream(file, asked):
            yield said, wording

    def slots(
        self, file: str | None, task: str | None, own: str | None, off: Sequence[str] = ()
    ) -> Iterator[tuple[str, ...]]:
        """Answers with all slots, and without each of `off`, one beside the other."""
        cards: list[str] = []
        for name, told in self.listener.without_each(file, Asked(task, own), off):
            left = ", ".join(slot for slot in self.listener.slots if slot != name)
            title, about = (
                (f"without {name}", f"speech in {left} alone") if name else ("all slots", "speech in each of them")
            )
            cards.append(card(title, about, told.answer, told.shares))
            yield (side_by_side(cards),)

    def attributes(
        self, file: str | None, task: str | None = None, own: str | None = None
    ) -> Iterator[tuple[str, ...]]:
        """Bars of each attribute, and the pictures."""
        drawn = picture("Log-mel spectrogram of the clip", pictures.spectrogram(self.listener.heard(file)))
        shown = drawn + self.layers()
        if not self.listener.attributes:
            yield hint("This bundle has learned no attribute that is a choice among labels."), shown
        cards: list[str] = []
        for name, shares in self.listener.probabilities(file):
            cards.append(card(name, shares=shares))
            yield side_by_side(cards), shown

    def layers(self) -> str:
        """The learned weights of layers as a picture, and a line on slots that have none."""
        weights = self.listener.layers()
        mixed = {slot: mine for slot, mine in weights.items() if len(mine) > 1}
        drawn = picture("Learned weights of the encoder's layers", pictures.layer_weights(mixed)) if mixed else ""
        words = fragments.layers_in_words(weights, self.listener.model.module.encoder.depth)
        return drawn + (hint(words) if words else "")

    def compare(self, file: str | None, task: str | None, own: str | None) -> Iterator[tuple[str, ...]]:
        """Answers of both bundles."""
        cards: list[str] = []
        for one in filter(None, (self.listener, self.against)):
            asked = Asked(task, own)
            learned = asked.wanted[0] is None or task in one.tasks
            about = one.parts if learned else f"{one.parts}; it has not learned {task}"
            told: Told = one.tell(file, asked)
            cards.append(card(one.name, about, told.answer, told.shares))
            yield (side_by_side(cards),)

    def told(self, handler: Handler, outputs: int) -> Handler:
        """A handler that puts what is wrong in words into the last of its outputs, and leaves the others empty."""

        @wraps(handler)
        def safe(file: str | None, *rest: Any) -> Iterator[tuple[str, ...]]:
            shown = ("",) * outputs
            yield (*shown, "")
            try:
                for shown in handler(file, *rest):
                    yield (*shown, "")
            except (SottovoceError, RuntimeError) as error:
                yield (*shown, note(told_plainly(error, file)))

        return safe


def build(listener: Listener, examples: Sequence[Example] = (), against: Listener | None = None) -> gr.Blocks:
    """The page of a bundle; with `against`, a tab on which two bundles answer."""
    page = Page(listener, against)
    blocks = gr.Blocks(title=f"{TITLE}: {listener.name}", analytics_enabled=False)
    with blocks:
        _html(fragments.head(TITLE, f"{listener.name}: {listener.parts}"))
        with gr.Row():
            with gr.Column(scale=2, min_width=340):
                asked = _left(listener, examples)
            with gr.Column(scale=3, min_width=420):
                told = _html(elem_id="note")
                shown, buttons = _tabs(page, asked, told)
        forget = f"() => Array({len(shown) + 1}).fill('')"  # an old answer beside a new clip would mislead
        for part in asked:
            part.change(None, None, [*shown, told], js=forget, api_visibility="private", show_progress="hidden")
        # a recording is uploaded after it has been shown: asked before that, the page would know of no clip
        usable = f"clip => Array({len(buttons)}).fill({{__type__: 'update', interactive: Boolean(clip)}})"
        asked[0].change(None, asked[0], buttons, js=usable, api_visibility="private", show_progress="hidden")
    blocks.queue(api_open=False)
    return blocks


def _left(listener: Listener, examples: Sequence[Example]) -> tuple[gr.Audio, gr.Dropdown, gr.Textbox]:
    """Clip, task and question."""
    most = listener.model.recipe.data.max_seconds
    clip = gr.Audio(
        sources=["microphone", "upload"], type="filepath", label=f"Clip, at most {most:g} s", elem_id="clip",
        buttons=[], editable=False,
    )  # fmt: skip
    if examples:
        gr.Examples(
            [[str(example.file)] for example in examples], [clip], example_labels=[e.name for e in examples],
            label="Or one of these", elem_id="examples", api_visibility="private",
        )  # fmt: skip
    task = gr.Dropdown(list(listener.tasks), value=listener.tasks[0], label="Task", elem_id="task")
    own = gr.Textbox(label="Or a question of your own", placeholder=NO_QUESTION, lines=2, elem_id="own")
    return clip, task, own


def _tabs(
    page: Page, asked: tuple[gr.Audio, gr.Dropdown, gr.Textbox], told: gr.HTML
) -> tuple[list[Any], list[gr.Button]]:
    """The tabs; returns what they show, and the buttons that need a clip."""
    inputs, names = list(asked), list(page.listener.slots)
    with gr.Tab("Ask", id="ask"):
        with gr.Row():
            button = _ask("Ask", "do-ask")
            stop = gr.Button("Stop", elem_id="stop")
        answer = gr.Textbox(label="Answer", lines=5, interactive=False, elem_id="answer", buttons=["copy"])
        wording = gr.Textbox(label="Asked in these words", lines=2, interactive=False, elem_id="wording")
        buttons = [button]
        running = button.click(
            page.told(page.ask, 2), inputs, [answer, wording, told], show_progress="minimal", **_WORK
        )
        stop.click(None, cancels=[running], api_visibility="private")
    with gr.Tab("Slots", id="slots"):
        if len(names) > 1:
            _html(hint("A spoken turn is a row of slots. What does the LLM lose without one of them?"))
            off = gr.CheckboxGroup(names, value=names, label="Switch off, one at a time", elem_id="off")
        else:
            _html(hint(f"This bundle has one slot, {names[0]}: without it nothing would be heard."))
            off = gr.CheckboxGroup([], visible=False)
        button = _ask("Answer with and without", "do-slots")
        sides = _html(elem_id="sides", min_height=60)
        buttons.append(button)
        button.click(page.told(page.slots, 1), [*inputs, off], [sides, told], show_progress="minimal", **_WORK)
    with gr.Tab("Attributes", id="attributes"):
        button = _ask("How does it sound?", "do-attributes")
        shares, drawn = _html(elem_id="shares", min_height=60), _html(elem_id="drawn")
        buttons.append(button)
        handler = page.told(page.attributes, 2)
        button.click(handler, inputs, [shares, drawn, told], show_progress="minimal", **_WORK)
    shown: list[Any] = [answer, wording, sides, shares, drawn]
    if page.against is not None:
        with gr.Tab("Compare", id="compare"):
            button = _ask("Ask both", "do-compare")
            both = _html(elem_id="both", min_height=60)
            buttons.append(button)
            button.click(page.told(page.compare, 1), inputs, [both, told], show_progress="minimal", **_WORK)
        shown.append(both)
    return shown, buttons


def _ask(label: str, elem_id: str) -> gr.Button:
    """A button that can be pressed once there is a clip."""
    return gr.Button(label, variant="primary", elem_id=elem_id, interactive=False)


def _html(value: str = "", elem_id: str | None = None, min_height: int | None = None) -> gr.HTML:
    """A piece of HTML without padding."""
    return gr.HTML(value, elem_id=elem_id, elem_classes="sv-plain", padding=False, min_height=min_height)
