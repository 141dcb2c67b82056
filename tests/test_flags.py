"""Words that people type: those that are understood, and those whose message shows the right one."""

import runpy
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from data_pipelines import prepare
from data_pipelines.index_shards import IndexShards
from data_pipelines.prepare import Prepare
from gptjax import __main__ as command
from gptjax.benchmark.options import BenchOptions
from gptjax.cli.command_line import parse_config, parse_options
from gptjax.cli.flag_mistakes import explain_unknown, explain_words
from gptjax.cli.flags import Flag, list_flags, normalize_words
from gptjax.config import TrainConfig, load_config
from gptjax.conversion.exports import ToHf
from gptjax.core.errors import UserError
from gptjax.evaluation.options import Evaluate
from gptjax.serving.sampler import Sample

TYPED_TO_TRAIN = {
    "--lr=3e-4": "--optimizer.learning-rate=3e-4",
    "--lr 3e-4": "--optimizer.learning-rate=3e-4",
    "-lr 3e-4": "--optimizer.learning-rate=3e-4",
    "--learning_rate=1e-3": "--optimizer.learning-rate=1e-3",
    "--optimizer.lr=1": "--optimizer.learning-rate=1",
    "--max-iters=5": "--steps=5",
    "--max_steps=1e3": "--steps=1000",
    "--step=5": "--steps=5",
    "--n_layer=6": "--model.num-layers=6",
    "--num-layers=6": "--model.num-layers=6",
    "--model.n-layers=6": "--model.num-layers=6",
    "--n_embd=64": "--model.embed-dim=64",
    "--block_size=256": "--model.context-length=256",
    "--bias=False": "--model.no-bias",
    "--dtype=bf16": "--model.compute.dtype=bfloat16",
    "--grad_clip=1.0": "--optimizer.clip-norm=1.0",
    "--warmup_iters=10": "--optimizer.schedule.warmup-steps=10",
    "--gradient_accumulation_steps=4": "--grad-accum=4",
    "--batch=4": "--batch-size=4",
    "--bachsize=4": "--batch-size=4",
    "--out_dir=x": "--output-dir=x",
    "--dataset=data/x": "--data.path=data/x",
    "--resume_from=runs/x": "The same command, with the same --name, continues a run",
    "--min_lr=6e-5": "a share of the largest, such as 0.1",
    "--total_batch_size=524288": "divide tokens by --model.context-length",
    "--micro-batch-size=8": "all devices together; --grad-accum=N",
    "--wandb_log=True": "Write --log.wandb=online.",
    "--eval_interval=5": "--evaluators.1.every=5",
    "--device=cuda": "JAX_PLATFORMS=cpu",
    "--time=2h": "--max-time takes a time with its unit",
    "--tokens=1e9": "divide tokens by --batch-size times --model.context-length.",
    "--dataset=openwebtext": "Write --data.source=openwebtext.",
    "--positions=rope": "Write --model.positions=rotary.",
    "--activation=swiglu": "Write --model.activation=silu --model.gated-mlp.",
    "--val-file=a": "data_pipelines.prepare --validation-source=…",
    "--optimizer=adamw": "docs/optimizers.md",
    "--epochs=3": "--steps",
    "batch_size=8": "--batch-size=8",
    "--steps": "--steps=1200",
    "--steps=abc": "--steps=1200",
    "--steps=1.5": "a whole number",
    "--optimizer.learning-rate=fast": "--optimizer.learning-rate=0.02",
    "--mesh=fdsp": "--mesh=fsdp",
    "--model.bias=maybe": "--model.no-bias",
    "--steps=5 extra": "extra belongs to no flag",
    "--zzz=1": "--help lists all flags",
    "--peers=nanogpt:x": "--peer=nanogpt:x",
    "base_emb_dim=64": "--model.embed-dim=64",
    "--trainer.num_train_steps=5": "--steps=5",
    "--per_device_train_batch_size 8": "all devices together; --grad-accum=N",
    "--learning_rate_schedule=cosine": "docs/optimizers.md",
    "--optimizer.type=adam": "docs/optimizers.md",
    "-steps=5": "--steps=5",
    "--steps:5": "--steps=5",
    "--resume=runs/x": "wanted auto, force, never or a whole number",
    "--bf16": "--model.compute.dtype=bfloat16",
    "--fp16=True": "--model.compute.dtype=float16",
    "--rope_theta=1e4": "--model.rotary-base=1e4",
    "--eval_only": "python -m gptjax.evaluate",
    "--embedding-size=8": "--model.embed-dim=8",
    "--emb=8": "--model.embed-dim=8",
    "--ctx=64": "--model.context-length=64",
    "--mesh-shape=fsdp": "--mesh=fsdp",
    "--norm_eps=1e-6": "--model.norm-epsilon=1e-6",
    "--tie_word_embeddings=false": "--model.no-tie-embeddings",
    "--tensor_parallel_size=2": "--mesh.tensor=2",
    "--max_hours=8": "--max-time takes a time with its unit",
    "--val_fraction=0.1": "data_pipelines.prepare --split=",
    "--rope": "--model.positions=rotary",
    "--data.pth=x": "--data.path=x",
    "--report_to=none": "Write --log.wandb=off.",
    "--report_to=wandb": "Write --log.wandb=online.",
    "--wandb": "Write --log.wandb=online.",
    "--wandb=False": "Write --log.wandb=off.",
    "--tp=2": "Write --mesh.tensor=2.",
    "--tp": "Write --mesh=tensor.",
    "--fsdp": "Write --mesh=fsdp.",
    "--fsdp=8": "Write --mesh.fsdp=8.",
    "--dp=4": "Write --mesh.data=4.",
    "--ddp": "Write --mesh=data.",
    "--eval_iters=200": "counts what a validation reads",
    "--decay_lr=False": "Constant() keeps the rate",
    "--data=books.txt": "Write --data.source=books.txt.",
    "--seed 1 2": "--seed takes one value, 1.",
    "--dtype=float64": "Write --model.compute.dtype=bfloat16|",
    "--lr_decay_iters=100": "Write --schedule-steps=100.",
    "--no-wandb": "Write --log.wandb=off.",
    "--lora": "Write --lora.rank=8.",
    "--ema=false": "Write --ema.decay=none.",
    "--gradient-checkpointing": "Write --model.compute.remat=full.",
    "--gradient-checkpointing=false": "Write --model.compute.remat=none.",
    "--train-on-prompt": "The objective SFT scores only what the assistant says.",
    "--steps==5": "Write --steps=5.",
    "--steps:=5": "Write --steps=5.",
    "--swiglu": "Write --model.activation=silu --model.gated-mlp.",
    "--text=book.txt": "Write --data.source=book.txt.",
    "--ckpt=runs/x": "Write --init-from=runs/x.",
    "--fresh": "A new --name begins another run",
    "--data=data/books": "Write --data.path=data/books.",
}
TYPED_TO_OTHERS = [
    (ToHf, "--checkpoint=x --output=y --overwrite", "There is no flag --overwrite. --help lists all flags."),
    (Prepare, "--source=a --output=b --eval-iters=5", "There is no flag --eval-iters. --help lists all flags."),
    (Sample, "runs/x", "--checkpoint=runs/x"),
    (Sample, "--ckpt=runs/x", "--checkpoint=runs/x"),
    (Sample, "--checkpoint=x --max_tokens=5", "--max-new-tokens=5"),
    (Sample, "--checkpoint=x --temp=0.5", "--temperature=0.5"),
    (Sample, "--checkpoint=x --topk=5", "--top-k=5"),
    (Sample, "--checkpoint=x --start=Once", "--prompt=Once"),
    (Evaluate, "--checkpoint=x --file=a.txt", "--text=a.txt"),
    (Sample, "--prompt=a", "--checkpoint=…"),
    (ToHf, "--model=runs/x", "--checkpoint=runs/x"),
    (ToHf, "--checkpoint=x --out=y", "--output=y"),
    (Sample, "--checkpoint=x --prompt Once upon a time", "--prompt='Once upon a time'"),
    (Evaluate, "runs/x", "--checkpoint=runs/x"),
    (Evaluate, "--checkpoint=x --output_path=r.json", "--json=r.json"),
    (IndexShards, "--input=data/x", "is the first word behind the command: data/x"),
    (Prepare, "--source=a --output=b --vocab_size=1000", "--tokenizer=bpe:1000"),
    (Prepare, "--source=a --output=b --val_fraction=0.1", "--split=hash:0.1"),
    (Prepare, "books.txt", "--source=books.txt"),
    (Prepare, "--input=a --output=b", "--source=a"),
    (Prepare, "--source=a --out_dir=b", "--output=b"),
    (Prepare, "--source=a --output=b --num_proc=4", "--processes=4"),
    (Prepare, "--source=a --output=b --text-column=content", "--text-field=content"),
]


