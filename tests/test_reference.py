"""A reference's stored log-probabilities: what they are bound to, and which data they exist for."""

import contextlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from models import make_model
from scored import draw_pairs, write_documents
from tiny import MODEL, SINGLE, tiny_config

from gptjax.config import TrainConfig
from gptjax.core.errors import UserError
from gptjax.data.config import Mixture, MixtureComponent
from gptjax.data.preferences import PairSequences, PreferenceShards, read_log_probs
from gptjax.data.source import DataSource, ReadSpec, RowReader
from gptjax.evaluators.evaluator import EvalContext
from gptjax.evaluators.exact_match import ExactMatch
from gptjax.evaluators.validation import ValidationLoss
from gptjax.objectives.preference import DPO
from gptjax.runs import reference
from gptjax.runs.data_check import make_data_check
from gptjax.runs.resume import SavedRun
from gptjax.runs.startup import make_read_spec
from gptjax.sharding.mesh import MeshConfig


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The splits that are computed. The log-probability of token i is -i."""
    names: list[str] = []

    def compute_all(model: Any, rows: PairSequences, **options: Any) -> np.ndarray:
        names.append(rows.stream.name.split("/")[-1])
        return -np.arange(len(rows.stream), dtype=np.float32)

    monkeypatch.setattr(reference, "compute_all", compute_all)
    return names


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    path = write_documents(tmp_path / "pairs", {"train": draw_pairs(6, seed=1)}, kind="preferences")
    return tiny_config(
        path,
        model={"intra_document_mask": True},
        data=PreferenceShards(path=str(path)),
        objective=DPO(),
        evaluators=(ExactMatch(path="questions.jsonl"),),
    )


def store(config: TrainConfig, weights: str = "w", *, saved: SavedRun | None = None) -> ReadSpec:
    """With weights of this fingerprint."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "load_frozen_weights", lambda *_, **__: make_model(MODEL))
        patch.setattr(reference, "hash_weights", lambda _: weights)
        spec = make_read_spec(config, None)
        return reference.prepare_frozen_model(config, spec, SINGLE, saved=saved).read_spec


def test_reference_is_computed_again_where_a_file_is_missing_or_altered(
    config: TrainConfig, computed: list[str]
) -> None:
    """Also without a validation split, whatever the evaluators."""
    spec = store(config)
    assert store(config) == spec
    assert computed == ["pairs (train)"]
    file = config.directory / "reference" / "train.npy"
    for spoil in (file.unlink, lambda: file.write_bytes(file.read_bytes()[:-4]), lambda: np.save(file, np.zeros(3))):
        spoil()
        with pytest.raises(UserError, match=r"train\.npy .*Start the run again; the file is computed again"):
            config.data.open(spec)
        computed.clear()
        store(config)
        assert computed == ["pairs (train)"]
        assert "reference" in config.data.open(spec).read(np.arange(1))
    store(config, weights="other")
    assert len(computed) == 2
    assert set(json.loads(file.with_name("reference.json").read_text())["sha256"]) == {"train"}


def test_reference_that_changes_during_the_run_is_noticed_at_a_save(config: TrainConfig, computed: list[str]) -> None:
    store(config)
    check = make_data_check(config)
    check()
    file = config.directory / "reference" / "train.npy"
    file.write_bytes(file.read_bytes())
    with pytest.raises(UserError, match=r"train\.npy has changed after this run began to read it"):
        check()
    file.unlink()
    with pytest.raises(UserError, match=r"train\.npy has changed after"):
        check()


