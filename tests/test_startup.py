import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
import pytest
from tiny import ALPHABET, MODEL, SINGLE, text_of, tiny_config, tokenizer, write_shards, write_text_shards

from data_pipelines.prepare import Prepare, prepare
from data_pipelines.prepared import Prepared
from data_pipelines.runtime.options import suggest_next
from gptjax.checkpoints.checkpoint_format import flatten_by_name
from gptjax.cli.command_line import parse_config
from gptjax.config import TrainConfig, load_config
from gptjax.core.errors import UserError
from gptjax.data.config import Mixture, MixtureComponent, TokenShards
from gptjax.data.shards import write_shard
from gptjax.data.splits import MissingSplit
from gptjax.evaluators.bigram import BigramBaseline
from gptjax.evaluators.evaluator import EvalContext, OpenEvaluator
from gptjax.evaluators.samples import Samples
from gptjax.evaluators.validation import ValidationLoss
from gptjax.huggingface.architectures.selection import choose_architecture
from gptjax.huggingface.model_dir import write_model
from gptjax.model.config import ComputeConfig
from gptjax.model.gpt import GPT
from gptjax.optim import AdamW
from gptjax.runs.checkpoint_source import open_checkpoint
from gptjax.runs.run_dir import RunDir, write_imported_run, write_run_files
from gptjax.runs.startup import (
    check_restorable,
    initialize_state,
    make_read_spec,
    open_evaluators,
    prepare_config,
    prepare_device,
)
from gptjax.sharding.devices import preferred_dtype
from gptjax.tokenization.tokenizer import Chars


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_shards(tmp_path_factory.mktemp("startup") / "shards")


@pytest.fixture(scope="module")
def source(shards: Path) -> Path:
    """A run directory with weights to start from."""
    directory = shards.parent / "source"
    write_imported_run(directory, model=jax.jit(lambda: GPT(MODEL, key=jax.random.key(0)))(), tokenizer=tokenizer())
    return directory


def open_data(config: TrainConfig) -> None:
    config, own = prepare_config(config)
    config.data.open(make_read_spec(config, own))
    open_evaluators(config, own, SINGLE)


def test_vocabulary_is_that_of_the_tokenizer(shards: Path) -> None:
    config, own = prepare_config(tiny_config(shards, model={"vocab_size": None}))
    assert own is not None
    assert config.model.vocab_size == own.vocab_size == len(ALPHABET)


@pytest.mark.parametrize("vocab_size", [50, 127])
def test_vocabulary_of_another_size_is_refused(shards: Path, vocab_size: int) -> None:
    message = rf"model\.vocab_size is {vocab_size}, but .* has 48 tokens\. Give --model\.vocab-size=48"
    with pytest.raises(UserError, match=message):
        prepare_config(tiny_config(shards, model={"vocab_size": vocab_size}))


def test_vocabulary_may_include_the_padding(shards: Path) -> None:
    assert prepare_config(tiny_config(shards, model={"vocab_size": 128}))[0].model.vocab_size == 128


def test_relative_data_path_becomes_absolute(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shards.parent)
    data = prepare_config(tiny_config(shards, data=TokenShards(path=shards.name)))[0].data
    assert isinstance(data, TokenShards)
    assert data.path == str(shards)


def test_foreign_shards_take_the_tokenizer_that_is_named(shards: Path, tmp_path: Path) -> None:
    ids = [TokenShards(path=str(shards)).open_stream("train").read(0, 500)]
    foreign = write_shards(tmp_path / "foreign", {"train": ids, "val": ids})
    config = tiny_config(foreign, model={"vocab_size": None})
    prepared, own = prepare_config(config)
    assert own is None
    with pytest.raises(UserError, match=r"model\.vocab_size is not known"):
        make_read_spec(prepared, own)
    named = TokenShards(path=str(foreign), tokenizer=str(shards / "tokenizer.json"))
    prepared, own = prepare_config(replace(config, data=named))
    assert own is not None
    assert prepared.model.vocab_size == own.vocab_size == len(ALPHABET)
    with pytest.raises(UserError, match=r"data\.tokenizer is 'bytes', but the shards were made with chars-48"):
        prepare_config(tiny_config(shards, data=TokenShards(path=str(shards), tokenizer="bytes")))


