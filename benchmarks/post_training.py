"""Compare SFT and DPO with TRL's trainers: the same model, data and precision, in turn on the same cores.

    python benchmarks/post_training.py                                              # needs trl; minutes on two cores
    python benchmarks/post_training.py --layers=1 --embed-dim=32 --rounds=1 --steps=1    # in seconds

Made conversations, of one to three turns and very different lengths, are packed into rows by both. Rates are target
tokens and pairs a second: only answers are targets. On a machine with other work, trust the ratio by processor time.
The first step of each part is not counted. Ours reads batches from disk, as training does, and unrolls its layers.
TRL runs without gradient checkpointing, which it uses by default, and with each batch size that is named. `packed` is
its packing `bfd`, in which conversations do not see each other, as ours do not. `wrapped` is the packing in which they
do. Reference log-probabilities are stored beforehand by both.
Results: RESULTS.md, "Post-training beside TRL".
"""

import contextlib
import io
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tyro

from data_pipelines.encode.bpe_trainer import train_bpe
from data_pipelines.prepare_chat import PrepareChat, prepare_chat
from data_pipelines.prepare_preferences import PreparePreferences, prepare_preferences
from gptjax.config import TrainConfig
from gptjax.core.errors import exit_on_user_error
from gptjax.data.config import TokenShards
from gptjax.data.loader import BatchLoader
from gptjax.data.preferences import PreferenceShards
from gptjax.huggingface.architectures.selection import ARCHITECTURES
from gptjax.huggingface.model_dir import write_model
from gptjax.model.config import ComputeConfig, GPTConfig
from gptjax.model.gpt import GPT
from gptjax.objectives.objective import SFT
from gptjax.objectives.preference import DPO
from gptjax.optim import AdamW
from gptjax.runs import reference, startup
from gptjax.runs.run_dir import write_imported_run
from gptjax.sharding.mesh import MeshConfig
from gptjax.tokenization.tokenizer import load_tokenizer

Clock = np.ndarray
"""Seconds of time and of the processors."""
Run = Callable[[int], Clock]
"""Number of steps → seconds a step."""


def read_clock() -> Clock:
    return np.array([time.perf_counter(), time.process_time()])


@dataclass(frozen=True)
class Options:
    """Sizes of the model and of the comparison."""

    layers: int = 4
    embed_dim: int = 256
    context_length: int = 512
    vocab_size: int = 4096
    rows: int = 8
    """Rows of a step."""
    conversations: int = 1500
    steps: int = 4
    """Steps of one contestant at a time."""
    rounds: int = 3
    chunk_tokens: int = 128
    """`objective.chunk_tokens` of ours."""
    scan_layers: Literal["auto", "on", "off"] = "off"
    """`model.compute.scan_layers` of ours. Unrolled layers are faster here, and take longer to compile."""


@dataclass(frozen=True)
class Contestant:
    """A way to train; `targets` are target tokens, or pairs, of a step on average."""

    name: str
    targets: float
    run: Run


