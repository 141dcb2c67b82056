"""Convert runs to and from Hugging Face's format, llama.cpp's and others': `python -m gptjax.convert --help`."""

import difflib
import re
import sys
from collections.abc import Sequence
from typing import TypeVar

from gptjax.cli.command_line import parse_options, print_versions_if_asked
from gptjax.conversion.exports import ToGGUF, ToHf, ToPeft, export_adapters, export_gguf, export_model
from gptjax.conversion.imports import FromCheckpoint, FromHf, FromPeft, import_adapter, import_checkpoint, import_model
from gptjax.core.errors import UserError, exit_on_user_error, quote

T = TypeVar("T")
PROG = "python -m gptjax.convert"
EXAMPLES = {
    "to-hf": (
        "--checkpoint=runs/quickstart --output=quickstart-hf",
        "--checkpoint=runs/quickstart --step=best --dtype=bfloat16 --output=quickstart-hf --push-to=OWNER/REPO",
    ),
    "to-peft": (
        "--checkpoint=runs/lora --output=adapters",
        "--checkpoint=runs/lora --base=openai-community/gpt2 --output=adapters",
    ),
    "to-gguf": (
        "--checkpoint=runs/quickstart --output=quickstart.gguf",
        "--checkpoint=hf:openai-community/gpt2 --dtype=float16 --output=gpt2.gguf",
    ),
    "from-hf": ("--model=gpt2 --output=runs/gpt2", "--model=quickstart-hf --output=runs/quickstart_again"),
    "from-peft": (
        "--adapter=adapters --output=runs/merged",
        "--adapter=adapters --base=hf:openai-community/gpt2 --output=runs/merged",
    ),
    "from-nanogpt": ("out/ckpt.pt --output=runs/mine", "out/ckpt.pt --tokenizer=gpt2 --output=runs/mine"),
    "from-llmc": ("model.bin --output=runs/mine", "model.bin --tokenizer=gpt2 --output=runs/mine"),
    "from-nanochat": ("base_checkpoints/d12 --output=runs/d12", "d12 --tokenizer=tokenizer.json --output=runs/d12"),
    "from-modded": ("state_step001390.pt --output=runs/mine", "state.pt --num-heads=6 --output=runs/mine"),
    "from-speedrun": ("pytorch_model.pt --output=runs/mine", "nanogpt-162m.pt --tokenizer=gpt2 --output=runs/mine"),
}
"""What one types for each conversion."""
USAGE = f"""usage: {PROG} CONVERSION [--flag=value ...]

to-hf    write a run's weights and tokenizer as a directory that transformers loads
to-peft  write a run's adapters (lora.rank) as a directory that PEFT loads beside their base
to-gguf  write a run's weights and tokenizer as one file for llama.cpp
from-hf  make a run directory from a model in Hugging Face's format, to evaluate, sample or train it
from-peft
         make a run directory from a model and a LoRA adapter of PEFT, merged
from-nanogpt, from-llmc, from-nanochat, from-modded, from-speedrun
         make a run directory from a checkpoint of that program

examples:
  {PROG} to-hf --checkpoint=runs/quickstart --output=quickstart-hf
  {PROG} to-gguf --checkpoint=runs/quickstart --output=quickstart.gguf
  {PROG} from-hf --model=gpt2 --output=runs/gpt2
  {PROG} from-nanogpt out/ckpt.pt --output=runs/mine

{PROG} to-hf --help and so on explain the options."""
PROGRAMS = ("nanogpt", "llmc", "nanochat", "modded", "speedrun")
"""Training programs whose checkpoints can be read."""
WORDS = {
    **dict.fromkeys(
        ("export", "huggingface", "tohuggingface", "transformers", "totransformers", "tosafetensors"), "to-hf"
    ),
    **dict.fromkeys(("import", "fromhuggingface", "fromtransformers", "hf", "fromgpt"), "from-hf"),
    **dict.fromkeys(("gguf", "llamacpp", "tollamacpp"), "to-gguf"),
    **dict.fromkeys(("peft", "lora", "tolora", "adapters", "toadapters"), "to-peft"),
    **dict.fromkeys(("fromlora", "fromadapters", "fromadapter"), "from-peft"),
    **dict.fromkeys(("frommoddednanogpt", "fromspeedrunmodded"), "from-modded"),
    **dict.fromkeys(("frompytorch", "fromtorch", "frompt", "fromlitgpt"), "from-nanogpt"),
    **dict.fromkeys(
        ("topytorch", "totorch", "topt", "tobin", "tolitgpt", "merge", "mergelora", "mergeandunload"), "to-hf"
    ),
    **dict.fromkeys(("fromllama", "fromqwen", "frommistral", "hftogptjax", "fromsafetensors", "download"), "from-hf"),
    **dict.fromkeys(("quantize", "toggml", "toq4", "tollama", "toollama"), "to-gguf"),
}
"""Other words for them, without dashes."""


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    with exit_on_user_error():
        print_versions_if_asked(argv)
        match [argv[0].replace("_", "-"), *argv[1:]] if argv else []:
            case ["to-hf", *options]:
                export_model(_parse(ToHf, "to-hf", options))
            case ["to-peft", *options]:
                export_adapters(_parse(ToPeft, "to-peft", options))
            case ["to-gguf", *options]:
                export_gguf(_parse(ToGGUF, "to-gguf", options))
            case ["from-hf", *options]:
                import_model(_parse(FromHf, "from-hf", _name_first(options, "model")))
            case ["from-peft", *options]:
                import_adapter(_parse(FromPeft, "from-peft", _name_first(options, "adapter")))
            case [word, *options] if word.removeprefix("from-") in PROGRAMS and word.startswith("from-"):
                import_checkpoint(word, _parse(FromCheckpoint, word, _name_first(options, "model")))
            case ["-h" | "--help", *_]:
                print(USAGE)
            case []:
                raise UserError(USAGE)
            case _:
                raise UserError(explain_command(argv[0]))


