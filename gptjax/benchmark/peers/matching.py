"""Which peers are asked for, and the work that makes them comparable with a config."""

from dataclasses import dataclass, fields
from typing import Any, Literal

from gptjax.benchmark.peers.torch_client import TorchContestant
from gptjax.benchmark.peers.work import AdamWSettings, DecodingWork, PeerModel, TorchPeer, TrainingWork, Work
from gptjax.config import TrainConfig, load_config
from gptjax.core.errors import UserError
from gptjax.core.files import expand_path
from gptjax.model.config import GPTConfig
from gptjax.objectives.objective import NextToken
from gptjax.optim import AdamW
from gptjax.sharding.mesh import MeshConfig

TorchMode = Literal["both", "eager", "compile"]
PEER_FIELDS = {
    *("num_layers", "embed_dim", "num_heads", "context_length", "vocab_size", "mlp_dim", "bias", "tie_embeddings"),
    *("activation", "norm_epsilon", "dropout", "init", "compute"),
}
"""Fields of GPTConfig that a GPT-2 can have. All others must have their defaults."""
ACTIVATIONS = ("gelu_tanh", "gelu", "relu", "silu")


@dataclass(frozen=True)
class FlaxPeer:
    """`flax_gpt2`, in this process."""

    library: Literal["flax"] = "flax"
    name: str = "flax"


@dataclass(frozen=True)
class ConfigPeer:
    """Another config of gptjax, in this process, as its file has it."""

    config: TrainConfig
    library: Literal["config"] = "config"

    @property
    def name(self) -> str:
        return f"config {self.config.name}"


Peer = TorchPeer | FlaxPeer | ConfigPeer


def parse_peers(spec: str, mode: TorchMode) -> list[Peer]:
    """The peers of one `--peer`: `flax`, another config, or a library in torch eagerly, compiled or both."""
    library, _, directory = spec.partition(":")
    takes_path = library in ("nanogpt", "config")
    if library not in ("nanogpt", "transformers", "flax", "config") or (directory and not takes_path):
        raise UserError(f"--peer={spec} is not known. Give nanogpt:DIR, transformers, flax or config:FILE.")
    if library == "flax":
        return [FlaxPeer()]
    if library == "config":
        return [ConfigPeer(load_config(directory))]
    modes = [compiled for compiled in (False, True) if mode in ("both", "compile" if compiled else "eager")]
    if library == "transformers":
        return [TorchPeer("transformers", compiled) for compiled in modes]
    path = expand_path(directory or ".") / "model.py"
    if not directory or not path.is_file():
        found = f"{path} does not exist" if directory else "no directory is given"
        raise UserError(f"--peer={spec}: {found}. Give --peer=nanogpt:DIR, where DIR/model.py is nanoGPT's.")
    return [TorchPeer("nanogpt", compiled, str(path.parent.absolute())) for compiled in modes]


def check_comparable(peer: Peer, config: TrainConfig, *, mesh: MeshConfig, decode: bool) -> list[str]:
    """Notes on what differs between the peer and the config. Raises `UserError` where the two are not comparable."""
    model, notes = config.model, []
    if isinstance(peer, ConfigPeer):
        if decode:
            raise UserError("--peer=config:FILE compares training steps. Leave it or --decode out.")
        return notes
    lacking = [f.name for f in fields(model) if f.name not in PEER_FIELDS and getattr(model, f.name) != f.default]
    lacking += ["activation"] if model.activation not in ACTIVATIONS else []
    if lacking:
        found = ", ".join(f"model.{name}={getattr(model, name)!r}" for name in lacking)
        raise UserError(f"Peers are GPT-2s, which lack {found}. Choose a GPT-2 config such as configs/gpt2_cpu.py.")
    if mesh.num_devices > 1:
        raise UserError(f"Peers run on one device, but the mesh is {mesh.describe()}. Add --mesh=single.")
    if peer.library == "transformers" and not model.bias:
        raise UserError("transformers' GPT-2 always has biases, but model.bias is False. Add --model.bias.")
    if model.compute.dtype == "float16":
        raise UserError("Peers compute in bfloat16 or float32, not in float16. Add --model.compute.dtype=bfloat16.")
    if peer.library == "nanogpt":
        notes += _check_nanogpt(model, decode=decode)
    if decode:
        if peer.library == "flax":
            raise UserError("--peer=flax has no generation. Use --peer=transformers with --decode.")
        return notes
    if type(config.objective) is not NextToken:
        raise UserError(f"Peers predict the next token; the objective is {type(config.objective).__name__}. Drop it.")
    if type(config.optimizer) is not AdamW:
        notes.append(f"{peer.library} runs AdamW; the config's optimizer is {type(config.optimizer).__name__}")
    if config.ema.enabled:
        notes.append(f"{peer.library} keeps no average of the weights; the config does")
    return notes


def _check_nanogpt(model: GPTConfig, *, decode: bool) -> list[str]:
    if decode:
        raise UserError("--peer=nanogpt generates without a cache. Use --peer=transformers with --decode.")
    fixed = {"hidden_dim": 4 * model.embed_dim, "tie_embeddings": True, "norm_epsilon": 1e-5}
    for name, wanted in fixed.items():
        if (found := getattr(model, name)) != wanted:
            raise UserError(f"nanoGPT's model has {name} {wanted}; the config's is {found}. Choose another peer.")
    if model.activation != "gelu":
        return [f"nanogpt has the exact GELU; the config has {model.activation} (--model.activation=gelu is the same)"]
    return []


def make_peer_model(model: GPTConfig) -> PeerModel:
    return PeerModel(
        num_layers=model.num_layers,
        embed_dim=model.embed_dim,
        num_heads=model.num_heads,
        context_length=model.context_length,
        vocab_size=model.padded_vocab_size,
        mlp_dim=model.hidden_dim,
        activation=model.activation,  # pyright: ignore[reportArgumentType]
        bias=model.bias,
        dropout=model.dropout,
        tie_embeddings=model.tie_embeddings,
        norm_epsilon=model.norm_epsilon,
        dtype=model.compute.dtype,  # pyright: ignore[reportArgumentType] (prepare_device has resolved `auto`)
    )


def make_training_work(config: TrainConfig) -> TrainingWork:
    """The first phase of a config for a peer, with the config's AdamW or, for another optimizer, AdamW's defaults."""
    optimizer = config.optimizer if isinstance(config.optimizer, AdamW) else AdamW()
    batch = config.phases[0].batch
    return TrainingWork(
        model=make_peer_model(config.model),
        optimizer=AdamWSettings(
            optimizer.learning_rate, optimizer.beta1, optimizer.beta2, optimizer.weight_decay, optimizer.clip_norm
        ),
        rows=batch.microbatch,
        grad_accum=batch.grad_accum,
        seed=config.seed,
    )


def make_decoding_work(config: TrainConfig, *, rows: int, prompt_tokens: int, new_tokens: int) -> DecodingWork:
    model = make_peer_model(config.model)
    return DecodingWork(model, rows=rows, prompt_tokens=prompt_tokens, new_tokens=new_tokens, seed=config.seed)


def open_peer(peer: TorchPeer | FlaxPeer, work: Work) -> Any:
    """A peer other than a config as a contestant, which the caller closes.

    Raises:
        UserError: a package is missing, or the peer failed.
        OutOfMemory: the work does not fit.
    """
    if isinstance(peer, TorchPeer):
        return TorchContestant(peer, work)
    from gptjax.benchmark.peers.flax_gpt2 import FlaxTraining

    assert isinstance(work, TrainingWork)
    return FlaxTraining(work)
