"""Options that several commands share, and the errors for wrong ones."""

import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeVar

from data_pipelines.runtime.split_specs import DEFAULT_SPLIT, enlarge_split, find_used_split
from gptjax.cli.command_line import parse_options
from gptjax.cli.flags import drop_flags
from gptjax.core.errors import UserError, count_of, exit_on_user_error
from gptjax.core.files import expand_path, read_text
from gptjax.data.fitting_flags import FittingFlags
from gptjax.data.manifest import Counts, Manifest
from gptjax.tokenization.tokenizer_json import find_tokenizer_directory

T = TypeVar("T")
LEAST_CONTEXT = 32
"""Training on shorter rows shows nothing."""


@dataclass(frozen=True, kw_only=True)
class ShardOptions:
    """Options of every command that writes a directory of shards."""

    train_flags: ClassVar[FittingFlags]
    """Configs for such shards, as a command shows them."""
    least_tokens: ClassVar[int] = 0
    """Tokens that the config for them reads at a time: a row, and the token after it. 0 where rows are padded."""
    again: ClassVar[str] = " --overwrite"
    """What the request needs beside other flags, to replace what it has made."""
    source: str
    """A .jsonl, .json, .csv, .tsv (also .gz, .zst), .parquet or .arrow file, a directory of them, a quoted pattern,
    `hf:OWNER/NAME` or `tfds:NAME`."""
    output: Path
    """Directory to create."""
    split: str | None = None
    """Validation split: `hash:F` (by a hash, equal examples on one side; by default hash:0.005), or `none`."""
    validation_source: str | None = None
    """Instead of a split: all of this source is for validation, and all of SOURCE for training."""
    shard_tokens: int = 100_000_000
    """Tokens per file."""
    max_document_tokens: int | None = None
    """Cut off longer documents, and skip them if nothing scored remains; a row holds model.context_length of them."""
    strict: bool = False
    """Stop at the first record that is invalid or not Unicode. By default invalid records are skipped, bytes and
    surrogates are replaced, and all of it is counted and reported."""
    overwrite: bool = False
    """Replace what an earlier, different request left in OUTPUT."""

    def __post_init__(self) -> None:
        require_at_least(1, shard_tokens=self.shard_tokens)
        require_at_least(2, max_document_tokens=self.max_document_tokens)
        if self.split is not None and self.validation_source is not None:
            raise UserError("--split and --validation-source are both given: choose one.")

    @property
    def effective_split(self) -> str:
        """The split of SOURCE: as given, else the default, or `none` with a validation source."""
        return self.split or (DEFAULT_SPLIT if self.validation_source is None else "none")

    def suggest_splits(self, used: str) -> str:
        """What to use where the split in use gives one side nothing."""
        return f"--split={enlarge_split(used) or 'tail:0.1'} or --split=none"

    def spell_flags(self, text: str) -> str:
        """A message with its flags as the command of the request names them."""
        return text

    def choose_flags(self, tokens: int) -> str:
        """The flags of a training command that suit so many tokens."""
        return self.train_flags.choose(tokens)

    def describe_start(self) -> str:
        """What a message adds about the model with which training may or must begin."""
        return ""

    def limit_context(self, length: int) -> int:
        """The context length for rows of so many tokens: the model that is trained on may have fewer positions."""
        return length

    def suggest_flag(self, manifest: Manifest) -> str | None:
        """The flag with which the same source is usually meant, where what was made of it tells so."""
        return None

    @property
    def split_names(self) -> tuple[str, ...]:
        """The splits that get text."""
        return ("train",) if self.validation_source is None and self.effective_split == "none" else ("train", "val")

    def check_splits(self, counts: Mapping[str, Counts], *, what: str, notes: str) -> None:
        """Raise `UserError` for a source without `what` (text, say), and for a split that gets none of it."""
        total = sum(count.documents for count in counts.values())
        for name, count in counts.items():
            if count.tokens == 0 and total > 0 and self.validation_source is None:
                tokens, used = sum(count.tokens for count in counts.values()), self.effective_split
                advice = f"Use {self.suggest_splits(find_used_split(used, notes))}."
                if tokens < self.least_tokens:
                    advice = f"The source has only {count_of(tokens, 'tokens')}: use more text."
                raise UserError(
                    f"--split={used} leaves no {what} for {name} (of {count_of(total, 'documents')}). "
                    f"{advice} {notes}".strip()
                )
            if count.tokens == 0:
                source = self.validation_source if total and name == "val" else self.source
                raise UserError(f"source {source}: holds no {what}. {notes}".strip())


