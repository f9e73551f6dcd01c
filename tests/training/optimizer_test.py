"""AdamW against optax, and what the report asks of it."""

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from dsx.training import optimizer


def _params():
  """A small tree with the names and ranks of the model's."""
  keys = iter(jax.random.split(jax.random.key(0), 8))

  def normal(*shape):
    return 0.02 * jax.random.normal(next(keys), shape)

  return {
    "embed_tokens": {"embedding": normal(24, 8)},
    "moe_layers": {
      "input_layernorm": {"scale": jnp.ones((3, 8))},
      "mlp": {
        "gate": {"kernel": normal(3, 8, 4)},
        "experts": {"gate_proj": normal(3, 4, 8, 6)},
      },
    },
    "norm": {"scale": jnp.ones(8)},
    "lm_head": {"kernel": normal(8, 24)},
  }


@jax.jit
def _gradients(params, step):
  """Gradients whose scale differs by leaf and grows past the clip."""
  leaves, treedef = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(1 + step), len(leaves))
  return treedef.unflatten(
    [
      (0.003 * (1 + step) * 10.0**-i) * jax.random.normal(k, leaf.shape)
      for i, (k, leaf) in enumerate(zip(keys, leaves, strict=True))
    ]
  )


def _train(transformation, params, steps, learning_rate=1e-3):
  """Plain training; returns the parameters and the optimizer's state."""

  @jax.jit
  def step(params, state, gradients):
    direction, state = transformation.update(gradients, state, params)
    params = jax.tree.map(lambda p, d: p - learning_rate * d, params, direction)
    return params, state

  state = transformation.init(params)
  for i in range(steps):
    params, state = step(params, state, _gradients(params, i))
  return params, state


class OracleTest(parameterized.TestCase):
  """float32 moments: optax.adamw after optax's clip."""

  def test_agrees_with_optax_over_50_steps(self):
    params = _params()
    # So that some gradients are clipped and some are not.
    self.assertLess(optimizer.global_norm(_gradients(params, 0)), 0.2)
    self.assertGreater(optimizer.global_norm(_gradients(params, 49)), 1.5)
    oracle = optax.chain(
      optax.clip_by_global_norm(1.0),
      optax.adamw(
        1e-3,
        b1=0.9,
        b2=0.95,
        eps=1e-8,
        weight_decay=0.1,
        mask=optimizer.decay_mask,
      ),
    )
    expected, state = params, oracle.init(params)
    oracle_update = jax.jit(oracle.update)
    for i in range(50):
      update, state = oracle_update(_gradients(params, i), state, expected)
      expected = jax.tree.map(jnp.add, expected, update)
    adamw = optimizer.AdamW(moment_dtype="float32")
    actual, _ = _train(adamw.transformation(), params, 50)
    moved = jnp.abs(expected["lm_head"]["kernel"] - params["lm_head"]["kernel"])
    self.assertGreater(jnp.mean(moved), 1e-3)
    chex.assert_trees_all_close(actual, expected, rtol=0, atol=2e-6)

  def test_bfloat16_moments_stay_within_one_percent_of_the_way(self):
    params = _params()
    exact, _ = _train(
      optimizer.AdamW(moment_dtype="float32").transformation(), params, 50
    )
    rounded, state = _train(optimizer.AdamW().transformation(), params, 50)

    def distance(a, b):
      return float(optimizer.global_norm(jax.tree.map(jnp.subtract, a, b)))

    self.assertLess(distance(rounded, exact), 0.01 * distance(exact, params))
    self.assertGreater(distance(rounded, exact), 0)
    adam = state[1]
    for moments in (adam.mu, adam.nu):
      chex.assert_trees_all_equal_shapes(moments, params)
      self.assertEqual(
        {leaf.dtype for leaf in jax.tree.leaves(moments)},
        {jnp.dtype("bfloat16")},
      )
    self.assertEqual(adam.count, 50)

  def test_first_direction_is_the_sign_of_the_gradient(self):
    params = {"kernel": jnp.zeros((2, 2))}
    gradients = {"kernel": jnp.array([[1e-3, -1e-3], [2e-3, 0.0]])}
    transformation = optimizer.AdamW().transformation()
    direction, _ = transformation.update(
      gradients, transformation.init(params), params
    )
    np.testing.assert_allclose(
      direction["kernel"], [[1.0, -1.0], [1.0, 0.0]], atol=1 / 256
    )
    self.assertEqual(direction["kernel"].dtype, jnp.float32)

  def test_bfloat16_weights_and_gradients_are_computed_in_float32(self):
    params = {"kernel": jnp.full((4, 4), 0.5, jnp.bfloat16)}
    gradients = {"kernel": jnp.full((4, 4), 0.1, jnp.bfloat16)}
    transformation = optimizer.AdamW(moment_dtype="float32").transformation()
    direction, state = transformation.update(
      gradients, transformation.init(params), params
    )
    self.assertEqual(direction["kernel"].dtype, jnp.float32)
    g = float(jnp.bfloat16(0.1))
    np.testing.assert_allclose(state[1].mu["kernel"], 0.1 * g, rtol=1e-6)
    np.testing.assert_allclose(state[1].nu["kernel"], 0.05 * g * g, rtol=1e-6)


