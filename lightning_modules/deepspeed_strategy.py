"""DeepSpeed's ZeRO as Lightning runs it: also on CPU, each part in its own dtype, checkpoints in one ordinary file."""

from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.plugins.precision import DeepSpeedPrecision, Precision
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, Strategy
from torch import Tensor, nn
from torch.optim import Optimizer

_LINEAR = nn.functional.linear  # ZeRO's stage 3 puts its own there for the whole process, which rounds otherwise
MOMENTS = ("exp_avg", "exp_avg_sq")  # what AdamW keeps of a weight, beside the number of steps


class OwnDtypes(DeepSpeedPrecision):
    """Parts keep the dtypes that they were made in: adapters float32, a frozen LLM bfloat16, Whisper float32.

    DeepSpeed's own mixed precision would cast all of them, and Whisper's log-mels with them.
    """

    convert_module, convert_input = Precision.convert_module, Precision.convert_input
    tensor_init_context = Precision.tensor_init_context

    @contextmanager
    def val_step_context(self) -> Generator[None, None, None]:
        """Of a validation outside `fit` as well, where no engine is that would enter autocast."""
        from deepspeed.accelerator import get_accelerator

        mixed = self.precision == "bf16-mixed"
        with torch.autocast(get_accelerator().device_name(), torch.bfloat16, enabled=mixed):
            yield


