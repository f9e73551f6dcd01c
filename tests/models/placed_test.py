"""Experts in other places, some of them twice, are the same model."""

import dataclasses
import functools

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from dsx.models import decoder
from dsx.models import layout
from dsx.models import placed
from dsx.ops import block_scaled
from dsx.parallel import placement_file
from tests.models import tiny

_CONFIG = tiny.config(num_hidden_layers=2)
_EXPERTS = ("gate_proj", "up_proj", "down_proj")
_FOUND = placement_file.Placement(
  strategy="hierarchical",
  experts=8,
  groups=4,
  nodes=1,
  local=1,
  redundant=0,
  layers={"1": np.array([3, 0, 7, 1, 2, 6, 5, 4])},
)
_COPIES = dataclasses.replace(
  _FOUND,
  local=2,
  redundant=4,
  layers={
    "1": np.array([3, 0, 7, 1, 2, 6, 3, 0, 7, 1, 5, 4]),
    "mtp_0": np.array([0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3]),
  },
)


def _variables(fp8=False):
  variables = jax.tree.map(jnp.copy, tiny.variables(_CONFIG))
  variables = layout.to_layers(_CONFIG, variables)
  if fp8:
    for name in _EXPERTS:
      for block in _blocks(variables):
        experts = block["mlp"]["experts"]
        experts[name] = block_scaled.quantise(experts[name])
  return variables


def _blocks(variables):
  params = variables["params"]
  return params["layers_1"], params["mtp_0"]["block"]


@functools.cache
def _run():
  model = decoder.Decoder(_CONFIG, n_mtp=1)
  tokens = tiny.tokens(16, 16)
  following = jnp.roll(tokens, -1, 1)
  valid = jnp.ones(tokens.shape, bool).at[0, 3:].set(False)

  @jax.jit
  def run(variables):
    hidden, remembered = model.apply(
      variables, tokens, following, valid, method="prefill"
    )
    return hidden[1:], jax.tree.map(lambda x: x[1:], remembered)

  return run


class PlacedTest(parameterized.TestCase):
  @parameterized.product(
    found=[_FOUND, _COPIES],
    fp8=[False, True],
  )
  def test_results_stay(self, found, fp8):
    expected = _run()(_variables(fp8))
    variables = placed.placed(_variables(fp8), found)
    chex.assert_trees_all_close(_run()(variables), expected, atol=1e-5)

  def test_rows_are_those_of_the_placement(self):
    plain = _variables(fp8=True)
    variables = placed.placed(_variables(fp8=True), _COPIES)
    pairs = zip(_blocks(variables), _blocks(plain), ("1", "mtp_0"), strict=True)
    for block, own, name in pairs:
      for matrix in _EXPERTS:
        chex.assert_trees_all_equal(
          block["mlp"]["experts"][matrix],
          jax.tree.map(
            lambda x, name=name: x[_COPIES.layers[name]],
            own["mlp"]["experts"][matrix],
          ),
        )
    # The router is that of the model.
    self.assertEqual(
      variables["params"]["layers_1"]["mlp"]["gate"]["kernel"].shape[-1], 8
    )

  def test_every_copy_has_work(self):
    """Spoil any one of them, and results change."""
    expected, _ = _run()(_variables())
    for place in range(12):
      variables = placed.placed(_variables(), _COPIES)
      experts = variables["params"]["layers_1"]["mlp"]["experts"]
      experts["down_proj"] = experts["down_proj"].at[place].mul(-1.0)
      hidden, _ = _run()(variables)
      self.assertGreater(np.abs(hidden - expected).max(), 1e-3, place)

  def test_layers_that_are_not_named_stay(self):
    variables = placed.placed(_variables(), _FOUND)
    self.assertEqual(set(variables["placement"]), {"layers_1"})

  def test_modules_that_were_not_read(self):
    variables = _variables()
    del variables["params"]["mtp_0"]
    variables = placed.placed(variables, _COPIES)
    self.assertEqual(set(variables["placement"]), {"layers_1"})
    self.assertNotIn("mtp_0", variables["params"])


if __name__ == "__main__":
  absltest.main()
