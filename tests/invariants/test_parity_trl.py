"""Invariant: the same conversations and pairs give the ids, masks, losses and gradients that TRL's trainers compute.

Each trainer takes one step over the whole of a made data set, in float32 on a CPU. Ours reads what `prepare_chat` and
`prepare_preferences` wrote of the same file, packed into rows. Needs trl, torch and transformers: `-m parity`.

Where TRL 1.16 computes something else, a test says what.
"""

import json
import random
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from models import make_model

from data_pipelines.encode.bpe_trainer import train_bpe
from data_pipelines.prepare_chat import PrepareChat, prepare_chat
from data_pipelines.prepare_preferences import PreparePreferences, prepare_preferences
from gptjax.data.config import TokenShards
from gptjax.data.preferences import PreferenceShards, open_preferences
from gptjax.data.source import DataSource, ReadSpec
from gptjax.huggingface.architectures.selection import ARCHITECTURES
from gptjax.huggingface.model_dir import write_model
from gptjax.huggingface.model_export import to_hf
from gptjax.model.config import ComputeConfig, GPTConfig
from gptjax.model.gpt import GPT
from gptjax.objectives.objective import SFT, Objective, compute_sums, get_row_kind
from gptjax.objectives.preference import DPO, IPO, ORPO, SimPO
from gptjax.tokenization.tokenizer import Tokenizer, load_tokenizer

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("default"),  # torch, transformers, datasets and trl have warnings of their own
]
REASON = "needs trl: pip install -e '.[dev,parity]'"
GPT2 = GPTConfig(
    num_layers=2,
    embed_dim=32,
    num_heads=4,
    context_length=192,
    intra_document_mask=True,
    compute=ComputeConfig(dtype="float32", remat="none"),
)
CONFIGS = {
    "gpt2": GPT2,
    "llama": replace(
        GPT2,
        num_kv_heads=2,
        mlp_dim=48,
        bias=False,
        tie_embeddings=False,
        activation="silu",
        positions="rotary",
        norm="rms",
        gated_mlp=True,
    ),
}
PARTS = ["\n", "\n\n", " ", "  ", "\t", "\r\n", "four", "five", "é☕", "{{ x }}", "{% if %}", "'\"", "<|im", "say"]
"""What contents are made of. None spells a whole role token, which transformers would let act."""


class Step(NamedTuple):
    """What one step of a trainer found."""

    logs: Mapping[str, float]
    gradients: dict[str, np.ndarray]
    """By the names of Hugging Face."""


class Data(NamedTuple):
    """A made file, our shards of it, and the tokenizer."""

    records: list[dict[str, Any]]
    shards: Path
    tokenizer: Tokenizer


def draw_text(draw: random.Random) -> str:
    return "".join(draw.choices(PARTS, k=draw.randrange(6)))


def draw_messages(draw: random.Random, *, turns: int) -> list[dict[str, str]]:
    """Perhaps a system message, then the user and the assistant in turn; contents may be empty."""
    roles = ["system"] * draw.randrange(2) + ["user", "assistant"] * turns
    return [{"role": role, "content": draw_text(draw)} for role in roles]


def write_records(directory: Path, records: list[dict[str, Any]]) -> str:
    path = directory / "records.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """Sixty conversations in ChatML."""
    directory, draw = tmp_path_factory.mktemp("chat"), random.Random(0)
    records = [{"messages": draw_messages(draw, turns=draw.randrange(1, 4))} for _ in range(60)]
    train_bpe(["the user and the assistant say\n\nfour  five\n"] * 20, vocab_size=285).save(directory)
    source, shards = write_records(directory, records), directory / "shards"
    prepare_chat(PrepareChat(source=source, tokenizer=str(directory), output=shards, split="none"))
    return Data(records, shards, load_tokenizer(shards))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory, chat: Data) -> Data:
    """Forty pairs in nanochat's template, which writes nothing after the end of a turn."""
    directory, draw = tmp_path_factory.mktemp("pairs"), random.Random(1)
    records = []
    for number in range(40):
        prompt = draw_messages(draw, turns=draw.randrange(1, 3))[:-1]
        answers = [[{"role": "assistant", "content": f"{draw_text(draw)}{word}{number}"}] for word in ("yes", "no")]
        records.append({"prompt": prompt, "chosen": answers[0], "rejected": answers[1]})
    made = directory / "tokenizer"
    source = write_records(directory, chat.records)
    prepare_chat(PrepareChat(source=source, tokenizer=str(chat.shards), output=made, split="none", template="nanochat"))
    source, shards = write_records(directory, records), directory / "shards"
    prepare_preferences(PreparePreferences(source=source, tokenizer=str(made), output=shards, split="none"))
    return Data(records, shards, load_tokenizer(shards))


