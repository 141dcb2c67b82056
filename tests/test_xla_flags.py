"""XLA_FLAGS that jaxlib does not accept are an error in one line, and others change nothing."""

import pytest

from gptjax.core.errors import UserError
from gptjax.core.xla_flags import check_xla_flags


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ("", None),
        ("--xla_force_host_platform_device_count=2", None),
        ("--xla_nonsense=1", "Unknown flag in XLA_FLAGS: --xla_nonsense=1. Correct or unset it."),
        ("nonsense", 'Could not open file "nonsense"'),
        ("--xla_cpu_multi_thread_eigen=banana", "Couldn't interpret value banana for flag xla_cpu_multi_thread_eigen."),
    ],
)
def test_xla_flags_are_tried_before_they_are_used(flags: str, reason: str | None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XLA_FLAGS", flags)
    check_xla_flags.cache_clear()
    try:
        if reason is None:
            check_xla_flags()
            return
        with pytest.raises(UserError) as found:
            check_xla_flags()
        assert str(found.value).startswith(f"XLA_FLAGS is {flags}. ")
        assert reason in str(found.value)
        assert "\n" not in str(found.value)
    finally:
        check_xla_flags.cache_clear()
