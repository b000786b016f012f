"""The recipe of a self-supervised pre-training: one YAML file, checked whole before any clip is read."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from sottovoce.config.logging_config import LoggingConfig
from sottovoce.config.trainer_arguments import TrainerArguments
from sottovoce.config_model import (
    BaseRecipe,
    Betas,
    Count,
    Float,
    Int,
    Node,
    NonNegative,
    Seed,
    config_class,
    fault,
    locate_paths,
)
from sottovoce.encoders import ENCODERS
from sottovoce.errors import ConfigError


@config_class
class SourceConfig:
    """Recorded speech, by a manifest or by a folder. It needs no transcripts."""

    manifest: str | None = Field(default=None, description="JSONL with `audio`, and perhaps `id` and `seconds`")
    folder: str | None = Field(default=None, description="every audio file in it and below")
    root: str | None = Field(default=None, description="folder of the manifest's paths; null: its own")
    allow: list[str] = Field(default=[], description="further folders that its paths and links may lead to; [/]: any")


Sources = Annotated[list[SourceConfig], Field(min_length=1)]


@config_class
class DataConfig:
    """Where clips come from and how they are read."""

    train: Sources
    validation: Sources
    crop_seconds: Float = Field(default=60.0, gt=0, description="longer clips are cut at a random place each time")
    policy: Literal["error", "skip"] = Field(default="error", description="of faulty clips: stop, or leave out")
    decode: bool = Field(default=True, description="every clip to its end before the first step; false: headers alone")
    num_workers: Int = Field(default=0, ge=0, le=1024, description="processes that read audio")


@config_class
class MaskingConfig:
    """What is hidden; see `encoders.best_rq.Masking`."""

    span: Count = Field(default=32, description="mel frames of 10 ms")
    probability: Float = Field(default=0.025, gt=0, le=1, description="that a mel frame begins a span")
    noise: NonNegative = Field(default=0.1, description="standard deviation of what stands in its place")


@config_class
class QuantizerConfig:
    """The random quantizer whose codes are predicted; see `encoders.best_rq.RandomQuantizer`."""

    codebooks: Count = 16
    codes: Count = 8192
    code_dim: Count = 16
    seed: Int = Field(default=0, description="its own, so that runs of several seeds predict the same codes")


def _conformer(encoder: Node) -> Node:
    from sottovoce.encoders.conformer import ConformerEncoder

    if not issubclass(ENCODERS.get(encoder["type"]), ConformerEncoder):
        told = f"BEST-RQ hides log-mels of a `conformer`; a {encoder['type']!r} comes pre-trained"
        raise fault("conflict", "type", told)
    return encoder


@config_class
class PretrainRecipe(BaseRecipe):
    """Everything a pre-training needs. `name` is the folder under `output_dir` that it leaves behind."""

    name: str
    seed: Seed = 0
    encoder: Annotated[Node, ENCODERS, AfterValidator(_conformer)] = Field(description="a `conformer`")
    masking: MaskingConfig = Field(default_factory=MaskingConfig)
    quantizer: QuantizerConfig = Field(default_factory=QuantizerConfig)
    data: DataConfig = Field()
    steps: Count = Field()
    batch_size: Int = Field(ge=1, le=10**6, description="clips a step and process")
    lr: Float = Field(gt=0)
    warmup_steps: Int = Field(default=0, ge=0, le=10**9)
    lr_schedule: Literal["linear", "cosine", "constant"] = "linear"
    weight_decay: NonNegative = Field(default=0.0, description="0 makes AdamW plain Adam")
    betas: Betas = Field(default=[0.9, 0.98])
    grad_clip: Float = Field(default=1.0, gt=0, description="gradient norm")
    validate_every: Count = Field(default=1000, description="steps")
    checkpoint_every: Count = Field(default=1000, description="steps between checkpoints to resume from")
    trainer: TrainerArguments = Field(default={}, description="keyword arguments of lightning.Trainer")
    logging: LoggingConfig = Field(default_factory=LoggingConfig)
    output_dir: str = "runs"

    @property
    def folder(self) -> Path:
        return Path(self.output_dir) / self.name

    def locate(self, folder: Path) -> None:
        """See `BaseRecipe`."""
        for node in (*self.data.train, *self.data.validation):
            locate_paths(node, folder, "manifest", "folder", "root", "allow")

    def conflicts(self) -> Iterator[ConfigError]:
        """See `BaseRecipe`."""
        for side, nodes in (("train", self.data.train), ("validation", self.data.validation)):
            for i, node in enumerate(nodes):
                where = f"data.{side}[{i}]"
                if (node.manifest is None) == (node.folder is None):
                    yield fault("conflict", where, "give either manifest or folder")
                if node.folder is not None and node.root is not None:
                    yield fault("conflict", f"{where}.root", "it belongs to a manifest; a folder's files stay in it")


load, parse = PretrainRecipe.load, PretrainRecipe.parse
