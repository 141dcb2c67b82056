"""What a config says of data: one set or several, and what cannot be."""

import numpy as np
import pytest
from tiny import ALPHABET, read_lines, text_of, tiny_config, tokenizer, write_shards, write_text_shards

from gptjax.core.errors import UserError
from gptjax.core.settings import from_json, to_json
from gptjax.data.config import Mixture, MixtureComponent, TokenShards, fingerprint_data, mixture_weights
from gptjax.run_dir import RunDir
from gptjax.tokenization.tokenizer import Chars
from gptjax.train import train
from gptjax.training.evaluators import BigramBaseline, ValidationLoss

COUNT = 45


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    parts = np.split(np.arange(COUNT), [7, 30])
    return write_shards(tmp_path_factory.mktemp("data") / "shards", {"train": parts, "val": [np.arange(23)]})


def test_shards_say_what_they_are(shards, tmp_path):
    with pytest.raises(UserError, match=r"--data\.path=DIR"):
        TokenShards().split("train")
    foreign = TokenShards(path=str(shards))
    assert (len(foreign.split("train")), len(foreign.split("val")), foreign.manifest()) == (COUNT, 23, None)
    own = write_shards(tmp_path / "own", {"train": [np.arange(9)], "val": [np.arange(3)]}, own=tokenizer())
    manifest = TokenShards(path=str(own)).manifest()
    assert manifest is not None
    assert manifest.fingerprint == tokenizer().fingerprint
    np.arange(100, dtype="<u2").tofile(tmp_path / "train.bin")
    assert TokenShards(path=str(tmp_path), format="raw-uint16").split("train").read(98, 2).tolist() == [98, 99]


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """The formula's text, and one of its lines over and over: two data sets of one tokenizer."""
    root = tmp_path_factory.mktemp("mixture")
    same = tokenizer().encode(text_of(1) * 100)
    other = write_shards(root / "same", {"train": [same], "val": [same[:300]]}, own=tokenizer())
    return write_text_shards(root / "sums"), other


def mixture(sets, *later, weights=(3.0, 1.0)):
    first, second = (TokenShards(path=str(path)) for path in sets)
    return Mixture((MixtureComponent(first, weights[0]), MixtureComponent(second, weights[1], later)), validation=1)


def test_shares_follow_their_schedule(sets):
    data = mixture(sets, (5, 9.0), (8, 0.0))
    assert mixture_weights(data) == [(0, (3.0, 1.0)), (5, (3.0, 9.0)), (8, (3.0, 0.0))]
    assert mixture_weights(data, until=6) == mixture_weights(data)[:2]
    assert mixture_weights(data, until=0) == mixture_weights(data)[:1]
    assert mixture_weights(TokenShards()) == [(0, (1.0,))]


def test_a_mixture_survives_being_written_down(sets):
    data = mixture(sets, (5, 9.0), (8, 0.0))
    assert from_json(to_json(data), [Mixture, MixtureComponent, TokenShards]) == data


def test_the_fingerprint_knows_the_packing(sets):
    plain, packed = (TokenShards(path=str(sets[0]), packing=packing) for packing in ("concat", "best_fit"))
    assert fingerprint_data(plain) != fingerprint_data(packed)
    assert fingerprint_data(mixture(sets)) != fingerprint_data(plain)


def test_a_run_on_a_mixture_counts_epochs_and_takes_a_coming_change_of_shares(sets):
    """The first ten steps are the same whatever comes after; what has been read already cannot change."""
    config = tiny_config(sets[0], name="mixed", data=mixture(sets), evaluators=(ValidationLoss(every=10),))
    assert train(config) == 0
    last = read_lines(config.directory, "epoch/sums")[-1]
    assert last == (10, pytest.approx(60 / 197))
    assert read_lines(config.directory, "epoch/same")[-1][1] == pytest.approx(
        20 * 16 / (len(text_of(1)) * 100), rel=0.02
    )
    judged = TokenShards(path=str(sets[1])).split("val")
    assert len(judged) == 300
    changed = tiny_config(sets[0], name="mixed", data=mixture(sets, (12, 9.0)), steps=14)
    assert train(changed) == 0
    seen = [epoch for _, epoch in read_lines(changed.directory, "epoch/same")]
    assert seen[13] - seen[11] > 2.5 * (seen[11] - seen[9])
    with pytest.raises(UserError, match=r"data\.parts: shares until step 14"):
        train(tiny_config(sets[0], name="mixed", data=mixture(sets, (11, 9.0)), steps=16))
    assert isinstance(RunDir.open(config.directory).config.data, Mixture)


def test_what_cannot_be_mixed(sets, tmp_path):
    with pytest.raises(UserError, match="a mixture of 0 parts"):
        Mixture(())
    with pytest.raises(UserError, match=r"`later` has the steps \[5, 3\]"):
        MixtureComponent(TokenShards(), 1.0, ((5, 1.0), (3, 1.0)))
    other = Chars({char: i for i, char in enumerate(reversed(ALPHABET))})
    foreign = write_shards(tmp_path / "foreign", {"train": [np.arange(40)], "val": [np.arange(9)]}, own=other)
    with pytest.raises(UserError, match="Prepare all parts of a mixture with the same tokenizer"):
        mixture((sets[0], foreign)).load_tokenizer()
    with pytest.raises(UserError, match="a mixture has no single training text"):
        train(tiny_config(sets[0], name="bigram", data=mixture(sets), evaluators=(BigramBaseline(),)))
    with pytest.raises(UserError, match="must not be negative"):
        train(tiny_config(sets[0], name="negative", data=mixture(sets, weights=(-1.0, 2.0))))