def make_models(kind: str, data: Data, directory: Path, **changes: Any) -> tuple[GPT, GPT]:
    """A policy and a reference, both also exported, as `policy` and `reference`."""
    config = replace(CONFIGS[kind], vocab_size=data.tokenizer.vocab_size, **changes)
    models = make_model(config, seed=1), make_model(config, seed=2, std=0.1)
    for name, model in zip(("policy", "reference"), models, strict=True):
        (directory / name).mkdir()
        exported = directory / name
        write_model(
            exported, model, architecture=ARCHITECTURES[kind], dtype="float32", origin=None, tokenizer=data.tokenizer
        )
    return models


def read_all(source: DataSource, model: GPT, objective: Objective, data: Data) -> dict[str, jax.Array]:
    """All rows of the training split, (B, T)."""
    config, kind = model.config, get_row_kind(objective)
    sizes: dict[str, Any] = {"context_length": config.context_length, "vocab_size": config.resolved_vocab_size}
    spec = ReadSpec(
        **sizes, seed=0, end_of_text=data.tokenizer.end_of_text, with_documents=True, batch_schedule=(), row_kind=kind
    )
    rows = source.open_rows("train", spec)
    assert rows is not None
    found = rows.read(np.arange(len(rows)), with_documents=True)  # pyright: ignore[reportAttributeAccessIssue]
    return {name: jnp.asarray(array) for name, array in found.items()}


def compute(objective: Objective, model: GPT, batch: dict[str, jax.Array], *, frozen: GPT | None = None) -> Step:
    """Our loss, metrics and gradients, in Hugging Face's names."""

    def mean(model: GPT) -> tuple[jax.Array, Any]:
        sums = compute_sums(objective, model, batch, frozen=frozen)
        return sums.loss / sums.scored, sums

    (loss, sums), gradients = jax.jit(jax.value_and_grad(mean, has_aux=True))(model)
    logs = {name: float(value / sums.scored) for name, value in sums.metrics.items()}
    kind = "llama" if model.config.gated_mlp else "gpt2"
    named = to_hf(gradients, architecture=ARCHITECTURES[kind], dtype="float32")
    return Step({"loss": float(loss), "scored": int(sums.scored)} | logs, named)


def load(directory: Path) -> tuple[Any, Any]:
    """An export in transformers: model and tokenizer."""
    import torch  # pyright: ignore[reportMissingImports]
    from transformers import AutoModelForCausalLM, AutoTokenizer  # pyright: ignore[reportMissingImports]

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(directory)


def settings(directory: Path, *, rows: int, **changes: Any) -> dict[str, Any]:
    """Arguments of a trainer: one step of plain SGD over so many rows."""
    batch = {"per_device_train_batch_size": rows, "max_steps": 1, "logging_steps": 1, "optim": "sgd"}
    machine = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": "none"}
    quiet = {"save_strategy": "no", "disable_tqdm": True, "output_dir": str(directory / "trainer")}
    return {**batch, **machine, **quiet, "max_grad_norm": 1e9} | changes


