"""Documents name every flag of a config, every choice of a model's options, and what a resume may change."""

from pathlib import Path

import pytest

from gptjax.cli.config_files import list_configs
from gptjax.cli.flags import Flags, list_flags
from gptjax.config import RESUME_MAY_CHANGE, TrainConfig, load_config

DOCS = {path.name: path.read_text(encoding="utf-8") for path in (Path(__file__).parents[2] / "docs").glob("*.md")}


@pytest.fixture(scope="module")
def flags() -> Flags:
    """The flags of all configs. Those that several have are of one class, or mean the same."""
    return {
        name: flag for config in list_configs() for name, flag in list_flags(TrainConfig, load_config(config)).items()
    }


def is_named(flag: str, text: str) -> bool:
    last = flag.rpartition(".")[2]
    return last in text or last.replace("-", "_") in text


def test_every_flag_of_a_config_is_in_the_documents(flags: Flags) -> None:
    text = "\n".join(DOCS.values())
    assert [name for name in flags if not is_named(name, text)] == []


def test_every_option_of_a_model_has_a_row_with_its_choices(flags: Flags) -> None:
    rows = {line.split("`")[1].removeprefix("--"): line for line in DOCS["models.md"].splitlines() if "| `--" in line}
    options = {name: flag for name, flag in flags.items() if name.startswith("model.")}
    assert [name for name in options if name not in rows] == []
    assert [(name, word) for name in options for word in options[name].choices if f"`{word}`" not in rows[name]] == []


def test_every_field_that_a_resume_may_change_is_in_its_table() -> None:
    table = "\n".join(line for line in DOCS["resume.md"].splitlines() if line.startswith("|"))
    assert [
        field for field in RESUME_MAY_CHANGE if field not in ("resume", "data") and not is_named(field, table)
    ] == []
