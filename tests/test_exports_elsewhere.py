"""Exports in ctranslate2, keras-hub and llama.cpp: they load as they are, and have the same ids, numbers and texts."""

import json
import os
import urllib.request
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hf_architectures import GPT2_CONFIG, LLAMA_CONFIG, compute_logits, draw_model, draw_tokens
from test_gguf_export import TOKENIZER

from gptjax.convert import main
from gptjax.huggingface.architectures.weight_map import DTYPES, format_path
from gptjax.model import gpt, mlp, module
from gptjax.model.config import GPTConfig
from gptjax.model.gpt import GPT
from gptjax.model.layers import ACTIVATIONS
from gptjax.runs.run_dir import write_imported_run
from gptjax.sharding.devices import DType

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("default")]

CONFIGS = {
    "gpt2": replace(GPT2_CONFIG, vocab_size=TOKENIZER.vocab_size),
    "llama": replace(LLAMA_CONFIG, vocab_size=TOKENIZER.vocab_size, num_kv_heads=2, norm_epsilon=1e-6),
}
PROMPT_SEEDS = {"gpt2": 15, "llama": 13}
"""Of prompts whose continuation is nowhere decided by less than 0.1 nats."""
TEXT = "the thing — they said:\n\n  naïve 123's\ttheatre 日本 🙂 the "
PROMPT_LENGTH, LENGTHS = 4, (1, 2, 5, 9, 15)
"""Tokens of the prompt that is continued greedily, and of the prefixes whose next token is predicted."""


@dataclass(frozen=True)
class Run:
    directory: Path
    model: GPT
    config: GPTConfig
    tokens: np.ndarray
    """(1, T)."""

    @property
    def greedy(self) -> list[int]:
        """The likeliest tokens after the prompt, up to the context."""
        tokens = self.tokens.copy()
        for place in range(PROMPT_LENGTH, tokens.shape[1]):
            tokens[:, place] = compute_logits(self.model, tokens)[:, place - 1].argmax(-1)
        return tokens[0, PROMPT_LENGTH:].tolist()