def parse_train(*words: str) -> TrainConfig:
    return parse_config(TrainConfig, words, prog="train", description="Train.", options_type=BenchOptions).config


@pytest.fixture(scope="module")
def flags() -> dict[str, Flag]:
    return list_flags(TrainConfig, load_config("quickstart"))


@pytest.mark.parametrize(("typed", "right"), TYPED_TO_TRAIN.items(), ids=TYPED_TO_TRAIN)
def test_a_wrong_word_of_train_shows_the_right_one(typed: str, right: str, flags: dict[str, Flag]):
    """Without tyro, which would make its parser anew for each."""
    reason = explain_words(normalize_words(typed.split(), flags), flags | list_flags(BenchOptions))
    assert reason is not None
    assert right in reason
    assert "\n" not in reason


SAID = {
    "batch size": "batch-size",
    "gradient accumulation": "grad-accum",
    "kv heads": "model.num-kv-heads",
    "embedding dim": "model.embed-dim",
    "context length": "model.context-length",
    "mesh": "mesh",
    "init from": "init-from",
    "ema": "ema.decay",
    "weight decay": "optimizer.weight-decay",
    "warmup": "optimizer.schedule.warmup-steps",
}
"""What people call an option, and the flag."""


def test_a_file_for_a_config_that_reads_shards_is_to_be_prepared():
    flags = list_flags(TrainConfig, load_config("gpt2_124m"))
    assert "data_pipelines.prepare --source=books.txt makes them" in explain_unknown("dataset", "books.txt", flags)


