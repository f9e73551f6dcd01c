from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from dsx.training import checkpoint
from dsx.training import ema

_DECAY = 0.75


def _mesh(*shape):
  return jax.make_mesh(
    shape, ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2
  )


def _params(step: int, mesh, spec=("a", "b")):
  """Parameters after `step` steps, the same on every mesh."""
  rng = np.random.default_rng(step)

  def put(values, *axes):
    spec = jax.sharding.PartitionSpec(*axes)
    return jax.device_put(values, jax.sharding.NamedSharding(mesh, spec))

  return {
    "w": put(rng.normal(size=(8, 4)).astype(np.float32), *spec),
    "norm": {"scale": put(jnp.asarray(rng.normal(size=4), jnp.bfloat16))},
  }


def _host(tree):
  return jax.tree.map(lambda x: np.asarray(x, np.float32), tree)


def _expected(values, decay=_DECAY):
  average = values[0].astype(np.float64)
  for value in values[1:]:
    average = decay * average + (1 - decay) * value
  return average


class EmaTest(parameterized.TestCase):
  def test_literal(self):
    params = {"w": jnp.array([0.0, 8.0])}
    average = ema.Ema(params, 0.5)
    for value in ([4.0, 8.0], [4.0, 0.0]):
      average.update({"w": jnp.array(value)})
    np.testing.assert_array_equal(average.arrays()["w"], [3.0, 4.0])

  @parameterized.parameters(1, 3)
  def test_is_the_average_of_every_nth(self, every):
    mesh = _mesh(4, 2)
    params = [_params(step, mesh) for step in range(8)]
    average = ema.Ema(params[0], _DECAY, every)
    for step in range(1, 8):
      average.update(params[step], step)
    taken = [params[step] for step in range(8) if step % every == 0]
    expected = jax.tree.map(
      lambda *values: _expected([np.asarray(v, np.float32) for v in values]),
      *taken,
    )
    chex.assert_trees_all_close(_host(average.arrays()), expected, atol=1e-6)

  def test_counts_its_calls_where_no_step_is_given(self):
    mesh = _mesh(4, 2)
    told, counting = (ema.Ema(_params(0, mesh), _DECAY, 2) for _ in range(2))
    for step in range(1, 6):
      told.update(_params(step, mesh), step)
      counting.update(_params(step, mesh))
    chex.assert_trees_all_equal(_host(told.arrays()), _host(counting.arrays()))

  def test_is_bit_identical_on_every_mesh(self):
    found = []
    for mesh, spec in (
      (_mesh(4, 2), ("a", "b")),
      (_mesh(1, 1), ()),
      (_mesh(2, 4), (None, "b")),
      (_mesh(8, 1), ()),
    ):
      average = ema.Ema(_params(0, mesh, spec), _DECAY)
      for step in range(1, 5):
        average.update(_params(step, mesh, spec), step)
      found.append(_host(average.arrays()))
    for other in found[1:]:
      chex.assert_trees_all_equal(other, found[0])

  def test_parameters_may_be_donated(self):
    mesh = _mesh(4, 2)
    step = jax.jit(
      lambda params: jax.tree.map(lambda x: x * 1.5 + 1, params),
      donate_argnums=0,
    )
    params = step(_params(0, mesh))
    average = ema.Ema(params, _DECAY)
    seen = [_host(params)]
    for _ in range(6):
      params = step(params)
      seen.append(_host(jax.tree.map(jnp.copy, params)))
      average.update(params)
    expected = jax.tree.map(lambda *values: _expected(values), *seen)
    chex.assert_trees_all_close(_host(average.arrays()), expected, atol=1e-6)

  def test_arrays_are_not_changed_by_later_updates(self):
    mesh = _mesh(1, 1)
    average = ema.Ema(_params(0, mesh), _DECAY)
    arrays = average.arrays()
    before = _host(jax.tree.map(jnp.copy, arrays))
    for step in range(1, 4):
      average.update(_params(step, mesh))
    average.wait()
    chex.assert_trees_all_equal(_host(arrays), before)

  def test_arrays_say_where_they_are(self):
    mesh = _mesh(4, 2)
    params = _params(0, mesh)
    average = ema.Ema(params, _DECAY)
    for name, leaf in average.arrays().items():
      leaf = jax.tree.leaves(leaf)[0]
      self.assertEqual(leaf.dtype, jnp.float32, name)
      self.assertEqual(leaf.sharding.memory_kind, "pinned_host")
    placed = average.arrays(on_device=True)
    chex.assert_trees_all_equal(
      jax.tree.map(lambda x: x.sharding, placed),
      jax.tree.map(lambda x: x.sharding, params),
    )

  def test_resumed_on_another_mesh_it_goes_on_bit_identically(self):
    mesh, other = _mesh(4, 2), _mesh(2, 4)
    straight = ema.Ema(_params(0, mesh), _DECAY, 2)
    broken = ema.Ema(_params(0, mesh), _DECAY, 2)
    for step in range(1, 6):
      straight.update(_params(step, mesh), step)
      broken.update(_params(step, mesh), step)
    directory = self.create_tempdir().full_path
    with checkpoint.Checkpointer(directory) as checkpoints:
      checkpoints.save(5, {"ema": broken.arrays()}, {})
      resumed = ema.Ema(_params(5, other), _DECAY, 2)
      target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
          x.shape, np.float32, sharding=x.sharding
        ),
        _params(5, other),
      )
      resumed.load(checkpoints.restore({"ema": target}).arrays["ema"])
    for step in range(6, 9):
      straight.update(_params(step, mesh), step)
      resumed.update(_params(step, other), step)
    chex.assert_trees_all_equal(
      _host(resumed.arrays()), _host(straight.arrays())
    )

  def test_load_refuses_other_arrays(self):
    average = ema.Ema({"w": jnp.ones(2)}, _DECAY)
    for arrays in ({"v": jnp.ones(2)}, {"w": jnp.ones(3)}):
      with self.assertRaisesRegex(ValueError, "Ema.load: the arrays are not"):
        average.load(arrays)

  def test_an_error_of_the_worker_is_raised(self):
    average = ema.Ema({"w": jnp.ones(2)}, _DECAY)
    average.update({"w": jnp.ones(3)})
    with self.assertRaisesRegex(RuntimeError, "average of parameters failed"):
      average.wait()
    with self.assertRaisesRegex(RuntimeError, "average of parameters failed"):
      average.update({"w": jnp.ones(2)})

  @parameterized.parameters(
    (1.0, 1, "Ema.decay=1.0"),
    (-0.1, 1, "Ema.decay=-0.1"),
    (0.5, 0, "Ema.every"),
  )
  def test_refuses_nonsense(self, decay, every, line):
    with self.assertRaisesRegex(ValueError, line):
      ema.Ema({"w": jnp.ones(2)}, decay, every)


if __name__ == "__main__":
  absltest.main()
