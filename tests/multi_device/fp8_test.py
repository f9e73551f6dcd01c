"""Experts in FP8 on eight devices compute what they would on one."""

import functools
from typing import Any

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from dsx.models import config as config_lib
from dsx.ops import fp8_probe
from dsx.ops import fp8_recipe
from dsx.ops import routing
from dsx.parallel import expert
from dsx.parallel import mesh as mesh_lib
from dsx.parallel import sharding as sharding_lib

_CONFIG = config_lib.DeepSeekConfig(
  hidden_size=136,
  moe_intermediate_size=256,
  n_routed_experts=8,
  num_experts_per_tok=2,
  n_group=4,
  topk_group=2,
)
_B, _L, _D, _F, _E = 16, 40, 136, 256, 8
_RECIPE = fp8_recipe.Recipe()
# Most of the time goes into compiling.
_jit = functools.partial(
  jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)


def _problem():
  """(x, index, weight, kernels, cotangent); some tokens have no expert."""
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(_B * _L, _E)) + 0.3 * np.arange(_E)
  scores = jax.nn.sigmoid(jnp.asarray(logits, jnp.float32))
  routed = routing.route(scores, None, _CONFIG)
  index = np.array(routed.index).reshape(_B, _L, -1)
  index[0, 0] = -1
  weight = np.array(routed.weight).reshape(_B, _L, -1)
  shapes = (_E, _D, _F), (_E, _D, _F), (_E, _F, _D)
  kernels = [
    (rng.normal(size=s) * np.exp(rng.normal(size=s[1:])) / 12).astype(
      np.float32
    )
    for s in shapes
  ]
  x, dy = (
    (rng.normal(size=(_B, _L, _D)) * np.exp(rng.normal(size=_D))).astype(
      np.float32
    )
    for _ in range(2)
  )
  return x, index, weight, kernels, dy


def _run(
  problem,
  shape,
  *,
  strategy: Any = "zero1",
  recipe: fp8_recipe.Recipe | None = _RECIPE,
  probe=None,
  **fields,
) -> Any:
  """(y, dx, dweight, dkernels, sums of the probe)."""
  x, index, weight, kernels, dy = problem
  dispatch = config_lib.Dispatch(**fields)

  def layer(x, weight, kernels, probe):
    return expert.run(
      x,
      index,
      weight,
      kernels,
      _CONFIG,
      impl="auto",
      dispatch=dispatch,
      fp8=recipe,
      probe=probe,
    )[0]

  def program(x, weight, kernels, probe, dy):
    y, pull = jax.vjp(layer, x, weight, kernels, probe)
    return y, *pull(dy)

  arguments = (x, weight, kernels, probe, dy)
  if not shape:
    return _jit(program)(*arguments)
  mesh = mesh_lib.make(mesh_lib.MeshShape(**{"data": 1} | shape))
  with sharding_lib.use(mesh, sharding_lib.Sharding(strategy=strategy)):
    return _jit(program)(*arguments)


def _error(found, expected):
  found, expected = (np.asarray(a, np.float64) for a in (found, expected))
  return np.linalg.norm(found - expected) / np.linalg.norm(expected)


