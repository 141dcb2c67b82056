"""The choice of the kernel that computes attention."""

from typing import Any, Literal

from gptjax.core.errors import UserError
from gptjax.model.config import GPTConfig
from gptjax.sharding.devices import target_device

Kernel = Literal["cudnn", "xla"]
MIN_COMPUTE_CAPABILITY = 8.0
"""The compute capability that the flash kernel needs: NVIDIA's Ampere."""


def select_kernel(config: GPTConfig, *, device: Any = None) -> Kernel:
    """The kernel that runs on a device (by default `target_device()`). Raises `UserError` if cudnn must and cannot."""
    reason = why_not_flash(config, device=device)
    if config.compute.attention_impl == "cudnn" and reason:
        raise UserError(
            f"model.compute.attention_impl=cudnn cannot run: {reason}. Use --model.compute.attention-impl=auto."
        )
    return "cudnn" if config.compute.attention_impl != "xla" and reason is None else "xla"


def why_not_flash(config: GPTConfig, *, device: Any = None) -> str | None:
    """The reason why the flash kernel cannot run on a device; None if it can."""
    device = target_device() if device is None else device
    if device.platform not in ("gpu", "cuda"):
        return f"the device is a {device.platform}, not an NVIDIA GPU"
    if (capability := _compute_capability(device)) is not None and capability < MIN_COMPUTE_CAPABILITY:
        found = f"has compute capability {capability:g}" if capability else "is not NVIDIA's"
        return f"the GPU {found} and the kernel needs compute capability {MIN_COMPUTE_CAPABILITY:g}"
    if config.compute.dtype == "float32":
        return "model.compute.dtype is float32 and the kernel computes in 16 bits"
    if config.dropout > 0:
        return f"model.dropout is {config.dropout} and the kernel has no dropout of probabilities"
    if config.intra_document_mask:
        return "model.intra_document_mask is on and the kernel has no document masks"
    if config.num_sinks and any(config.window(layer) for layer in range(config.num_layers)):
        return "model.num_sinks would be outside the kernel's windows"
    width = config.head_dim * (2 if config.num_sinks else 1)
    if width % 8 or width > 128:
        note = " with the channels of sinks" if config.num_sinks else ""
        return f"heads have {width} channels{note} and the kernel takes multiples of 8 up to 128"
    return None


def _compute_capability(device: Any) -> float | None:
    """The compute capability of a GPU, 0 if it is not NVIDIA's; None if it is not known."""
    try:
        return float(device.compute_capability)
    except AttributeError:
        return None
    except ValueError:  # AMD's are named, such as gfx90a
        return 0.0