class ClipTest(parameterized.TestCase):
  """Section 4.2: the gradient clipping norm is 1.0."""

  def test_longer_gradients_are_scaled_to_the_norm(self):
    gradients = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([[4.0]])}
    self.assertEqual(optimizer.global_norm(gradients), 5.0)
    clip = optimizer.clip_by_global_norm(1.0)
    clipped, _ = clip.update(gradients, clip.init(gradients))
    np.testing.assert_allclose(clipped["a"], [0.6, 0.0], rtol=1e-7)
    np.testing.assert_allclose(clipped["b"], [[0.8]], rtol=1e-7)

  @parameterized.parameters(0.0, 1e-20, 0.1, 0.70710677)
  def test_shorter_gradients_are_untouched(self, value):
    gradients = {"a": jnp.array([value, -value])}
    clip = optimizer.clip_by_global_norm(1.0)
    clipped, _ = clip.update(gradients, clip.init(gradients))
    np.testing.assert_array_equal(clipped["a"], gradients["a"])

  def test_a_given_norm_is_used(self):
    clip = optimizer.clip_by_global_norm(1.0)
    gradients = {"a": jnp.array([1.0])}
    clipped, _ = clip.update(
      gradients, clip.init(gradients), grad_norm=jnp.float32(4.0)
    )
    np.testing.assert_array_equal(clipped["a"], [0.25])

  def test_norm_of_bfloat16_gradients_is_summed_in_float32(self):
    # bfloat16 has no 257.
    norm = optimizer.global_norm({"a": jnp.ones((257,), jnp.bfloat16)})
    self.assertEqual(norm.dtype, jnp.float32)
    np.testing.assert_allclose(norm, 257**0.5, rtol=1e-6)

  @parameterized.parameters(
    (1.0, 2.0, True),
    (jnp.nan, 2.0, False),
    (jnp.inf, 2.0, False),
    (1.0, jnp.nan, False),
    (1.0, -jnp.inf, False),
  )
  def test_all_finite(self, loss, norm, expected):
    actual = optimizer.all_finite(jnp.float32(loss), jnp.float32(norm))
    self.assertEqual(bool(actual), expected)

  @parameterized.parameters(jnp.nan, jnp.inf)
  def test_one_bad_gradient_shows_in_the_norm(self, bad):
    gradients = _gradients(_params(), 0)
    scale = gradients["norm"]["scale"]
    gradients["norm"]["scale"] = scale.at[3].set(bad)
    norm = optimizer.global_norm(gradients)
    self.assertFalse(optimizer.all_finite(jnp.float32(1.0), norm))


class DecayTest(parameterized.TestCase):
  """Matrices decay, scales do not, however they are stacked."""

  def test_mask(self):
    self.assertEqual(
      optimizer.decay_mask(_params()),
      {
        "embed_tokens": {"embedding": True},
        "moe_layers": {
          "input_layernorm": {"scale": False},
          "mlp": {
            "gate": {"kernel": True},
            "experts": {"gate_proj": True},
          },
        },
        "norm": {"scale": False},
        "lm_head": {"kernel": True},
      },
    )

  def test_without_gradients_only_the_decay_is_left(self):
    params = _params()
    transformation = optimizer.AdamW().transformation()
    direction, _ = transformation.update(
      jax.tree.map(jnp.zeros_like, params), transformation.init(params), params
    )
    expected = jax.tree.map(
      lambda decays, p: 0.1 * p if decays else jnp.zeros_like(p),
      optimizer.decay_mask(params),
      params,
    )
    chex.assert_trees_all_close(direction, expected, rtol=1e-7)


