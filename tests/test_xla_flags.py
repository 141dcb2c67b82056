"""XLA_FLAGS that jaxlib does not accept are an error in one line, and others change nothing."""

import json

from tiny import python

CHILD = """
import json, os, sys
from gptjax.core.errors import UserError
from gptjax.core.xla_flags import check_xla_flags

found = []
for flags in json.loads(sys.argv[1]):
    os.environ["XLA_FLAGS"] = flags
    check_xla_flags.cache_clear()
    try:
        check_xla_flags()
        found.append("accepted")
    except UserError as error:
        found.append(str(error))
print(json.dumps(found))
"""


def test_xla_flags_are_tried_before_they_are_used():
    """In a new process: jaxlib reads them once."""
    wanted = {
        "": "accepted",
        "--xla_force_host_platform_device_count=2": "accepted",
        "--xla_nonsense=1": "Unknown flag in XLA_FLAGS: --xla_nonsense=1. Correct or unset it.",
        "nonsense": 'Could not open file "nonsense"',
        "--xla_cpu_multi_thread_eigen=banana": "Couldn't interpret value banana for flag xla_cpu_multi_thread_eigen.",
    }
    said, _ = python("-c", CHILD, json.dumps(list(wanted))).communicate(timeout=300)
    (line,) = said.splitlines()
    for (flags, reason), found in zip(wanted.items(), json.loads(line), strict=True):
        assert reason in found
        assert found == "accepted" or found.startswith(f"XLA_FLAGS is {flags}. ")
        assert "\n" not in found