def write_data(directory: Path, options: Options) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Conversations and pairs of made words, as records and as shards in `chat` and `pairs`, with a tokenizer."""
    draw = np.random.default_rng(0)
    words = ["".join(draw.choice([*"abcdefghijklmnopqrstuvwxyz"], draw.integers(2, 9))) for _ in range(4000)]
    speak = lambda mean: " ".join(draw.choice(words, max(1, int(draw.lognormal(np.log(mean), 0.8)))))
    say = lambda role, mean: {"role": role, "content": speak(mean)}
    chats = [
        {
            "messages": [
                say(role, mean) for _ in range(draw.integers(1, 4)) for role, mean in (("user", 15), ("assistant", 40))
            ]
        }
        for _ in range(options.conversations)
    ]
    sides = ("chosen", "rejected")
    pairs = [
        {"prompt": [say("user", 15)], **{side: [say("assistant", 40)] for side in sides}}
        for _ in range(options.conversations)
    ]
    tokenizer = train_bpe([" ".join(draw.permutation(words)) for _ in range(20)], vocab_size=options.vocab_size - 2)
    tokenizer.save(directory)
    sources = {}
    for name, records in (("chat", chats), ("pairs", pairs)):
        sources[name] = str(directory / f"{name}.jsonl")
        Path(sources[name]).write_text("".join(json.dumps(record) + "\n" for record in records))
    made = directory / "chat"
    prepare_chat(PrepareChat(source=sources["chat"], tokenizer=str(directory), output=made, split="none"))
    output = directory / "pairs"
    prepare_preferences(PreparePreferences(source=sources["pairs"], tokenizer=str(made), output=output, split="none"))
    return chats, pairs


def make_config(directory: Path, options: Options) -> TrainConfig:
    """SFT of a GPT-2 of the wanted size, whose weights are written for both programs."""
    tokenizer = load_tokenizer(directory / "chat")
    model = GPTConfig(
        num_layers=options.layers,
        embed_dim=options.embed_dim,
        num_heads=max(1, options.embed_dim // 64),
        context_length=options.context_length,
        vocab_size=tokenizer.vocab_size,
        intra_document_mask=True,
        compute=ComputeConfig(dtype="float32", remat="none", scan_layers=options.scan_layers),
    )
    weights = GPT(model, key=jax.random.key(0))
    write_imported_run(directory / "start", model=weights, tokenizer=tokenizer)
    (directory / "hf").mkdir()
    write_model(
        directory / "hf", weights, architecture=ARCHITECTURES["gpt2"], dtype="float32", origin=None, tokenizer=tokenizer
    )
    return TrainConfig(
        name="sft",
        output_dir=str(directory / "runs"),
        steps=1000,
        batch_size=options.rows,
        model=model,
        data=TokenShards(str(directory / "chat"), packing="best_fit_truncate"),
        objective=SFT(chunk_tokens=options.chunk_tokens),
        optimizer=AdamW(learning_rate=1e-4),
        init_from=str(directory / "start"),
        mesh=MeshConfig("single"),
    )


def open_ours(config: TrainConfig) -> Contestant:
    """The training step of a config, fed by its loader."""
    config, tokenizer = startup.prepare_config(config)
    config = startup.prepare_device(config)
    mesh = config.mesh.resolve(1)
    with mesh.activate():
        frozen = reference.prepare_frozen_model(config, startup.make_read_spec(config, tokenizer), mesh)
        rows: Any = config.data.open_rows("train", frozen.read_spec)
        scored = np.count_nonzero(rows.read(np.arange(len(rows)))["targets"] >= 0)
        targets = getattr(rows, "num_pairs", scored) / len(rows) * config.batch.size
        loader = BatchLoader(config.data.open(frozen.read_spec), frozen.read_spec, mesh=mesh)
        state = startup.initialize_state(config, mesh)
        program, batches = startup.compile_step(config, mesh, state, loader), loader.iterate_from(0)

    def run(steps: int) -> Clock:
        nonlocal state
        began_at = read_clock()
        for _ in range(steps):
            state, metrics = program(state, next(batches))
            float(metrics["loss"])
        return (read_clock() - began_at) / steps

    run(1)
    return Contestant("gptjax", targets, run)


def open_trl(name: str, directory: Path, make: Callable[..., Any], count: Callable[[Any], float]) -> Contestant:
    """A trainer of TRL. `count` says how many targets a step of it has on average."""
    import torch  # pyright: ignore[reportMissingImports]
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback  # pyright: ignore[reportMissingImports]

    times: list[Clock] = []

    class Timer(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            times.append(read_clock())

    model = AutoModelForCausalLM.from_pretrained(directory / "hf", dtype=torch.float32)
    trainer = make(model=model, processing_class=AutoTokenizer.from_pretrained(directory / "hf"))
    trainer.add_callback(Timer())

    def run(steps: int) -> Clock:
        times.clear()
        trainer.args.max_steps = steps + 1
        with contextlib.redirect_stdout(io.StringIO()):
            trainer.train()
        return (times[-1] - times[0]) / steps

    return Contestant(name, count(trainer), run)


def settings(directory: Path, *, rows: int, accumulation: int) -> dict[str, Any]:
    """Arguments that TRL's trainers share."""
    batch = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": accumulation, "max_steps": 1}
    machine = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "dataloader_pin_memory": False}
    quiet = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "logging_strategy": "no"}
    return {**batch, **machine, **quiet, "learning_rate": 1e-4, "output_dir": str(directory / "trainer")}


