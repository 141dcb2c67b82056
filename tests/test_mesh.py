import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from gptjax.core.errors import UserError
from gptjax.sharding.mesh import MeshConfig, reshard


@pytest.mark.parametrize(
    ("mesh", "shape"),
    [
        (MeshConfig(), (8, 1, 1)),
        (MeshConfig("fsdp"), (1, 8, 1)),
        (MeshConfig("fsdp", tensor=2), (1, 4, 2)),
        (MeshConfig(data=4), (4, 1, 1)),
        (MeshConfig("single"), (1, 1, 1)),
    ],
)
def test_strategy_axis_takes_the_remaining_devices(mesh: MeshConfig, shape: tuple[int, int, int]):
    assert mesh.resolve(8).shape == shape


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        (MeshConfig(tensor=3), "8 devices .* tensor=3.*--mesh=single"),
        (MeshConfig(data=16), "needs 16 devices, but 8 are available"),
        (MeshConfig("single", data=2), "mesh=single .* data=2 .*Drop"),
    ],
)
def test_resolve_rejects_meshes_that_do_not_fit(mesh: MeshConfig, message: str):
    with pytest.raises(UserError, match=message):
        mesh.resolve(8)


def test_axis_without_devices_is_rejected():
    with pytest.raises(UserError, match=r"mesh\.fsdp is 0"):
        MeshConfig(fsdp=0)


def test_specs_map_axis_names_to_mesh_axes():
    mesh = MeshConfig(data=2, fsdp=2, tensor=2)
    assert mesh.weight_spec("DF") == P(("fsdp",), ("tensor",))
    assert mesh.unsharded_spec("DF") == P(None, ("tensor",))
    assert mesh.activation_spec("BTD") == P(("data", "fsdp"), None, None)


def test_specs_leave_out_axes_of_one_device():
    assert MeshConfig(data=8).weight_spec("DF") == P(None, None)
    assert MeshConfig().weight_spec("DF") is None


def test_make_mesh_has_explicit_axes_over_given_devices():
    mesh = MeshConfig(data=2, fsdp=2, tensor=2).make_mesh()
    assert mesh is not None
    assert mesh.axis_types == (AxisType.Explicit,) * 3
    last = jax.devices()[4:]
    half = MeshConfig(data=4).make_mesh(last)
    assert half is not None
    assert set(half.devices.flat) == set(last)
    assert MeshConfig().make_mesh() is None


def test_shard_map_gives_each_device_its_rows():
    mesh = MeshConfig(data=4)
    spec = mesh.activation_spec("B")
    with mesh.activate():
        firsts = mesh.shard_map(lambda x: x[:1], (spec,), spec)(reshard(jnp.arange(8.0), spec))
    assert jax.device_get(firsts).tolist() == [0.0, 2.0, 4.0, 6.0]