@pytest.fixture(scope="module", params=CONFIGS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with drawn weights."""
    config, directory = CONFIGS[request.param], tmp_path_factory.mktemp(request.param) / "run"
    model = draw_model(config)
    write_imported_run(directory, model=model, tokenizer=TOKENIZER)
    return Run(directory, model, config, draw_tokens(config, seed=PROMPT_SEEDS[request.param], rows=1))


@pytest.fixture(scope="module")
def export(run: Run) -> Path:
    directory = run.directory.with_name("hf")
    main(["to-hf", f"--checkpoint={run.directory}", f"--output={directory}", "--no-verify"])
    return directory


def log_softmax(logits: Any) -> np.ndarray:
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def test_ctranslate2_loads_an_export_as_it_is(run: Run, export: Path) -> None:
    ctranslate2 = pytest.importorskip("ctranslate2")
    transformers = pytest.importorskip("transformers")
    directory = export.with_name("ctranslate2")
    ctranslate2.converters.TransformersConverter(str(export)).convert(str(directory))
    vocabulary: list[str] = json.loads((directory / "vocabulary.json").read_text(encoding="utf-8"))
    words = transformers.AutoTokenizer.from_pretrained(export).tokenize(TEXT)
    assert [vocabulary.index(word) for word in words] == TOKENIZER.encode(TEXT).tolist()

    generator = ctranslate2.Generator(str(directory), device="cpu", intra_threads=1)
    spelled = [vocabulary[i] for i in run.tokens[0]]
    found = log_softmax(np.array(generator.forward_batch([spelled])))
    np.testing.assert_allclose(found, log_softmax(compute_logits(run.model, run.tokens)), rtol=0, atol=1e-4)
    [result] = generator.generate_batch(
        [spelled[:PROMPT_LENGTH]], max_length=len(run.greedy), sampling_topk=1, include_prompt_in_result=False
    )
    assert result.sequences_ids[0] == run.greedy


def test_keras_hub_loads_an_export_as_it_is(run: Run, export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "KERAS_BACKEND", "jax")
    keras_hub = pytest.importorskip("keras_hub")
    with jax.numpy_rank_promotion("allow"):  # which it relies on, and the other tests forbid
        check_keras_hub(keras_hub, run, export)


def check_keras_hub(keras_hub: Any, run: Run, export: Path) -> None:
    model = keras_hub.models.CausalLM.from_preset(str(export))
    assert np.asarray(model.preprocessor.tokenizer(TEXT)).tolist() == TOKENIZER.encode(TEXT).tolist()
    found = log_softmax(model({"token_ids": run.tokens, "padding_mask": np.ones_like(run.tokens)}))
    np.testing.assert_allclose(found, log_softmax(compute_logits(run.model, run.tokens)), rtol=0, atol=1e-4)

    model.preprocessor = None
    model.compile(sampler="greedy")
    is_prompt = np.arange(run.tokens.shape[1])[None] < PROMPT_LENGTH
    prompt = {"token_ids": np.where(is_prompt, run.tokens, 0), "padding_mask": is_prompt}
    continued = np.asarray(model.generate(prompt, stop_token_ids=None)["token_ids"])
    assert continued[0, PROMPT_LENGTH:].tolist() == run.greedy


# --- llama.cpp ---


@dataclass(frozen=True)
class LlamaServer:
    server: Any

    def encode(self, text: str) -> list[int]:
        body = json.dumps({"content": text}).encode()
        request = urllib.request.Request(
            f"{self.server.listening_address}/tokenize", body, {"Content-Type": "application/json"}
        )
        return json.load(urllib.request.urlopen(request))["tokens"]

    def predict(self, prompt: list[int]) -> np.ndarray:
        """Log-probabilities (V,) of the next token. The server lists none beside half a character, so it says "A"."""
        reply = self.complete(prompt, 1, n_probs=TOKENIZER.vocab_size, logit_bias=[[65, 1000.0]])
        found = np.full(TOKENIZER.vocab_size, np.nan)
        for one in reply["logprobs"]["content"][0]["top_logprobs"]:
            found[one["id"]] = one["logprob"]
        return found

    def continue_greedily(self, prompt: list[int], length: int) -> list[int]:
        """Token by token, because the server does not list the ids of what it writes."""
        written: list[int] = []
        for _ in range(length):
            written.append(int(np.nanargmax(self.predict([*prompt, *written]))))
        return written

    def complete(self, prompt: list[int], length: int, **options: Any) -> dict[str, Any]:
        request = {"prompt": prompt, "n_predict": length, "temperature": 0, "cache_prompt": False, **options}
        return self.server.handle_completions(request)["choices"][0]


def start_llama(path: Path, *, context_length: int) -> LlamaServer:
    """A server with keys and values in float32. Its default, float16, costs 4e-3 in these log-probabilities."""
    xllamacpp = pytest.importorskip("xllamacpp")
    options = xllamacpp.CommonParams()
    options.model.path, options.n_ctx, options.n_parallel = str(path), context_length, 1
    options.warmup, options.n_gpu_layers, options.cache_ram_mib, options.verbosity = False, 0, 0, -1
    options.cpuparams.n_threads = options.cpuparams_batch.n_threads = 1
    options.cache_type_k = options.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    options.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return LlamaServer(xllamacpp.Server(options))


@pytest.fixture(scope="module", params=["float32", "float16", "bfloat16"])
def gguf_file(run: Run, request: pytest.FixtureRequest) -> tuple[Path, DType]:
    pytest.importorskip("gguf")
    pytest.importorskip("xllamacpp")
    dtype: DType = request.param
    path = run.directory.with_name(f"{dtype}.gguf")
    main(["to-gguf", f"--checkpoint={run.directory}", f"--output={path}", f"--dtype={dtype}"])
    return path, dtype


TOLERANCES = {"float32": 2e-3, "float16": 3e-3, "bfloat16": 3e-2}
"""A number near the middle of two of a type is rounded to either, and the layers after it enlarge the difference."""


def test_llama_cpp_loads_a_gguf_as_it_is(
    run: Run, gguf_file: tuple[Path, DType], monkeypatch: pytest.MonkeyPatch
) -> None:
    """llama.cpp rounds what meets a matrix to the matrix's type, and its GELU is a table in float16. So do we here."""
    path, dtype = gguf_file
    greedy = run.greedy
    server = start_llama(path, context_length=run.config.context_length)
    assert server.encode(TEXT) == TOKENIZER.encode(TEXT).tolist()
    prompt = run.tokens[0].tolist()
    found = np.stack([server.predict(prompt[:length]) for length in LENGTHS])

    rounded = compute_rounded_logits(run, dtype, monkeypatch)
    places = np.array(LENGTHS) - 1
    np.testing.assert_allclose(found, log_softmax(rounded)[0, places], rtol=0, atol=TOLERANCES[dtype])
    assert server.continue_greedily(prompt[:PROMPT_LENGTH], len(greedy)) == greedy


def compute_rounded_logits(run: Run, dtype: DType, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    project, multiply, gelu = module.project, gpt.multiply, ACTIVATIONS["gelu_tanh"]
    with monkeypatch.context() as patch:
        patch.setattr(module, "project", lambda axes, x, *rest, **named: project(axes, cut(x, dtype), *rest, **named))
        patch.setattr(gpt, "multiply", lambda x, *rest, **named: multiply(cut(x, dtype), *rest, **named))
        rounded = {"gelu_tanh": lambda x: cut(gelu(cut(x, "float16")), "float16")}
        patch.setattr(mlp, "ACTIVATIONS", ACTIVATIONS | rounded)
        jax.clear_caches()  # of layers that were traced without rounding
        logits = compute_logits(round_matrices(run.model, dtype), run.tokens)
    jax.clear_caches()
    return logits


def cut(x: jax.Array, dtype: DType) -> jax.Array:
    """x with the digits of a type. XLA would leave out a conversion there and back."""
    exponent, mantissa = {"float32": (8, 23), "float16": (5, 10), "bfloat16": (8, 7)}[dtype]
    return jax.lax.reduce_precision(x, exponent, mantissa)


def round_matrices(model: GPT, dtype: DType) -> GPT:
    """The model with each matrix as a file of this type holds it."""

    def round_one(path: Any, leaf: Any) -> Any:
        values, name = leaf.get_value(), format_path(path)
        if values.ndim < 2 or name == "position_embedding" or name.endswith(("scale", "bias")):
            return leaf
        return leaf.replace(jnp.asarray(np.asarray(values).astype(DTYPES[dtype]).astype(np.float32)))

    return jax.tree.map_with_path(round_one, model, is_leaf=lambda leaf: isinstance(leaf, nnx.Param))
