"""Datasets of Hugging Face `datasets`: of the hub, saved on disk, or as Parquet files."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sottovoce.data.corpora.report import Report
from sottovoce.data.sources.rows import Choice, Row, side
from sottovoce.errors import ConfigError, MissingError, first_line, nearest


def read_datasets(source: Path, choice: Choice, report: Report) -> Iterator[Row]:
    """Rows of a dataset; classes are their names, and audio is not decoded.

    Raises:
        MissingError: `datasets` is not installed, or there is no such dataset here or on the hub.
        ConfigError: there is no such split.
    """
    for name, split in _splits(source, choice).items():
        from datasets import Audio, ClassLabel

        split = split.with_format(None)  # a saved one may make tensors of its rows
        classes = {}
        for column, feature in (split.features or {}).items():
            if isinstance(feature, Audio):
                split = split.cast_column(column, Audio(decode=False))
            elif isinstance(feature, ClassLabel):
                classes[column] = feature
        for number, row in enumerate(split):
            values = {c: classes[c].int2str(v) if c in classes and _counts(v) else v for c, v in row.items()}
            yield Row(f"{name}[{number}]", values, side(name))


def _counts(value: Any) -> bool:
    return isinstance(value, int) and value >= 0  # -1: no class is known


def _splits(source: Path, choice: Choice) -> dict[str, Any]:
    """Each split that is wanted, by its name in the dataset."""
    try:
        import datasets
    except ImportError:
        told = "`datasets` is needed: pip install 'sottovoce[datasets]'"
        raise MissingError(f"{source}: {told}", code="unavailable", where="datasets") from None
    try:
        if source.is_file():
            found = datasets.DatasetDict({"train": datasets.Dataset.from_parquet(str(source))})
        elif (source / "dataset_dict.json").is_file() or (source / "state.json").is_file():
            found = datasets.load_from_disk(str(source))
        else:
            wanted = choice.split and _of_dataset(datasets, source, choice)
            found = datasets.load_dataset(str(source), choice.subset, split=wanted or None)
    except ConfigError:
        raise
    except Exception as error:  # of many libraries: the hub, Arrow, fsspec, and its own
        told = "not readable as a dataset"
        if not source.exists():
            told = "there is no such folder here, and no dataset of this name could be had of the hub"
        raise MissingError(f"{source}: {told}: {first_line(error)}", code="not-found", where=str(source)) from None
    if not isinstance(found, dict):
        return {choice.split or str(getattr(found, "split", None) or "train"): found}
    if choice.split:
        name = _named(choice.split, list(found))
        return {name: found[name]}
    return dict(found)


def _of_dataset(datasets: Any, source: Path, choice: Choice) -> str:
    return _named(str(choice.split), datasets.get_dataset_split_names(str(source), choice.subset))


def _named(wanted: str, names: list[str]) -> str:
    """The dataset's own name of a split: `validation` may be its `dev`."""
    for name in names:
        if wanted in (name, side(name)):
            return name
    raise ConfigError.at("split", "unknown-name", f"there is no split {wanted!r}.{nearest(wanted, names)}")
