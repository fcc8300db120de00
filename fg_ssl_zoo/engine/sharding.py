"""FSDP2: weights, gradients and moments split over the processes, by Accelerate's configuration.

Methods, measurements and checkpoints work on whole weights. So `fit` trains a sharded copy of the
method, whose weights are gathered into the method before each measurement and each checkpoint;
between these the whole weights are in the memory of the host. A checkpoint is that of any other
run: it can be continued by another number of processes, sharded or not.

Weights are sharded in float32, and autocast chooses the precision of each operation as in a data
parallel run, so both compute the same.
"""

import copy
import os
from collections import Counter
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor, nn

from fg_ssl_zoo.config import nearest, printable
from fg_ssl_zoo.method import Method, MethodOutput

REFUSED = {
    "FSDP_OFFLOAD_PARAMS": ("fsdp_offload_params", ("true",)),
    "FSDP_ACTIVATION_CHECKPOINTING": ("fsdp_activation_checkpointing", ("true",)),
    "FSDP_AUTO_WRAP_POLICY": ("fsdp_auto_wrap_policy", ("size_based_wrap",)),
}
"""Variable that `accelerate launch` sets -> key of its configuration, values that are refused."""

_BY_CLASS = "TRANSFORMER_BASED_WRAP"

WRAP = "set fsdp_auto_wrap_policy to NO_WRAP, or to TRANSFORMER_BASED_WRAP with the blocks' class"


def plugin(processes: int, device: str) -> FullyShardedDataParallelPlugin:
    """What a launch with FSDP asks for.

    Args:
        processes: Number of launched processes.
        device: Kind of device that the run uses.

    Raises:
        ValueError: An FSDP setting that is not supported; names the variable and what to use.
    """
    if processes < 2:
        raise ValueError(
            "ACCELERATE_USE_FSDP=true: one process has nothing to shard; launch two or more, or "
            "launch without FSDP (docs/launching.md)"
        )
    if device == "cpu" and torch.accelerator.is_available():
        raise ValueError(
            "ACCELERATE_USE_FSDP=true: FSDP on the CPU of a machine with a GPU is not supported; "
            "hide the GPU with CUDA_VISIBLE_DEVICES="
        )
    _check_options()
    from torch.distributed.fsdp import MixedPrecisionPolicy  # 0.3 s that most runs do not need

    return FullyShardedDataParallelPlugin(
        mixed_precision_policy=MixedPrecisionPolicy(),  # pyright: ignore[reportArgumentType]
        cpu_ram_efficient_loading=False,  # for transformers; buffers of norms would be lost
    )


def _check_options() -> None:
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise ValueError(f"FSDP_VERSION={version}: not supported; set fsdp_version to 2")
    for variable, (key, values) in REFUSED.items():
        value = os.environ.get(variable, "")
        if value.lower() in values:
            raise ValueError(
                f"{variable}={value}: {key} with this value is not supported; "
                f"{WRAP if 'WRAP' in variable else f'set {key} to false'}"
            )
    if ignored := os.environ.get("FSDP_IGNORED_MODULES"):
        raise ValueError(f"FSDP_IGNORED_MODULES={ignored}: not supported; shard all modules")
    by_class = os.environ.get("FSDP_AUTO_WRAP_POLICY", "").upper() == _BY_CLASS
    if by_class and not os.environ.get("FSDP_TRANSFORMER_CLS_TO_WRAP"):
        raise ValueError(
            "FSDP_AUTO_WRAP_POLICY=TRANSFORMER_BASED_WRAP: without a class nothing is wrapped; set "
            "fsdp_transformer_layer_cls_to_wrap to Block (ViT), Bottleneck or BasicBlock (ResNet)"
        )


def switch_on(accelerator: Accelerator, wanted: FullyShardedDataParallelPlugin | None) -> None:
    """Make Accelerate shard on a CPU too, where it would train whole copies without a message."""
    if wanted is not None:
        accelerator.state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = wanted


def trained_copy(method: Method, accelerator: Accelerator) -> Method:
    """What is trained: a copy that can be sharded; the method itself where nothing is sharded."""
    return copy.deepcopy(method) if accelerator.is_fsdp2 else method