def find_model(tokenizer: str | None) -> Path | None:
    """The directory of the model whose tokenizer is named: a run, or saved weights; None if it has none."""
    directory = find_tokenizer_directory(tokenizer) if tokenizer else None
    if not tokenizer or directory is None or not expand_path(tokenizer).exists():  # one that is learned has no files
        return None
    is_saved = (directory / "config.json").is_file() and any(directory.glob("*.safetensors"))
    return directory if is_saved or (directory / "checkpoints").is_dir() else None


def read_positions(model: Path) -> int | None:
    """The context length of a run or of a saved model, by its config.json; None if that does not say one."""
    try:
        content = json.loads(read_text(model / "config.json"))
        found = [content.get(name) for name in ("n_positions", "max_position_embeddings")]
        found.append(content.get("model", {}).get("context_length"))
    except (OSError, ValueError, AttributeError):
        return None
    return next((positions for positions in found if isinstance(positions, int)), None)


def count_weight_bytes(model: Path) -> int:
    """Bytes of the weights of a saved model, or of a run's newest checkpoint."""
    steps = [folder for folder in model.glob("checkpoints/*/model") if folder.parent.name.isdecimal()]
    newest = max(steps, key=lambda folder: int(folder.parent.name), default=None)
    files = model.glob("*.safetensors") if newest is None else newest.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def require_at_least(minimum: int, **options: int | None) -> None:
    """Raise `UserError` for the first option below `minimum`; None is an option that is not given."""
    for name, value in options.items():
        if value is not None and value < minimum:
            raise UserError(f"--{name.replace('_', '-')}={value}: wanted at least {minimum}.")


def run_command(function: Callable[[T], object], options_type: type[T]) -> None:
    """Call the function of a command with the options that are typed. Its docstring begins the help."""
    module = Path(sys.argv[0]).stem
    introduction = sys.modules[function.__module__].__doc__ or ""
    with exit_on_user_error():
        prog = f"python -m data_pipelines.{module}"
        options = parse_options(options_type, sys.argv[1:], prog=prog, introduction=introduction)
        result = function(options)
        if isinstance(options, ShardOptions) and isinstance(result, Manifest):
            if (better := options.suggest_flag(result)) is not None:
                print(f"next: {write_again(module, sys.argv[1:], better)}")
                print("or, with the data as they are:")
            print(suggest_next(options, result.splits))


def write_again(module: str, words: Sequence[str], flag: str) -> str:
    """The command of these words once more, with another value of a flag; it replaces what it has made."""
    name = flag.removeprefix("--").partition("=")[0]
    kept = drop_flags(words, name, "overwrite", "no-overwrite")
    return f"{shlex.join(['python', '-m', f'data_pipelines.{module}', *kept])} {flag} --overwrite"


def suggest_next(options: ShardOptions, splits: Mapping[str, Counts]) -> str:
    """The command that trains on the shards, or what they lack for it."""
    flags = options.choose_flags(sum(count.tokens for count in splits.values()))
    if "val" not in splits and not flags.startswith("--config=own_"):  # those of that name take what there is
        flags += " --no-require-validation"
    if (tokens := splits["train"].tokens) < options.least_tokens:
        context = 2 ** (max(tokens - 1, 1).bit_length() - 1)
        if context < LEAST_CONTEXT:
            return f"next: prepare more text. Training needs {LEAST_CONTEXT + 1} tokens, and there are {tokens}."
        flags += f" --model.context-length={options.limit_context(context)}"
    places = f"--data.path={shlex.quote(str(options.output))} {_name_run(options.output, flags)}"
    return f"next: python -m gptjax.train {flags} {places}{options.describe_start()}"


def _name_run(output: Path, flags: str) -> str:
    """The flag that names a run after its data: one config may train on several. It is not the run it begins with."""
    name = output.resolve().name
    starts = [Path(word.partition("=")[2]).name for word in shlex.split(flags) if word.startswith("--init-from=")]
    return f"--name={shlex.quote(f'{name}-tuned' if name in starts else name)}"
