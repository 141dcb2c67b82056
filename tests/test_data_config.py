"""The data sources of a config: token shards and mixtures, and what is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import ALPHABET, read_lines, text_of, tiny_config, tokenizer, write_shards, write_text_shards

from gptjax.core.errors import UserError
from gptjax.core.serialization import from_json, to_json
from gptjax.data.batch_size import BatchSize
from gptjax.data.config import Mixture, MixtureComponent, TokenShards, list_directories
from gptjax.data.preferences import PreferenceShards
from gptjax.data.source import DataSource, ReadSpec
from gptjax.evaluators.bigram import BigramBaseline
from gptjax.runs.run_dir import RunDir
from gptjax.runs.trainer import train
from gptjax.tokenization.tokenizer import BPE, GPT2_PATTERN, Chars

COUNT = 45
SPEC = ReadSpec(8, 0, 200, None, False, ((0, BatchSize(4)),))
ROWS = np.arange(20)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Foreign shards, without manifest and tokenizer."""
    parts = np.split(np.arange(COUNT), [7, 30])
    return write_shards(tmp_path_factory.mktemp("data") / "shards", {"train": parts, "val": [np.arange(23)]})


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The formula's text, and one of its lines over and over: two data sets of one tokenizer."""
    root = tmp_path_factory.mktemp("mixture")
    same = tokenizer().encode(text_of(1) * 100)
    other = write_shards(root / "same", {"train": [same], "val": [same[:300]]}, own=tokenizer())
    return write_text_shards(root / "sums"), other


def make_mixture(
    sets: tuple[Path, Path], *schedule: tuple[int, float], weights: tuple[float, float] = (3.0, 1.0)
) -> Mixture:
    first, second = (TokenShards(path=str(path)) for path in sets)
    return Mixture((MixtureComponent(first, weights[0]), MixtureComponent(second, weights[1], schedule)), validation=1)


