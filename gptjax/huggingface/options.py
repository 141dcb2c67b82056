"""Options of `python -m gptjax.convert` for Hugging Face's, PEFT's and llama.cpp's formats."""

from dataclasses import dataclass

import tyro

from gptjax.core.command_line import Imports
from gptjax.huggingface.forms import FormName
from gptjax.huggingface.weight_map import DTypeName


@dataclass(frozen=True)
class ToHf:
    """Write a run's weights, config and tokenizer as a directory that transformers loads."""

    checkpoint: str
    """A run, the directory of a model that transformers saved, or hf:OWNER/REPO."""
    output: str
    """Directory to make. It must be empty or not exist."""
    step: str = "latest"
    """Checkpoint: a number, `latest` or `best`."""
    ema: bool = True
    """Use the run's average of the weights, if it has one. --no-ema uses the raw weights."""
    form: FormName = "auto"
    """Class of models to write. `auto` takes the first that can express the model."""
    dtype: DTypeName | None = None
    """Type of the tensors. Default: the type that the model was imported in, else float32."""
    verify: bool = True
    """Compare logits with transformers (needs torch and transformers) before the directory appears."""
    evaluation: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Result of `evaluate --json` for the model card. May be given several times."""
    push_to: str | None = None
    """Also upload the directory to this model repository on the hub, OWNER/REPO. It is made if it does not exist."""
    private: bool = False
    """Make a new repository private."""
    imports: Imports = ()
    """Module or Python file with classes that the run's config uses. May be given several times."""


@dataclass(frozen=True)
class ToPeft:
    """Write a run's adapters as a directory that PEFT loads beside their base: a GPT-2, Llama or Qwen3."""

    checkpoint: str
    """A run directory, trained with `lora.rank`."""
    output: str
    """Directory to make. It must be empty or not exist."""
    base: str | None = None
    """Name or directory of the model that the adapters belong to, for PEFT to find it."""
    step: str = "latest"
    """Checkpoint: a number, `latest` or `best`."""
    ema: bool = True
    """Use the run's average of the weights, if it has one. --no-ema uses the raw weights."""
    imports: Imports = ()
    """Module or Python file with classes that the run's config uses. May be given several times."""


@dataclass(frozen=True)
class FromHf:
    """Make a run directory, with weights at step 0, from a model in Hugging Face's format."""

    model: str
    """Directory that transformers saved, or the name of a model on the hub: `gpt2`, or `hf:gpt2` where a directory of
    that name is here."""
    output: str
    """Run directory to make. It must be empty or not exist."""


@dataclass(frozen=True)
class FromPeft:
    """Make a run directory, with weights at step 0, from a model and a LoRA adapter that PEFT saved, merged."""

    adapter: str
    """Directory with adapter_config.json and adapter_model.safetensors."""
    output: str
    """Run directory to make. It must be empty or not exist."""
    base: str | None = None
    """The model that it belongs to: a run, a saved model or hf:OWNER/REPO. Default: the name that the adapter gives."""


@dataclass(frozen=True)
class ToGGUF:
    """Write weights and tokenizer as one file for llama.cpp. It holds the shapes of GPT-2 and Llama."""

    checkpoint: str
    """A run, the directory of a model that transformers saved, or hf:OWNER/REPO."""
    output: str
    """File to make, such as model.gguf."""
    step: str = "latest"
    """Checkpoint: a number, `latest` or `best`."""
    ema: bool = True
    """Use the run's average of the weights, if it has one. --no-ema uses the raw weights."""
    dtype: DTypeName = "float32"
    """Type of the matrices: float16 halves the file and rounds. Vectors are float32."""
    imports: Imports = ()
    """Module or Python file with classes that the run's config uses. May be given several times."""
