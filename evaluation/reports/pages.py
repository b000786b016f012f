"""HTML pages that open from disk and fetch nothing: Jinja templates, with pictures inside the page."""

import base64
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment

NO_PLOTS = "No plots: matplotlib is not installed (pip install 'sottovoce[plots]')."


def render(template: str, **values: Any) -> str:
    """A page by a template of `evaluation/templates`; what is put into it is escaped."""
    return _environment().get_template(template).render(**values)


def data_uri(picture: bytes) -> str:
    """A PNG or SVG as the address of itself, for `<img src>`."""
    kind = "png" if picture.startswith(b"\x89PNG") else "svg+xml"
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode('ascii')}"


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parents[1] / "templates")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
