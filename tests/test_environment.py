"""Variables and limits with which no run can go well are refused before JAX is imported."""

import resource

import pytest

from gptjax.core.environment import check_environment
from gptjax.core.errors import UserError


@pytest.mark.parametrize("name", ["JAX_ENABLE_X64", "JAX_DISABLE_JIT"])
def test_variable_of_jax_that_breaks_training_is_refused(name: str):
    with pytest.raises(UserError, match=f"{name} is set.*Unset it"):
        check_environment({name: "True"})
    check_environment({name: "0"})


def test_small_address_space_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (2**31, resource.RLIM_INFINITY))
    with pytest.raises(UserError, match=r"may map 2\.0 GiB of memory.*ulimit -v unlimited"):
        check_environment({})