def test_the_usual_names_of_options_typed_as_flags_lead_to_them():
    flags = list_flags(TrainConfig, load_config("gpt2_124m"))
    typed = {name: name.replace(" ", "-") for name in SAID}
    unknown = {name: explain_unknown(word, "8", flags) for name, word in typed.items() if word not in flags}
    assert {name: flag for name, flag in SAID.items() if name not in unknown and typed[name] != flag} == {}
    assert [name for name, reason in unknown.items() if f"Write --{SAID[name]}=" not in reason] == []
    assert len(unknown) == 7


@pytest.mark.parametrize(
    "word", ["embedding-colour", "embedding-foo", "batch-order", "mlp-ratio", "decay-lr", "lora-dropout"]
)
def test_a_word_that_shares_only_a_part_with_a_flag_shows_none(word: str, flags: dict[str, Flag]):
    assert "Write" not in explain_unknown(word, "8", flags)


@pytest.mark.parametrize("typed", ["-lr 3e-4", "--steps=1.5", "--steps=5 extra", "--peers=nanogpt:x"])
def test_a_wrong_word_of_train_is_refused(typed: str):
    with pytest.raises(UserError) as caught:
        parse_train("quickstart", *typed.split())
    assert TYPED_TO_TRAIN[typed] in str(caught.value)


@pytest.mark.parametrize(("options", "typed", "right"), TYPED_TO_OTHERS)
def test_a_wrong_word_of_a_command_shows_the_right_one(options: type, typed: str, right: str):
    with pytest.raises(UserError) as caught:
        parse_options(options, typed.split(), prog="command")
    assert right in str(caught.value)


def test_forms_that_people_type_are_understood():
    typed = (
        "--batch_size=16 --steps=1e3 --seed 1_000 --optimizer.learning_rate=1e-3 --model.bias=True "
        "--model.tie_embeddings false --checkpoint.every=none --model.compute.dtype=bf16 --mesh=FSDP "
        "--optimizer.nesterov=no --grad-accum = 2 --optimizer.clip-norm= 0.5"
    )
    config = parse_train("quickstart", *typed.split())
    assert (config.batch_size, config.steps, config.seed, config.grad_accum) == (16, 1000, 1000, 2)
    assert (config.optimizer.learning_rate, config.optimizer.nesterov) == (1e-3, False)  # type: ignore[attr-defined]
    assert config.optimizer.clip_norm == 0.5  # type: ignore[attr-defined]
    assert (config.model.bias, config.model.tie_embeddings) == (True, False)
    assert (config.checkpoint.every, config.model.compute.dtype) == (None, "bfloat16")
    assert config.mesh.strategy == "fsdp"


