"""The model card (README.md) of an export, written from the run: architecture, data, recipe, losses, how to load."""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path, PurePath
from typing import Any

from gptjax.core.errors import UserError, count_of, quote
from gptjax.core.files import expand_path
from gptjax.huggingface.architectures.architecture import Architecture
from gptjax.huggingface.safetensors_dir import read_json
from gptjax.metrics.metrics_file import read_metrics
from gptjax.model.config import GPTConfig
from gptjax.model.gpt import count_parameters
from gptjax.sharding.devices import DType

CARD_FILE, PICTURE = "README.md", "loss.png"
MAX_ROWS = 12
"""Evaluations during training that the card lists; the others are in the picture."""
LOSS_COLUMNS = ("step", "tokens", "val_loss", "val_bpb", "val_reward_accuracy", "val_reward_margin")
WITHOUT_EFFECT = {"chunk_tokens", "prefetch", "store_reference"}
"""Fields that change no result, and so are no part of a recipe."""
TEXT_FIGURES = ("nats_per_token", "token_perplexity", "word_perplexity", "bits_per_byte")
CONTINUING = (
    'ids = model.generate(**tokenizer("The", return_tensors="pt"), max_new_tokens=50)',
    "print(tokenizer.decode(ids[0]))",
)
ASKING = (
    'messages = [{"role": "user", "content": "Who are you?"}]',
    "inputs = tokenizer.apply_chat_template(",
    '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True',
    ")",
    "ids = model.generate(**inputs, max_new_tokens=50)",
    'print(tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
)
Facts = Mapping[str, Any]


@dataclass(frozen=True)
class CardFacts:
    """What a card says besides the architecture. A model that was not trained here has only a name."""

    name: str
    run: Facts = field(default_factory=dict)
    """The run's config.json."""
    data: tuple[tuple[str, str], ...] = ()
    """Sources and counts of the data."""
    evaluations: tuple[Facts, ...] = ()
    """Results of `evaluate --json`."""
    validation: tuple[Facts, ...] = ()
    """Records of metrics.jsonl with a validation loss."""
    versions: Facts = field(default_factory=dict)
    picture: Path | None = None
    """The losses, drawn."""
    losses_elsewhere: tuple[str, ...] = ()
    """What the export leaves out, or other programs do."""
    answers_chats: bool = False
    """Whether the tokenizer has a chat template."""

    def with_run(self, directory: Path, content: Facts, *, step: int) -> "CardFacts":
        """These facts and those of a run directory up to a step."""
        metrics, environment, picture = (directory / name for name in ("metrics.jsonl", "environment.json", PICTURE))
        if not metrics.is_file():  # an imported model
            return self
        validation = [
            record for record in read_metrics(metrics) if record.get("val_loss") is not None and record["step"] <= step
        ]
        return replace(
            self,
            run=content,
            validation=tuple(validation),
            versions=read_json(environment).get("packages", {}) if environment.is_file() else {},
            picture=picture if picture.is_file() else None,
        )


def read_evaluations(paths: Iterable[str], *, checkpoint: str) -> tuple[Facts, ...]:
    """The results in files that `evaluate --json` wrote; of a file with several, those of this checkpoint.

    Raises:
        UserError: another file, or none of several results is of the checkpoint.
    """
    out: list[Facts] = []
    for path in paths:
        if not (file := expand_path(path)).is_file():
            raise UserError(f"--evaluation={path} is no file. Give one that evaluate --json wrote.")
        content = read_json(file)
        results = content.get("checkpoints", [content])
        if not isinstance(results, list) or not all(
            isinstance(result, dict) and "figures" in result for result in results
        ):
            raise UserError(f"--evaluation={path} holds no figures. Give a file that evaluate --json wrote.")
        own = [result for result in results if len(results) == 1 or _is_same(result.get("checkpoint"), checkpoint)]
        if not own:
            names = ", ".join(quote(str(result.get("checkpoint"))) for result in results)
            raise UserError(f"--evaluation={path} is of {names}, and none is {checkpoint}. Evaluate that one, too.")
        out += own
    return tuple(out)