class ZeRO(DeepSpeedStrategy):
    """Shards optimizer states (stage 1), gradients (2) and weights (3) over the processes.

    A checkpoint is the same file as under any other strategy: the weights that train, whole, and AdamW's moments as
    `torch.optim.AdamW` itself would write them. So a run goes on with other processes and another strategy than before,
    and whoever reads checkpoints needs no DeepSpeed. What trains is small beside what is frozen, so gathering it costs
    little; DeepSpeed's own folders cannot be opened by another number of processes.

    Args:
        precision: `32-true`, or `bf16-mixed`, which is autocast over weights that keep their own dtypes.
        knobs: of Lightning's strategy, such as `stage`.
    """

    lightning_restore_optimizer = True  # type: ignore[assignment]  # read from our own file
    restore_checkpoint_after_setup = False  # type: ignore[assignment]  # weights are taken before they are sharded
    load_checkpoint, save_checkpoint = Strategy.load_checkpoint, Strategy.save_checkpoint
    load_model_state_dict = Strategy.load_model_state_dict

    def __init__(self, precision: Any, **knobs: Any) -> None:
        super().__init__(logging_batch_size_per_gpu=1, precision_plugin=OwnDtypes(precision), **knobs)
        assert isinstance(self.config, dict)
        self.config["bf16"] = {"enabled": False}
        self.config["zero_force_ds_cpu_optimizer"] = False  # its own AdamW would have to be compiled
        if precision == "bf16-mixed":
            self.config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
        self._told_transformers: Any = None

    @property
    def root_device(self) -> torch.device:
        device: torch.device = super().root_device
        return torch.device("cpu", self.local_rank) if device.type == "cpu" else device  # DeepSpeed asks for the index

    def setup_environment(self) -> None:
        if isinstance(self.accelerator, CPUAccelerator):  # which Lightning refuses, and DeepSpeed does not
            DDPStrategy.setup_environment(self)
        else:
            super().setup_environment()

    def setup_distributed(self) -> None:
        if isinstance(self.accelerator, CPUAccelerator):
            _no_compiling()
            self.set_world_ranks()
            self._init_deepspeed_distributed()
        else:
            super().setup_distributed()

    @contextmanager
    def model_sharded_context(self) -> Iterator[None]:
        """Under stage 3, transformers shards what it loads, file by file; other parts are sharded by `setup`.

        Everything built under `deepspeed.zero.Init` would be sharded, too, but initialisation from outside, such as
        that of LoRA's second map to 0, is silently lost there.
        """
        self._init_config_if_needed()
        if self.zero_stage_3:
            from transformers.integrations.deepspeed import HfDeepSpeedConfig

            # it keeps only a weak reference
            self._told_transformers = HfDeepSpeedConfig(self.config)  # type: ignore[no-untyped-call]
        yield

    def _initialize_deepspeed_inference(self, model: nn.Module) -> None:
        """Validation outside `fit`, which is of pre-training, needs no engine: below stage 3 weights are whole."""
        self.model = model.to(self.root_device)

    def teardown(self) -> None:
        self._told_transformers = None  # or what is loaded later would be sharded, too
        engine: Any = self.model
        if hasattr(engine, "destroy"):
            engine.destroy()  # hooks and buffers
        nn.functional.linear = _LINEAR
        super().teardown()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """What some stage trains, whole on every process."""
        import deepspeed

        module: Any = self.lightning_module
        owned = [weight for name, weight in module.named_parameters() if name.startswith(module.trained_prefixes)]
        with deepspeed.zero.GatheredParameters(owned, enabled=self.zero_stage_3):
            whole = {
                name: value for name, value in module.state_dict().items() if name.startswith(module.trained_prefixes)
            }
            return {name: value.detach().cpu().clone() for name, value in whole.items()}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """As `torch.optim.AdamW.state_dict` has it, whatever share of it is here."""
        from deepspeed.utils import safe_get_full_optimizer_state

        inner, weights = _inner(optimizer), self._learning()
        steps = next(iter(inner.state.values()))["step"]
        state = {}
        for i, weight in enumerate(weights):
            moments = {key: safe_get_full_optimizer_state(weight, key).cpu().clone() for key in MOMENTS}
            state[i] = {"step": steps.cpu().clone(), **moments}  # its own count: whoever goes on adds to it in place
        group = {key: value for key, value in inner.param_groups[0].items() if key != "params"}
        return {"state": state, "param_groups": [{**group, "params": list(range(len(weights)))}]}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """After `setup`: each process takes its share."""
        zero: Any = self.optimizers[0]
        inner, saved = _inner(zero), checkpoint["optimizer_states"][0]
        here = ("params", "fused", "foreach")  # how steps are computed is no matter of what is computed
        inner.param_groups[0] |= {key: value for key, value in saved["param_groups"][0].items() if key not in here}
        for flat in _flat(zero):
            moments = {key: torch.zeros_like(flat) for key in MOMENTS}
            inner.state[flat] = {"step": saved["state"][0]["step"].clone(), **moments}
        if not self.zero_stage_3:
            zero._lazy_init_hp_params_optimizer_state()  # ties each weight to its place in these
        for i, weight in enumerate(self._learning()):
            for key in MOMENTS:
                self._give(weight, saved["state"][i][key].to(self.root_device), key)

    def _give(self, weight: nn.Parameter, value: Tensor, key: str) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        if not self.zero_stage_3:
            safe_set_full_optimizer_state(weight, value, key)
            return
        share = weight.ds_tensor.numel()  # type: ignore[attr-defined]  # equal ones, the last padded
        padded = F.pad(value.flatten(), (0, share * self.world_size - value.numel()))
        safe_set_local_optimizer_state(weight, padded[share * self.global_rank :][:share], key)

    def _learning(self) -> list[nn.Parameter]:
        module: Any = self.lightning_module
        weights: list[nn.Parameter] = module.trainable_parameters()
        return weights


def _no_compiling() -> None:
    """DeepSpeed would compile a reduction in shared memory on the spot, and hang on the lock of one that was killed."""
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _inner(optimizer: Any) -> Optimizer:
    """The AdamW inside Lightning's wrapper and ZeRO's."""
    zero = getattr(optimizer, "_optimizer", optimizer)
    inner: Optimizer = zero.optimizer
    return inner


def _flat(zero: Any) -> list[Tensor]:
    """The share of all weights that this process steps, as ZeRO's stage 3, or 1 and 2, call it."""
    found: list[Tensor] = getattr(zero, "fp32_partitioned_groups_flat", None) or zero.single_partition_of_fp32_groups
    return found
