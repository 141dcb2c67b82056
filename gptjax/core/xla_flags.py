"""Whether jaxlib accepts XLA_FLAGS. It ends the process at one that it does not know, with a status of its own."""

import functools
import os
import re
import warnings

from gptjax.core.errors import UserError, quote

_LOG = re.compile(r"^[EF]\d{4} [^\]]*\] (.*)$", re.MULTILINE)
"""A line of Abseil's log, of an error that is fatal or comes before one."""


@functools.cache
def check_xla_flags() -> None:
    """Raise a UserError for XLA_FLAGS at which jaxlib would end the process. A child tries, if there are any: 0.1 s."""
    flags = os.environ.get("XLA_FLAGS", "")
    if flags and hasattr(os, "fork") and (reason := _try_in_child()) is not None:
        raise UserError(f"XLA_FLAGS is {quote(flags)}. {reason} Correct or unset it.")


def _try_in_child() -> str | None:
    """What jaxlib says before it ends; None if it goes on."""
    from jaxlib import xla_client  # before the fork; it reads no flags yet

    reader, writer = os.pipe()
    with warnings.catch_warnings(action="ignore"):  # JAX warns of forks; this one only reads a variable
        child = os.fork()
    if child == 0:
        os.dup2(writer, 2)
        xla_client.CompileOptions()
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as file:
        said = file.read().decode("utf-8", "replace")  # the list of all flags may follow
    _, status = os.waitpid(child, 0)
    if status == 0:
        return None
    found = _LOG.search(said)
    return "jaxlib does not accept it." if found is None else found[1].removesuffix(".") + "."
