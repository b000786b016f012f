"""`sottovoce push`: a bundle to the hub of Hugging Face, without a path of this machine in it."""

import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from shutil import copyfile
from typing import Any, cast

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError
from omegaconf import OmegaConf

from sottovoce.config.recipe import load
from sottovoce.config_tree import Tree, read_tree
from sottovoce.errors import ConfigError, SottovoceError, brief, first_line
from sottovoce.hub import BUNDLE_FILES, OWN, bundle_of
from sottovoce.lightning_modules.bundle import bundle_weights, check_code, consent, make_readable, renamed
from sottovoce.lightning_modules.card import CARD, HERE, UNKNOWN, base_models, metadata, parted, with_metadata
from sottovoce.own_parts import names_in
from sottovoce.paths import is_local

WEIGHTS, RECIPE, PRINTS, _ = BUNDLE_FILES
_NEEDED = ("encoder", "llm", "slots", "tasks", "auxiliary_head")  # sections that a bundle cannot be loaded without
_PRIVATE = ("logging",)  # whose accounts and servers are nobody else's
_REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
_TEXTS = (".md", ".yaml", ".json", ".py")


def push(
    bundle: str, repository: str, private: bool = False, revision: str | None = None, license: str | None = None,
    language: Sequence[str] = (), overrides: Sequence[str] = (),
) -> None:  # fmt: skip
    """The command: upload a bundle in one commit, to a repository that is made if it is not there.

    Code of an earlier push that this bundle has not is deleted there; other files stay. The token is the hub's own:
    `hf auth login`, or HF_TOKEN.

    Args:
        bundle: folder of a bundle or a run, or a name on the hub.
        repository: `org/name`.
        private: make it one that only its members see; one that is there stays as it is.
        revision: branch, made if it is not there; main if absent.
        license: of the bundle, by the hub's identifiers, such as apache-2.0.
        language: ISO 639 codes of what it was trained on, such as en.
        overrides: of its recipe, where it names parts that lie on this machine: `llm.checkpoint=org/model`.

    Raises:
        BundleError: the bundle is damaged.
        ConfigError: the repository's name cannot be, or the recipe needs a file of this machine.
        SottovoceError: the hub refuses, or cannot be reached.
    """
    if not _REPOSITORY.fullmatch(repository):
        raise ConfigError.at("repository", "bad-value", f"org/name is needed, got {brief(repository, 100)}")
    folder = bundle_of(bundle)
    with tempfile.TemporaryDirectory() as place:
        draft = Path(place)
        name = repository + (f"@{revision}" if revision else "")
        prepare(folder, draft, name, license, language, overrides)
        url = upload(draft, repository, private, revision)
        files = sorted(file.relative_to(draft).as_posix() for file in draft.rglob("*") if file.is_file())
    print(f"pushed   {url}\n         {', '.join(files)}")
    print(f"try      sottovoce chat {name} --audio question.wav{consent(folder)}")


def prepare(
    folder: Path, draft: Path, name: str, license: str | None = None, language: Sequence[str] = (),
    overrides: Sequence[str] = (),
) -> None:  # fmt: skip
    """Copy a bundle's files to `draft` as others may have them, under its name on the hub; errors as in `push`."""
    bundle_weights(folder)  # whole, and as they were written; otherwise a BundleError
    check_code(folder)
    for file in (folder / WEIGHTS, folder / PRINTS, *sorted((folder / OWN).glob("*.py"))):
        target = draft / file.relative_to(folder)
        target.parent.mkdir(exist_ok=True)
        copyfile(file, target)
    tree = published(read_tree(folder / RECIPE, overrides), folder)
    (draft / RECIPE).write_text(OmegaConf.to_yaml(tree), "utf-8")
    named = not any(names_in(tree))  # to read a recipe is to run the code that it names
    fields = card_fields(folder, load(draft / RECIPE, own=False) if named else None, license, language)
    card = folder / CARD
    body = parted(card.read_text("utf-8"))[1] if card.is_file() else f"# {name}\n"
    (draft / CARD).write_text(with_metadata(fields, body.replace(HERE, name)), "utf-8")
    for told in _paths(draft, (str(Path.home()), str(Path.cwd()), str(folder.absolute().parent))):
        raise ConfigError.at(told, "unsafe", "it names a folder of this machine: mend it before it is pushed")
    make_readable(draft)


