"""What a command line sets has an effect, or is refused."""

from dataclasses import replace
from functools import reduce
from pathlib import Path

import pytest
from tiny import tiny_config

from data_pipelines.prepared import Prepared
from gptjax.checkpoints.checkpoint import CheckpointConfig
from gptjax.core.errors import UserError
from gptjax.runs.field_effects import SWITCHES, check_effects


@pytest.mark.parametrize("field", [field for field, *_ in SWITCHES])
def test_field_without_effect_is_refused_unless_its_switch_is_given_too(field: str, tmp_path: Path):
    config = replace(tiny_config(tmp_path), checkpoint=CheckpointConfig(keep_best=False))
    switch = next(switch for name, switch, *_ in SWITCHES if name == field)
    assert reduce(getattr, field.split("."), config) is not None
    with pytest.raises(UserError, match=f"--{field.replace('_', '-')} has no effect: {switch} is"):
        check_effects(config, [field])
    check_effects(config, [field, switch])
    check_effects(config, [])


def test_field_with_an_effect_is_taken(tmp_path: Path):
    check_effects(tiny_config(tmp_path), ["checkpoint.best_metric"])


def test_fields_of_a_preparation_are_refused_beside_prepared_shards(tmp_path: Path):
    config = replace(tiny_config(tmp_path), data=Prepared(path=str(tmp_path)))
    check_effects(config, ["data.path", "data.packing"])
    with pytest.raises(UserError, match=r"^--data\.source, --data\.text-field: no effect on the shards of data\.path"):
        check_effects(config, ["data.path", "data.text_field", "data.source"])
    check_effects(replace(config, data=Prepared(source="books")), ["data.source"])