def test_reference_that_was_stored_in_part_is_computed_again(
    config: TrainConfig, computed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other weights overwrite the files: until the last one is there, nothing says that they are complete."""
    store(config)

    def fail(*_: object) -> None:
        raise OSError("full")

    with monkeypatch.context() as patch:
        patch.setattr(reference, "write_atomically", fail)
        with pytest.raises(OSError, match="full"):
            store(config, weights="other")
    store(config)
    assert len(computed) == 3


def test_run_that_goes_on_needs_its_stored_reference_only(config: TrainConfig, computed: list[str]) -> None:
    """Whatever became of the reference's run; also with fewer splits than were stored."""
    saved = SavedRun(3, config, {"reference": "w"})
    spec = store(config)
    files = {path: path.stat().st_mtime_ns for path in sorted((config.directory / "reference").iterdir())}
    assert store(config, "another", saved=saved) == spec
    assert store(replace(config, evaluators=()), "another", saved=saved) == spec
    assert {path: path.stat().st_mtime_ns for path in files} == files
    (config.directory / "reference" / "train.npy").unlink()
    with pytest.raises(UserError, match="reference: w… → another…"):
        store(config, "another", saved=saved)
    assert computed == ["pairs (train)"]
    store(config, saved=saved)
    assert len(computed) == 2


@pytest.mark.parametrize("resume", ["auto", "force"])
def test_refused_resume_leaves_the_stored_reference(
    config: TrainConfig, computed: list[str], resume: Literal["auto", "force"]
) -> None:
    store(config)
    file = config.directory / "reference" / "reference.json"
    before = file.read_text()
    other = replace(config, objective=DPO(reference="runs/other"), resume=resume)
    with (
        contextlib.nullcontext() if resume == "force" else pytest.raises(UserError, match=r"objective\.reference: None")
    ):
        store(other, "other", saved=SavedRun(3, config, {"reference": "w"}))
    assert (file.read_text() == before) == (resume == "auto")
    assert len(computed) == (2 if resume == "force" else 1)


def test_other_validation_pairs_are_refused_before_the_stored_reference_is_replaced(
    config: TrainConfig, computed: list[str], tmp_path: Path
) -> None:
    def with_validation(seed: int) -> TrainConfig:
        splits = {"train": draw_pairs(6, seed=1), "val": draw_pairs(3, seed=seed)}
        path = write_documents(tmp_path / f"pairs{seed}", splits, kind="preferences")
        return replace(config, data=PreferenceShards(path=str(path)), evaluators=(ValidationLoss(),))

    first, other = with_validation(2), with_validation(3)
    store(first)
    fingerprint = first.data.open_stream("val").fingerprint
    with pytest.raises(UserError, match="no files of the split 'val'"):
        store(replace(config, evaluators=(ValidationLoss(),)))
    saved = SavedRun(3, replace(first, data=other.data), {"reference": "w", "validation": fingerprint})
    with pytest.raises(UserError, match=r"validation: \w+… → \w+…"):
        store(other, saved=saved)
    assert computed == ["pairs2 (train)", "pairs2 (val)"]
    store(first, saved=saved._replace(config=first))
    assert len(computed) == 2


def test_each_component_of_a_mixture_has_its_own_reference(
    config: TrainConfig, computed: list[str], tmp_path: Path
) -> None:
    splits = {"train": draw_pairs(9, seed=2), "val": draw_pairs(3, seed=3)}
    path = write_documents(tmp_path / "more", splits, kind="preferences")
    components = MixtureComponent(config.data), MixtureComponent(PreferenceShards(path=str(path)))
    mixed = replace(config, data=Mixture(components, validation=1))
    spec = store(mixed)
    assert computed == ["pairs (train)", "more (train)", "more (val)"]
    rows = mixed.data.open(spec).read(np.arange(8))
    scored = rows["targets"] >= 0
    assert (rows["reference"][scored] < 0).all()
    assert not rows["reference"][~scored].any()
    assert mixed.data.open_rows("val", spec) is not None
    assert spec.reference is not None
    stream = components[1].data.open_stream("train")
    assert stream is not None
    assert len(read_log_probs(spec.reference / "1", "train", stream)) == len(stream)


def test_reference_of_another_data_source_is_refused(config: TrainConfig) -> None:
    @dataclass(frozen=True)
    class OwnPairs(DataSource):
        def open(self, spec: ReadSpec) -> RowReader:
            raise NotImplementedError

    with pytest.raises(UserError, match=r"of OwnPairs cannot be stored.*--objective\.no-store-reference"):
        store(replace(config, data=OwnPairs()))


def test_validation_data_of_its_own_is_refused_beside_a_stored_reference(
    config: TrainConfig, computed: list[str]
) -> None:
    """The run's log-probabilities are those of other tokens."""
    context = EvalContext(config.data, None, MODEL, config.objective, MeshConfig(), read_spec=store(config))
    with pytest.raises(UserError, match=r"'x' has data of its own, .*--objective\.no-store-reference"):
        ValidationLoss(name="x", data=config.data).open(context)
