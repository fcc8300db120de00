"""Speed switches chosen from the hardware: they change how fast a step is, not what it computes.

Each default was measured (docs/performance.md): bf16 is faster only if the processor computes it
natively; channels-last is faster for convolutions; the backward pass of torch's fused attention is
slow for short sequences on a CPU; by default, glibc returns large memory blocks to the system after
each step. `accelerate launch` sets OMP_NUM_THREADS=1, which would leave all cores but one idle.
"""

import ctypes
import logging
import os
import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import psutil
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, is_initialized
from accelerate.utils import GradientAccumulationPlugin
from timm.layers.config import set_fused_attn
from torch import nn

from fg_ssl_zoo.backbones.backbone import Backbone
from fg_ssl_zoo.config import Speed
from fg_ssl_zoo.data.loader import usable_cores
from fg_ssl_zoo.engine import sharding
from fg_ssl_zoo.ops.distributed import local_processes

CPU_INFO = Path("/proc/cpuinfo")
"""Where Linux lists the features of the processor."""

UNSUPPORTED = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "parallelism_config (tensor or sequence parallel)",
    "ACCELERATE_DYNAMO_BACKEND": "torch.compile",
    "ACCELERATE_SAGEMAKER_DISTRIBUTED_TYPE": "SageMaker's own parallelism",
}
"""Variable that `accelerate launch` sets (from flags, a configuration file) -> what it asks for."""

PRECISIONS = {"no": "fp32", "bf16": "bf16"}
"""Accelerate's name -> ours, for the supported precisions."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Switches:
    """The resolved switches of a run, printed at its start and stored in its results."""

    device: str
    precision: str
    channels_last: bool
    fused_attention: bool
    keep_memory: bool
    threads: int
    device_views: bool = False
    compile: bool = False

    def __str__(self) -> str:
        words = [self.device, self.precision]
        words += [f"{self.threads} threads"] if self.device == "cpu" else []
        words += ["channels-last"] if self.channels_last else []
        words += ["fused attention"] if self.fused_attention else ["unfused attention"]
        words += ["memory kept"] if self.keep_memory else []
        words += ["views finished on the device"] if self.device_views else []
        words += ["compiled"] if self.compile else []
        return ", ".join(words)


def choose(speed: Speed, *, convolutional: bool) -> Switches:
    """Resolve every `auto`.

    Args:
        speed: The recipe's `speed`.
        convolutional: Whether the backbone consists mainly of convolutions.

    Raises:
        ValueError: Too many threads for this machine, or a GPU that is too old for this torch.
    """
    _check_threads(speed.threads)
    device = "cuda" if torch.cuda.is_available() else "mps" if _has_mps() else "cpu"
    device = "cpu" if _asked("ACCELERATE_USE_CPU") else device
    cpu = device == "cpu"
    if device == "cuda":
        _check_gpu()
    return Switches(
        device=device,
        precision=_or(speed.precision, "bf16" if has_native_bf16(device) else "fp32"),
        channels_last=_or(speed.channels_last, convolutional and device != "mps"),
        fused_attention=_or(speed.fused_attention, not cpu),
        keep_memory=_or(speed.keep_memory, cpu and platform.libc_ver()[0] == "glibc"),
        threads=_or(speed.threads, _threads()),
        device_views=_or(speed.device_views, device == "cuda"),
        compile=speed.compile,
    )


def _check_gpu() -> None:
    """Refuse a GPU for which this torch has no kernels; torch itself calls it available."""
    known = [int(arch[3:].rstrip("af")) for arch in torch.cuda.get_arch_list() if arch[:3] == "sm_"]
    major, minor = torch.cuda.get_device_capability()
    if known and 10 * major + minor < min(known):
        raise ValueError(
            f"{torch.cuda.get_device_name()} (sm_{major}{minor}) is too old for torch "
            f"{torch.__version__}, which needs sm_{min(known)} or later; install an older torch, "
            "or set ACCELERATE_USE_CPU=true to use the CPU"
        )


def _check_threads(threads: Any) -> None:
    most = max(16, 4 * usable_cores())
    if threads != "auto" and threads > most:
        raise ValueError(
            f"speed.threads: {threads} is too many for the {usable_cores()} cores of this machine; "
            f"use at most {most}, or auto"
        )


def switch_on(switches: Switches) -> None:
    """Apply the switches of the whole process; call before the backbone is built."""
    set_fused_attn(switches.fused_attention)
    cv2.setNumThreads(0)
    torch.set_num_threads(switches.threads)
    if switches.keep_memory:
        _keep_memory()


def create_accelerator(switches: Switches, *, trains: bool = True) -> Accelerator:
    """An Accelerator with these switches, for any precision of an earlier one in this process.

    Accelerate keeps the precision of the first Accelerator and refuses another, but two runs in a
    notebook or a test may differ. The process group is kept. Gradient accumulation is off: the loop
    divides by `train.accumulate`, and Accelerate would divide again by its environment variable.

    Args:
        switches: The result of `choose`.
        trains: Whether weights are trained, which alone may be sharded.

    Raises:
        ValueError: Launched processes do not communicate, or the launch is not supported.
    """
    check_launch(switches.precision)
    precision = "bf16" if switches.precision == "bf16" else "no"
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    shards = _asked("ACCELERATE_USE_FSDP")
    plugin = sharding.plugin(launched, switches.device) if shards else None
    if plugin is not None and not trains:
        raise ValueError(
            "ACCELERATE_USE_FSDP=true: only trainings are sharded; launch this without FSDP"
        )
    if plugin is not None and switches.compile:
        raise ValueError("speed.compile: not supported with FSDP; set it to false")
    if is_initialized() and (plugin or AcceleratorState().mixed_precision != precision):
        AcceleratorState._reset_state()
    accelerator = Accelerator(
        cpu=switches.device == "cpu",
        mixed_precision=precision,
        step_scheduler_with_optimizer=False,
        fsdp_plugin=plugin,
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
    )
    if accelerator.device.type != switches.device:
        raise ValueError(
            f"accelerate chose the device {accelerator.device}, the run {switches.device}; unset "
            "ACCELERATE_TORCH_DEVICE, or set ACCELERATE_USE_CPU=true for a CPU"
        )
    if accelerator.num_processes != launched:
        raise ValueError(
            f"{launched} processes were launched but do not communicate; see docs/launching.md"
        )
    sharding.switch_on(accelerator, plugin)
    return accelerator


def check_launch(precision: str) -> None:
    """Refuse unsupported launch settings of the environment; warn of those without effect.

    Args:
        precision: Precision of the run, `bf16` or `fp32`.

    Raises:
        ValueError: Names the variable, its meaning, and what to use instead.
    """
    for variable, name in UNSUPPORTED.items():
        if _asked(variable):
            raise ValueError(
                f"{variable}={os.environ[variable]}: {name} is not supported; launch without it, "
                "as one process, data parallel, or with FSDP2 (docs/launching.md)"
            )
    wanted = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if wanted not in PRECISIONS:
        raise ValueError(
            f"ACCELERATE_MIXED_PRECISION={wanted}: not supported; launch with --mixed_precision no "
            "and choose speed.precision=bf16 or fp32"
        )
    if wanted != "no" and PRECISIONS[wanted] != precision:
        _without_effect("ACCELERATE_MIXED_PRECISION", f"this run has speed.precision={precision}")
    if os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1") != "1":
        _without_effect("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "train.accumulate splits a batch")
    if _asked("ACCELERATE_USE_FSDP") and os.environ.get("FSDP_STATE_DICT_TYPE") not in (
        None,
        "FULL_STATE_DICT",
    ):
        _without_effect("FSDP_STATE_DICT_TYPE", "checkpoints are gathered into one file")


def _without_effect(variable: str, instead: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        _log.warning("%s=%s has no effect: %s", variable, os.environ[variable], instead)


def _asked(variable: str) -> bool:
    """Whether an environment variable is set to a value other than no."""
    return os.environ.get(variable, "no").lower() not in ("", "no", "false", "0", "n", "f", "off")


def evaluation_accelerator(speed: Speed | None = None) -> Accelerator:
    """An Accelerator for features, with automatic switches, which are applied."""
    switches = choose(speed or Speed(), convolutional=True)
    switch_on(switches)
    return create_accelerator(switches, trains=False)


@contextmanager
def compiled(method: nn.Module, wanted: bool) -> Iterator[None]:
    """Compile the network of every backbone of a method, teachers too, until the block ends.

    Shapes are fixed: a batch of other images compiles again. Keys of weights stay.

    Args:
        method: Its backbones call the compiled network in their `forward`.
        wanted: Nothing is done otherwise.
    """
    networks = [part.model for part in method.modules() if isinstance(part, Backbone) and wanted]
    for network in networks:
        network.compile(dynamic=False)
    try:
        yield
    finally:
        for network in networks:
            network._compiled_call_impl = None


def uncompiled(wanted: bool) -> AbstractContextManager[Any]:
    """For measurements: images of other numbers and sizes, for which nothing is compiled."""
    return torch.compiler.set_stance("force_eager") if wanted else nullcontext()


def is_convolutional(model: nn.Module) -> bool:
    """Whether a network has convolutions other than a patch embedding."""
    return sum(isinstance(part, nn.Conv2d) for part in model.modules()) > 4


def has_native_bf16(device: str) -> bool:
    """Whether bf16 products run in hardware: an emulated step is three times *slower* than fp32."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device == "cpu" and bool({"avx512_bf16", "amx_bf16", "bf16"} & _cpu_flags())