def prepare(
    trained: Method, optimizer: torch.optim.Optimizer, accelerator: Accelerator
) -> tuple[nn.Module, Any]:
    """`accelerator.prepare`, and the assurance that a launch with FSDP does shard.

    Args:
        trained: The result of `trained_copy`; it is sharded in place.
        optimizer: Optimizer of its parameters.
        accelerator: Accelerator with the FSDP settings.

    Raises:
        ValueError: A weight that stayed whole, or a class to wrap that the method does not contain.
    """
    if not accelerator.is_fsdp2:
        return accelerator.prepare(trained, optimizer)
    check_block_classes(trained)
    _let_outputs_be_seen()
    wrapped, prepared = accelerator.prepare(trained, optimizer)
    for name, parameter in trained.named_parameters():
        if not _is_sharded(parameter):
            raise ValueError(f"FSDP left {name} whole on every process; launch without FSDP")
    return wrapped, prepared


def check_block_classes(method: nn.Module) -> None:
    """Refuse a class whose blocks a launch wants to gather one by one, if there are none.

    Raises:
        ValueError: No module of this class, with the nearest name of one that occurs repeatedly.
    """
    if os.environ.get("FSDP_AUTO_WRAP_POLICY", "").upper() != _BY_CLASS:
        return
    classes = Counter(type(module).__name__ for module in method.modules())
    leaves = {type(module).__name__ for module in method.modules() if not any(module.children())}
    for name in os.environ.get("FSDP_TRANSFORMER_CLS_TO_WRAP", "").split(","):
        if name not in classes:
            blocks = sorted(k for k, count in classes.items() if count > 1 and k not in leaves)
            raise ValueError(
                f"fsdp_transformer_layer_cls_to_wrap: the network has no module of the class "
                f"'{printable(name)}'{nearest(name, blocks)}"
            )


def _let_outputs_be_seen() -> None:
    """FSDP looks for the loss in what `forward` returns; a dataclass has to be made known."""
    from torch.export import register_dataclass
    from torch.utils._pytree import SUPPORTED_NODES

    if MethodOutput not in SUPPORTED_NODES:
        register_dataclass(MethodOutput)


@torch.no_grad()
def gather(trained: Method, method: Method) -> None:
    """Copy the whole weights into the method, on the device; all processes call this together."""
    if trained is method:
        return
    method.to(next(trained.parameters()).device)
    for mine, theirs in (
        (method.parameters(), trained.parameters()),
        (method.buffers(), trained.buffers()),
    ):
        for own, other in zip(mine, theirs, strict=True):
            own.copy_(_whole(other))


def rest(method: Method, trained: Method) -> None:
    """Move whole weights that no step needs into the memory of the host."""
    if trained is not method:
        method.to("cpu")


class WholeState:
    """An optimizer whose state dict holds whole moments, as one of an unsharded run does.

    Args:
        optimizer: Its parameters may be sharded. All processes call its methods together.
    """

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer

    def state_dict(self) -> dict[str, Any]:
        state = self.optimizer.state_dict()
        moments = {
            number: {key: _on_host(value) for key, value in kept.items()}
            for number, kept in state["state"].items()
        }
        return {**state, "state": moments}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        moments = {
            number: {key: _shard(value, parameters[number]) for key, value in kept.items()}
            for number, kept in state["state"].items()
        }
        self.optimizer.load_state_dict({**state, "state": moments})


def own_part(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, or this process's shards of them."""
    return {
        key: cast(Any, value).to_local() if _is_sharded(value) else value
        for key, value in state.items()
    }


def stepping(accelerator: Accelerator) -> AbstractContextManager[Any]:
    """Around an optimizer's step: LARS compares norms of shards with constants of its own."""
    if not accelerator.is_fsdp2:
        return nullcontext()
    from torch.distributed.tensor.experimental import implicit_replication

    return implicit_replication()


def sync_only_last(
    accelerator: Accelerator, wrapped: nn.Module, last: bool
) -> AbstractContextManager[Any]:
    """Gradients are averaged over processes once a step."""
    return nullcontext() if last else accelerator.no_sync(wrapped)


def _is_sharded(value: Any) -> bool:
    return hasattr(value, "full_tensor")


def _whole(value: Tensor) -> Tensor:
    return cast(Any, value).full_tensor() if _is_sharded(value) else value


def _on_host(value: Any) -> Any:
    """A whole moment in the memory of the host, so that those of all weights fit together."""
    return _whole(value).cpu() if _is_sharded(value) else value


def _shard(value: Any, parameter: Tensor) -> Any:
    """A whole moment, split as its parameter is; numbers of steps stay as they are."""
    if not (_is_sharded(parameter) and isinstance(value, Tensor) and value.ndim):
        return value
    from torch.distributed.tensor import distribute_tensor

    whole = value.to(parameter.device)
    like = cast(Any, parameter)
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)
