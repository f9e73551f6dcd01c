"""The kernels, interpreted; what compilers make of them is in docs/scale.md."""

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
from dsx.ops import masks
from dsx.ops import platforms
from dsx.ops import splash_attention


def _inputs(b=1, length=256, h=2, k=64, u=64, dtype=jnp.float32):
  keys = jax.random.split(jax.random.key(length), 4)
  return tuple(
    jax.random.normal(key, (b, length, h, width), dtype)
    for key, width in zip(keys, (k, k, u, u), strict=True)
  )


def _segments(b=1, length=256):
  ids = np.random.default_rng(0).integers(0, 4, (b, length))
  return jnp.asarray(np.sort(ids, axis=1), jnp.int32)


@functools.partial(jax.jit, static_argnames="impl")
def _value_and_grads(impl, q, k, v, dout, segment_ids=None):
  def attend(q, k, v):
    return attention.attention(
      q, k, v, scale=0.1, segment_ids=segment_ids, impl=impl
    )

  out, pull = jax.vjp(attend, q, k, v)
  return out, *pull(dout)


def _blocks(size):
  return {
    "_BLOCK": size,
    "_BLOCK_FLOAT32": size,
    "_COMPUTE": 128,
  }


def _kernels(jaxpr):
  """Names of the kernels in a program whose results are used."""
  for equation in jaxpr.eqns:
    inner = [
      getattr(value, "jaxpr", value) for value in equation.params.values()
    ]
    if equation.primitive.name == "pallas_call":
      yield equation.params["name"]
    elif equation.outvars:  # what has none is left out by the compiler
      for value in inner:
        if hasattr(value, "eqns"):
          yield from _kernels(value)


class SplashAttentionTest(parameterized.TestCase):
  def _small(self, size=128, **more):
    for name, value in (_blocks(size) | more).items():
      self.enterContext(mock.patch.object(splash_attention, name, value))

  @parameterized.named_parameters(
    ("plain", {}, False, {}),
    ("of_deepseek", {"k": 192, "u": 128}, True, {}),
    ("odd_heads", {"b": 2, "h": 3}, True, {}),
    ("several_blocks_to_compute", {"length": 512}, True, {"_BLOCK": 256}),
  )
  def test_is_naive(self, shape, segmented, sizes):
    self._small(**sizes)
    inputs = _inputs(**shape)
    ids = _segments(*inputs[0].shape[:2]) if segmented else None
    chex.assert_trees_all_close(
      _value_and_grads("splash", *inputs, ids),
      _value_and_grads("naive", *inputs, ids),
      atol=2e-5,
    )

  def test_bfloat16(self):
    self._small()
    inputs = _inputs(dtype=jnp.bfloat16)
    got = _value_and_grads("splash", *inputs, _segments())
    chex.assert_type(got, jnp.bfloat16)
    wide = [x.astype(jnp.float32) for x in inputs]
    chex.assert_trees_all_close(
      jax.tree.map(lambda x: x.astype(jnp.float32), got),
      _value_and_grads("naive", *wide, _segments()),
      atol=0.04,
    )

  def test_inside_shard_map(self):
    mesh = jax.make_mesh(
      (8,), ("shard",), axis_types=(jax.sharding.AxisType.Auto,)
    )
    inputs = *_inputs(b=8, length=128), _segments(8, 128)
    sharded = jax.shard_map(
      lambda *x: _value_and_grads("splash", *x),
      mesh=mesh,
      in_specs=P("shard"),
      out_specs=P("shard"),
      check_vma=False,
    )
    chex.assert_trees_all_close(
      jax.jit(sharded)(*inputs), _value_and_grads("naive", *inputs), atol=2e-5
    )

  @parameterized.parameters(
    ("nothing", 2),
    ("everything", 1),
    ("kept", 1),
  )
  def test_forward_runs_again_only_if_nothing_is_kept(self, policy, forward):
    self._small()
    policies = {
      "nothing": jax.checkpoint_policies.nothing_saveable,
      "everything": jax.checkpoint_policies.everything_saveable,
      "kept": jax.checkpoint_policies.save_only_these_names("kept"),
    }

    def loss(q, k, v, dout):
      @functools.partial(jax.checkpoint, policy=policies[policy])
      def attend(q, k, v):
        return attention.attention(
          q, k, v, scale=0.1, impl="splash", saved_as="kept"
        )

      return (attend(q, k, v) * dout).sum()

    jaxpr = jax.make_jaxpr(jax.grad(loss, (0, 1, 2)))(*_inputs())
    names = list(_kernels(jaxpr.jaxpr))
    self.assertLen([name for name in names if "fwd" in name], forward)
    self.assertLen([name for name in names if "dkv" in name], 1)

  @parameterized.parameters((8192, 1024), (1536, 512), (384, 128))
  def test_blocks_divide_the_length(self, length, expected):
    blocks = splash_attention._blocks(length, jnp.bfloat16)
    self.assertEqual(blocks.block_q, expected)
    self.assertEqual(blocks.block_kv_dq, expected)

  @parameterized.named_parameters(
    ("suitable", {}, "splash"),
    ("float32", {"dtype": jnp.float32}, "rows"),
    ("length", {"length": 200}, "rows"),
    ("width", {"k": 80}, "rows"),
    ("too_wide", {"u": 192}, "rows"),
    ("long_and_unsuitable", {"length": 5000}, "chunked"),
  )
  def test_auto_on_a_tpu(self, shape, expected):
    shape = {"dtype": jnp.bfloat16} | shape
    q, k, v, _ = jax.eval_shape(lambda: _inputs(**shape))
    visible = masks.Visible.of(q.shape[1], k.shape[1], causal=True)
    with platforms.compiling_for("tpu"):
      self.assertEqual(attention.chosen("auto", q, k, v, visible), expected)
    self.assertNotEqual(attention.chosen("auto", q, k, v, visible), "splash")

  def test_refuses_what_the_kernels_do_not_do(self):
    q, k, v, _ = _inputs()
    run = functools.partial(attention.attention, scale=1.0, impl="splash")
    with self.assertRaisesRegex(ValueError, "impl='splash': .*plain indices"):
      run(q, k, v, q_positions=jnp.zeros((1, 256), jnp.int32))
    with self.assertRaisesRegex(ValueError, "plain indices"):
      run(q, k, v, causal=False)
    with self.assertRaisesRegex(ValueError, "as many keys as queries"):
      run(q[:, :128], k, v)
    with self.assertRaisesRegex(ValueError, "same segments"):
      run(q, k, v, segment_ids=_segments(), kv_segment_ids=_segments())
    with self.assertRaisesRegex(ValueError, "multiples of 128"):
      run(q[:, :200], k[:, :200], v[:, :200])
    with self.assertRaisesRegex(ValueError, "multiples of 64, at most"):
      run(q, k, v[..., :48])


if __name__ == "__main__":
  absltest.main()
