"""Commands of data_pipelines in this process, without the second that another Python takes to start."""

import runpy
import sys
import warnings

import pytest


def run_pipeline(name: str, *words: object) -> int:
    """The status of `python -m data_pipelines.NAME WORDS`."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*found in sys.modules", RuntimeWarning)  # other tests have imported it
        patch.setattr(sys, "argv", ["", *map(str, words)])
        try:
            runpy.run_module(f"data_pipelines.{name}", run_name="__main__", alter_sys=True)
        except SystemExit as end:
            return int(end.code or 0)
    return 0