@pytest.mark.parametrize("split", ["train", "val"])
def test_foreign_shard_of_another_vocabulary_is_named(tmp_path: Path, split: str) -> None:
    parts = {"train": [np.arange(500) % 48] * 2, "val": [np.arange(500) % 48]}
    parts[split][-1] = np.arange(500) % 78
    config = tiny_config(write_shards(tmp_path / "other", parts), evaluators=(ValidationLoss(),))
    with pytest.raises(UserError, match=rf"token id 77 in .*{split}.* is beyond model\.vocab_size 48"):
        open_data(config)


def test_documents_with_unknown_starts_are_refused(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_shard(tmp_path / f"{split}.bin", np.arange(500, dtype=np.uint16) % 60)
    config = tiny_config(tmp_path, model={"intra_document_mask": True, "vocab_size": 64})
    with pytest.raises(UserError, match="it is unknown where its documents begin"):
        open_data(config)


@pytest.mark.parametrize("kind", ["run", "saved model"])
def test_init_from_weights_decide_the_shape(
    shards: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture, kind: str
) -> None:
    run = RunDir.open(source)
    if kind == "saved model":
        source, model = tmp_path, run.load_model()
        write_model(
            source,
            model,
            architecture=choose_architecture(MODEL),
            dtype="float32",
            origin=None,
            tokenizer=run.tokenizer,
        )
    wanted = {"embed_dim": 64, "num_layers": 9, "context_length": 8, "dropout": 0.3}
    config, own = prepare_config(tiny_config(shards, name="next", init_from=str(source), model=wanted))
    assert config.model == replace(MODEL, context_length=8, dropout=0.3)
    assert own is not None
    assert own.fingerprint == tokenizer().fingerprint
    printed = capsys.readouterr().out
    assert "model.embed_dim: 64 → 32, as the weights have it" in printed
    assert "model.context_length: 8, where the weights were trained with 16" in printed
    state = initialize_state(config, SINGLE)
    assert state.model.config == config.model
    weights = flatten_by_name(run.load_model())
    for name, array in flatten_by_name(state.model).items():
        rows = len(ALPHABET) if name == "token_embedding" else len(array)  # an export has no rows of padding
        np.testing.assert_array_equal(np.asarray(array)[:rows], np.asarray(weights[name])[:rows])


def test_init_from_is_opened_before_data_is_prepared(shards: Path) -> None:
    class Unprepared(TokenShards):
        def resolve(self) -> TokenShards:
            raise AssertionError("hours of preparation")

    with pytest.raises(UserError, match="runs/absent is not there"):
        prepare_config(tiny_config(shards, data=Unprepared(), init_from="runs/absent"))


def test_init_from_is_compared_before_data_is_prepared(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPTJAX_CACHE", str(tmp_path / "cache"))
    (tmp_path / "own.txt").write_text(text_of(99))
    for spec, said in (
        ("bytes", r"is made with --data\.tokenizer=bytes, they differ in kind .*"),
        ("bpe:1024", r"is made with --data\.tokenizer=bpe:1024, learned from its text"),
    ):
        data = Prepared(source=f"{tmp_path}/own.txt", tokenizer=spec)
        with pytest.raises(UserError, match=rf"{said}, but .* was trained with chars-48\. Give --data\.tokenizer=/"):
            prepare_config(tiny_config(tmp_path, data=data, init_from=str(source)))
        mixture = Mixture((MixtureComponent(TokenShards(path="ids")), MixtureComponent(data)))
        with pytest.raises(UserError, match=r"Give --data\.components\.1\.data\.tokenizer=/"):
            prepare_config(tiny_config(tmp_path, data=mixture, init_from=str(source)))
    for spec in ("chars", str(source)):
        assert Prepared(tokenizer=spec).foresee_mismatch(open_checkpoint(str(source)).require_tokenizer()) is None
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("length", [50, 190, 400])
@pytest.mark.parametrize("of_model", [True, False])
def test_command_that_prepare_prints_finds_rows(source: Path, tmp_path: Path, length: int, of_model: bool) -> None:
    """Also where the model has fewer positions than the config asks for, and the text fewer tokens."""
    (tmp_path / "own.txt").write_text(text_of(99)[:length])
    given = str(source) if of_model else "bytes"
    options = Prepare(source=f"{tmp_path}/own.txt", output=tmp_path / "data", tokenizer=given, split="none")
    line = suggest_next(options, prepare(options).splits)
    _, _, _, command, *words = shlex.split(line)
    assert command == "gptjax.train"
    request = parse_config(TrainConfig, [*words, f"--output-dir={tmp_path}"], prog="train", description="")
    config, own = prepare_config(request.config, explicit_fields=request.explicit_fields)
    rows = config.data.open(make_read_spec(config, own)).read(np.arange(1))
    assert rows["tokens"].shape == (1, config.model.context_length)


def test_init_from_another_tokenizer_is_refused(source: Path, tmp_path: Path) -> None:
    other = Chars({char: i for i, char in enumerate(reversed(ALPHABET))})
    ids = other.encode(text_of(20))
    data = write_shards(tmp_path / "shards", {"train": [ids], "val": [ids]}, own=other)
    with pytest.raises(
        UserError, match=r"was made with chars-48, but .*source was trained with chars-48: they differ in tokens\. "
    ):
        prepare_config(tiny_config(data, init_from=str(source)))


def test_run_that_was_stopped_before_a_checkpoint_is_no_source(shards: Path, source: Path, tmp_path: Path) -> None:
    """Once it has one, its weights count, and another name begins a new run."""
    config = tiny_config(shards, output_dir=str(tmp_path), init_from=str(source))
    other = Chars({char: i for i, char in enumerate(reversed(ALPHABET))})
    write_run_files(config.directory, replace(config, model=replace(config.model, vocab_size=99)), other)
    assert prepare_config(config)[0].model == config.model
    with pytest.raises(UserError, match="runs/absent is not there"):
        prepare_config(replace(config, init_from="runs/absent"))
    (config.directory / "checkpoints" / "1").mkdir(parents=True)
    with pytest.raises(UserError, match=r"differ in tokens.*, or choose another --name"):
        prepare_config(config)


def test_samples_without_tokenizer_are_skipped_with_a_note(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    ids = [np.arange(500) % 48]
    config = tiny_config(write_shards(tmp_path / "foreign", {"train": ids, "val": ids}), evaluators=(Samples(),))
    assert open_evaluators(config, None, SINGLE).opened == ()
    assert "note: Samples is skipped" in capsys.readouterr().out


@dataclass(frozen=True)
class Essay:
    """An evaluator of one's own that writes a text alone."""

    metrics: ClassVar[tuple[str, ...]] = ()

    def should_run(self, step: int, *, steps: int) -> bool:
        return step == steps

    def open(self, context: EvalContext) -> OpenEvaluator:
        return lambda model: {"essay": "…"}


class NotFrozen:
    """An evaluator that is no dataclass."""

    should_run, open = Essay.should_run, Essay.open


def test_data_without_a_validation_split_are_refused_or_trained_on_without_it(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    data = write_shards(tmp_path / "data", {"train": [np.arange(500) % 48]})
    config = tiny_config(data, evaluators=(BigramBaseline(), ValidationLoss(), Essay()), require_validation=True)
    with pytest.raises(MissingSplit, match=r"no files of the split 'val'.* train with --no-require-validation"):
        open_evaluators(config, None, SINGLE)
    without = replace(config, require_validation=False)
    assert [type(one) for one, _ in open_evaluators(without, None, SINGLE).opened] == [Essay]
    assert "note: ValidationLoss is skipped: the data has no validation split" in capsys.readouterr().out
    with pytest.raises(UserError, match="patience 5 would never end"):
        open_evaluators(replace(without, patience=5), None, SINGLE)
    for name in ("own_text_cpu", "own_finetune_cpu", "own_chats_cpu", "own_pairs_cpu"):
        assert not load_config(name).require_validation
        assert any(isinstance(one, ValidationLoss) for one in load_config(name).evaluators)


def test_patience_without_an_evaluation_is_refused(shards: Path) -> None:
    config = tiny_config(shards, patience=5, evaluators=(Samples(), Essay()))
    with pytest.raises(UserError, match=r"'val_loss', which no evaluator measures: .* patience 5 would never end"):
        open_evaluators(config, None, SINGLE)


@dataclass(frozen=True)
class Doubling(AdamW):
    """Does not come back from its own JSON."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "learning_rate", 2 * self.learning_rate)


@dataclass(frozen=True)
class Hidden(AdamW):
    """Holds a value that is no argument."""

    secret: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "secret", id(self))


def make_local_class() -> AdamW:
    @dataclass(frozen=True)
    class Local(AdamW):
        pass

    return Local()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (make_local_class, "Local is defined inside make_local_class"),
        (Doubling, r"optimizer\.learning_rate is 0\.0012 and would come back as 0\.0024"),
        (Hidden, r"optimizer\.secret is"),
    ],
)
def test_config_that_cannot_be_restored_is_refused(make: Callable[[], AdamW], message: str) -> None:
    with pytest.raises(UserError, match=f"could not be read back by a resumed run: {message}"):
        check_restorable(TrainConfig(optimizer=make()))


@pytest.mark.parametrize(
    ("evaluator", "message"),
    [
        (NotFrozen(), r"evaluators\.0 is of the class NotFrozen, .* Write @dataclass\(frozen=True\) above the class"),
        (Essay, r"evaluators\.0 is the class Essay, .* Write Essay\(…\)"),
    ],
)
def test_evaluator_that_is_no_dataclass_shows_how_to_write_it(evaluator: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_restorable(TrainConfig(evaluators=(evaluator,)))


def test_dtype_auto_is_resolved_and_kept_by_a_run(shards: Path, tmp_path: Path) -> None:
    config = tiny_config(shards, model={"compute": replace(MODEL.compute, dtype="auto")}, output_dir=str(tmp_path))
    assert prepare_device(config).model.compute.dtype == preferred_dtype()
    (config.directory / "checkpoints" / "1").mkdir(parents=True)
    for dtype in ("float32", "bfloat16"):
        write_run_files(
            config.directory, replace(config, model=replace(MODEL, compute=ComputeConfig(dtype=dtype))), None
        )
        assert prepare_device(config).model.compute.dtype == dtype
    model = jax.eval_shape(lambda: GPT(config.model, key=jax.random.key(0)))
    assert model.config.compute.dtype == preferred_dtype()


def test_dtype_that_the_device_only_emulates_is_told(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No CPU has units for float16."""
    for dtype, words in (
        ("float16", f"only emulates products in float16; .*={preferred_dtype()}|auto"),
        ("float32", ""),
    ):
        compute = replace(MODEL.compute, dtype=dtype)
        prepare_device(tiny_config(shards, model={"compute": compute}, output_dir=str(tmp_path)))
        assert bool(printed := capsys.readouterr().out) == bool(words)
        assert re.search(words, printed)


def test_gpu_that_jax_does_not_use_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("gptjax.runs.startup.describe_unused_gpu", lambda: "WARNING: this machine has 1 GPU(s)")
    prepare_device(TrainConfig())
    assert "WARNING: this machine has 1 GPU(s)" in capsys.readouterr().out
