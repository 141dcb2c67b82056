"""Processes that were started with other configs or data are refused together."""

import shutil
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils
from tiny import tiny_config

from gptjax.config import TrainConfig
from gptjax.core.errors import UserError
from gptjax.evaluation.training_evaluators import Core, HarnessTasks, TextProtocol
from gptjax.evaluators.exact_match import ExactMatch
from gptjax.evaluators.validation import ValidationLoss
from gptjax.objectives.distillation import Distillation
from gptjax.objectives.preference import DPO
from gptjax.runs import read_places, same_command
from gptjax.runs.resume import Fingerprints
from gptjax.runs.same_command import check_same_command

FOUND: Fingerprints = {"data": "d", "tokenizer": None}


def check_together(pairs: list[tuple[TrainConfig, Fingerprints]], monkeypatch: pytest.MonkeyPatch) -> None:
    """What each process says to the others, and then how the last one ends."""
    said: dict[int, list[np.ndarray]] = defaultdict(list)
    call = 0

    def gather(own: np.ndarray) -> np.ndarray:
        nonlocal call
        call += 1
        said[call].append(own)
        return np.stack([*said[call], *[said[call][0]] * (len(pairs) - len(said[call]))])

    monkeypatch.setattr(jax, "process_count", lambda: len(pairs))
    monkeypatch.setattr(multihost_utils, "process_allgather", gather)
    for config, fingerprints in pairs:
        call = 0
        check_same_command(config, fingerprints)


def test_places_and_logs_may_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = tiny_config(tmp_path / "shards")
    other = replace(config, output_dir="elsewhere", hang_timeout="1h", data=replace(config.data, path="elsewhere"))
    check_together([(config, FOUND), (other, FOUND), (config, FOUND)], monkeypatch)


def test_places_in_evaluators_and_objectives_may_differ_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def place(disk: str, *, tokens: int | None = None, base: str | None = "base") -> TrainConfig:
        evaluators = (
            TextProtocol(text=f"{disk}/text", tokens=tokens),
            TextProtocol(data=f"{disk}/shards"),
            ExactMatch(path=f"{disk}/questions"),
            HarnessTasks(include_path=(f"{disk}/tasks",), task_data=(f"arc={disk}/arc",)),
            Core(bundle=f"{disk}/bundle"),
        )
        config = tiny_config(tmp_path / "shards")
        objective = DPO(reference=base and f"{disk}/{base}")
        model = replace(config.model, intra_document_mask=True)
        return replace(config, evaluators=evaluators, objective=objective, model=model)

    check_together([(place("local0"), FOUND), (place("local1"), FOUND)], monkeypatch)
    for other, name in ((place("local1", tokens=9), "evaluators"), (place("local1", base=None), "objective")):
        with pytest.raises(UserError, match=f"^process 1 differs from process 0 in: {name}. Give"):
            check_together([(place("local0"), FOUND), (other, FOUND)], monkeypatch)


@pytest.mark.parametrize("name", ["seed", "batch_size", "content of the data", "content of the tokenizer"])
def test_process_that_differs_is_named_with_what_differs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = tiny_config(tmp_path / "shards")
    if name.startswith("content"):
        pairs = [(config, FOUND), (config, FOUND), (config, FOUND | {name.split()[-1]: "other"})]
    else:
        pairs = [(config, FOUND), (config, FOUND), (replace(config, **{name: getattr(config, name) * 2 + 2}), FOUND)]
    with pytest.raises(UserError, match=f"^process 2 differs from process 0 in: {name}. Give the same command on all"):
        check_together(pairs, monkeypatch)


def test_processes_of_other_versions_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    versions = iter([{"jax": "0.10.2"}, {"jax": "0.10.1"}])
    config = tiny_config(tmp_path / "shards")
    same = {"gptjax": "0", "jaxlib": "1"}
    monkeypatch.setattr(same_command, "collect_versions", lambda: same | next(versions))
    with pytest.raises(UserError, match=r"^process 1 differs from process 0 in: versions of gptjax and jax\. Give"):
        check_together([(config, FOUND), (config, FOUND)], monkeypatch)