def take_step(trainer: Any) -> Step:
    """Train for a step, and keep the gradients."""
    from transformers import TrainerCallback  # pyright: ignore[reportMissingImports]

    found: dict[str, np.ndarray] = {}

    class Keep(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            weights = given["model"].named_parameters()
            found.update({name: weight.grad.numpy().copy() for name, weight in weights})

    trainer.add_callback(Keep())
    trainer.train()
    return Step(trainer.state.log_history[0], found)


def assert_same_gradients(ours: Step, theirs: Step) -> None:
    """All gradients, to 1e-5 of their norm."""
    assert ours.gradients.keys() == theirs.gradients.keys()
    norm = np.sqrt(sum((array.astype(np.float64) ** 2).sum() for array in theirs.gradients.values()))
    assert norm > 1e-2, "small gradients would prove little"
    for name, array in theirs.gradients.items():
        np.testing.assert_allclose(ours.gradients[name], array, atol=1e-5 * norm, rtol=0, err_msg=name)


# --- supervised fine-tuning ---


def fine_tune(data: Data, directory: Path, **changes: Any) -> Any:
    trl = pytest.importorskip("trl", reason=REASON)
    datasets = pytest.importorskip("datasets")
    model, tokenizer = load(directory / "policy")
    options = settings(directory, rows=len(data.records), assistant_only_loss=True, shuffle_dataset=False) | changes
    rows = datasets.Dataset.from_list(data.records)
    return trl.SFTTrainer(model, args=trl.SFTConfig(**options), train_dataset=rows, processing_class=tokenizer)


@pytest.mark.parametrize("kind", CONFIGS)
def test_conversations_give_the_ids_marks_loss_and_gradients_of_sft_trainer(
    tmp_path: Path, chat: Data, kind: str
) -> None:
    """Theirs is padded, and ours packed into rows in which conversations do not see each other."""
    model, _ = make_models(kind, chat, tmp_path)
    trainer = fine_tune(chat, tmp_path, max_length=None)
    source = TokenShards(str(chat.shards), packing="best_fit_truncate")
    stream = source.open_stream("train")
    assert stream.document_starts is not None
    assert stream.loss_mask is not None
    bounds = np.append(stream.document_starts, len(stream))
    assert len(trainer.train_dataset) == len(bounds) - 1
    for number, row in enumerate(trainer.train_dataset):
        start, end = map(int, bounds[number : number + 2])
        assert row["input_ids"] == stream.read(start, end - start).tolist()
        assert [int(label != -100) for label in row["labels"]] == stream.loss_mask[start:end].tolist()

    batch = read_all(source, model, SFT(), chat)
    assert len(batch["tokens"]) < len(chat.records) / 2
    ours, theirs = compute(SFT(chunk_tokens=64), model, batch), take_step(trainer)
    assert ours.logs["loss"] == pytest.approx(theirs.logs["loss"], rel=1e-5)
    assert_same_gradients(ours, theirs)


@pytest.mark.parametrize("kind", CONFIGS)
def test_packed_rows_of_sft_trainer_have_our_loss(tmp_path: Path, chat: Data, kind: str) -> None:
    """Without a mask and a cache, transformers finds the documents of a row where the positions begin again."""
    model, _ = make_models(kind, chat, tmp_path)
    trainer = fine_tune(chat, tmp_path, packing=True, max_length=192)
    ours = compute(SFT(), model, read_all(TokenShards(str(chat.shards), packing="best_fit"), model, SFT(), chat))
    theirs = take_step(trainer)
    assert ours.logs["loss"] == pytest.approx(theirs.logs["loss"], rel=1e-5)
    assert_same_gradients(ours, theirs)


def test_conversations_that_are_cut_give_the_loss_of_sft_trainer(tmp_path: Path, chat: Data) -> None:
    """Both keep the beginning, and leave out a conversation without a scored token in it; TRL does not say so."""
    model, _ = make_models("gpt2", chat, tmp_path, context_length=32)
    trainer = fine_tune(chat, tmp_path, max_length=32)
    assert len(trainer.train_dataset) < len(chat.records)
    source = TokenShards(str(chat.shards), packing="best_fit_truncate")
    ours, theirs = compute(SFT(), model, read_all(source, model, SFT(), chat)), take_step(trainer)
    assert ours.logs["loss"] == pytest.approx(theirs.logs["loss"], rel=1e-5)
    assert_same_gradients(ours, theirs)


# --- preferences ---

REWARDS = {
    "reward_chosen": "rewards/chosen",
    "reward_rejected": "rewards/rejected",
    "reward_margin": "rewards/margins",
    "reward_accuracy": "rewards/accuracies",
}


def prefer(data: Data, directory: Path, **changes: Any) -> Any:
    trl = pytest.importorskip("trl", reason=REASON)
    datasets = pytest.importorskip("datasets")
    model, tokenizer = load(directory / "policy")
    reference, _ = load(directory / "reference")
    args = trl.DPOConfig(**settings(directory, rows=len(data.records), max_length=None) | changes)
    rows = datasets.Dataset.from_list(data.records)
    return trl.DPOTrainer(model, reference, args=args, train_dataset=rows, processing_class=tokenizer)


@pytest.mark.parametrize(
    ("kind", "objective", "changes"),
    [
        ("gpt2", DPO(beta=0.3, store_reference=False, chunk_tokens=64), {"beta": 0.3}),
        ("llama", DPO(beta=0.1, store_reference=False), {"beta": 0.1, "precompute_ref_log_probs": True}),
        ("llama", IPO(beta=0.4, store_reference=False), {"beta": 0.4, "loss_type": ["ipo"]}),
    ],
    ids=["dpo-gpt2", "dpo-llama", "ipo-llama"],
)
def test_pairs_give_the_ids_loss_rewards_and_gradients_of_dpo_trainer(
    tmp_path: Path, pairs: Data, kind: str, objective: DPO | IPO, changes: dict[str, Any]
) -> None:
    """For IPO, TRL logs β times the summed log-ratios as rewards, though its loss takes means over tokens as ours."""
    model, reference = make_models(kind, pairs, tmp_path)
    trainer = prefer(pairs, tmp_path, **changes)
    for pair, row in zip(open_preferences(pairs.shards, "train"), trainer.train_dataset, strict=True):
        assert pair.chosen.tolist() == row["prompt_ids"] + row["chosen_ids"]
        assert pair.rejected.tolist() == row["prompt_ids"] + row["rejected_ids"]
        assert pair.chosen_loss_mask.sum() == len(row["chosen_ids"])

    batch = read_all(PreferenceShards(str(pairs.shards)), model, objective, pairs)
    ours, theirs = compute(objective, model, batch, frozen=reference), take_step(trainer)
    assert ours.logs["scored"] == len(pairs.records)
    assert ours.logs["loss"] == pytest.approx(theirs.logs["loss"], rel=1e-5)
    assert_same_gradients(ours, theirs)
    assert 0 < ours.logs["reward_accuracy"] < 1
    for name, theirs_name in REWARDS.items() if isinstance(objective, DPO) else ():
        assert ours.logs[name] == pytest.approx(theirs.logs[theirs_name], rel=1e-4, abs=1e-5), name


def test_smoothed_labels_have_the_loss_of_dpo_trainer(tmp_path: Path, pairs: Data) -> None:
    """TRL's `aot` sorts the log-ratios of a batch; of one pair at a time, it is DPO with smoothed labels."""
    model, reference = make_models("gpt2", pairs, tmp_path)
    options = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": len(pairs.records)}
    trainer = prefer(pairs, tmp_path, loss_type=["aot"], beta=0.3, label_smoothing=0.2, **options)
    objective = DPO(beta=0.3, label_smoothing=0.2, store_reference=False)
    batch = read_all(PreferenceShards(str(pairs.shards)), model, objective, pairs)
    ours, theirs = compute(objective, model, batch, frozen=reference), take_step(trainer)
    assert ours.logs["loss"] == pytest.approx(theirs.logs["loss"], rel=1e-5)
    assert_same_gradients(ours, theirs)


def test_dpo_trainer_scores_what_a_template_writes_after_an_answer(tmp_path: Path, pairs: Data, chat: Data) -> None:
    """ChatML's line end after the end of the turn is part of TRL's answer; here, as in SFT, it is not scored."""
    shards, source = tmp_path / "shards", write_records(tmp_path, pairs.records)
    tokenizer = str(chat.shards)
    prepare_preferences(PreparePreferences(source=source, tokenizer=tokenizer, output=shards, split="none"))
    make_models("gpt2", chat, tmp_path)
    trainer = prefer(chat._replace(records=pairs.records), tmp_path)
    after = chat.tokenizer.encode("\n").tolist()
    for pair, row in zip(open_preferences(shards, "train"), trainer.train_dataset, strict=True):
        assert pair.chosen.tolist() == row["prompt_ids"] + row["chosen_ids"]
        assert row["chosen_ids"] == pair.chosen[pair.chosen_loss_mask == 1].tolist() + after


# --- without a reference ---


def make_batch(data: Data) -> dict[str, Any]:
    """Our pairs as TRL's older trainers pad and label them. Their own tokenisation adds tokens to a rendered chat."""
    import torch  # pyright: ignore[reportMissingImports]

    pad = lambda rows, value: torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(row, dtype=torch.long) for row in rows], batch_first=True, padding_value=value
    )
    batch: dict[str, Any] = {}
    found = list(open_preferences(data.shards, "train"))
    for side, number in (("chosen", 0), ("rejected", 2)):
        ids, marks = [pair[number] for pair in found], [pair[number + 1] for pair in found]
        batch[f"{side}_input_ids"] = pad(ids, 0)
        batch[f"{side}_attention_mask"] = pad([np.ones_like(row) for row in ids], 0)
        batch[f"{side}_labels"] = pad([np.where(mark, row, -100) for row, mark in zip(ids, marks, strict=True)], -100)
    return batch