def published(tree: Tree, folder: Path) -> Tree:
    """A recipe as others may have it: code in the bundle's folder by its place there, and no path of this machine.

    Of data, which a bundle does without, and of output folders the last part of a path stays.

    Raises:
        ConfigError: a part that a bundle cannot be loaded without lies on this machine.
    """
    inside = {name: name.replace(f"{folder.absolute()}/", "./", 1) for name in names_in(tree)}
    tree = cast(Tree, renamed(tree, inside))
    for section in _NEEDED:
        for key, value in _texts(tree.get(section), section):
            if is_local(value) and not value.startswith(f"./{OWN}/"):
                why = f"{brief(value, 200)} is of this machine: say where others find it, such as {key}=org/model"
                raise ConfigError.at(key, "unsafe", why)
    kept = {key: value for key, value in tree.items() if key not in _PRIVATE}
    return {key: value if key in _NEEDED else _shortened(value) for key, value in kept.items()}


def card_fields(folder: Path, recipe: Any, license: str | None, language: Sequence[str]) -> dict[str, Any]:
    """The front matter to push: the card's own, as its owner may have changed it, with what is told here."""
    card = folder / CARD
    fields = parted(card.read_text("utf-8"))[0] if card.is_file() else {}
    if recipe is not None:
        fields = {**metadata(recipe, []), **fields}
        if bases := base_models(recipe):  # an override may have named them
            fields["base_model"] = bases
            fields.setdefault("base_model_relation", "adapter")
    fields["license"] = license or fields.get("license") or UNKNOWN
    if language:
        fields["language"] = list(language)
    return fields


def upload(folder: Path, repository: str, private: bool, revision: str | None) -> str:
    """Upload a folder's files to a repository, whose bundle is then that of the folder; the address of the commit.

    Raises:
        SottovoceError: the hub refuses, or cannot be reached.
    """
    api = HfApi(library_name="sottovoce")
    try:
        api.create_repo(repository, private=private or None, exist_ok=True)
        if revision:
            api.create_branch(repository, branch=revision, exist_ok=True)
        told = api.upload_folder(
            repo_id=repository, folder_path=folder, revision=revision, commit_message="A bundle of Sottovoce",
            delete_patterns=[*BUNDLE_FILES, f"{OWN}/*.py"],
        )  # fmt: skip
    except Exception as error:  # of the hub's client, and of its HTTP client, whose classes depend on the version
        answer = getattr(error, "response", None) if isinstance(error, HfHubHTTPError) else None
        status = getattr(answer, "status_code", None)
        advice = " Sign in (`hf auth login`, or HF_TOKEN) with a token that may write there." * (status in (401, 403))
        why = f"{constants.ENDPOINT} did not take it: {brief(first_line(error), 300)}.{advice}"
        raise SottovoceError.at(repository, "unavailable", why) from None
    return str(told.commit_url)


def _texts(node: Any, where: str) -> Iterator[tuple[str, str]]:
    """Every text of a tree, with its key."""
    if isinstance(node, str):
        yield where, node
    elif isinstance(node, dict):
        for key, value in node.items():
            yield from _texts(value, f"{where}.{key}")
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from _texts(value, f"{where}[{number}]")


def _shortened(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _shortened(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_shortened(value) for value in node]
    return Path(node).name if isinstance(node, str) and Path(node).is_absolute() and is_local(node) else node


def _paths(folder: Path, private: Sequence[str]) -> Iterator[str]:
    """Lines, as `file:line`, that name one of these folders."""
    known = [name for name in private if len(Path(name).parts) > 1]
    pattern = re.compile("|".join(rf"{re.escape(name)}(?![\w.-])" for name in known))
    for file in sorted(file for file in folder.rglob("*") if file.suffix in _TEXTS):
        for number, line in enumerate(file.read_text("utf-8", "replace").splitlines(), 1):
            if pattern.search(line):
                yield f"{file.relative_to(folder)}:{number}"
