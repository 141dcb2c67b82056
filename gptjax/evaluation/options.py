"""The options of `python -m gptjax.evaluate`."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import tyro

from gptjax.cli.command_line import Imports
from gptjax.core.errors import UserError
from gptjax.core.files import check_output_file, expand_path
from gptjax.evaluation.protocols import Documents, EvalProtocol, FirstToken, Words, find_protocol
from gptjax.model.stored_matrix import Quantize
from gptjax.runs.checkpoint_source import locate_checkpoint
from gptjax.sharding.devices import DType
from gptjax.sharding.mesh import MeshConfig

PICTURE_SUFFIXES = (".png", ".svg", ".pdf")


@dataclass(frozen=True)
class Evaluate:
    """How well checkpoints predict text: the validation split of their own data, other shards, or a text file."""

    checkpoint: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A run, a checkpoint of it (RUN@500), the directory of a model that transformers saved, or hf:OWNER/REPO. May be
    given several times."""
    baseline: str | None = None
    """One more checkpoint, or one of those: the others are compared with it, document by document."""
    step: str = "latest"
    """Checkpoint of a run: a number, `latest` or `best`."""
    ema: bool = True
    """Take the run's average of the weights, if it keeps one. --no-ema takes the raw weights."""
    data: str | None = None
    """Directory of shards made with the run's tokenizer, or with one that has fewer special tokens."""
    split: Literal["val", "train"] = "val"
    """Split of the shards."""
    text: str | None = None
    """A text file (UTF-8), taken as one document; JSON Lines with a text in each; or a directory, a table and so on."""
    text_field: str | None = None
    """Key or column of --text that holds the text of a record. Default: text."""
    separator: str | None = None
    """Cut a text file into documents here, such as `<|endoftext|>` or `\\n\\n`. By default it is one document."""
    protocol: str = "gptjax"
    """How the text is scored: gptjax, nanogpt, modded-nanogpt, hf-stride-512, harness or wikitext2-rows."""
    window: int | None = None
    """Tokens that a row reads, instead of the protocol's."""
    stride: int | None = None
    """Tokens between the starts of windows, instead of the protocol's."""
    first_token: FirstToken | None = None
    """Whether an end of text goes before each document, so that its first token is predicted, too."""
    documents: Documents | None = None
    """Whether documents run together or each is scored by itself. Default: the protocol's; gptjax and hf-stride-512 run
    texts together and score each conversation by itself."""
    words: Words | None = None
    """What word perplexity counts: words; line-ends, too; or split, as the harness does."""
    tokens: int | None = None
    """Tokens to predict, from the start. Default: the protocol's, or all."""
    offsets: str | None = None
    """File with the starts of windows, a number in each line: nanoGPT's random ones instead of all."""
    tasks: str | None = None
    """Tasks of lm-evaluation-harness, separated by commas: names, groups, or YAML files. Then no text is scored, unless
    --text or --data is given, too."""
    include_path: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Directory with further tasks of the harness."""
    task_data: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Local file of a task, TASK=FILE, or a directory with TASK.jsonl files. May be given several times."""
    limit: int | None = None
    """Items of each task, from the start. Default: all."""
    num_fewshot: int | None = None
    """Examples in each prompt of the tasks. Default: as they say."""
    apply_chat_template: bool = False
    """Ask the tasks as in a chat; examples become turns."""
    responses: str | None = None
    """File (JSON Lines) for every item of the tasks with prompts and answers."""
    core: str | None = None
    """CORE from this local copy of its bundle (eval_bundle)."""
    context_length: int | None = None
    """The model's context, instead of the whole."""
    dtype: DType | None = None
    """Type of products. Default: as trained."""
    batch_size: int = 16
    """Rows per batch. Does not change the result."""
    quantize: Quantize | None = None
    """int8: also measure the loss with the weights that `sample --quantize=int8` reads."""
    mesh: MeshConfig = MeshConfig()
    json: str | None = None
    """Also write the result to this file; - writes it to the standard output, and the table to the error output."""
    picture: str | None = None
    """Also draw the figures as bars with their intervals into this file (.png, .svg or .pdf)."""
    imports: Imports = ()
    """Module or Python file with classes of the run's own data source. May be given several times."""

    def __post_init__(self) -> None:
        if self.data is not None and self.text is not None:
            raise UserError("--data and --text are both given: choose one.")
        for name in ("tokens", "context_length", "batch_size", "limit"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')} is {value}; it must be at least 1.")
        find_protocol(self.protocol)
        if self.tasks is not None and not self.task_names:
            raise UserError("--tasks names no task. Give names, separated by commas.")
        if self.num_fewshot is not None and self.num_fewshot < 0:
            raise UserError(f"--num-fewshot is {self.num_fewshot}; it must not be negative.")

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """All checkpoints, the baseline first unless it is among them."""
        own: dict[str, str] = {}
        for spec in self.checkpoint:
            own.setdefault(locate_checkpoint(spec), spec)
        specs = tuple(own.values())
        return specs if self.baseline is None or self.compared in specs else (self.baseline, *specs)

    @property
    def compared(self) -> str | None:
        """The baseline as `checkpoints` names it: `runs/a/` is `runs/a`."""
        if self.baseline is None:
            return None
        place = locate_checkpoint(self.baseline)
        return next((spec for spec in self.checkpoint if locate_checkpoint(spec) == place), self.baseline)

    @property
    def task_names(self) -> tuple[str, ...]:
        """What --tasks lists."""
        return tuple(name.strip() for name in (self.tasks or "").split(",") if name.strip())

    @property
    def scores_text(self) -> bool:
        """Whether a text is scored: one that is named, or the run's own data if nothing else is asked for."""
        return self.text is not None or self.data is not None or (self.tasks is None and self.core is None)

    def check_outputs(self) -> None:
        """Raise `UserError` for a file that could not be written, before anything is scored."""
        for name in ("json", "picture", "responses"):
            if (path := getattr(self, name)) is not None and (name, path) != ("json", "-"):
                check_output_file(name, path)
        if self.picture is not None and not self.picture.lower().endswith(PICTURE_SUFFIXES):
            raise UserError(f"--picture={self.picture}: wanted a name that ends in {', '.join(PICTURE_SUFFIXES)}.")

    def resolve_protocol(self) -> EvalProtocol:
        """The preset with the options that were given."""
        names = ("window", "stride", "first_token", "documents", "words", "tokens")
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        if self.offsets is not None:
            given["offsets"] = tuple(read_offsets(expand_path(self.offsets)))
        return replace(find_protocol(self.protocol), **given)


def read_offsets(path: Path) -> list[int]:
    """The whole numbers of a file, one in each line."""
    try:
        return [int(line) for line in path.read_text(encoding="utf-8").split()]
    except OSError as error:
        raise UserError(f"--offsets={path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise UserError(f"--offsets={path}: wanted a whole number in each line; {error}.") from None