@pytest.mark.parametrize("name", ["simpo", "orpo"])
def test_pairs_give_the_loss_rewards_and_gradients_without_a_reference(tmp_path: Path, pairs: Data, name: str) -> None:
    """TRL's ORPO adds the cross-entropy of the prompt and the answer; here, as in the paper, of the answer alone."""
    pytest.importorskip("trl", reason=REASON)
    datasets = pytest.importorskip("datasets")
    model, _ = make_models("gpt2", pairs, tmp_path)
    batch, options = make_batch(pairs), settings(tmp_path, rows=4, max_length=192)
    rows = datasets.Dataset.from_list([{"prompt": "say", "chosen": "four", "rejected": "five"}])
    theirs, tokenizer = load(tmp_path / "policy")
    tokenizer.pad_token = tokenizer.eos_token
    given = {"train_dataset": rows, "processing_class": tokenizer}
    if name == "simpo":
        from trl.experimental.cpo import CPOConfig, CPOTrainer  # pyright: ignore[reportMissingImports]

        args = CPOConfig(**options, loss_type="simpo", beta=1.5, simpo_gamma=0.7, cpo_alpha=0.0)
        trainer, objective = CPOTrainer(theirs, args=args, **given), SimPO(beta=1.5, margin=0.7)
    else:
        from trl.experimental.orpo import ORPOConfig, ORPOTrainer  # pyright: ignore[reportMissingImports]

        trainer, objective = ORPOTrainer(theirs, args=ORPOConfig(**options, beta=0.3), **given), ORPO(beta=0.3)
    theirs.eval()
    loss, logs = trainer.get_batch_loss_metrics(theirs, batch)
    if name == "orpo":
        outputs: Any = trainer.concatenated_forward(theirs, batch)
        loss = loss - outputs[4] - outputs[0].mean()
    loss.backward()
    gradients = {name: weight.grad.numpy() for name, weight in theirs.named_parameters()}
    ours = compute(objective, model, read_all(PreferenceShards(str(pairs.shards)), model, objective, pairs))
    assert ours.logs["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert_same_gradients(ours, Step({}, gradients))
    for ours_name, theirs_name in REWARDS.items():
        assert ours.logs[ours_name] == pytest.approx(logs[theirs_name], rel=1e-4, abs=1e-5), ours_name
