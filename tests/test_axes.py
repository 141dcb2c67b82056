import pytest

from gptjax.sharding.axes import matrix_axes, weight_role

ROLES = {
    "embedding": ["VD", "TD"],
    "value_embedding": ["VE"],
    "head": ["DV"],
    "matrix": ["DCHK", "HKD", "DF", "FD"],
    "vector": ["D", "", "IJK", "H", "F", "V", "CHK"],
}


@pytest.mark.parametrize(("role", "parameters"), ROLES.items())
def test_weight_role_follows_from_axis_names(role: str, parameters: list[str]):
    assert {weight_role(axis_names) for axis_names in parameters} == {role}


@pytest.mark.parametrize(
    ("axis_names", "projections", "heads"),
    [
        ("DCHK", ((0,), (2, 3)), ((0,), (3,))),
        ("DCJK", ((0,), (2, 3)), ((0,), (3,))),
        ("DHK", ((0,), (1, 2)), ((0,), (2,))),
        ("HKD", ((0, 1), (2,)), ((0, 1), (2,))),
        ("DF", ((0,), (1,)), ((0,), (1,))),
        ("FD", ((0,), (1,)), ((0,), (1,))),
    ],
)
def test_matrix_axes_are_inputs_and_outputs(axis_names: str, projections: tuple, heads: tuple):
    assert matrix_axes(axis_names) == projections
    assert matrix_axes(axis_names, heads=True) == heads
