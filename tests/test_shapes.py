import pytest

from gptjax.sharding.axes import matrix_axes, weight_role


@pytest.mark.parametrize(
    ("axis_names", "wanted"),
    [
        ("VD", "embedding"),
        ("TD", "embedding"),
        ("DV", "head"),
        ("DCHK", "matrix"),
        ("HKD", "matrix"),
        ("DF", "matrix"),
        ("FD", "matrix"),
        ("VE", "value_embedding"),
        ("D", "vector"),
        ("", "vector"),
        ("SHK", "vector"),
        ("H", "vector"),
        ("F", "vector"),
        ("V", "vector"),
        ("CHK", "vector"),
    ],
)
def test_letters_say_what_part_a_weight_plays(axis_names, wanted):
    assert weight_role(axis_names) == wanted


def test_letters_say_which_axes_lead_in_and_out():
    assert matrix_axes("DCHK") == ((0,), (2, 3))
    assert matrix_axes("HKD") == ((0, 1), (2,))
    assert matrix_axes("DCHK", heads=True) == ((0,), (3,))
    assert matrix_axes("DCJK", heads=True) == ((0,), (3,))
    assert matrix_axes("DHK", heads=True) == ((0,), (2,))
    assert matrix_axes("HKD", heads=True) == ((0, 1), (2,))
    assert matrix_axes("DF", heads=True) == ((0,), (1,))
    assert matrix_axes("DF") == ((0,), (1,))
    assert matrix_axes("FD") == ((0,), (1,))
