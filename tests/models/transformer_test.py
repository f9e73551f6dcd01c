"""Blocks, the scanned stack, and what rematerialisation keeps."""

import functools
import math

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from dsx.models import config as config_lib
from dsx.models import transformer
from dsx.ops import rope
from tests.models import oracle
from tests.models import tiny

_BATCH, _LENGTH = 2, 7


def _x():
  return jax.random.normal(jax.random.key(0), (_BATCH, _LENGTH, 12))


def _rotation(c):
  positions = jnp.broadcast_to(jnp.arange(_LENGTH)[None, :], (_BATCH, _LENGTH))
  return rope.cos_sin(positions, c.qk_rope_head_dim, c.rope_theta)


def _stack(dense: bool, length: int, **execution):
  """(config, variables, function of variables and x) of a stack."""
  c = tiny.config(num_hidden_layers=2 * length, first_k_dense_replace=length)
  part = "dense_layers" if dense else "moe_layers"
  whole = tiny.variables(c)
  variables = {k: v[part] for k, v in whole.items() if part in v}
  stack = transformer.Stack(
    c, dense, length, execution=config_lib.Execution(**execution)
  )

  def apply(variables, x):
    return stack.apply(variables, x, _rotation(c))

  return c, variables, apply


@functools.cache
def _loss_and_grads(dense, **execution):
  _, variables, apply = _stack(dense, 2, **execution)

  def loss(params, x):
    y, _ = apply({**variables, "params": params}, x)
    return (y * jnp.cos(jnp.arange(12.0))[None, None, :]).sum()

  grad = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
  return grad(variables["params"], _x())


def _saved(**execution) -> list[tuple[int, ...]]:
  """Shapes of what the backward pass of three expert layers is given."""
  # The accelerators' experts, whose rows are tokens x K and nothing else.
  _, variables, apply = _stack(False, 3, experts="grouped", **execution)

  def pullback(params, x):
    return jax.vjp(
      lambda p, x: apply({**variables, "params": p}, x)[0], params, x
    )[1]

  residuals = jax.eval_shape(pullback, variables["params"], _x())
  weights = {x.shape for x in jax.tree.leaves(variables)}
  shapes = [x.shape for x in jax.tree.leaves(residuals)]
  return sorted(s for s in shapes if s not in weights and s[:1] == (3,))


class BlockTest(parameterized.TestCase):
  @parameterized.parameters(True, False)
  def test_equals_the_equations(self, dense):
    c, variables, _ = _stack(dense, 2)
    own = jax.tree.map(lambda x: x[1], variables)
    y, aux = transformer.Block(c, dense).apply(own, _x(), _rotation(c))
    bias = own.get("router_bias")
    if bias is not None:
      bias = bias["mlp"]["gate"]["e_score_correction_bias"]
      bias = np.asarray(bias, np.float64)
    params = oracle.float64(own["params"])
    for i, row in enumerate(_x()):
      theirs, _ = oracle.block(c, params, bias, np.asarray(row, np.float64))
      chex.assert_trees_all_close(y[i], theirs.astype(np.float32), atol=1e-4)
    keys = [] if dense else ["load", "balance_loss", "dropped"]
    self.assertCountEqual(aux, keys)


class StackTest(parameterized.TestCase):
  @parameterized.parameters((True, False), (False, False), (False, True))
  def test_equals_a_loop(self, dense, unroll):
    c, variables, apply = _stack(dense, 2, unroll_layers=unroll)
    y, aux = jax.jit(apply)(variables, _x())
    block = transformer.Block(c, dense)
    step = jax.jit(lambda own, x: block.apply(own, x, _rotation(c)))
    x, expected = _x(), []
    for i in range(2):
      x, one = step(jax.tree.map(lambda leaf, i=i: leaf[i], variables), x)
      expected.append(one)
    chex.assert_trees_all_close(y, x, atol=1e-4)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *expected)
    chex.assert_trees_all_close(aux, stacked, atol=1e-4)

  @parameterized.parameters(
    (True, {"remat": "paper"}),
    (False, {"unroll_layers": True}),
    (False, {"remat": "paper"}),
    (False, {"remat": "full"}),
    (False, {"remat": "paper", "unroll_layers": True}),
  )
  def test_execution_changes_no_gradient(self, dense, changes):
    ours = _loss_and_grads(dense, **changes)
    plain = _loss_and_grads(dense)
    self.assertGreater(float(jnp.abs(plain[1][1]).max()), 0.1)
    chex.assert_trees_all_close(ours, plain, rtol=1e-4, atol=1e-4)

  def test_layers_differ(self):
    """Each layer is initialised with numbers of its own."""
    c = tiny.config()
    stack = transformer.Stack(c, True, 2)
    kernel = jax.jit(stack.init)(jax.random.key(0), _x(), _rotation(c))[
      "params"
    ]["mlp"]["up_proj"]["kernel"].value
    self.assertFalse(np.array_equal(kernel[0], kernel[1]))


class RematerialisationTest(parameterized.TestCase):
  def test_full_keeps_the_inputs_of_layers(self):
    self.assertEqual(_saved(remat="full"), [(3, _BATCH, _LENGTH, 12)])

  def test_paper_keeps_no_norm_no_up_projection_and_no_swiglu_output(self):
    """Section 3.2.3, tensor by tensor."""
    tokens, rows = (3, _BATCH, _LENGTH), (3, _BATCH * _LENGTH * 3)
    kept = [
      (*tokens, 12),  # the layer's input
      (*tokens, 10),  # the queries' latent
      (*tokens, 8 + 4),  # the keys' and values' latent with the rotary key
      (*tokens, 2, 5),  # the attention's output
      (*tokens, 12),  # the residual stream after attention
      (*tokens, 8),  # the shared expert's gate
      (*tokens, 8),  # and up-projection
      (*rows, 12),  # the tokens sent to experts
      (*rows, 8),  # the routed experts' gates
      (*rows, 8),  # and up-projections
    ]
    self.assertEqual(_saved(remat="paper"), sorted(kept))

  def test_policies_keep_less_and_less(self):
    sizes = [
      sum(map(math.prod, _saved(remat=policy)))
      for policy in ("full", "paper", "none")
    ]
    self.assertLess(4 * sizes[0], sizes[1])
    self.assertLess(1.5 * sizes[1], sizes[2])


if __name__ == "__main__":
  absltest.main()