class SkipTest(parameterized.TestCase):
  """A step whose gradients are not finite leaves no trace."""

  @parameterized.parameters(0, 3)
  def test_take_false_keeps_everything(self, steps):
    transformation = optimizer.AdamW().transformation()
    params, state = _train(transformation, _params(), steps)
    bad = jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), params)

    @jax.jit
    def step(params, state, gradients):
      norm = optimizer.global_norm(gradients)
      take = optimizer.all_finite(jnp.float32(1.0), norm)
      direction, state = transformation.update(
        gradients, state, params, grad_norm=norm, take=take
      )
      rate = jnp.where(take, 1e-3, 0.0)
      new = jax.tree.map(lambda p, d: p - rate * d, params, direction)
      return new, state

    skipped = step(params, state, bad)
    chex.assert_trees_all_equal(skipped, (params, state))
    taken = step(*skipped, _gradients(params, steps))
    self.assertEqual(taken[1][1].count, steps + 1)
    with self.assertRaises(AssertionError):
      chex.assert_trees_all_equal(taken[0], params)

  def test_moments_are_updated_in_place(self):
    transformation = optimizer.AdamW().transformation()
    params = {"kernel": jnp.ones((1024, 256))}
    state = transformation.init(params)

    def step(params, state, gradients):
      norm = optimizer.global_norm(gradients)
      direction, state = transformation.update(
        gradients, state, params, grad_norm=norm, take=jnp.isfinite(norm)
      )
      new = jax.tree.map(lambda p, d: p - 1e-3 * d, params, direction)
      return new, state

    compiled = (
      jax.jit(step, donate_argnums=(0, 1))
      .lower(params, state, params)
      .compile()
    )
    # One copied moment would be 1024 * 256 * 2 bytes.
    self.assertLess(
      compiled.memory_analysis().temp_size_in_bytes, 1024 * 256 * 2
    )


class ShardingTest(parameterized.TestCase):
  """The state follows the parameters onto a mesh."""

  def test_sharded_steps_equal_those_of_one_device(self):
    mesh = jax.make_mesh(
      (8,), ("local",), axis_types=(jax.sharding.AxisType.Auto,)
    )

    def spread(leaf):
      axis = next((i for i, n in enumerate(leaf.shape) if n % 8 == 0), None)
      names = [None] * leaf.ndim
      if axis is not None:
        names[axis] = "local"
      spec = jax.sharding.PartitionSpec(*names)
      return jax.device_put(leaf, jax.sharding.NamedSharding(mesh, spec))

    params = _params()
    transformation = optimizer.AdamW().transformation()
    expected = _train(transformation, params, 3)
    actual = _train(transformation, jax.tree.map(spread, params), 3)
    chex.assert_trees_all_close(actual[0], expected[0], atol=1e-6)
    sharding = actual[1][1].mu["lm_head"]["kernel"].sharding
    self.assertEqual(
      sharding.shard_shape((8, 24)), (1, 24), "moments follow the parameters"
    )


class RefusalTest(parameterized.TestCase):
  """One line that names the field, what came and what to do."""

  @parameterized.parameters(
    (dict(b1=1.0), "b1=1.0: expected at least 0.0 and below 1.0"),
    (dict(b2=-0.1), "b2=-0.1: expected at least 0.0 and below 1.0"),
    (dict(eps=0.0), "eps=0.0: expected at least 1e-30"),
    (dict(weight_decay=-1.0), "weight_decay=-1.0: expected at least 0.0"),
    (dict(clip_norm=0.0), "clip_norm=0.0: expected at least 1e-30"),
    (dict(clip_norm=float("nan")), "clip_norm=nan: expected"),
    (dict(clip_norm="1"), "clip_norm='1': expected a number"),
    (dict(moment_dtype="float16"), "moment_dtype='float16': expected"),
    (dict(b2=0.999), "b2=0.999: .*set moment_dtype='float32'"),
  )
  def test_settings(self, settings, message):
    with self.assertRaisesRegex(ValueError, message) as caught:
      optimizer.AdamW(**settings)
    self.assertNotIn("\n", str(caught.exception))

  def test_slow_betas_are_allowed_in_float32(self):
    self.assertEqual(
      optimizer.AdamW(b2=0.999, moment_dtype="float32").b2, 0.999
    )

  def test_why_slow_betas_are_refused_in_bfloat16(self):
    """A second moment of 1 never falls, although all gradients are 0."""
    adam = optimizer.scale_by_adam(0.9, 0.999, 1e-8, "bfloat16")
    kernel = {"kernel": jnp.zeros((2, 2))}
    ones = {"kernel": jnp.ones((2, 2), jnp.bfloat16)}
    state = optax.ScaleByAdamState(jnp.zeros((), jnp.int32), ones, ones)
    for _ in range(20):
      _, state = adam.update(kernel, state)
    np.testing.assert_array_equal(state.nu["kernel"], ones["kernel"])
    self.assertLess(state.mu["kernel"].astype(jnp.float32).max(), 0.13)


if __name__ == "__main__":
  absltest.main()
