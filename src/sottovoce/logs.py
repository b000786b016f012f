"""Set-up of Python's `logging` by the command line: messages of the loggers `sottovoce.*` on standard error."""

import logging
import os
import sys

from sottovoce.errors import ConfigError, nearest, printable

LEVELS = ("debug", "info", "warning", "error", "critical")
VARIABLE = "SOTTOVOCE_LOG"
_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")  # of a process among those that were started together


class ConsoleHandler(logging.Handler):
    """Writes to what `sys.stderr` is at that time: a progress bar puts itself there, to stay below the messages."""

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        try:
            print(self.format(record), file=sys.stderr, flush=True)
        except Exception:  # as all handlers do: a full disk below a log ends no training
            self.handleError(record)

    def format(self, record: logging.LogRecord) -> str:
        """The message; with its level where that is none of everyday, and for debugging its logger."""
        text = printable(super().format(record))
        if record.levelno == logging.INFO:
            return text
        place = f" {record.name}" if record.levelno < logging.INFO else ""
        return f"{record.levelname.lower()}{place}: {text}"


def set_up_logging(level: str | None = None) -> None:
    """Let messages from `level` on be seen; of several processes those of the first, and the others' errors.

    Args:
        level: one of `LEVELS`; None: that of the environment variable `SOTTOVOCE_LOG`, or info.

    Raises:
        ConfigError: there is no such level.
    """
    where, name = ("--log-level", level) if level else (VARIABLE, os.environ.get(VARIABLE) or "info")
    if name.lower() not in LEVELS:
        raise ConfigError.at(where, "unknown-name", f"there is no level {name!r}.{nearest(name.lower(), LEVELS)}")
    logger = logging.getLogger("sottovoce")
    logger.setLevel(name.upper())
    if not any(isinstance(handler, ConsoleHandler) for handler in logger.handlers):
        logger.addHandler(ConsoleHandler())
    for handler in logger.handlers:
        if isinstance(handler, ConsoleHandler):
            handler.setLevel(logging.NOTSET if speaks_for_all() else logging.ERROR)


def speaks_for_all() -> bool:
    """Whether this process was started alone, or as the first of several."""
    return next((os.environ[key] for key in _RANKS if key in os.environ), "0") == "0"
