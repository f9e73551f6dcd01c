"""Experts on other devices compute what they would compute here."""

from typing import Any

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from dsx.models import config as config_lib
from dsx.ops import block_scaled
from dsx.ops import expert_mlp
from dsx.ops import routing
from dsx.parallel import expert
from dsx.parallel import mesh as mesh_lib
from dsx.parallel import sharding as sharding_lib

_CONFIG = config_lib.DeepSeekConfig(
  hidden_size=16,
  moe_intermediate_size=8,
  n_routed_experts=16,
  num_experts_per_tok=4,
  n_group=4,
  topk_group=2,
)
_B, _L, _D, _F, _E = 16, 6, 16, 8, 16


def _problem(skewed: bool = False):
  """(x, index, weight, kernels, cotangent); some tokens have no expert."""
  rng = np.random.default_rng(0)
  logits = 2 * rng.normal(size=(_B * _L, _E))
  if skewed:
    logits[:, 1] += 20  # everybody wants expert 1
  scores = jax.nn.sigmoid(jnp.asarray(logits, jnp.float32))
  routed = routing.route(scores, None, _CONFIG)
  index = np.array(routed.index).reshape(_B, _L, -1)
  index[0, 0] = -1
  weight = np.array(routed.weight).reshape(_B, _L, -1)
  shapes = (_E, _D, _F), (_E, _D, _F), (_E, _F, _D)
  kernels = [0.3 * rng.normal(size=s).astype(np.float32) for s in shapes]
  x, dy = (rng.normal(size=(_B, _L, _D)).astype(np.float32) for _ in range(2))
  return x, index, weight, kernels, dy


def _oracle(x, index, weight, kernels, dy):
  """Every token through every expert, on one device."""

  def dense(x, weight, kernels):
    rows = (a.reshape(_B * _L, -1) for a in (x, index, weight))
    y = expert_mlp.expert_mlp(*rows, *kernels, impl="dense")
    return y.reshape(x.shape)

  y, pull = jax.vjp(dense, x, weight, kernels)
  return y, pull(dy)


def _run(problem, shape, strategy="zero1", impl="auto", **fields) -> Any:
  """(y, dropped, gradients) on as many devices as `shape` has."""
  x, index, weight, kernels, dy = problem
  dispatch = config_lib.Dispatch(**fields)

  def layer(x, weight, kernels):
    return expert.run(
      x, index, weight, kernels, _CONFIG, impl=impl, dispatch=dispatch
    )

  def program(x, weight, kernels, dy):
    (y, dropped), pull = jax.vjp(layer, x, weight, kernels)
    return y, dropped, pull((dy, jnp.zeros_like(dropped)))

  mesh = mesh_lib.make(mesh_lib.MeshShape(**{"data": 1} | shape))
  with sharding_lib.use(mesh, sharding_lib.Sharding(strategy=strategy)):
    return jax.jit(program)(x, weight, kernels, dy)


def _assert_close(found, expected, tolerance=1e-5):
  for one, other in zip(
    jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
  ):
    scale = np.abs(other).max()
    np.testing.assert_allclose(one, other, atol=tolerance * scale)


class ExpertTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ("two_hop", {"node": 4, "local": 2}, {}),
    ("ragged", {"node": 2, "local": 4}, {"wire": "ragged"}),
    ("grouped", {"node": 4, "local": 2}, {"impl": "grouped"}),
    ("flat", {"node": 2, "local": 4}, {"transport": "flat"}),
    ("node_alone", {"node": 8}, {}),
    ("local_alone_with_data", {"data": 2, "local": 4}, {}),
    (
      "two_hop_tensor",
      {"node": 2, "local": 2, "tensor": 2},
      {"impl": "grouped"},
    ),
    (
      "fully_sharded_context",
      {"data": 2, "local": 2, "context": 2},
      {"strategy": "fully_sharded"},
    ),
    ("whole_experts", {"data": 4, "tensor": 2}, {"strategy": "replicated"}),
  )
  def test_equals_the_oracle(self, shape, options):
    problem = _problem()
    y, dropped, grads = _run(problem, shape, **options)
    expected, expected_grads = _oracle(*problem)
    _assert_close(y, expected)
    _assert_close(grads, expected_grads)
    self.assertEqual(dropped, 0)

  @parameterized.named_parameters(
    ("two_hop", {"node": 4, "local": 2}, {"impl": "grouped"}),
    ("flat", {"node": 2, "local": 4}, {"transport": "flat"}),
    ("ragged_tensor", {"local": 4, "tensor": 2}, {"wire": "ragged"}),
  )
  def test_nothing_is_dropped_in_rounds(self, shape, options):
    """Everybody wants one expert, and buffers are a fifth of the mean."""
    problem = _problem(skewed=True)
    y, dropped, grads = _run(problem, shape, capacity_factor=0.2, **options)
    expected, expected_grads = _oracle(*problem)
    _assert_close(y, expected)
    _assert_close(grads, expected_grads)
    self.assertEqual(dropped, 0)

  def test_drops_are_left_out_and_counted(self):
    """The result is the oracle's without what had no room."""
    x, index, weight, kernels, dy = _problem(skewed=True)
    shape, factor = {"local": 8}, 1.0
    y, dropped, grads = _run(
      (x, index, weight, kernels, dy),
      shape,
      capacity_factor=factor,
      overflow="drop",
    )
    # Each device may send 8 copies to another; its first ones are taken.
    kept = np.full_like(index, -1)
    tokens = _B // 8 * _L
    for device in range(8):
      own = index[device * 2 : device * 2 + 2].reshape(tokens, -1)
      taken = kept[device * 2 : device * 2 + 2].reshape(tokens, -1)
      sent = np.zeros(8, int)
      for t, k in np.ndindex(own.shape):
        if own[t, k] >= 0 and sent[own[t, k] // 2] < 8:
          sent[own[t, k] // 2] += 1
          taken[t, k] = own[t, k]
      kept[device * 2 : device * 2 + 2] = taken.reshape(2, _L, -1)
    missing = int((kept != index).sum())
    self.assertGreater(missing, 20)
    self.assertEqual(dropped, missing)
    expected, expected_grads = _oracle(x, kept, weight, kernels, dy)
    _assert_close(y, expected)
    _assert_close(grads, expected_grads)

  @parameterized.parameters("padded", "ragged")
  def test_float8_on_the_way(self, wire):
    """A row's error is FP8's; rows that fit in FP8 have none."""
    problem = _problem()
    shape = {"node": 4, "local": 2}
    y, _, _ = _run(problem, shape, dtype="float8", wire=wire)
    expected, _ = _oracle(*problem)
    error = np.linalg.norm(y - expected) / np.linalg.norm(expected)
    self.assertBetween(error, 1e-3, 0.06)
    x, *rest = problem
    x = np.sign(x) * 0.5
    y, _, _ = _run((x, *rest), shape, dtype="float8", wire=wire)
    _assert_close(y, _oracle(x, *rest)[0])

  def test_float8_gradients_on_the_way(self):
    """Gradients of results ride in FP8 too; those that fit are exact."""
    x, index, weight, kernels, dy = _problem()
    x, dy = np.sign(x), np.sign(dy)
    problem = (x, index, weight, kernels, dy)
    _, _, grads = _run(problem, {"node": 4, "local": 2}, dtype="float8")
    _assert_close(grads, _oracle(*problem)[1])
    dy = dy * (1 + 0.03 * np.arange(_D, dtype=np.float32))
    problem = (x, index, weight, kernels, dy)
    _, _, grads = _run(problem, {"node": 4, "local": 2}, dtype="float8")
    wanted = _oracle(*problem)[1]
    error = np.linalg.norm(grads[0] - wanted[0]) / np.linalg.norm(wanted[0])
    self.assertBetween(error, 1e-3, 0.06)

  @parameterized.parameters((1, 1), (3, 5), (2, 4))
  def test_any_number_of_tokens(self, rows, length):
    """Decoding has few tokens, which do not divide over a mesh."""
    x, index, weight, kernels, dy = _problem()
    x, index, weight, dy = (a[:rows, :length] for a in (x, index, weight, dy))
    found, _, _ = _run(
      (x, index, weight, kernels, dy), {"node": 2, "local": 2, "context": 2}
    )
    flat = (a.reshape(rows * length, -1) for a in (x, index, weight))
    expected = expert_mlp.expert_mlp(*flat, *kernels, impl="dense")
    _assert_close(found, expected.reshape(x.shape))

  @parameterized.parameters(8, 256)
  def test_weights_in_fp8(self, width):
    """Whether or not blocks of 128 columns divide over `tensor`."""
    x, index, weight, _, _ = _problem()
    rng = np.random.default_rng(1)
    shapes = (_E, _D, width), (_E, _D, width), (_E, width, _D)
    kernels = [
      block_scaled.quantise(0.2 * rng.normal(size=s).astype(np.float32))
      for s in shapes
    ]
    mesh = mesh_lib.make(mesh_lib.MeshShape(node=2, local=2, tensor=2))
    with sharding_lib.use(mesh, sharding_lib.Sharding(strategy="zero1")):
      y, _ = jax.jit(
        lambda x, kernels: expert.run(
          x,
          index,
          weight,
          kernels,
          _CONFIG,
          impl="auto",
          dispatch=config_lib.Dispatch(),
        )
      )(x, kernels)
    wide = [np.asarray(k.dequantise(np.float32)) for k in kernels]
    _assert_close(y, _oracle(x, index, weight, wide, x)[0])

  def test_refuses_experts_that_do_not_divide(self):
    config = config_lib.DeepSeekConfig(
      n_routed_experts=12, n_group=4, topk_group=2, num_experts_per_tok=4
    )
    x, index, weight, kernels, _ = _problem()
    kernels = [k[:12] for k in kernels]
    mesh = mesh_lib.make(mesh_lib.MeshShape(node=2, local=4))
    with (
      sharding_lib.use(mesh, sharding_lib.Sharding(strategy="zero1")),
      self.assertRaisesWithLiteralMatch(
        ValueError,
        "n_routed_experts=12: expected a multiple of the 8 devices of node x "
        "local; change the mesh",
      ),
    ):
      expert.run(
        x,
        index,
        weight,
        kernels,
        config,
        impl="auto",
        dispatch=config_lib.Dispatch(),
      )
