import functools
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np

from dsx.ops import attention
from dsx.ops import chunked_attention
from dsx.ops import row_attention

FAST = ("rows", "chunked")
ALL = ("naive", *FAST)


def _inputs(b=2, length=7, kv_length=None, h=2, k=6, u=4, dtype=jnp.float32):
  kv_length = kv_length or length
  keys = jax.random.split(jax.random.key(length), 4)
  return (
    jax.random.normal(keys[0], (b, length, h, k), dtype),
    jax.random.normal(keys[1], (b, kv_length, h, k), dtype),
    jax.random.normal(keys[2], (b, kv_length, h, u), dtype),
    jax.random.normal(keys[3], (b, length, h, u), dtype),
  )


_attention = jax.jit(attention.attention, static_argnames=("scale", "impl"))


@functools.partial(jax.jit, static_argnames=("impl", "causal"))
def _value_and_grads(impl, q, k, v, dout, causal=True, **masks):
  def attend(q, k, v):
    return attention.attention(
      q, k, v, scale=0.3, causal=causal, impl=impl, **masks
    )

  out, pull = jax.vjp(attend, q, k, v)
  return out, *pull(dout)


def _loop(q, k, v, scale, sees):
  """One query and head at a time, in numpy's float64."""
  q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
  out = np.zeros((*q.shape[:3], v.shape[3]))
  for b, i, h in np.ndindex(q.shape[:3]):
    keys = [j for j in range(k.shape[1]) if sees(b, i, j)]
    if keys:
      scores = np.exp(scale * k[b, keys, h] @ q[b, i, h])
      out[b, i, h] = scores / scores.sum() @ v[b, keys, h]
  return out


class AttentionTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    # Small blocks, so that short sequences have many.
    self.enterContext(mock.patch.object(chunked_attention, "_CHUNK", 4))
    self.enterContext(mock.patch.object(row_attention, "_ROWS", 4))

  @parameterized.parameters(*ALL)
  def test_against_a_loop(self, impl):
    q, k, v, _ = _inputs()
    segments = jnp.array([[0, 0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 2, 2, 2]])
    out = _attention(q, k, v, scale=0.3, segment_ids=segments, impl=impl)

    def sees(b, i, j):
      return j <= i and segments[b, i] == segments[b, j]

    chex.assert_trees_all_close(out, _loop(q, k, v, 0.3, sees), atol=1e-5)

  @parameterized.named_parameters(
    ("last_block_is_short", 11, 11),
    ("one_query", 1, 9),
    ("fewer_keys", 10, 5),
  )
  def test_all_are_naive(self, length, kv_length):
    inputs = _inputs(length=length, kv_length=kv_length)
    rng = np.random.default_rng(0)
    segments = {
      "segment_ids": jnp.asarray(rng.integers(0, 2, (2, length))),
      "kv_segment_ids": jnp.asarray(rng.integers(0, 2, (2, kv_length))),
    }
    positions = {
      "q_positions": jnp.asarray(rng.integers(0, 9, (2, length))),
      "kv_positions": jnp.asarray(rng.integers(0, 9, (2, kv_length))),
    }
    for masks in ({}, {"causal": False}, segments, positions):
      oracle, *others = [
        _value_and_grads(impl, *inputs, **masks) for impl in ALL
      ]
      for got in others:
        chex.assert_trees_all_close(got, oracle, atol=2e-5)

  def test_packed_is_unpacked(self):
    q, k, v, _ = _inputs(b=1, length=10)
    segments = jnp.array([[0] * 6 + [1] * 4])
    for impl in ALL:
      packed = _attention(q, k, v, scale=1.0, segment_ids=segments, impl=impl)
      alone = _attention(*(x[:, 6:] for x in (q, k, v)), scale=1.0, impl=impl)
      chex.assert_trees_all_close(packed[:, 6:], alone, atol=1e-6)

  @parameterized.parameters(*ALL)
  def test_positions_continue_a_sequence(self, impl):
    q, k, v, _ = _inputs(b=1, length=9)
    whole = _attention(q, k, v, scale=1.0, impl=impl)
    tail = _attention(
      q[:, 5:], k, v, scale=1.0, q_positions=jnp.arange(5, 9)[None], impl=impl
    )
    chex.assert_trees_all_close(whole[:, 5:], tail, atol=1e-6)

  @parameterized.parameters(*ALL)
  def test_a_query_that_sees_nothing_gives_zeros(self, impl):
    q, k, v, dout = _inputs(b=1, length=5)
    out, *grads = _value_and_grads(
      impl,
      q,
      k,
      v,
      dout,
      segment_ids=jnp.array([[0, 0, 7, 0, 0]]),
      kv_segment_ids=jnp.zeros((1, 5), jnp.int32),
    )
    chex.assert_trees_all_equal(out[:, 2], jnp.zeros_like(out[:, 2]))
    chex.assert_tree_all_finite(grads)

  def test_huge_scores_do_not_overflow(self):
    q, k, v, dout = _inputs()
    oracle, *others = [
      _value_and_grads(impl, q * 1e3, k, v, dout) for impl in ALL
    ]
    chex.assert_tree_all_finite(oracle)
    for got in others:
      chex.assert_trees_all_close(got, oracle, atol=2e-3, rtol=1e-4)

  @parameterized.parameters(*ALL)
  def test_bfloat16_keeps_a_float32_softmax(self, impl):
    inputs = _inputs(b=1, length=24, dtype=jnp.bfloat16)
    wide = [x.astype(jnp.float32) for x in inputs]
    got = _value_and_grads(impl, *inputs)
    chex.assert_type(got, jnp.bfloat16)
    chex.assert_trees_all_close(
      jax.tree.map(lambda x: x.astype(jnp.float32), got),
      _value_and_grads("naive", *wide),
      atol=0.04,
    )

  def test_scores_are_never_held_whole(self):
    q, k, v, dout = _inputs(b=1, length=40)
    for impl, whole in (("naive", True), ("rows", False), ("chunked", False)):
      jaxpr = jax.make_jaxpr(lambda *x, impl=impl: _value_and_grads(impl, *x))(
        q, k, v, dout
      )
      self.assertEqual("40,40]" in str(jaxpr), whole)

  def test_under_jit_remat_and_scan(self):
    q, k, v, dout = _inputs(k=4)

    def layers(impl, q, k, v):
      @jax.checkpoint
      def layer(q, _):
        return attention.attention(q, k, v, scale=1.0, impl=impl), None

      return (jax.lax.scan(layer, q, length=3)[0] * dout).sum()

    grad = jax.jit(jax.grad(layers, (1, 2, 3)), static_argnums=0)
    oracle, *others = [grad(impl, q, k, v) for impl in ALL]
    for got in others:
      chex.assert_trees_all_close(got, oracle, atol=1e-5)

  @parameterized.product(impl=FAST, check_vma=(False, True))
  def test_inside_shard_map(self, impl, check_vma):
    mesh = jax.make_mesh(
      (8,), ("shard",), axis_types=(jax.sharding.AxisType.Auto,)
    )
    q, k, v, dout = _inputs(b=8)

    def shard(*inputs):
      return _value_and_grads(impl, *inputs)

    sharded = jax.shard_map(
      shard,
      mesh=mesh,
      in_specs=P("shard"),
      out_specs=P("shard"),
      check_vma=check_vma,
    )
    chex.assert_trees_all_close(
      jax.jit(sharded)(q, k, v, dout),
      _value_and_grads("naive", q, k, v, dout),
      atol=1e-5,
    )

  def test_refuses_what_does_not_fit(self):
    q, k, v, _ = _inputs()
    with self.assertRaisesRegex(ValueError, "impl='flash': expected one of"):
      attention.attention(q, k, v, scale=1.0, impl="flash")
    with self.assertRaisesRegex(ValueError, "k and v in S"):
      attention.attention(q, k, v[:, :3], scale=1.0)
    with self.assertRaisesRegex(ValueError, r"kv_segment_ids .* S=3"):
      attention.attention(
        q, k[:, :3], v[:, :3], scale=1.0, segment_ids=jnp.zeros((2, 7))
      )


if __name__ == "__main__":
  absltest.main()