@dataclass(frozen=True)
class Options:
    label: str = "x"
    tags: tuple[str, ...] = ()
    count: int | None = None
    split: str | None = None
    rate: float = 0.5
    kind: Literal["none", "all"] = "all"
    on: bool = field(default=True)


@pytest.mark.parametrize(
    ("typed", "normal"),
    [
        (["--label", "="], ["--label", "="]),
        (["--label=none"], ["--label=none"]),
        (["--label=-5"], ["--label=-5"]),
        (["--count=-5"], ["--count=-5"]),
        (["--count", "-5"], ["--count", "-5"]),
        (["--split=none"], ["--split=none"]),
        (["--count=null"], ["--count=None"]),
        (["--count=9_007_199_254_740_993"], ["--count=9007199254740993"]),
        (["--count=None"], ["--count=None"]),
        (["--kind=none"], ["--kind=none"]),
        (["--kind=ALL"], ["--kind=all"]),
        (["--no-on=false"], ["--on"]),
        (["--on", "word"], ["--on", "word"]),
        (["--tags", "a", "b", "--rate", "1e-3"], ["--tags", "a", "b", "--rate", "1e-3"]),
        (["first", "--rate=2"], ["first", "--rate=2"]),
    ],
)
def test_words_keep_their_meaning(typed: list[str], normal: list[str]):
    assert normalize_words(typed, list_flags(Options)) == normal


def test_every_flag_of_a_config_is_known(capfd: pytest.CaptureFixture[str]):
    """tyro's own help names the same flags."""
    with pytest.raises(SystemExit):
        parse_train("quickstart", "--help")
    printed = capfd.readouterr().out
    shown = {word.rstrip(",") for line in printed.splitlines() for word in line.split() if word.startswith("--")}
    assert {f"--{name}" for name in list_flags(TrainConfig, load_config("quickstart"))} <= shown
    assert printed.index("--steps=1200") < printed.index("--evaluators.2  Samples\n") < printed.index("usage: ")


def test_gptjax_runs_the_command_that_is_named(monkeypatch: pytest.MonkeyPatch):
    called = []
    monkeypatch.setattr(sys, "argv", ["gptjax", "prepare-chat", "--source=x"])
    monkeypatch.setattr(runpy, "run_module", lambda name, **_: called.append((name, sys.argv)))
    command.main()
    assert called == [("data_pipelines.prepare_chat", ["prepare_chat", "--source=x"])]


def test_gptjax_has_every_entry_point_of_data_pipelines():
    files = Path(prepare.__file__).parent.glob("*.py")
    entry_points = {f"data_pipelines.{file.stem}" for file in files if '__name__ == "__main__"' in file.read_text()}
    entry_points.remove("data_pipelines.verify")  # `gptjax verify` reads prepared data too
    assert entry_points == {name for name, _ in command.COMMANDS.values() if not name.startswith("gptjax.")}


@pytest.mark.parametrize(
    ("word", "right"),
    [
        ("eval", "gptjax evaluate"),
        ("traim", "gptjax train"),
        ("smoke", "gptjax train smoke"),
        ("serve", "gptjax chat"),
        ("finetune", "gptjax train CONFIG --init-from=RUN."),
        ("dpo", "gptjax train own_pairs_cpu --init-from=RUN."),
    ],
)
def test_gptjax_shows_the_command_that_is_meant(word: str, right: str):
    assert right in command.explain_command(word)


def test_version_tells_packages_and_devices(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(sys, "argv", ["gptjax", "--version"])
    with pytest.raises(SystemExit) as stopped:
        command.main()
    lines = capsys.readouterr().out.splitlines()
    assert not stopped.value.code
    assert [line.split()[0] for line in lines[:5]] == ["gptjax", "python", "jax", "jaxlib", "flax"]
    assert lines[-1].startswith("devices 8 x cpu")
