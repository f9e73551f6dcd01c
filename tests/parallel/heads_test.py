from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from dsx.ops import attention
from dsx.ops import platforms
from dsx.parallel import collectives
from dsx.parallel import heads
from dsx.parallel import mesh as mesh_lib
from dsx.parallel import sharding as sharding_lib


def _inputs(b=4, length=128, h=4, k=64, u=64):
  keys = jax.random.split(jax.random.key(0), 4)
  shapes = [(b, length, h, width) for width in (k, k, u, u)]
  arrays = map(jax.random.normal, keys, shapes)
  ids = np.random.default_rng(0).integers(0, 3, (b, length))
  return *arrays, jnp.asarray(np.sort(ids, axis=1), jnp.int32)


def _value_and_grads(attend, q, k, v, dout, ids):
  def call(q, k, v):
    return attend(q, k, v, scale=0.1, segment_ids=ids)

  out, pull = jax.vjp(call, q, k, v)
  return out, *pull(dout)


def _of_heads(impl):
  def attend(q, k, v, **more):
    return heads.attend(q, k, v, impl=impl, **more)

  return jax.jit(lambda *inputs: _value_and_grads(attend, *inputs))


def _use(**shape):
  count = int(np.prod(list(shape.values())))
  mesh = mesh_lib.make(
    mesh_lib.MeshShape(**({"data": 1} | shape)), jax.devices()[:count]
  )
  return mesh, sharding_lib.use(mesh, sharding_lib.Sharding())


class HeadsTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ("one_device", {}),
    ("sequences", {"data": 2, "local": 2}),
    ("nodes", {"node": 2, "local": 2}),
    ("heads", {"tensor": 4}),
    ("both", {"data": 2, "node": 2, "tensor": 2}),
  )
  def test_kernels_of_each_device_are_naive(self, shape):
    inputs = _inputs()
    _, use = _use(**shape)
    with use:
      got = jax.device_get(_of_heads("splash")(*inputs))
    oracle = _value_and_grads(attention.attention, *inputs)
    chex.assert_trees_all_close(got, jax.device_get(oracle), atol=2e-5)

  def test_without_a_mesh(self):
    inputs = _inputs(b=1, h=2)
    oracle = _value_and_grads(attention.attention, *inputs)
    for impl in ("splash", "auto"):
      chex.assert_trees_all_close(_of_heads(impl)(*inputs), oracle, atol=2e-5)

  def test_nothing_is_sent(self):
    mesh, use = _use(data=2, tensor=2)
    with use:
      names = "batch", None, "act_heads"
      spec = sharding_lib.spec(names, sharding_lib.Sharding().activations)
      wide = jax.sharding.NamedSharding(mesh, spec)
      rows = sharding_lib.batch_sharding(mesh)
      inputs = [
        jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)
        for x, place in zip(_inputs(), (*[wide] * 4, rows), strict=True)
      ]
      text = _of_heads("splash").lower(*inputs).compile().as_text()
    sent = collectives.read(str(text), mesh)
    self.assertEqual([one for one in sent if one.group > 1], [])

  def test_auto_leaves_out_kernels_where_arrays_do_not_divide(self):
    q, k, v, *_ = (x.astype(jnp.bfloat16) for x in _inputs(b=1, h=4))

    def run(q, k, v):
      return heads.attend(q, k, v, scale=0.1)

    with platforms.compiling_for("tpu"):
      text = str(jax.make_jaxpr(lambda *x: run(*x))(q, k, v))
      self.assertIn("splash", text)
      for shape, expected in (
        ({"data": 2}, False),
        ({"tensor": 2}, True),
        ({"tensor": 8}, False),
        ({"context": 2}, False),
      ):
        with _use(**shape)[1]:
          text = str(jax.make_jaxpr(lambda *x: run(*x))(q, k, v))
        self.assertEqual("splash" in text, expected, shape)

  def test_refuses_what_does_not_divide(self):
    q, k, v, *_ = _inputs(b=1)
    with (
      _use(data=2)[1],
      self.assertRaisesRegex(
        ValueError, "impl='splash': 1 sequences and 4 heads do not divide"
      ),
    ):
      heads.attend(q, k, v, scale=0.1, impl="splash")


if __name__ == "__main__":
  absltest.main()
