"""GPT-2 in torch: Hugging Face's, and nanoGPT's from a directory that the user names. Needs torch."""

import importlib.util
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch  # pyright: ignore[reportMissingImports]  (an extra)

from gptjax.benchmark.peers.work import DecodingWork, PeerModel, TorchPeer, TrainingWork

NUM_BATCHES = 4
TRIALS = 2
"""Times that each number of threads is tried."""
HF_ACTIVATIONS = {"gelu_tanh": "gelu_pytorch_tanh", "gelu": "gelu", "relu": "relu", "silu": "silu"}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def choose_threads(run_once: Callable[[], Any]) -> None:
    """On a CPU, the number of threads with which `run_once` is fastest: all cores, half of them, or one.

    torch's threads wait for the slowest, so on a machine with other work all cores may be slower than one.
    OMP_NUM_THREADS decides, if it is set.
    """
    if DEVICE != "cpu" or "OMP_NUM_THREADS" in os.environ:
        return
    cores = len(os.sched_getaffinity(0))
    counts = sorted({1, max(1, cores // 2), cores})
    seconds = dict.fromkeys(counts, float("inf"))
    for _ in range(1 + TRIALS):  # the first is warm-up, too
        for count in counts:
            torch.set_num_threads(count)
            began_at = time.perf_counter()
            run_once()
            seconds[count] = min(seconds[count], time.perf_counter() - began_at)
    torch.set_num_threads(min(counts, key=lambda count: seconds[count]))


def describe() -> dict[str, Any]:
    """The software and device of a peer."""
    name = torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu"
    return {"torch": torch.__version__, "device": name, "threads": torch.get_num_threads()}


def make_transformers(model: PeerModel, *, training: bool) -> Any:
    """Hugging Face's GPT2LMHeadModel with new weights and torch's fused attention."""
    from transformers import GPT2Config, GPT2LMHeadModel  # pyright: ignore[reportMissingImports]

    config = GPT2Config(
        n_layer=model.num_layers,
        n_embd=model.embed_dim,
        n_head=model.num_heads,
        n_positions=model.context_length,
        n_inner=model.mlp_dim,
        vocab_size=model.vocab_size,
        activation_function=HF_ACTIVATIONS[model.activation],
        layer_norm_epsilon=model.norm_epsilon,
        tie_word_embeddings=model.tie_embeddings,
        resid_pdrop=model.dropout,
        embd_pdrop=model.dropout,
        attn_pdrop=model.dropout,
        bos_token_id=0,
        eos_token_id=None,
        use_cache=not training,
    )
    config._attn_implementation = "sdpa"
    return GPT2LMHeadModel(config)


def make_nanogpt(model: PeerModel, directory: str) -> Any:
    """The class GPT of DIRECTORY/model.py, by nanoGPT's interface."""
    path = Path(directory) / "model.py"
    spec = importlib.util.spec_from_file_location("nanogpt_model", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.GPTConfig(
        block_size=model.context_length,
        vocab_size=model.vocab_size,
        n_layer=model.num_layers,
        n_head=model.num_heads,
        n_embd=model.embed_dim,
        dropout=model.dropout,
        bias=model.bias,
    )
    return module.GPT(config)


class TorchTraining:
    """A plain training loop: autocast, accumulation, clipping, AdamW (fused where torch has it)."""

    def __init__(self, peer: TorchPeer, work: TrainingWork) -> None:
        torch.manual_seed(work.seed)
        self.peer, self.work = peer, work
        if peer.library == "nanogpt":
            model = make_nanogpt(work.model, peer.directory or ".")
        else:
            model = make_transformers(work.model, training=True)
        self.parameters = list(model.to(DEVICE).train().parameters())
        self.optimizer = self._make_optimizer(model)
        shape = (NUM_BATCHES, work.grad_accum, work.rows, work.model.context_length + 1)
        tokens = torch.randint(0, work.model.vocab_size, shape, device=DEVICE)
        self.inputs, self.targets = tokens[..., :-1].contiguous(), tokens[..., 1:].contiguous()
        self.model = model
        choose_threads(lambda: self.run(1))
        self.model = torch.compile(model) if peer.compiled else model  # threads are part of compiled code

    def _make_optimizer(self, model: Any) -> torch.optim.Optimizer:
        settings = self.work.optimizer
        betas = (settings.beta1, settings.beta2)
        if self.peer.library == "nanogpt":
            return model.configure_optimizers(settings.weight_decay, settings.learning_rate, betas, DEVICE)
        groups = [
            {"params": [p for p in self.parameters if p.dim() >= 2], "weight_decay": settings.weight_decay},
            {"params": [p for p in self.parameters if p.dim() < 2], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=betas, fused=True)

    def run(self, count: int) -> dict[str, float]:
        """Run steps and wait for them."""
        began_at, loss = time.perf_counter(), torch.zeros(())
        for index in range(count):
            loss = self.step(index % NUM_BATCHES)
        value = float(loss.detach())  # waits
        return {"seconds": time.perf_counter() - began_at, "loss": value}

    def step(self, index: int) -> Any:
        accum, clip_norm = self.work.grad_accum, self.work.optimizer.clip_norm
        mixed = self.work.model.dtype == "bfloat16"
        loss = None
        for inputs, targets in zip(self.inputs[index], self.targets[index], strict=True):
            with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=mixed):
                loss = self.compute_loss(inputs, targets)
            (loss / accum).backward()
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss

    def compute_loss(self, inputs: Any, targets: Any) -> Any:
        if self.peer.library == "nanogpt":
            return self.model(inputs, targets)[1]
        logits = self.model(inputs, use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


class TorchDecoding:
    """`model.generate`: greedy, with a key-value cache, weights in the type of products."""

    def __init__(self, peer: TorchPeer, work: DecodingWork) -> None:
        torch.manual_seed(work.seed)
        self.work = work
        dtype = getattr(torch, work.model.dtype)
        self.model = make_transformers(work.model, training=False).to(DEVICE, dtype).eval()
        self.settings: dict[str, Any] = {}
        self.prompt = torch.randint(0, work.model.vocab_size, (work.rows, work.prompt_tokens), device=DEVICE)
        choose_threads(self.generate)
        if peer.compiled:  # generate compiles by itself on GPUs only
            self.model.forward = torch.compile(self.model.forward)
            self.settings["cache_implementation"] = "static"

    def run(self, count: int) -> dict[str, float]:
        """Continue the prompts so many times. Both ends are fixed, so every run does the same work."""
        began_at = time.perf_counter()
        for _ in range(count):
            rows = self.generate()
            assert rows.shape[1] == self.work.prompt_tokens + self.work.new_tokens
        return {"seconds": time.perf_counter() - began_at}

    @torch.inference_mode()
    def generate(self) -> Any:
        number = self.work.new_tokens
        return self.model.generate(
            self.prompt,
            attention_mask=torch.ones_like(self.prompt),
            max_new_tokens=number,
            min_new_tokens=number,
            do_sample=False,
            pad_token_id=0,
            **self.settings,
        ).cpu()


def open_work(peer: TorchPeer, work: TrainingWork | DecodingWork) -> Callable[[int], dict[str, float]]:
    """What runs the work so many times and returns `seconds`, and `loss` in training."""
    if isinstance(work, TrainingWork):
        return TorchTraining(peer, work).run
    return TorchDecoding(peer, work).run