def _cpu_flags() -> set[str]:
    """Feature flags of the first processor; empty if the kernel does not list them."""
    try:
        text = CPU_INFO.read_text()
    except OSError:
        return set()
    lines = (line for line in text.splitlines() if line.lower().startswith(("flags", "features")))
    return set(next(lines, "").partition(":")[2].split())


def _threads() -> int:
    """All physical cores, shared among the processes of this machine, or the user's setting.

    `accelerate launch` sets OMP_NUM_THREADS=1, which hides the user's setting and limits torch to
    one core.
    """
    if "ACCELERATE_MIXED_PRECISION" not in os.environ:  # not started by `accelerate launch`
        return torch.get_num_threads()
    physical = psutil.cpu_count(logical=False) or usable_cores()
    return max(1, min(physical, usable_cores()) // local_processes())


def _has_mps() -> bool:
    return torch.backends.mps.is_available()


def _keep_memory() -> None:
    """Let the C library (glibc) keep blocks up to 1 GiB, and trim above 2 GiB.

    Activations then cause no page faults in each step.
    """
    m_trim_threshold, m_mmap_threshold = -1, -3  # malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if not (
        mallopt and mallopt(m_mmap_threshold, 1 << 30) and mallopt(m_trim_threshold, 2**31 - 1)
    ):
        _log.warning("speed.keep_memory: this C library has no such setting; no effect")


def _or(wish: Any, default: Any) -> Any:
    return default if wish == "auto" else wish
