"""The choice of the kernel that computes attention."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from gptjax.core.errors import UserError
from gptjax.model.config import GPTConfig
from gptjax.model.flash_attention import SPLASH_BLOCKS, why_not_packed
from gptjax.sharding.devices import GPU_PLATFORMS, target_device

Kernel = Literal["cudnn", "cudnn_packed", "cudnn_bias", "splash", "xla"]


@dataclass(frozen=True)
class KernelLimits:
    """What a kernel of flash attention takes. All need 16-bit operands and have no dropout of probabilities."""

    platforms: tuple[str, ...]
    device: str
    """The devices in words."""
    documents: tuple[bool, ...]
    """Whether it masks documents; several values: either."""
    head_multiple: int
    max_head_dim: int = 128
    max_head_dim_hopper: int = 256
    min_capability: float = 0.0
    """NVIDIA's compute capability: 8 is Ampere, 9 is Hopper."""
    length_multiple: int = 1
    max_length: int | None = None
    dtypes: tuple[str, ...] = ("bfloat16", "float16")
    sinks: bool = False
    """Whether there may be sinks, where no layer has a window."""
    why_not_installed: Callable[[], str | None] = lambda: None


_cudnn = partial(KernelLimits, GPU_PLATFORMS, "an NVIDIA GPU", head_multiple=8)

KERNELS: dict[Kernel, KernelLimits] = {
    "cudnn": _cudnn(documents=(False,), min_capability=8.0, sinks=True),
    "cudnn_packed": _cudnn(documents=(True,), min_capability=9.0, why_not_installed=why_not_packed),
    "cudnn_bias": _cudnn(documents=(True,), min_capability=8.0, length_multiple=2, max_length=2048),
    "splash": KernelLimits(
        ("tpu",),
        "a TPU",
        documents=(False, True),
        head_multiple=8,
        max_head_dim=256,
        length_multiple=min(SPLASH_BLOCKS),
        dtypes=("bfloat16",),
    ),
}
"""The kernels that are faster than XLA's formula, the best first. The array of `cudnn_bias` grows with T²."""


def select_kernel(config: GPTConfig, *, length: int | None = None, device: Any = None) -> Kernel:
    """The kernel that runs on a device (by default `target_device()`) for rows of `length` tokens (the context).

    Raises `UserError` if `attention_impl` names a kernel that cannot run.
    """
    wanted = config.compute.attention_impl
    reasons: dict[Kernel, str | None] = {}
    for kernel in KERNELS:
        if wanted in ("auto", kernel.partition("_")[0]):
            reasons[kernel] = why_not(kernel, config, length=length, device=device)
            if reasons[kernel] is None:
                return kernel
    if wanted not in ("auto", "xla"):
        raise UserError(
            f"model.compute.attention_impl={wanted} cannot run: {join_reasons(reasons, config)}. "
            "Use --model.compute.attention-impl=auto."
        )
    return "xla"


def why_not_flash(config: GPTConfig, *, device: Any = None) -> str | None:
    """The reasons why no kernel of the device's platform can run; None if one can."""
    device = target_device() if device is None else device
    own: list[Kernel] = [kernel for kernel, limits in KERNELS.items() if device.platform in limits.platforms]
    if not own:
        devices = " nor ".join(dict.fromkeys(limits.device for limits in KERNELS.values()))
        return f"the device is a {device.platform}, neither {devices}"
    reasons: dict[Kernel, str | None] = {kernel: why_not(kernel, config, device=device) for kernel in own}
    return None if None in reasons.values() else join_reasons(reasons, config)


def join_reasons(reasons: dict[Kernel, str | None], config: GPTConfig) -> str:
    """The reasons in one line, without those of kernels that are not for the config's documents."""
    kept = {
        kernel: reason
        for kernel, reason in reasons.items()
        if config.intra_document_mask in KERNELS[kernel].documents and reason
    }
    return "; ".join(kept.values() if len(set(kept.values())) == 1 else (f"{k}: {why}" for k, why in kept.items()))


def why_not(kernel: Kernel, config: GPTConfig, *, length: int | None = None, device: Any = None) -> str | None:
    """The reason why a kernel cannot compute a config's attention on a device; None if it can."""
    limits, device = KERNELS[kernel], target_device() if device is None else device
    length = config.context_length if length is None else length
    if device.platform not in limits.platforms:
        return f"the device is a {device.platform}, not {limits.device}"
    capability = _compute_capability(device)
    if limits.min_capability and capability is not None and capability < limits.min_capability:
        found = f"has compute capability {capability:g}" if capability else "is not NVIDIA's"
        return f"the GPU {found} and the kernel needs compute capability {limits.min_capability:g}"
    if limits.min_capability > 8.0 and capability is None:
        return f"the GPU's compute capability is not known and the kernel needs {limits.min_capability:g}"
    # cuDNN has a deterministic gradient for Blackwell from 9.18 on, and none is promised for a bias.
    is_uncertain = kernel == "cudnn_bias" or (capability or 0.0) >= 10.0
    if config.compute.deterministic and limits.platforms == GPU_PLATFORMS and is_uncertain:
        return "model.compute.deterministic is on and the kernel's gradient may vary on this GPU"
    if config.compute.dtype not in limits.dtypes:
        return f"model.compute.dtype is {config.compute.dtype} and the kernel computes in {' or '.join(limits.dtypes)}"
    if config.dropout > 0:
        return f"model.dropout is {config.dropout} and the kernel has no dropout of probabilities"
    if config.intra_document_mask not in limits.documents:
        return f"model.intra_document_mask is {config.intra_document_mask}"
    return _why_not_shape(limits, config, length, capability) or limits.why_not_installed()


def _why_not_shape(limits: KernelLimits, config: GPTConfig, length: int, capability: float | None) -> str | None:
    """The reason in the sizes of a model."""
    if config.num_sinks and (not limits.sinks or any(config.window(layer) for layer in range(config.num_layers))):
        return "model.num_sinks would be outside the kernel's windows" if limits.sinks else "model.num_sinks is not 0"
    if length % limits.length_multiple or (limits.max_length or length) < length:
        most = f" up to {limits.max_length}" if limits.max_length else ""
        return f"rows have {length} tokens and the kernel takes multiples of {limits.length_multiple}{most}"
    is_hopper = capability is not None and 9.0 <= capability < 10.0
    width, most = config.head_dim * (2 if config.num_sinks else 1), limits.max_head_dim
    most = limits.max_head_dim_hopper if is_hopper else most
    if width % limits.head_multiple or width > most:
        note = " with the channels of sinks" if config.num_sinks else ""
        return (
            f"heads have {width} channels{note} and the kernel takes multiples of {limits.head_multiple} up to {most}"
        )
    return None


def _compute_capability(device: Any) -> float | None:
    """The compute capability of a GPU, 0 if it is not NVIDIA's; None if it is not known."""
    try:
        return float(device.compute_capability)
    except AttributeError:
        return None
    except ValueError:  # AMD's are named, such as gfx90a
        return 0.0
