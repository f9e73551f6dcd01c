"""What a step changes and what it refuses."""

from absl.testing import absltest
import chex
import jax
import jax.numpy as jnp
import numpy as np

from dsx.models import deepseek
from dsx.ops import routing
from dsx.parallel import mesh as mesh_lib
from dsx.parallel import sharding as sharding_lib
from dsx.training import optimizer as optimizer_lib
from dsx.training import state as state_lib
from dsx.training import step as step_lib
from tests.training import tiny


def _setting(**changes):
  model = deepseek.DeepSeek(tiny.model_config(**changes))
  optimizer = optimizer_lib.AdamW().transformation()
  mesh = mesh_lib.make(mesh_lib.MeshShape(), jax.devices()[:1])
  boxed = state_lib.abstract(model, optimizer)
  placement = state_lib.shardings(boxed, sharding_lib.Sharding(), mesh)
  state = state_lib.initialise(model, optimizer, placement, seed=0)
  return model, optimizer, state, step_lib.compiled(model, optimizer, placement)


class StepTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.model, cls.optimizer, cls.state, take = _setting()
    cls.take = staticmethod(take)
    cls.batch = {"tokens": tiny.tokens(1, 4, 17)}

  def _copy(self):
    return jax.tree.map(jnp.copy, self.state)

  def test_learns_a_batch_by_heart(self):
    state = self._copy()
    losses = []
    for _ in range(60):
      state, metrics = self.take(
        state, self.batch, tiny.scalars(learning_rate=np.float32(1e-2))
      )
      losses.append(float(metrics["loss"]))
    self.assertLess(losses[-1], 0.5 * losses[0])
    self.assertEqual(int(state.step), 60)
    self.assertEqual(int(state.skipped), 0)

  def test_refuses_an_update_that_is_not_finite(self):
    params = jax.tree.map(jnp.copy, self.state.params)
    params["norm"]["scale"] = params["norm"]["scale"].at[3].set(jnp.inf)
    state = self._copy().replace(params=params)
    before = jax.device_get((state.params, state.opt_state, state.router_bias))
    for count in (1, 2):
      state, metrics = self.take(state, self.batch, tiny.scalars())
      self.assertFalse(bool(metrics["finite"]))
      self.assertEqual(int(state.skipped), count)
      self.assertEqual(int(state.skipped_in_a_row), count)
    after = jax.device_get((state.params, state.opt_state, state.router_bias))
    chex.assert_trees_all_equal(before, after)
    # A finite step ends the row, and does not forget the count.
    healed = state.replace(params=jax.tree.map(jnp.copy, self.state.params))
    healed, metrics = self.take(healed, self.batch, tiny.scalars())
    self.assertTrue(bool(metrics["finite"]))
    self.assertEqual(int(healed.skipped_in_a_row), 0)
    self.assertEqual(int(healed.skipped), 2)

  def test_bias_is_stepped_by_sign_and_untouched_by_the_optimizer(self):
    state, metrics = self.take(self._copy(), self.batch, tiny.scalars())
    load = np.asarray(metrics["load"])
    for bias, own in (
      (state.router_bias["moe_layers"], load[0]),
      (state.router_bias["mtp_0"]["block"], load[1]),
    ):
      values = np.asarray(bias["mlp"]["gate"]["e_score_correction_bias"])
      expected = 0.001 * np.sign(own.mean() - own)
      np.testing.assert_allclose(values.reshape(-1), expected, atol=1e-9)
    frozen, _ = self.take(
      self._copy(),
      self.batch,
      tiny.scalars(bias_update_speed=np.float32(0)),
    )
    chex.assert_trees_all_equal(frozen.router_bias, self.state.router_bias)

  def test_unused_micro_batches_do_not_count(self):
    tokens = tiny.tokens(3, 4, 17)
    spoiled = tokens.copy()
    spoiled[2] = 1
    two = tiny.scalars(micro_batches=np.int32(2))
    a, m_a = self.take(self._copy(), {"tokens": tokens}, two)
    b, m_b = self.take(self._copy(), {"tokens": spoiled}, two)
    chex.assert_trees_all_equal(a, b)
    chex.assert_trees_all_equal(m_a, m_b)
    _, m_c = self.take(self._copy(), {"tokens": tokens[:2]}, two)
    np.testing.assert_allclose(m_a["loss"], m_c["loss"], rtol=1e-6)

  def test_gradient_is_the_documented_loss(self):
    """Eq. 17, 24 and 25 put together by hand from the model's outputs."""
    scalars = tiny.scalars()
    params, bias = self.state.params, self.state.router_bias
    _, metrics = step_lib.gradients(
      self.model, params, bias, self.batch, scalars
    )
    tokens = self.batch["tokens"][0]
    logits, aux = self.model.apply(
      {"params": params, "router_bias": bias}, tokens[:, :-1]
    )
    rows = np.arange(4)[:, None]

    def nats(logits, first, last):
      columns = np.arange(last - first)[None, :]
      table = jax.nn.log_softmax(logits)
      return -table[rows, columns, tokens[:, first:last]].sum() / (4 * 16)

    np.testing.assert_allclose(metrics["loss"], nats(logits, 1, 17), rtol=1e-5)
    np.testing.assert_allclose(
      metrics["mtp_loss"][0], nats(aux["mtp_logits"][0], 2, 17), rtol=1e-5
    )
    np.testing.assert_allclose(
      metrics["balance_loss"], aux["balance_loss"].mean(), rtol=1e-5
    )

  def test_bfloat16_bias_would_stall(self):
    """Why the bias is float32: 0.001 vanishes beside 0.5 in bfloat16."""
    one_sided = jnp.array([0.0, 2.0])
    wide, narrow = jnp.zeros(2), jnp.zeros(2, jnp.bfloat16)
    for _ in range(1000):
      wide = routing.bias_step(wide, one_sided, 0.001)
      narrow = routing.bias_step(narrow, one_sided, 0.001).astype(jnp.bfloat16)
    np.testing.assert_allclose(wide, [1.0, -1.0], rtol=1e-3)
    np.testing.assert_allclose(narrow.astype(jnp.float32), [0.5, -0.5])


class DigestTest(absltest.TestCase):
  def test_sees_every_part(self):
    _, _, state, _ = _setting()
    digest = state_lib.digest(state, 7)
    self.assertEqual(digest, state_lib.digest(state, 7))
    self.assertNotEqual(digest, state_lib.digest(state, 8))
    for part in ("params", "opt_state", "router_bias"):
      leaves, tree = jax.tree.flatten(getattr(state, part))
      leaves[-1] = leaves[-1] + 1
      changed = state.replace(**{part: jax.tree.unflatten(tree, leaves)})
      self.assertNotEqual(digest, state_lib.digest(changed, 7))
