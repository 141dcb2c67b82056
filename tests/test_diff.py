"""Differences between two configs."""

from dataclasses import replace

from example_configs import AdamW, Config, Loss, Muon, Shards, WebShards

from gptjax.core.diff import diff_configs


def test_differences_name_fields_by_dotted_path():
    base = Config(evaluators=(Loss(), Loss()), windows=(1, 2))
    config = replace(
        base, steps=20, optimizer=AdamW(betas=(0.9, 0.99)), evaluators=(Loss(5), Loss()), windows=(1, 2, 3)
    )
    assert diff_configs(base, base) == []
    assert diff_configs(base, config) == [
        ("steps", 10, 20),
        ("optimizer.betas", (0.9, 0.95), (0.9, 0.99)),
        ("evaluators.0.every", 100, 5),
        ("windows", (1, 2), (1, 2, 3)),
    ]


def test_a_change_of_class_or_length_is_one_difference():
    base = Config(evaluators=(Loss(),))
    assert diff_configs(base, replace(base, optimizer=Muon())) == [("optimizer", AdamW(), Muon())]
    assert diff_configs(base, replace(base, evaluators=())) == [("evaluators", (Loss(),), ())]
    assert diff_configs(base, replace(base, data=WebShards())) == [("data", Shards(), WebShards())]


def test_a_number_differs_from_a_bool_but_not_from_a_float():
    assert diff_configs(Loss(1), Loss(True)) == [("every", 1, True)]
    assert diff_configs(AdamW(1), AdamW(1.0)) == []