def list_doubts(evaluations: Iterable[Facts], *, checkpoint: str, step: int | None) -> Iterator[str]:
    """Results that are of another checkpoint or step, by what they say; one sentence each."""
    for result in evaluations:
        name, other = result.get("checkpoint"), result.get("step")
        if not _is_same(name, checkpoint) or (None not in (step, other) and other != step):
            found, exported = _locate(name, other), _locate(checkpoint, step)
            yield f"The card has results of {found}, and the export is of {exported}."


def _locate(name: Any, step: Any) -> str:
    """A checkpoint and, if it is known, its step."""
    return quote(str(name)) + ("" if step is None else f" at step {quote(str(step))}")


def _is_same(name: Any, checkpoint: str) -> bool:
    return isinstance(name, str) and (
        name == checkpoint or expand_path(name).absolute() == expand_path(checkpoint).absolute()
    )


def write_model_card(
    directory: Path, config: GPTConfig, *, architecture: Architecture, dtype: DType, facts: CardFacts
) -> None:
    """Write README.md and, if the run has drawn its losses, the picture."""
    card = make_model_card(config, architecture=architecture, dtype=dtype, facts=facts)
    (directory / CARD_FILE).write_text(card, encoding="utf-8")
    if facts.picture is not None:
        shutil.copyfile(facts.picture, directory / PICTURE)


