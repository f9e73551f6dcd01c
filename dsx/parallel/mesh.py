"""The device mesh: six named axes from the slowest network to the fastest.

The batch is spread over data x node x local. Experts and fully sharded
parameters live on node x local, where `node` is the slow network and `local`
the fast one (report section 3.2).
"""

import dataclasses
import math

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType

from dsx.parallel import axes


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshShape:
  """Devices along each axis; one of them may be -1, for all that are left.

  Attributes:
    pipe: pipeline stages.
    data: replicas of everything.
    node: machines that share one copy of the experts.
    local: devices of a machine.
    context: parts of a sequence.
    tensor: parts of a matrix.
  """

  pipe: int = 1
  data: int = -1
  node: int = 1
  local: int = 1
  context: int = 1
  tensor: int = 1

  def resolve(self, n_devices: int) -> tuple[int, ...]:
    """Sizes of all axes for `n_devices`, in the order of `axes.MESH_AXES`.

    Raises:
      ValueError: if the product of the axes is not the number of devices.
    """
    sizes = [getattr(self, name) for name in axes.MESH_AXES]
    shown = " x ".join(
      f"{name}={size}" for name, size in zip(axes.MESH_AXES, sizes, strict=True)
    )
    if sizes.count(-1) > 1 or any(s == 0 or s < -1 for s in sizes):
      raise ValueError(
        f"mesh {shown}: every axis must be positive, and at most one -1"
      )
    fixed = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and n_devices % fixed == 0:
      sizes[sizes.index(-1)] = n_devices // fixed
    if math.prod(sizes) != n_devices:
      raise ValueError(
        f"mesh {shown} does not match {n_devices} devices: the product of "
        "the axes must be the number of devices; set one axis of "
        "mesh.MeshShape to -1 to take what is left"
      )
    return tuple(sizes)


def make(shape: MeshShape, devices=None) -> jax.sharding.Mesh:
  """Builds the mesh over `devices` (default: all of them).

  Every axis is `Auto`: under an `Explicit` mesh Linen's logical constraints
  turn into assertions and fail. On a TPU's torus the last axes choose first
  which physical axes they lie on, and may share one.
  """
  devices = jax.devices() if devices is None else devices
  placed = mesh_utils.create_device_mesh(
    shape.resolve(len(devices)), devices, allow_split_physical_axes=True
  )
  kinds = (AxisType.Auto,) * len(axes.MESH_AXES)
  return jax.sharding.Mesh(placed, axes.MESH_AXES, axis_types=kinds)


def batch_shards(
  mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh | None,
) -> int:
  """Into how many parts `mesh` divides a batch; 1 without one."""
  shape = {} if mesh is None else mesh.shape
  return math.prod(shape.get(name, 1) for name in axes.BATCH_MESH_AXES)
