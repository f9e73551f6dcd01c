"""The zigzag order, what it sends, and how evenly it divides the work."""

from unittest import mock

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from dsx.ops import attention
from dsx.ops import chunked_attention
from dsx.ops import masks
from dsx.parallel import collectives
from dsx.parallel import context
from dsx.parallel import mesh as mesh_lib
from dsx.parallel import sharding as sharding_lib


def _zigzag(parts: int, length: int) -> np.ndarray:
  """Natural places of the tokens in zigzag order."""
  chunks = np.arange(length).reshape(2 * parts, -1)
  return np.concatenate(
    [chunks[[rank, 2 * parts - 1 - rank]].ravel() for rank in range(parts)]
  )


def _use(**shape):
  devices = int(np.prod(list(shape.values())))
  mesh = mesh_lib.make(
    mesh_lib.MeshShape(**{"data": 1, **shape}), jax.devices()[:devices]
  )
  return sharding_lib.use(mesh, sharding_lib.Sharding())


def _sent(lowered, mesh):
  return collectives.read(str(lowered.compile().as_text()), mesh)


class OrderTest(parameterized.TestCase):
  def test_literal(self):
    with _use(context=4):
      order = jax.jit(lambda x: context.spread(x, 4))(np.arange(8)[None])
    self.assertEqual(order[0].tolist(), [0, 7, 1, 6, 2, 5, 3, 4])

  @parameterized.parameters(1, 2, 3, 4, 5, 6, 7, 8)
  def test_there_and_back(self, parts):
    length = 6 * parts
    with _use(context=parts):
      self.assertEqual(context.size(), parts)
      tokens = np.arange(2 * length).reshape(2, length)
      spread = jax.jit(lambda x: context.spread(x, parts))(tokens)
      np.testing.assert_array_equal(spread, tokens[:, _zigzag(parts, length)])
      states = np.repeat(np.asarray(spread)[:, :, None], 3, axis=2)
      back = jax.jit(lambda x: context.natural(x, parts))(states)
      np.testing.assert_array_equal(back[:, :, 1], tokens)

  def test_undivided_without_a_mesh(self):
    self.assertEqual(context.size(), 1)
    x = jnp.arange(5)[None]
    self.assertIs(context.spread(x, 1), x)

  def test_only_the_way_back_sends_and_every_chunk_once(self):
    b, length, d, parts = 2, 16, 5, 4
    tokens = jnp.zeros((b, length), jnp.int32)
    states = jnp.zeros((b, length, d), jnp.float32)
    with _use(context=parts):
      mesh = jax.sharding.get_abstract_mesh()
      spread = jax.jit(lambda x: context.spread(x, parts)).lower(tokens)
      self.assertEmpty(_sent(spread, mesh))

      def through(x):
        y, pull = jax.vjp(lambda x: context.natural(x, parts), x)
        return y, pull(y)

      place = jax.sharding.PartitionSpec(None, "context")
      back = jax.jit(through, in_shardings=place).lower(states)
      sent = _sent(back, mesh)
    chunk = b * length // (2 * parts) * d * 4
    # Two forward, two backward.
    self.assertEqual(
      [(c.op, c.buffer_bytes) for c in sent],
      [("collective-permute", chunk)] * 4,
    )

  @parameterized.parameters((10, 2), (8, 8), (7, 3))
  def test_refuses_lengths_that_do_not_divide(self, length, parts):
    with _use(context=parts):
      with self.assertRaisesRegex(
        ValueError,
        f"sequence length {length}: expected a multiple of {2 * parts}, twice "
        f"mesh.MeshShape.context={parts}",
      ):
        context.spread(jnp.zeros((1, length), jnp.int32), parts)


class WorkTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enterContext(mock.patch.object(chunked_attention, "_CHUNK", 4))

  def _visible(self, rank, parts, length):
    own = _zigzag(parts, length).reshape(parts, -1)[rank]
    return masks.Visible.of(
      own.size, length, causal=True, q_positions=jnp.asarray(own)[None]
    )

  @parameterized.parameters((2, 64), (3, 48), (4, 64), (8, 64))
  def test_every_device_has_as_many_blocks(self, parts, length):
    counts = []
    for rank in range(parts):
      visible = self._visible(rank, parts, length)
      rows = chunked_attention._rows(length // parts, visible)
      self.assertEqual(rows, 4)
      counts.append(int(np.asarray(visible.reached(rows, 4)).sum()))
    n = length // 4
    self.assertEqual(counts, [n * (n + 1) // 2 // parts] * parts)

  def test_blocks_that_nobody_sees_are_not_computed(self):
    """Their values are not numbers: weight 0 would not hide that."""
    parts, length = 4, 32
    keys = jax.random.split(jax.random.key(0), 3)
    k = jax.random.normal(keys[0], (1, length, 2, 6))
    v = jax.random.normal(keys[1], (1, length, 2, 4))
    q = jax.random.normal(keys[2], (1, length, 2, 6))
    whole = attention.attention(q, k, v, scale=0.3)
    own = _zigzag(parts, length).reshape(parts, -1)[1, :4]  # the early chunk
    poisoned = v.at[:, own[-1] + 1 :].set(jnp.nan)

    def attend(q, k, v):
      return attention.attention(
        q, k, v, scale=0.3, q_positions=jnp.asarray(own)[None]
      )

    out, pull = jax.vjp(attend, q[:, own], k, poisoned)
    chex.assert_trees_all_close(out, whole[:, own], atol=1e-6)
    chex.assert_tree_all_finite(pull(out))
