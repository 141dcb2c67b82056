import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from gptjax.errors import UserError
from gptjax.layout import Layout, place


def test_fill_axis_takes_the_devices_that_the_others_leave():
    assert Layout().resolve(8).sizes == (8, 1, 1)
    assert Layout("fsdp").resolve(8).sizes == (1, 8, 1)
    assert Layout("fsdp", tensor=2).resolve(8).sizes == (1, 4, 2)
    assert Layout(data=4).resolve(8).sizes == (4, 1, 1)
    assert Layout("single").resolve(8).sizes == (1, 1, 1)


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        (Layout(tensor=3), ["8 devices", "tensor=3", "--layout=single"]),
        (Layout(data=16), ["wants 16 devices", "8 are here"]),
        (Layout("single", data=2), ["single", "Drop"]),
    ],
)
def test_impossible_layouts_say_what_to_do(layout, words):
    with pytest.raises(UserError) as error:
        layout.resolve(8)
    assert all(word in str(error.value) for word in words)


def test_an_axis_has_at_least_one_device():
    with pytest.raises(UserError, match=r"layout\.fsdp is 0"):
        Layout(fsdp=0)


def test_letters_become_mesh_axes_and_axes_of_one_device_are_left_out():
    layout = Layout(data=2, fsdp=2, tensor=2)
    assert layout.weights("DF") == P(("fsdp",), ("tensor",))
    assert layout.gathered("DF") == P(None, ("tensor",))
    assert layout.acts("BTD") == P(("data", "fsdp"), None, None)
    assert Layout(data=8).weights("DF") == P(None, None)
    assert Layout().weights("DF") is None


def test_mesh_axes_are_explicit_so_that_mistakes_are_type_errors():
    mesh = Layout(data=2, fsdp=2, tensor=2).mesh()
    assert mesh is not None
    assert mesh.axis_types == (AxisType.Explicit,) * 3
    last = jax.devices()[4:]
    assert set(Layout(data=4).mesh(last).devices.flat) == set(last)
    assert Layout().mesh() is None


def test_an_island_sees_each_devices_own_rows():
    layout = Layout(data=4)
    with layout.active():
        x = place(jnp.arange(8.0), layout.acts("B"))
        firsts = layout.island(lambda x: x[:1], (layout.acts("B"),), layout.acts("B"))(x)
    assert jax.device_get(firsts).tolist() == [0.0, 2.0, 4.0, 6.0]
