"""Sottovoce: an ear for how things are said, for LLMs that stay frozen."""

from typing import Any

__version__ = "0.1.0"

_PUBLIC = {  # name -> its module, which is imported when the name is used: `import sottovoce` takes no time
    "Adapter": "sottovoce.adapters",
    "Answer": "sottovoce.serving.model",
    "AudioError": "sottovoce.errors",
    "BundleError": "sottovoce.errors",
    "ConfigError": "sottovoce.errors",
    "Conversation": "sottovoce.serving.chat",
    "Encoder": "sottovoce.encoders",
    "Frames": "sottovoce.frames",
    "Model": "sottovoce.serving.model",
    "SottovoceError": "sottovoce.errors",
    "UntrainedTaskWarning": "sottovoce.serving.questions",
    "load": "sottovoce.serving.model",
}
__all__ = ["__version__", *_PUBLIC]  # pyright: ignore[reportUnsupportedDunderAll]  # types: __init__.pyi


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'sottovoce' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
