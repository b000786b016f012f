"""The recipe of a self-supervised pre-training: one YAML file, checked whole before any clip is read."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from omegaconf import MISSING

from sottovoce.config.schema import checked
from sottovoce.config.trainer import reserved_arguments
from sottovoce.config_tree import Tree, read_tree
from sottovoce.encoders import ENCODERS
from sottovoce.encoders.conformer import ConformerEncoder
from sottovoce.errors import ConfigError


@dataclass
class SourceConfig:
    """Recorded speech, by a manifest or by a folder. Nobody has to have written down what was said."""

    manifest: str | None = None  # JSONL; of each line, `audio` is read, and `id` and `seconds` where they are given
    folder: str | None = None  # every audio file in it and below
    root: str | None = None  # folder that a manifest's paths are relative to and stay in; null: the manifest's own
    allow: list[str] = field(default_factory=list)  # further folders that its paths and links may lead to; [/]: any


@dataclass
class DataConfig:
    """Where clips come from and how they are read."""

    train: list[SourceConfig] = field(default_factory=list)
    validation: list[SourceConfig] = field(default_factory=list)
    crop_seconds: float = 60.0  # longer clips are cut at a random place each time: 6,000 mel frames
    policy: Literal["error", "skip"] = "error"  # of faulty lines and clips: stop, or leave out, count and name
    decode: bool = True  # every clip to its end before the first step; false: headers alone
    num_workers: int = 0  # processes that read audio


@dataclass
class MaskingConfig:
    """What is hidden; see `encoders.best_rq.Masking`."""

    span: int = 32  # mel frames of 10 ms
    probability: float = 0.025  # that a mel frame begins a span
    noise: float = 0.1  # standard deviation of what stands in its place


@dataclass
class QuantizerConfig:
    """What names frames; see `encoders.best_rq.RandomQuantizer`."""

    codebooks: int = 16
    codes: int = 8192
    code_dim: int = 16
    seed: int = 0  # its own, so that runs of several seeds predict the same codes


@dataclass
class PretrainRecipe:
    """Everything a pre-training needs. `name` is the folder under `runs/` that it leaves behind."""

    name: str = MISSING
    seed: int = 0
    encoder: dict[str, Any] = MISSING  # a `conformer`, with random weights or those of a checkpoint
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    steps: int = MISSING
    batch_size: int = MISSING  # clips a step and process
    lr: float = MISSING
    warmup_steps: int = 0
    lr_schedule: Literal["linear", "cosine", "constant"] = "linear"
    weight_decay: float = 0.0  # 0 makes AdamW plain Adam
    betas: list[float] = field(default_factory=lambda: [0.9, 0.98])
    grad_clip: float = 1.0  # gradient norm
    validate_every: int = 1000  # steps
    checkpoint_every: int = 1000  # steps between checkpoints that a killed run resumes from
    trainer: dict[str, Any] = field(default_factory=dict)  # keyword arguments of lightning.Trainer
    output_dir: str = "runs"

    @property
    def folder(self) -> Path:
        return Path(self.output_dir) / self.name

    def plain(self) -> Tree:
        """The whole recipe as nested dicts, to print, to save, and to put into checkpoints."""
        return asdict(self)


def load(path: str | Path, overrides: Iterable[str] = ()) -> PretrainRecipe:
    """Read a recipe with all that it extends and apply `key.sub=value` overrides.

    Raises:
        ConfigError: with every fault of the recipe, each with file, key, what was found and what is accepted.
    """
    return parse(read_tree(Path(path), overrides), str(path))


def parse(tree: Tree, source: str = "recipe") -> PretrainRecipe:
    """Check a tree and fill in every default; see `load`."""
    recipe = checked(PretrainRecipe, tree, source)
    if faults := [*_ranges(recipe), *_sources(recipe.data), *_encoder(recipe), *reserved_arguments(recipe.trainer)]:
        raise ConfigError("\n".join(f"{source}: {fault}" for fault in faults))
    return recipe


def _ranges(recipe: PretrainRecipe) -> Iterator[str]:
    counts = {name: getattr(recipe, name) for name in ("steps", "batch_size", "validate_every", "checkpoint_every")}
    counts |= {f"quantizer.{name}": getattr(recipe.quantizer, name) for name in ("codebooks", "codes", "code_dim")}
    counts["masking.span"] = recipe.masking.span
    yield from (f"{key}: must be at least 1, found {value}" for key, value in counts.items() if value < 1)
    above = {"lr": recipe.lr, "data.crop_seconds": recipe.data.crop_seconds, "grad_clip": recipe.grad_clip}
    yield from (f"{key}: must be positive, found {value:g}" for key, value in above.items() if value <= 0)
    least = {"masking.noise": recipe.masking.noise, "warmup_steps": recipe.warmup_steps}
    least |= {"weight_decay": recipe.weight_decay, "data.num_workers": recipe.data.num_workers}
    yield from (f"{key}: must not be negative, found {value:g}" for key, value in least.items() if value < 0)
    if not 0 < recipe.masking.probability <= 1:
        yield f"masking.probability: must be above 0 and at most 1, found {recipe.masking.probability:g}"
    if len(recipe.betas) != 2 or not all(0 <= beta < 1 for beta in recipe.betas):
        yield f"betas: two numbers from 0 to below 1 are needed, found {recipe.betas}"


def _sources(data: DataConfig) -> Iterator[str]:
    for side in ("train", "validation"):
        if not getattr(data, side):
            yield f"data.{side}: name at least one source, such as [{{folder: recordings/{side}}}]"
        for i, node in enumerate(getattr(data, side)):
            where = f"data.{side}[{i}]"
            if (node.manifest is None) == (node.folder is None):
                yield f"{where}: give either manifest or folder"
            if node.folder is not None and node.root is not None:
                yield f"{where}.root: belongs to a manifest; a folder's files are where they are"


def _encoder(recipe: PretrainRecipe) -> Iterator[str]:
    """Fill in the encoder's defaults, or say what is wrong with it."""
    try:
        recipe.encoder = ENCODERS.check(recipe.encoder, "encoder")
    except ConfigError as error:
        yield str(error)
        return
    if not issubclass(ENCODERS.get(recipe.encoder["type"]), ConformerEncoder):
        yield f"encoder: BEST-RQ hides log-mels of a `conformer`; a {recipe.encoder['type']!r} comes pre-trained"