def test_content_of_places_is_compared_on_whatever_path_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What differs is named. What one process lacks is not compared."""

    def place(disk: str, *, changed: str | None = None) -> TrainConfig:
        root = tmp_path / disk
        for name in ("text", "teacher/model.safetensors", "teacher/README.md", "start/weights", "bundle/.cache/x"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(disk if name in (changed, "teacher/README.md", "bundle/.cache/x") else name)
        (root / "teacher/config.json").write_text('{"model_type": "gpt2"}')
        config = tiny_config(tmp_path / "shards", init_from=str(root / "start"))
        evaluators = (TextProtocol(text=str(root / "text")), Core(bundle=str(root / "bundle")))
        return replace(config, objective=Distillation(teacher=str(root / "teacher")), evaluators=evaluators)

    check_together([(place("first"), FOUND), (place("second"), FOUND)], monkeypatch)
    changes = (
        ("text", "evaluators.0.text"),
        ("teacher/model.safetensors", "objective.teacher"),
        ("start/weights", "init_from"),
    )
    for changed, name in changes:
        with pytest.raises(UserError, match=rf"^process 1 differs from process 0 in: content of {name}\. Give"):
            check_together([(place("first"), FOUND), (place("second", changed=changed), FOUND)], monkeypatch)
    shutil.rmtree(tmp_path / "second/teacher")
    with pytest.raises(UserError, match=r"in: content of init_from\. Give"):  # that of before
        check_together([(place("first"), FOUND), (place("second", changed="start/weights"), FOUND)], monkeypatch)


@dataclass(frozen=True)
class OwnEvaluator(ValidationLoss):
    """An evaluator of a user's own, with fields of any type."""

    lexicon: str = ""
    data: Any = None
    text: Any = None
    extra: Any = ()


def test_files_of_own_classes_are_compared_and_their_directories_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Fields with the names of places may hold anything else."""

    def place(disk: str, words: str) -> TrainConfig:
        (tmp_path / disk / "out").mkdir(parents=True, exist_ok=True)
        (tmp_path / disk / "out/log").write_text(disk)
        (tmp_path / disk / "words").write_text(words)
        own = OwnEvaluator(
            lexicon=f"{tmp_path}/{disk}/words", data=[{"a": 1}], text=[1, 2], extra=[f"{tmp_path}/{disk}/out"]
        )
        return replace(tiny_config(tmp_path / "shards"), evaluators=(own,))

    check_together([(place("a", "same"), FOUND), (place("b", "same"), FOUND)], monkeypatch)
    with pytest.raises(UserError, match=r"in: content of evaluators\.0\.lexicon\. Give"):
        check_together([(place("a", "same"), FOUND), (place("b", "else"), FOUND)], monkeypatch)


def test_other_files_beside_a_saved_model_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def place(disk: str) -> TrainConfig:
        (tmp_path / disk).mkdir()
        for name in ("model.safetensors", "tokenizer.json"):
            (tmp_path / disk / name).write_text("same")
        for name in ("notes.txt", "trainer_state.json", "checksums.json"):
            (tmp_path / disk / name).write_text(disk)
        (tmp_path / disk / "config.json").write_text('{"model_type": "gpt2"}')
        return tiny_config(tmp_path / "shards", init_from=str(tmp_path / disk))

    check_together([(place("a"), FOUND), (place("b"), FOUND)], monkeypatch)


def test_steps_of_a_run_that_goes_on_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    start = tmp_path / "start"
    config = tiny_config(tmp_path / "shards", init_from=str(start))
    steps = iter([[3], [3, 5]])
    monkeypatch.setattr(read_places, "complete_steps", lambda path: next(steps))
    for step in ("3", "5"):
        (start / "checkpoints" / step).mkdir(parents=True)
        (start / "checkpoints" / step / "checksums.json").write_text(step)
    found = r"in: newest step of init_from \(5, and 3 on process 0\), content of init_from\. .* wait for its end"
    with pytest.raises(UserError, match=found):
        check_together([(config, FOUND), (config, FOUND)], monkeypatch)


@pytest.mark.parametrize("place", ["its size", 0, 8_600_000, 19_999_999])
def test_large_files_are_compared_by_size_and_samples(
    place: int | str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    configs = []
    for name in ("a", "b"):
        content = bytearray(20_000_000 + (name == "b" and place == "its size"))
        if name == "b" and isinstance(place, int):
            content[place] = 1
        (tmp_path / name).write_bytes(content)
        configs.append(replace(tiny_config(tmp_path), evaluators=(TextProtocol(text=str(tmp_path / name)),)))
    with pytest.raises(UserError, match=r"in: content of evaluators\.0\.text\."):
        check_together([(config, FOUND) for config in configs], monkeypatch)
