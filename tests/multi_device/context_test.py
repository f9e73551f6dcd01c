"""A sequence over several devices gives what it gives on one."""

import functools
from typing import Any
from unittest import mock

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from dsx.models import config as config_lib
from dsx.models import deepseek
from dsx.models import mla
from dsx.ops import chunked_attention
from dsx.ops import rope
from dsx.parallel import collectives
from dsx.parallel import mesh as mesh_lib
from dsx.parallel import sharding as sharding_lib
from dsx.training import losses
from tests.models import tiny

_ROWS, _LENGTH = 4, 48
_WEIGHTS = {"mtp_weight": 0.3, "balance_weight": 0.1}


@functools.cache
def _config():
  """YaRN and an MTP module, as wide as four devices want it."""
  return tiny.config(
    **tiny.VARIANTS["v3_yarn"],
    vocab_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    q_lora_rank=8,
  )


def _batch(*, segments: bool):
  rng = np.random.default_rng(0)
  shape = (_ROWS, _LENGTH + 1)
  batch = {"tokens": rng.integers(0, 29, shape).astype(np.int32)}
  if segments:
    ids = np.sort(rng.integers(0, 3, shape), axis=1)
    batch["segment_ids"] = ids.astype(np.int32)
  return batch


def _mesh(shape):
  devices = jax.devices()[: int(np.prod(list(shape.values())))]
  mesh = mesh_lib.make(mesh_lib.MeshShape(**{"data": 1, **shape}), devices)
  return mesh, sharding_lib.Sharding(strategy="fully_sharded")


def _run(shape, *, segments=True, remat: Any = "none"):
  """((loss, metrics), gradients) of one batch."""
  model = deepseek.DeepSeek(
    _config(), execution=config_lib.Execution(remat=remat)
  )
  variables = tiny.variables(_config())
  mesh, sharding = _mesh(shape)
  scale = {"targets": 100.0, "sequences": float(_ROWS)}

  def loss(params, batch):
    return losses.total(
      model, params, variables["router_bias"], batch, scale, _WEIGHTS
    )

  with sharding_lib.use(mesh, sharding):
    tokens = jax.ShapeDtypeStruct((8, 8), jnp.int32)
    boxed = jax.eval_shape(model.init, jax.random.key(0), tokens)
    place = sharding_lib.shardings(boxed["params"], sharding.parameters, mesh)
    params = jax.tree.map(np.asarray, variables["params"])
    params = jax.device_put(params, place)
    batch = jax.device_put(
      _batch(segments=segments), sharding_lib.batch_sharding(mesh)
    )
    run = jax.value_and_grad(loss, has_aux=True)
    run = jax.jit(run, out_shardings=(None, place))
    return jax.device_get(run(params, batch))


@functools.cache
def _one_device(segments):
  return _run({}, segments=segments)


class ContextTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    # Small blocks, so that short sequences have many.
    self.enterContext(mock.patch.object(chunked_attention, "_CHUNK", 4))

  @parameterized.named_parameters(
    ("two", {"context": 2}, True, "paper"),
    ("odd", {"context": 3}, True, "none"),
    ("eight", {"context": 8}, True, "none"),
    ("tensor", {"context": 2, "tensor": 4}, True, "none"),
    ("data", {"data": 2, "context": 4}, False, "none"),
    ("experts", {"node": 2, "local": 2, "context": 2}, True, "none"),
    (
      "experts_and_tensor",
      {"local": 2, "context": 2, "tensor": 2},
      True,
      "full",
    ),
  )
  def test_equals_one_device(self, shape, segments, remat):
    (loss, metrics), grads = _run(shape, segments=segments, remat=remat)
    (expected, expected_metrics), expected_grads = _one_device(segments)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    chex.assert_trees_all_equal(metrics["load"], expected_metrics["load"])
    chex.assert_trees_all_close(metrics, expected_metrics, rtol=1e-5)

    def close(path, ours, theirs):
      # Sums in another order; of the size of the largest of its kind.
      np.testing.assert_allclose(
        ours,
        theirs,
        atol=5e-5 * np.abs(theirs).max(),
        err_msg=jax.tree_util.keystr(path),
      )

    jax.tree_util.tree_map_with_path(close, grads, expected_grads)

  def test_attention_sends_latents_alone(self):
    """Forward they are gathered; backward their gradients are scattered."""
    parts, c = 4, _config()
    module = mla.MLA(c)
    params = tiny.layer(
      tiny.variables(c)["params"]["dense_layers"]["self_attn"], 0
    )
    positions = jnp.zeros((_ROWS, _LENGTH), jnp.int32)
    rotation = rope.cos_sin(
      positions, c.qk_rope_head_dim, c.rope_theta, c.rope_scaling
    )
    x = jnp.ones((_ROWS, _LENGTH, c.hidden_size), jnp.float32)

    def loss(params, x):
      return module.apply({"params": params}, x, rotation, positions).sum()

    mesh, sharding = _mesh({"context": parts})
    with sharding_lib.use(mesh, sharding):
      place = jax.sharding.NamedSharding(
        mesh, sharding_lib.spec(("batch", "length"), sharding.activations)
      )
      grad = jax.jit(
        jax.grad(loss, (0, 1)),
        in_shardings=(sharding_lib.replicated(mesh), place),
      )
      text = grad.lower(params, x).compile().as_text()
    sent = [c for c in collectives.read(str(text), mesh) if c.group > 1]
    entries = 4 * _ROWS * _LENGTH * (c.kv_lora_rank + c.qk_rope_head_dim)
    self.assertEqual(
      [(s.op, s.buffer_bytes, s.times) for s in sent if s.op != "all-reduce"],
      [("all-gather", entries // parts, 1), ("reduce-scatter", entries, 1)],
    )
    # What is left are gradients of weights.
    weights = sum(p.nbytes for p in jax.tree.leaves(params))
    summed = sum(s.buffer_bytes for s in sent if s.op == "all-reduce")
    self.assertEqual(summed, weights)

  def test_lengths_that_do_not_divide_are_refused(self):
    with self.assertRaisesRegex(
      ValueError, "sequence length 48: expected a multiple of 10, twice mesh"
    ):
      _run({"context": 5})
