"""The program: it runs a command, and says in one message what is the user's to mend."""

import argparse
import errno
import os
import re
import sys
import warnings
from collections.abc import Sequence

from sottovoce.cli.commands import parser
from sottovoce.errors import SottovoceError, printable
from sottovoce.signals import EXIT, Terminated, handle_sigterm

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)  # what a disk says that takes no more


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; errors that are the user's to mend are printed as one message and exit with 2."""
    silence_libraries()
    arguments = _arguments(argv)
    try:
        with handle_sigterm():
            arguments.run(arguments)
    except SottovoceError as error:
        print(f"sottovoce: {printable(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nsottovoce: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    except Terminated:
        print("sottovoce: stopped by a warning (SIGTERM); the same command goes on where it was", file=sys.stderr)
        return EXIT
    except OSError as error:  # a full disk, a folder that is not ours to write in, a file where a folder should be
        if error.errno is None:
            raise
        told = "written" if error.errno in FULL else "used"
        print(f"sottovoce: {error.filename or 'a file'} cannot be {told}: {error.strerror}", file=sys.stderr)
        return 2
    return 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; `key=value` may stand anywhere, where argparse wants all positional arguments together."""
    known = parser()
    arguments, rest = known.parse_known_args(argv)
    overrides = [word for word in rest if hasattr(arguments, "overrides") and re.match(r"[\w.]+=", word)]
    if strays := [word for word in rest if word not in overrides]:
        known.error(f"unrecognized arguments: {' '.join(strays)}")
    if overrides:
        arguments.overrides = [*arguments.overrides, *overrides]
    if getattr(arguments, "trusted", None):
        arguments.overrides = [*arguments.overrides, f"{arguments.trusted}=true"]
    return arguments


def silence_libraries() -> None:
    """Advice of the libraries that a user of a recipe can do nothing about."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # a part that cannot be loaded is an error of our own
    for message in (
        r".*does not have many workers.*",
        r".*enable_nested_tensor.*",
        r".*exists and is not empty.*",
        r".*tensorboardX.*",
        r".*`isinstance\(treespec.*",
        r".*number of training batches.*smaller than the logging interval.*",
        r".*You're resuming from a checkpoint that ended before.*",
        r".*in eval mode at the start of training.*",
        r".*gradient_checkpointing_enable. is deprecated.*",
        r".*DynamicBucketingSampler with an eagerly read CutSet.*",
    ):
        warnings.filterwarnings("ignore", message=message)