def test_token_shards_open_their_splits_and_tokenizer(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--data\.path=DIR"):
        TokenShards().open(SPEC)
    foreign = TokenShards(path=str(shards))
    assert isinstance(foreign, DataSource)
    assert [len(foreign.open_stream(split)) for split in ("train", "val")] == [COUNT, 23]
    assert foreign.load_tokenizer() is None
    own = write_shards(tmp_path / "own", {"train": [np.arange(9)], "val": [np.arange(3)]}, own=tokenizer())
    found = TokenShards(path=str(own)).load_tokenizer()
    assert found is not None
    assert found.fingerprint == tokenizer().fingerprint
    np.arange(100, dtype="<u2").tofile(tmp_path / "train.bin")
    raw = TokenShards(path=str(tmp_path), format="raw-uint16")
    assert raw.open_stream("train").read(98, 2).tolist() == [98, 99]


def test_token_shards_report_a_missing_manifest(shards: Path, tmp_path: Path) -> None:
    own = write_shards(tmp_path / "own", {"train": [np.arange(40)]}, own=tokenizer())
    lines = [TokenShards(path=str(path)).open(SPEC).describe() for path in (own, shards)]
    assert ["without a manifest.json" in line for (line,) in lines] == [False, True]


def test_documents_of_shards_begin_with_their_end_of_text(tmp_path: Path) -> None:
    """Also where the tokenizer comes from a model whose documents begin otherwise."""
    table, specials = {bytes([b]): b for b in range(256)} | {b"th": 256}, {"<s>": 257, "</s>": 258}
    own = BPE(table, specials, merges=[(b"t", b"h")], pattern=GPT2_PATTERN).with_end_of_text("</s>")
    own.begin_of_text_name = "<s>"
    write_shards(tmp_path / "shards", {"train": [np.arange(9)]}, own=own)
    found = TokenShards(path=str(tmp_path / "shards")).load_tokenizer()
    assert found is not None
    assert found.begin_of_text == found.end_of_text == 258
    assert found.fingerprint == own.fingerprint


def test_load_tokenizer_without_shards_names_the_directory(tmp_path: Path) -> None:
    for path, message in ((tmp_path / "absent", "no such directory of shards"), (tmp_path, "no files of the split")):
        for kind in (TokenShards, PreferenceShards):
            with pytest.raises(UserError, match=message):
                kind(path=str(path)).load_tokenizer()


def test_directories_of_a_mixture_are_those_of_its_parts(sets: tuple[Path, Path]) -> None:
    inner = make_mixture(sets)
    assert list_directories(Mixture((MixtureComponent(inner), *inner.components[:1]))) == [*map(str, [*sets, sets[0]])]


def test_open_names_a_file_with_a_token_beyond_the_vocabulary(tmp_path: Path) -> None:
    path = write_shards(tmp_path / "s", {"train": [np.arange(40), np.array([1, 70])]})
    assert len(TokenShards(path=str(path)).open(replace(SPEC, vocab_size=71)).sequences) == 5
    with pytest.raises(UserError, match=r"token id 70 in .*train_000001\.bin is beyond model\.vocab_size 70"):
        TokenShards(path=str(path)).open(replace(SPEC, vocab_size=70))


def test_open_with_unknown_documents_is_an_error(shards: Path) -> None:
    with pytest.raises(UserError, match="unknown where its documents begin"):
        TokenShards(path=str(shards)).open(replace(SPEC, with_documents=True))


def test_open_names_a_file_of_another_tokenizer(tmp_path: Path) -> None:
    """Its documents do not begin with the end-of-text id."""
    starts = {("train", "documents"): np.array([0, 10, 20, 30])}
    tokens = np.arange(40) * (np.arange(40) % 10 > 0)
    path = write_shards(tmp_path / "s", {"train": [tokens[:15], tokens[15:]]}, own=tokenizer(), sidecars=starts)
    data = TokenShards(path=str(path))
    data.open(replace(SPEC, end_of_text=0))
    with pytest.raises(
        UserError, match=r"train_000000\.bin: token 0 begins a document but is not the end-of-text id 7"
    ):
        data.open(replace(SPEC, end_of_text=7))


def test_mixture_components_read_in_different_orders(shards: Path) -> None:
    """Of two components with the same data, each has an order of its own."""
    data = TokenShards(path=str(shards))
    single = data.open(SPEC).read(ROWS)["tokens"]
    mixed = Mixture((MixtureComponent(data), MixtureComponent(data))).open(SPEC).read(np.arange(40))["tokens"]
    first, second = mixed[::2], mixed[1::2]
    np.testing.assert_array_equal(first, single)
    assert sorted(first[:5].tolist()) == sorted(second[:5].tolist())
    assert first.tolist() != second.tolist()


def test_mixture_history_lists_the_weights_until_a_step(sets: tuple[Path, Path]) -> None:
    data = make_mixture(sets, (5, 9.0), (8, 0.0))
    first = "weights (3.0, 1.0) from step 0"
    assert data.history_until(0) == data.history_until(5) == first
    assert data.history_until(6) == f"{first}; weights (3.0, 9.0) from step 5"
    assert data.history_until(9) == f"{first}; weights (3.0, 9.0) from step 5; weights (3.0, 0.0) from step 8"
    assert TokenShards().history_until(9) == ""


def test_mixture_inside_a_mixture_keeps_fixed_weights_only(sets: tuple[Path, Path]) -> None:
    inner, outer = make_mixture(sets), TokenShards(path=str(sets[0]))
    reader = Mixture((MixtureComponent(inner), MixtureComponent(outer))).open(SPEC)
    assert list(reader.epochs(8)) == ["epoch/sums + same/sums", "epoch/sums + same/same", "epoch/sums"]
    with pytest.raises(UserError, match="a mixture inside a mixture has no weight_schedule"):
        Mixture((MixtureComponent(make_mixture(sets, (5, 9.0))),)).open(SPEC)


def test_mixture_is_the_same_after_json(sets: tuple[Path, Path]) -> None:
    data = make_mixture(sets, (5, 9.0), (8, 0.0))
    assert from_json(to_json(data), [Mixture, MixtureComponent, TokenShards]) == data


def test_fingerprint_depends_on_content_and_packing(sets: tuple[Path, Path]) -> None:
    plain, packed = (TokenShards(path=str(sets[0]), packing=packing) for packing in ("concat", "best_fit"))
    sources = [plain, packed, TokenShards(path=str(sets[1])), make_mixture(sets)]
    assert len({source.open(SPEC).fingerprint for source in sources}) == 4
    assert plain.open(SPEC).fingerprint == plain.open(replace(SPEC, seed=1)).fingerprint


def test_mixture_with_a_coming_change_reads_the_same_rows_before(sets: tuple[Path, Path]) -> None:
    sources = make_mixture(sets), make_mixture(sets, (12, 9.0))
    plain, changed = (source.open(SPEC).read(np.arange(60))["tokens"] for source in sources)
    np.testing.assert_array_equal(changed[:48], plain[:48])
    assert changed.tolist() != plain.tolist()
    assert sources[0].history_until(12) == sources[1].history_until(12)
    assert sources[0].history_until(13) != sources[1].history_until(13)


def test_run_on_a_mixture_refuses_another_past(sets: tuple[Path, Path]) -> None:
    config = tiny_config(sets[0], name="mixed", data=make_mixture(sets), steps=4)
    assert train(config) == 0
    assert read_lines(config.directory, "epoch/sums")[-1] == (4, pytest.approx(24 / 197))
    assert read_lines(config.directory, "epoch/same")[-1] == (
        4,
        pytest.approx(8 * 16 / (len(text_of(1)) * 100), rel=0.02),
    )
    with pytest.raises(UserError, match=r"data until step 4: weights \(3\.0, 1\.0\) from step 0"):
        train(tiny_config(sets[0], name="mixed", data=make_mixture(sets, (3, 9.0)), steps=6))
    assert RunDir.open(config.directory).config.data == config.data


def test_impossible_mixtures_are_an_error(sets: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a mixture of 0 components"):
        Mixture(())
    with pytest.raises(UserError, match=r"weight_schedule has the steps \[5, 3\]"):
        MixtureComponent(TokenShards(), 1.0, ((5, 1.0), (3, 1.0)))
    other = Chars({char: i for i, char in enumerate(reversed(ALPHABET))})
    foreign = write_shards(tmp_path / "foreign", {"train": [np.arange(40)], "val": [np.arange(9)]}, own=other)
    with pytest.raises(UserError, match=r"they differ in tokens\. Prepare all of a mixture with the same tokenizer"):
        make_mixture((sets[0], foreign)).load_tokenizer()
    with pytest.raises(UserError, match="must not be negative"):
        make_mixture(sets, weights=(-1.0, 2.0)).open(SPEC)


def test_mixture_has_one_validation_stream_and_no_training_stream(sets: tuple[Path, Path]) -> None:
    data = make_mixture(sets)
    stream = data.open_stream("val")
    assert stream is not None
    assert len(stream) == 300
    assert data.open_stream("train") is None
    with pytest.raises(UserError, match="no single training text"):
        train(tiny_config(sets[0], name="bigram", data=data, evaluators=(BigramBaseline(),)))
