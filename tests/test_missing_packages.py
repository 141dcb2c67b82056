"""A missing package is named together with the extra that installs it."""

import sys

import pytest
from texts import documents_in

from data_pipelines.readers.documents import ReadContext
from data_pipelines.readers.optional_packages import needs_extra
from data_pipelines.readers.sources import open_source
from gptjax.core.errors import UserError
from gptjax.evaluation.harness import TaskRequest, prepare_tasks


@pytest.mark.parametrize(
    ("name", "package"),
    [("x.parquet", "pyarrow"), ("x.jsonl.zst", "pyarrow"), ("x.array_record", "array_record.python")],
)
def test_missing_package_is_named(tmp_path, monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / name).write_bytes(b"content")
    with pytest.raises(UserError, match=rf"{name}: reading .* needs {package}.*pip install 'gptjax\[data\]'"):
        next(documents_in(open_source(str(tmp_path / name)), ReadContext()))


@pytest.mark.parametrize("package", ["lm_eval", "datasets", "pyarrow"])
def test_package_of_tasks_is_named(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    message = rf"tasks need .*{package}.*pip install 'gptjax\[eval\]'"
    with pytest.raises(UserError, match=message), prepare_tasks(TaskRequest(("lambada_openai",))):
        pass


def test_other_errors_are_kept():
    with pytest.raises(ZeroDivisionError), needs_extra("data", what="this"):
        raise ZeroDivisionError