def list_sft(directory: Path, options: Options, records: list[dict[str, Any]]) -> list[Contestant]:
    """TRL's SFT with several packings and micro-batches."""
    datasets, trl = map(import_module, ("datasets", "trl"))

    def open_packed(name: str, *, rows: int, strategy: str = "bfd") -> Contestant:
        args = trl.SFTConfig(
            **settings(directory, rows=rows, accumulation=options.rows // rows),
            packing=True,
            packing_strategy=strategy,
            max_length=options.context_length,
            assistant_only_loss=True,
        )
        make = lambda **given: trl.SFTTrainer(args=args, train_dataset=datasets.Dataset.from_list(records), **given)

        def count(trainer: Any) -> float:
            labels = [label for row in trainer.train_dataset["labels"] for label in row]
            return sum(label != -100 for label in labels) / len(trainer.train_dataset) * options.rows

        return open_trl(name, directory, make, count)

    return [
        open_packed(f"TRL, packed, {options.rows} rows", rows=options.rows),
        open_packed("TRL, packed, 1 row at a time", rows=1),
        open_packed(f"TRL, wrapped, {options.rows} rows", rows=options.rows, strategy="wrapped"),
    ]


def list_dpo(directory: Path, options: Options, records: list[dict[str, Any]], *, pairs: int) -> list[Contestant]:
    """TRL's DPO with stored references; `pairs` a step in one micro-batch, and in several."""
    datasets, trl = map(import_module, ("datasets", "trl"))

    def open_padded(name: str, *, rows: int) -> Contestant:
        args = trl.DPOConfig(
            **settings(directory, rows=rows, accumulation=pairs // rows),
            precompute_ref_log_probs=True,
            max_length=options.context_length,
        )
        make = lambda **given: trl.DPOTrainer(args=args, train_dataset=datasets.Dataset.from_list(records), **given)
        return open_trl(name, directory, make, lambda trainer: rows * (pairs // rows))

    few = max(1, pairs // 4)
    return [
        open_padded(f"TRL, {pairs} pairs", rows=pairs),
        open_padded(f"TRL, {few} pairs at a time", rows=few),
    ]


def compare(title: str, contestants: list[Contestant], options: Options) -> None:
    """Run the contestants in turn, and print medians and the ratio of the first to each."""
    times: dict[str, list[Clock]] = {contestant.name: [] for contestant in contestants}
    for _ in range(options.rounds):
        for contestant in contestants:
            times[contestant.name].append(contestant.run(options.steps))
    rates = {
        contestant.name: contestant.targets / np.median(times[contestant.name], axis=0) for contestant in contestants
    }
    print(f"{title}, {options.rounds} rounds of {options.steps} steps, one after another", flush=True)
    for contestant in contestants:
        (rate, _), (ratio, by_processor) = rates[contestant.name], rates[contestants[0].name] / rates[contestant.name]
        spread = [round(float(contestant.targets / seconds[0]), 1) for seconds in times[contestant.name]]
        print(
            f"  {contestant.name:28} {rate:10.1f} a second; gptjax is {ratio:5.2f} ×, "
            f"{by_processor:5.2f} × by processor time "
            f" {spread}",
            flush=True,
        )


def main(options: Options) -> None:
    with tempfile.TemporaryDirectory() as scratch, exit_on_user_error():
        directory = Path(scratch)
        chats, pairs = write_data(directory, options)
        config = make_config(directory, options)
        ours = open_ours(config)
        compare("SFT: target tokens", [ours, *list_sft(directory, options, chats)], options)
        objective = DPO(chunk_tokens=options.chunk_tokens)
        data = PreferenceShards(str(directory / "pairs"))
        ours = open_ours(replace(config, name="dpo", objective=objective, data=data))
        number = max(1, round(ours.targets))
        compare("DPO: pairs", [ours, *list_dpo(directory, options, pairs, pairs=number)], options)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