class Fp8Test(parameterized.TestCase):
  results: dict = {}

  def _found(self, shape, **fields):
    """What `_run` returns; compiled once for all tests."""
    key = (tuple(shape.items()), tuple(fields.items()))
    if key not in self.results:
      flags = dict(fields)
      if flags.pop("probe", False):
        flags["probe"] = jnp.zeros((3, 3, fp8_probe.WIDTH))
      self.results[key] = _run(_problem(), shape, **flags)
    return self.results[key]

  def _alone(self, **fields):
    """On one device."""
    return self._found({}, probe=not fields, **fields)

  # Rows are quantised one by one, so they do not know where they are: what
  # differs is the order of float32 sums, and FP8 numbers an ulp from a tie.
  # Where rows arrive in the order of tokens, that holds for weights too;
  # elsewhere other tokens share their tiles, and differ as much as FP8 does.
  @parameterized.named_parameters(
    (
      "flat",
      {"node": 2, "local": 4},
      {"transport": "flat", "probe": True},
      True,
    ),
    (
      "flat_float8",
      {"node": 2, "local": 4},
      {"transport": "flat", "dtype": "float8"},
      True,
    ),
    (
      "two_hop_float8", {"node": 4, "local": 2}, {"dtype": "float8"}, False
    ),
    (
      "tensor_float8",
      {"node": 2, "local": 2, "tensor": 2},
      {"dtype": "float8"},
      False,
    ),
    ("rounds", {"local": 4, "data": 2}, {"capacity_factor": 0.5}, False),
  )  # fmt: skip
  def test_equals_one_device(self, shape, fields, in_order):
    found = self._found(shape, **fields)
    wire = {k: v for k, v in fields.items() if k == "dtype"}
    expected = self._alone(**wire)
    for one, other in zip(found[:3], expected[:3], strict=True):
      self.assertLess(_error(one, other), 2e-3)
    for one, other in zip(found[3], expected[3], strict=True):
      if in_order:
        self.assertLess(_error(one, other), 2e-3)
      else:
        self.assertBetween(_error(one, other), 2e-3, 0.06)

  def test_is_fp8(self):
    """Neither is it what it would be without, nor far from it."""
    wide = _run(_problem(), {}, recipe=None)
    for found in (self._alone(), self._alone(dtype="float8")):
      for one, other in zip(
        jax.tree.leaves(found[:4]), jax.tree.leaves(wide[:4]), strict=True
      ):
        self.assertBetween(_error(one, other), 0.02, 0.2)

  def test_gathered_weights(self):
    """Blocks are of whole matrices, though devices hold parts."""
    shape = {"data": 2, "node": 2, "local": 2}
    found = _run(_problem(), shape, strategy="fully_sharded", transport="flat")
    expected = self._alone()
    for one, other in zip(found[:3], expected[:3], strict=True):
      self.assertLess(_error(one, other), 2e-3)

  def test_probe_counts_all_devices(self):
    shape = {"node": 2, "local": 4}
    sums = self._found(shape, transport="flat", probe=True)[4]
    expected = self._alone()[4]
    # Rows count once on each device that they reach, at most K.
    rows, rows_alone = sums[0, 0, 0], expected[0, 0, 0]
    self.assertBetween(float(rows / rows_alone), 1.0, 2.0)
    self.assertLess(_error(sums[:, 1], expected[:, 1]), 1e-6)
    hidden, hidden_alone = sums[2, 0], expected[2, 0]
    self.assertEqual(hidden[0], hidden_alone[0])
    self.assertEqual(hidden[4:].sum(), hidden_alone[4:].sum())
    self.assertEqual(sums[0, 2, 4:].sum(), expected[0, 2, 4:].sum())

  def test_what_travels_is_float8(self):
    """Forth both ways; results and their gradients come back as they are."""
    problem = _problem()
    x, index, weight, kernels, dy = problem

    def program(x, weight, kernels, dy):
      def layer(x, weight, kernels):
        return expert.run(
          x,
          index,
          weight,
          kernels,
          _CONFIG,
          impl="auto",
          dispatch=config_lib.Dispatch(dtype="float8"),
          fp8=_RECIPE,
        )[0]

      y, pull = jax.vjp(layer, x, weight, kernels)
      return y, *pull(dy)

    mesh = mesh_lib.make(mesh_lib.MeshShape(data=1, node=2, local=4))
    x, dy, *kernels = (a.astype(jnp.bfloat16) for a in (x, dy, *kernels))
    with sharding_lib.use(mesh, sharding_lib.Sharding(strategy="zero1")):
      text = jax.jit(program).lower(x, weight, kernels, dy).as_text()
    sent = [line for line in text.splitlines() if "all_to_all" in line]
    rows = [line for line in sent if f"x{_D}x" in line]
    of_float8 = [line for line in rows if "f8E4M3FN" in line]
    self.assertLen(of_float8, 4)  # two hops each of rows and of gradients
    self.assertLen(rows, 8)
    for line in rows:
      self.assertRegex(line, "f8E4M3FN|bf16")


if __name__ == "__main__":
  absltest.main()