def make_model_card(config: GPTConfig, *, architecture: Architecture, dtype: DType, facts: CardFacts) -> str:
    """The card in Markdown."""
    tags = ["gptjax", "text-generation", *(["custom_code"] if architecture.code else [])]
    head = ["---", "library_name: transformers", "pipeline_tag: text-generation", f"tags: [{', '.join(tags)}]", "---"]
    run, rows = facts.run, _list_recipe(facts.run)
    data = [*facts.data, *_flatten(run.get("data"), "data")]
    losses = "\n".join(f"- {loss}" for loss in facts.losses_elsewhere)
    parts = [
        "\n".join(head),
        f"# {_plain(facts.name)}",
        _introduce(config, architecture=architecture, dtype=dtype, facts=facts),
        "## How to load",
        "\n".join(["```python", *_show_loading(architecture, facts=facts), "```"]),
        "## Architecture",
        _table(("field", "value"), _list_architecture(config)),
        *(["## Data", _table(("field", "value"), data)] if data else []),
        *(["## Recipe", _table(("field", "value"), rows)] if rows else []),
        *_describe_losses(facts),
        *_describe_evaluations(facts.evaluations),
        *(
            ["## What is left out", "\n".join(f"- {loss}" for loss in losses)]
            if (losses := facts.losses_elsewhere)
            else []
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _introduce(config: GPTConfig, *, architecture: Architecture, dtype: DType, facts: CardFacts) -> str:
    size = f"{count_parameters(config):,} parameters in {dtype}, written as {architecture.hf_class}"
    made = "Trained with gptjax" if facts.run else "Written by gptjax"
    versions = ", ".join(f"{name} {facts.versions[name]}" for name in ("jax", "flax") if name in facts.versions)
    return f"{made}{f' ({versions})' if versions else ''}: {size}. The context is {config.context_length:,} tokens."


def _show_loading(architecture: Architecture, *, facts: CardFacts) -> list[str]:
    trust = ", trust_remote_code=True" if architecture.code else ""
    return [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'path = "."  # this directory, or OWNER/REPO',
        f"model = AutoModelForCausalLM.from_pretrained(path{trust})",
        f"tokenizer = AutoTokenizer.from_pretrained(path{trust})",  # it reads the config of the model, too
        *(ASKING if facts.answers_chats else CONTINUING),
    ]


def _list_architecture(config: GPTConfig) -> Iterator[tuple[str, Any]]:
    """The sizes, and every other field that is not its default."""
    sizes = ("num_layers", "embed_dim", "num_heads", "context_length", "vocab_size")
    for option in fields(config):
        value = getattr(config, option.name)
        if option.name in sizes or (value != option.default and option.name not in ("init", "compute")):
            yield option.name, value


def _list_recipe(run: Facts) -> list[tuple[str, Any]]:
    """The recipe in the run's config.json: from which weights, what was minimised, and how."""
    top = [(name, run[name]) for name in ("steps", "batch_size", "grad_accum", "seed") if name in run]
    sections = ["init_from", "init_layers", "objective", "lora", "optimizer", "ema", "stages"]
    unused = {"lora": (run.get("lora") or {}).get("rank") == 0, "ema": (run.get("ema") or {}).get("decay") is None}
    return top + [row for name in sections if not unused.get(name) for row in _flatten(run.get(name), name)]


def _flatten(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Rows of a section of config.json. Of a path only the last part is told."""
    if isinstance(value, dict):
        is_default = "." in name and all(item in (None, []) for key, item in value.items() if key != "class")
        if is_default and str(value.get("class")).endswith(":ParamGroup"):
            return
        for key, item in ((key, item) for key, item in value.items() if key not in WITHOUT_EFFECT):
            yield from _flatten(item, name if key == "class" else f"{name}.{key}")
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for number, item in enumerate(value):
            yield from _flatten(item, f"{name}[{number}]")
    elif value not in (None, []):
        path = PurePath(value) if isinstance(value, str) else None
        yield name, path.name if path is not None and path.is_absolute() else value


def _describe_losses(facts: CardFacts) -> list[str]:
    if not facts.validation:
        return []
    last = len(facts.validation) - 1
    shown = sorted({round(i * last / max(min(last, MAX_ROWS - 1), 1)) for i in range(min(last + 1, MAX_ROWS))})
    names = [name for name in LOSS_COLUMNS if name in facts.validation[-1]]
    rows = [tuple(facts.validation[i].get(name, "") for name in names) for i in shown]
    picture = [f"![Losses]({PICTURE})"] if facts.picture else []
    objective = str((facts.run.get("objective") or {}).get("class", "")).rpartition(":")[2]
    unit = [] if "val_bpb" in names or not objective else [f"`val_loss` is the mean of the objective, {objective}."]
    return ["## Losses during training", *picture, *unit, _table(names, rows)]


def _describe_evaluations(evaluations: Iterable[Facts]) -> list[str]:
    rows = [row for evaluation in evaluations for row in _list_figures(evaluation)]
    return ["## Evaluation", _table(("protocol", "metric", "value", "95 %"), rows)] if rows else []


def _list_figures(result: Facts) -> Iterator[tuple[str, str, float, str]]:
    """The figures of a result, those of a text, of tasks or of CORE, each with its interval."""
    for name, figure in result["figures"].items():
        value, low, high = (figure.get(key) for key in ("value", "low", "high"))
        if not isinstance(value, float):
            continue
        # It begins with the path of the text, whose directories are not told.
        is_text = name in TEXT_FIGURES
        protocol = str(result.get("protocol")).rpartition("/")[2] if is_text else _describe_task(result, name)
        interval = f"{low:.6g} – {high:.6g}" if isinstance(low, float) and isinstance(high, float) else ""
        yield protocol, name, value, interval


def _describe_task(result: Facts, name: str) -> str:
    """What gave a task's figure, with the items that were scored and the examples in each prompt."""
    is_core = name == "CORE" or name.startswith("core ")
    about = result.get("core" if is_core else "harness", {})
    title = "CORE" if is_core else f"lm-evaluation-harness {about['lm_eval']}" if "lm_eval" in about else "local tasks"
    tasks = [task for task in about.get("items", {}) if name.startswith(f"{task} ") or name == task]
    if not tasks:
        return title
    task = max(tasks, key=len)
    counts = (about["items"][task], "items"), (about.get("num_fewshot", {}).get(task) or 0, "examples")
    return ", ".join([title, *(count_of(count, unit) for count, unit in counts if isinstance(count, int))])


def _table(names: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    names = list(names)
    lines = [names, ["---"] * len(names), *([_plain(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(value: Any) -> str:
    """A value in one cell of a table."""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