def _name_first(options: Sequence[str], flag: str) -> list[str]:
    """The words of an import, whose first one may be what is imported, without the flag."""
    is_bare = bool(options) and options[0] != "" and not options[0].startswith("-")
    return [f"--{flag}={options[0]}", *options[1:]] if is_bare else list(options)


def _parse(kind: type[T], name: str, options: Sequence[str]) -> T:
    examples = "\n".join(["examples:", *(f"  {PROG} {name} {line}" for line in EXAMPLES[name])])
    return parse_options(kind, options, prog=f"{PROG} {name}", introduction=examples)


def explain_command(word: str) -> str:
    """The message for a first word that is no command: the one that is meant."""
    option, equals, value = word.lstrip("-").partition("=")
    if equals and f"{option}-{value.lower()}" in EXAMPLES:
        return f"There is no option {quote(word)}. Write {PROG} {option}-{value.lower()} …"
    if word.startswith("-") and word.lstrip("-").replace("_", "-") not in EXAMPLES:
        meant = "from-hf" if word.startswith("--model") else "to-hf"
        return f"{quote(word)} stands first; what is to be done comes before it: {PROG} {meant} {quote(word)} …"
    name = re.sub(r"[^a-z]+", "-", word.lower().replace("llm.c", "llmc"))
    if name not in EXAMPLES:
        names = {command.replace("-", ""): command for command in EXAMPLES} | WORDS
        close = difflib.get_close_matches(name.replace("-", ""), names, n=1, cutoff=0.8)
        name = names[close[0]] if close else ""
    hint = f". Write {PROG} {name} …" if name else f"; wanted: {', '.join(EXAMPLES)}. {PROG} --help explains them."
    return f"There is no conversion {quote(word)}{hint}"


if __name__ == "__main__":
    main()
