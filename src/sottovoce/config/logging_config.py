"""Where the curves of a training go, as a recipe says it."""

from typing import Any, TypeAlias

from pydantic import Field

from sottovoce.config_model import Int, config_class

Chosen: TypeAlias = bool | dict[str, Any] | None
TRACKERS = ("tensorboard", "wandb", "mlflow")  # keys of `LoggingConfig`, and the extras that bring their packages


@config_class
class LoggingConfig:
    """Trackers of a training, by Lightning's loggers; the stages' metrics.csv is always written."""

    tensorboard: Chosen = Field(default=False, description="true, or arguments of Lightning's TensorBoardLogger")
    wandb: Chosen = Field(default=False, description="true, or arguments of its WandbLogger, such as {project: x}")
    mlflow: Chosen = Field(default=False, description="true, or arguments of its MLFlowLogger")
    samples: Int = Field(default=4, ge=0, le=1000, description="validation utterances answered for the trackers")

    @property
    def chosen(self) -> dict[str, dict[str, Any]]:
        """Each tracker that is on, with its arguments."""
        nodes = {name: getattr(self, name) for name in TRACKERS}
        return {name: {} if node is True else node for name, node in nodes.items() if node not in (None, False)}
