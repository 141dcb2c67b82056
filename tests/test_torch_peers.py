"""Peers in torch, asked as the worker process asks them; and the worker itself."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gptjax.benchmark.peers import torch_worker
from gptjax.benchmark.peers.torch_client import TorchContestant
from gptjax.benchmark.peers.work import (
    AdamWSettings,
    DecodingWork,
    PeerModel,
    TorchPeer,
    TrainingWork,
    Work,
)
from gptjax.core.serialization import to_json

pytestmark = pytest.mark.parity

MODEL = PeerModel(
    num_layers=1,
    embed_dim=32,
    num_heads=2,
    context_length=8,
    vocab_size=16,
    mlp_dim=128,
    activation="gelu",
    bias=True,
    dropout=0.0,
    tie_embeddings=True,
    norm_epsilon=1e-5,
    dtype="float32",
)
TRAINING = TrainingWork(MODEL, AdamWSettings(1e-2, 0.9, 0.95, 0.1, 1.0), rows=4, grad_accum=2)
DECODING = DecodingWork(MODEL, rows=2, prompt_tokens=3, new_tokens=4)
NANOGPT = '''
from dataclasses import dataclass

import torch
from torch import nn


@dataclass
class GPTConfig:
    block_size: int
    vocab_size: int
    n_layer: int
    n_head: int
    n_embd: int
    dropout: float
    bias: bool


class GPT(nn.Module):
    """The interface of nanoGPT around a bigram model."""

    def __init__(self, config):
        super().__init__()
        print("printed between the answers")
        self.table = nn.Embedding(config.vocab_size, config.vocab_size)

    def configure_optimizers(self, weight_decay, learning_rate, betas, device_type):
        return torch.optim.AdamW(self.parameters(), lr=learning_rate, betas=betas, weight_decay=weight_decay)

    def forward(self, idx, targets=None):
        logits = self.table(idx)
        return logits, nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
'''


def ask(peer: TorchPeer, work: Work, *counts: int) -> list[dict[str, Any]]:
    """The answers of a worker to these requests, without a process."""
    requests = [{"peer": to_json(peer), "work": to_json(work)}, *({"count": count} for count in counts)]
    answers: list[str] = []
    torch_worker.serve(map(json.dumps, requests), answers.append)
    return [json.loads(line) for line in answers]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_transformers_trains_on_four_batches(dtype: Any) -> None:
    work = replace(TRAINING, model=replace(MODEL, dtype=dtype))
    software, first, last = ask(TorchPeer("transformers", compiled=False), work, 1, 40)
    assert software.keys() == {"torch", "device", "threads"}
    assert last["seconds"] > 0
    assert last["loss"] < first["loss"] < 1.2 * math.log(MODEL.vocab_size)


def test_nanogpt_is_read_from_its_directory_in_a_process(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(NANOGPT)
    worker = TorchContestant(TorchPeer("nanogpt", compiled=False, directory=str(tmp_path)), TRAINING)
    assert worker.run(2) > 0
    worker.close()


def test_transformers_generates_the_tokens_that_are_asked_for() -> None:
    _, answer = ask(TorchPeer("transformers", compiled=False), DECODING, 2)
    assert answer["seconds"] > 0


def test_failing_peer_answers_with_its_error(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("GPTConfig = dict\n")
    (answer,) = ask(TorchPeer("nanogpt", compiled=False, directory=str(tmp_path)), TRAINING)
    assert answer == {"error": "AttributeError: module 'nanogpt_model' has no attribute 'GPT'", "kind": "other"}
