"""Every registered component, its knobs and their defaults; and every metric."""

import inspect
from typing import Annotated, Any, get_origin

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sottovoce.adapters import ADAPTERS
from sottovoce.data.corpora import CORPORA
from sottovoce.data.tasks import TASKS
from sottovoce.data.tts import SYNTHESIZERS
from sottovoce.encoders import ENCODERS
from sottovoce.evaluation import AWARENESS_JUDGES, JUDGES
from sottovoce.evaluation.reports.results import MEANING, METRICS
from sottovoce.llms import ENGINES
from sottovoce.registry import Registry

OURS: tuple[Registry[Any], ...] = ENCODERS, ADAPTERS, TASKS, CORPORA, SYNTHESIZERS, ENGINES, JUDGES, AWARENESS_JUDGES


def print_components() -> None:
    """A table a registry; a plug-in that cannot be imported is shown with its error and does not hide the others."""
    console = Console()
    for registry in OURS:
        title = f"{registry.kind} (plug in by the entry point group {registry.group!r})"
        table = Table("type", "knobs", "what it is", title=title, title_justify="left")
        for name in registry.names():
            try:
                knobs = "\n".join(_knob(knob) for knob in registry.knobs(name).values())
                table.add_row(name, knobs, (inspect.getdoc(registry.get(name)) or "").splitlines()[0])
            except Exception as error:  # a stranger's package may raise anything
                table.add_row(name, "", f"cannot be loaded: {type(error).__name__}: {error}", style="red")
        console.print(table)
    metrics = Table("metric", "in reports", "what it is", title="metric", title_justify="left")
    for name, meaning in MEANING.items():
        metrics.add_row(name, METRICS[name], escape(meaning))
    console.print(metrics)


def _knob(knob: inspect.Parameter) -> str:
    default = " (required)" if knob.default is knob.empty else f" = {knob.default!r}"
    annotation = knob.annotation.__origin__ if get_origin(knob.annotation) is Annotated else knob.annotation
    return f"{knob.name}: {inspect.formatannotation(annotation)}{default}"
