import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from gptjax.core.errors import UserError
from gptjax.sharding.mesh import MeshConfig, reshard


def test_fill_axis_takes_the_devices_that_the_others_leave():
    assert MeshConfig().resolve(8).sizes == (8, 1, 1)
    assert MeshConfig("fsdp").resolve(8).sizes == (1, 8, 1)
    assert MeshConfig("fsdp", tensor=2).resolve(8).sizes == (1, 4, 2)
    assert MeshConfig(data=4).resolve(8).sizes == (4, 1, 1)
    assert MeshConfig("single").resolve(8).sizes == (1, 1, 1)


@pytest.mark.parametrize(
    ("mesh", "words"),
    [
        (MeshConfig(tensor=3), ["8 devices", "tensor=3", "--mesh=single"]),
        (MeshConfig(data=16), ["wants 16 devices", "8 are here"]),
        (MeshConfig("single", data=2), ["single", "Drop"]),
    ],
)
def test_impossible_layouts_say_what_to_do(mesh, words):
    with pytest.raises(UserError) as error:
        mesh.resolve(8)
    assert all(word in str(error.value) for word in words)


def test_an_axis_has_at_least_one_device():
    with pytest.raises(UserError, match=r"layout\.fsdp is 0"):
        MeshConfig(fsdp=0)


def test_letters_become_mesh_axes_and_axes_of_one_device_are_left_out():
    mesh = MeshConfig(data=2, fsdp=2, tensor=2)
    assert mesh.weight_spec("DF") == P(("fsdp",), ("tensor",))
    assert mesh.unsharded_spec("DF") == P(None, ("tensor",))
    assert mesh.activation_spec("BTD") == P(("data", "fsdp"), None, None)
    assert MeshConfig(data=8).weights("DF") == P(None, None)
    assert MeshConfig().weights("DF") is None


def test_mesh_axes_are_explicit_so_that_mistakes_are_type_errors():
    mesh = MeshConfig(data=2, fsdp=2, tensor=2).mesh()
    assert mesh is not None
    assert mesh.axis_types == (AxisType.Explicit,) * 3
    last = jax.devices()[4:]
    assert set(MeshConfig(data=4).mesh(last).devices.flat) == set(last)
    assert MeshConfig().mesh() is None


def test_an_island_sees_each_devices_own_rows():
    mesh = MeshConfig(data=4)
    with mesh.activate():
        x = reshard(jnp.arange(8.0), mesh.activation_spec("B"))
        firsts = mesh.shard_map(lambda x: x[:1], (mesh.activation_spec("B"),), mesh.activation_spec("B"))(x)
    assert jax.device_get(firsts).tolist() == [0.0, 2.0, 4.0, 6.0]
