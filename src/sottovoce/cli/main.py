"""The program: it runs a command, and says in one message what is the user's to mend."""

import argparse
import errno
import inspect
import logging
import os
import re
import signal
import sys
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from sottovoce import __version__
from sottovoce.cli.commands import COMMANDS, Command
from sottovoce.errors import SottovoceError, printable
from sottovoce.logs import LEVELS, VARIABLE, set_up_logging
from sottovoce.own_parts import allow_code
from sottovoce.signals import EXIT, Terminated, handle_sigterm

OF_OTHERS = {  # options of other trainers -> the key of a recipe
    **dict.fromkeys(("learning_rate", "lr"), "stages.STAGE.lr"),
    **dict.fromkeys(("num_train_epochs", "num_epochs", "epochs", "max_epochs"), "stages.STAGE.epochs"),
    **dict.fromkeys(("per_device_train_batch_size", "train_batch_size", "batch_size"), "stages.STAGE.batch_size"),
    "gradient_accumulation_steps": "stages.STAGE.accumulate_grad_batches",
    "max_grad_norm": "stages.STAGE.grad_clip",
    "warmup_steps": "stages.STAGE.warmup_steps",
    "weight_decay": "stages.STAGE.weight_decay",
    **dict.fromkeys(("model", "model_name_or_path"), "llm.checkpoint"),
    **dict.fromkeys(("dataset", "train_dataset", "train_file"), "data.train"),
    **dict.fromkeys(("val_dataset", "validation_file"), "data.validation"),
    "output_dir": "output_dir",
    "seed": "seed",
    "deepspeed": "trainer.strategy",
    **dict.fromkeys(("bf16", "fp16"), "trainer.precision"),
    "report_to": "logging",
}
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)  # what a disk says that takes no more


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; errors that are the user's to mend are printed as one message and exit with 2."""
    silence_libraries()
    arguments = _arguments(argv)
    if arguments.allow_code:
        allow_code()
    try:
        set_up_logging(arguments.log_level)
        with handle_sigterm():
            arguments.run(arguments)
    except SottovoceError as error:
        print(f"sottovoce: {printable(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nsottovoce: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    except Terminated as stop:
        told = f"stopped by {str(stop) or 'a warning (SIGTERM)'}; the same command goes on where it was"
        print(f"sottovoce: {told}", file=sys.stderr)
        return EXIT
    except BrokenPipeError:  # who reads has seen enough, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would complain at its end
        return 128 + signal.SIGPIPE
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
    if "_ARGCOMPLETE" in os.environ:  # a shell asks what may come next
        import argcomplete

        argcomplete.autocomplete(known)
    arguments, rest = known.parse_known_args(_with_config(sys.argv[1:] if argv is None else argv))
    overrides = [word for word in rest if re.match(r"[\w.\[\]]+=", word)]
    if strays := [word for word in rest if word not in overrides]:
        keys = [word.lstrip("-") for word in strays if re.match(r"--\w+[.\[][\w.\[\]]*=", word)]
        hint = f". Keys of the recipe have no dashes: {' '.join(keys)}" if keys else _of_others(strays)
        known.error(f"unrecognized arguments: {' '.join(strays)}{hint}")
    trust = [f"{arguments.trusted}=true"] if arguments.trusted else []
    arguments.overrides = [*arguments.overrides, *overrides, *trust]
    return arguments


def _with_config(argv: Sequence[str]) -> list[str]:
    """Words of a command line; a recipe that stands by itself, as in `fit age.yaml`, is what --config names."""
    words = list(argv)
    command = next((c for c in COMMANDS if words and c.name == words[0]), None)
    takes = command is not None and command.loader and not any(word.startswith("--config") for word in words)
    bare = [i for i, word in enumerate(words) if takes and re.fullmatch(r"[^-=][^=]*\.ya?ml", word)]
    return [*words[: bare[0]], "--config", *words[bare[0] :]] if len(bare) == 1 else words


def _of_others(strays: Sequence[str]) -> str:
    """How the options that trainers of others have, such as --learning_rate, are called here."""
    named = [word.lstrip("-").partition("=")[0].replace("-", "_") for word in strays if word.startswith("--")]
    known = [f"--{name} is {OF_OTHERS[name]}" for name in named if name in OF_OTHERS]
    return f". {'; '.join(known)} (key=value, no dashes)" if known else ""


def silence_libraries() -> None:
    """Advice of the libraries that a user of a recipe can do nothing about."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if transformers := sys.modules.get("transformers"):  # it has read that when it was imported
        transformers.utils.logging.disable_progress_bar()
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # of kernels that are optional
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # a part that cannot be loaded is an error of our own
    advice = (
        r"does not have many workers|enable_nested_tensor|exists and is not empty|tensorboardX|`isinstance\(treespec|"
        r"number of training batches.*smaller than the logging interval|in eval mode at the start of training|"
        r"You're resuming from a checkpoint that ended before|gradient_checkpointing_enable. is deprecated|"
        r"DynamicBucketingSampler with an eagerly read CutSet"
    )
    warnings.filterwarnings("ignore", message=f".*({advice})")


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; the namespace's `run` calls the command."""
    whole = argparse.ArgumentParser("sottovoce", description="Speech adapters for frozen LLMs.")
    whole.add_argument("--version", action="version", version=f"sottovoce {__version__}")
    told = f"of messages on standard error; {VARIABLE} or info if absent"
    whole.add_argument("--log-level", choices=LEVELS, help=told)
    subparsers = whole.add_subparsers(metavar="command", required=True)
    for command in COMMANDS:
        sub = subparsers.add_parser(command.name, help=command.help, description=command.help)
        sub.add_argument("--log-level", choices=LEVELS, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        sub.set_defaults(run=partial(_run, command), overrides=[], dry_run=False, print_config=False, trusted="")
        for names, options in command.words:
            sub.add_argument(*names, **options)
        told = "run code that a bundle or a run names (files and import paths as `type`)"
        sub.add_argument("--allow-code", action="store_true", help=told)
        if command.loader:
            sub.add_argument("--dry-run", action="store_true", help="check the recipe, and count what it builds")
            sub.add_argument("--print-config", action="store_true", help="print the whole resolved recipe and stop")
        if command.device:
            sub.add_argument("--device", help="cpu, cuda, cuda:1, ...; the first GPU if there is one")
        if key := command.trust:  # only the command line can: a recipe or a bundle may be somebody else's
            told = f"run Python code that comes with the LLM's checkpoint; the same as {key}=true"
            sub.add_argument("--trust-remote-code", dest="trusted", action="store_const", const=key, help=told)
    return whole


def _run(command: Command, arguments: argparse.Namespace) -> None:
    if command.loader:  # before the imports of the command itself: a mistake in a recipe need not wait for those
        recipe = resolve_name(f"sottovoce.{command.loader}")(arguments.config, arguments.overrides)
        if arguments.print_config:
            from omegaconf import OmegaConf

            print(OmegaConf.to_yaml(recipe.plain()), end="")
            return
    module, _, name = command.call.partition(":")
    call = resolve_name(f"sottovoce.{module}:{'dry_run' if arguments.dry_run else name}")
    names = inspect.signature(call).parameters
    with _device(getattr(arguments, "device", None)):
        call(arguments) if "arguments" in names else call(**{name: getattr(arguments, name) for name in names})


def _device(name: str | None) -> AbstractContextManager[None]:
    """What models of the command answer on; PyTorch is imported only where somebody asks for a device."""
    return resolve_name("sottovoce.device:use_device")(name) if name else nullcontext()


def label(manifest: str, out: str, root: str | None, allow: list[str], workers: int) -> None:
    from sottovoce.data.acoustic_labels import label_manifest

    print(label_manifest(Path(manifest), Path(out), **_within(root, allow), workers=workers))


def shards(manifest: str, out: str, size: int, root: str | None, allow: list[str]) -> None:
    from sottovoce.data.tar_shards import write_shards

    print(write_shards(Path(manifest), Path(out), size=size, **_within(root, allow)))


def _within(root: str | None, allow: list[str]) -> dict[str, Any]:
    """Where clips of a manifest may lie."""
    return {"root": Path(root) if root else None, "allow": [Path(folder) for folder in allow]}
