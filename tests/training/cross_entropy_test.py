"""Chunked cross-entropy against the obvious one, divided and not."""

import functools

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from dsx.parallel import axes
from dsx.parallel import collectives
from dsx.parallel import mesh as mesh_lib
from dsx.parallel import sharding as sharding_lib
from dsx.training import cross_entropy


def _naive(hidden, kernel, targets):
  logits = hidden.astype(jnp.float32) @ kernel.astype(jnp.float32)
  chosen = jax.nn.one_hot(targets, kernel.shape[1])
  return -(jax.nn.log_softmax(logits) * chosen).sum(-1)


class CrossEntropyTest(parameterized.TestCase):
  @parameterized.parameters(
    (40, 64), (40, 40), (40, 16), (41, 16), (7, 3), (129, 64)
  )
  def test_equals_naive_in_value_and_gradient(self, vocabulary, chunk):
    rng = np.random.default_rng(vocabulary)
    hidden = rng.normal(size=(3, 4, 6)).astype(np.float32)
    kernel = rng.normal(size=(6, vocabulary)).astype(np.float32)
    targets = rng.integers(0, vocabulary, (3, 4)).astype(np.int32)
    weight = rng.normal(size=(3, 4)).astype(np.float32)

    def ours(hidden, kernel):
      nats = cross_entropy.cross_entropy(hidden, kernel, targets, chunk=chunk)
      return (nats * weight).sum()

    def naive(hidden, kernel):
      return (_naive(hidden, kernel, targets) * weight).sum()

    np.testing.assert_allclose(
      cross_entropy.cross_entropy(hidden, kernel, targets, chunk=chunk),
      _naive(hidden, kernel, targets),
      rtol=1e-5,
      atol=1e-5,
    )
    chex.assert_trees_all_close(
      jax.grad(ours, argnums=(0, 1))(hidden, kernel),
      jax.grad(naive, argnums=(0, 1))(hidden, kernel),
      rtol=1e-4,
      atol=1e-5,
    )

  def test_never_holds_all_logits(self):
    vocabulary, chunk = 4096, 256
    args = (
      jnp.zeros((2, 4, 3)),
      jnp.zeros((3, vocabulary)),
      jnp.zeros((2, 4), jnp.int32),
    )

    def loss(hidden, kernel, targets):
      return cross_entropy.cross_entropy(
        hidden, kernel, targets, chunk=chunk
      ).sum()

    text = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*args).as_text()
    self.assertNotIn(f"tensor<2x4x{vocabulary}xf32>", text)
    self.assertIn(f"tensor<2x4x1x{chunk}xf32>", text)

  def test_extreme_logits_stay_finite(self):
    hidden = jnp.array([[[1e4, 0.0]]])
    kernel = jnp.array([[1.0, -1.0, 0.0], [0.0, 0.0, 0.0]])
    nats = cross_entropy.cross_entropy(
      hidden, kernel, jnp.array([[1]]), chunk=2
    )
    np.testing.assert_allclose(nats, [[2e4]])


class DividedTest(parameterized.TestCase):
  """A vocabulary, tokens and a kernel that lie on eight devices."""

  def _divided(self, chunk, **shape):
    """The program, its arguments and mesh, of values and gradients."""
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(4, 8, 12)).astype(np.float32)
    kernel = rng.normal(size=(12, 88)).astype(np.float32)
    targets = rng.integers(0, 88, (4, 8)).astype(np.int32)
    weight = rng.normal(size=(4, 8)).astype(np.float32)

    def run(hidden, kernel, nats):
      nats, pull = jax.vjp(lambda *x: nats(*x, targets), hidden, kernel)
      return nats, pull(weight)

    mesh = mesh_lib.make(mesh_lib.MeshShape(**shape))
    sharding = sharding_lib.Sharding()
    rules = (*sharding.activations, *sharding.parameters)
    places = [
      jax.sharding.NamedSharding(mesh, sharding_lib.spec(names, rules))
      for names in (
        (axes.BATCH, axes.LENGTH, axes.ACT_EMBED),
        (axes.EMBED, axes.VOCAB),
      )
    ]
    arguments = jax.device_put((hidden, kernel), tuple(places))

    def ours(*x):
      return cross_entropy.cross_entropy(*x, chunk=chunk)

    with sharding_lib.use(mesh, sharding):
      divided = jax.jit(
        functools.partial(run, nats=ours),
        out_shardings=(None, tuple(places)),
      )
      program = divided.lower(*arguments).compile()
    return program, program(*arguments), run(hidden, kernel, _naive), mesh

  @parameterized.product(
    chunk=(100, 30, 9),  # at once; chunks that fit; chunks that do not
    shape=(
      {"data": 1, "tensor": 8},
      {"data": 2, "context": 2, "tensor": 2},
      {"data": 1, "node": 2, "local": 2, "tensor": 2},
      {"data": 2, "local": 2, "context": 2},
    ),
  )
  def test_equals_naive(self, chunk, shape):
    _, got, expected, _ = self._divided(chunk, **shape)
    chex.assert_trees_all_close(got, expected, rtol=1e-4, atol=1e-5)

  @parameterized.parameters(100, 30)
  def test_neither_tokens_nor_logits_are_gathered(self, chunk):
    program, *_, mesh = self._divided(
      chunk, data=1, node=2, context=2, tensor=2
    )
    sent = collectives.read(str(program.as_text()), mesh)
    sent = [c for c in sent if c.group > 1]
    # The kernel's rows, twice; what is summed is small or a gradient.
    own = 12 // 2 * 88 // 2 * 4
    chunks = -(-88 // chunk)
    gathered = [c for c in sent if c.op == "all-gather"]
    self.assertEqual({c.axes for c in gathered}, {("node",)})
    times = sum(c.times for c in gathered)
    self.assertLessEqual(times, 2 * chunks)
    for c in gathered:
      self.assertLessEqual(c.buffer_bytes * chunks, own * 1.1)
    for c in sent:
      self.assertNotEqual(c.op, "all-to-all")
      if "tensor" in c.axes:
        self.assertEqual(c.op, "all-reduce")
        tokens = 4 * 8 // 4
        self.assertLessEqual(c.buffer_bytes, tokens * 12 * 4)
        self.assertEqual(c.times, 1)  # not once for every chunk
