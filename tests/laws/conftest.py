"""The laws compile many tiny programs and run each for a moment: compiling them well would take most of the time."""

import pytest
from tiny import quick_compilation


@pytest.fixture(autouse=True, scope="module")
def _quick_compilation():
    with quick_compilation():
        yield
