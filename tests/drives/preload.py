"""What every command imports, once: the processes of commands are forked from one that has done so."""

import lightning  # noqa: F401
import peft  # noqa: F401
import sklearn  # noqa: F401
import transformers  # noqa: F401
import whisper  # noqa: F401

import sottovoce.comparison.table
import sottovoce.lightning_modules.fit
import sottovoce.scoring.evaluate  # noqa: F401
