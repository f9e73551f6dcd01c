"""Ways to the experts: who is sent where, how often, and back again."""

import functools

from absl.testing import parameterized
import chex
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np

from dsx.models import config as config_lib
from dsx.ops import routing
from dsx.parallel import dispatch
from dsx.parallel import exchange
from dsx.parallel import mesh as mesh_lib
from dsx.parallel import ways

_TOKENS = P(("node", "local"))


def _mesh(node: int, local: int):
  return mesh_lib.make(mesh_lib.MeshShape(data=1, node=node, local=local))


def _config(**changes) -> config_lib.DeepSeekConfig:
  fields = {
    "n_routed_experts": 16,
    "num_experts_per_tok": 4,
    "n_group": 4,
    "topk_group": 2,
  }
  return config_lib.DeepSeekConfig(**(fields | changes))


class ExchangeTest(parameterized.TestCase):
  @parameterized.parameters("padded", "ragged", "auto")
  def test_literal(self, wire):
    """Device i sends i + 1 rows to device 0, and 1 row to device 1."""

    def body():
      i = lax.axis_index("local").astype(jnp.int32)
      sent = jnp.stack([i + 1, jnp.int32(1)])
      row = jnp.arange(3, dtype=jnp.int32)
      used = row[None, :] < sent[:, None]
      x = jnp.where(used, 10 * (i + 1) + row[None, :], 0)
      received = exchange.counts(sent, "local")
      x = exchange.exchange(x, sent, received, "local", wire=wire)
      return received[None], x[None]

    mesh = mesh_lib.make(mesh_lib.MeshShape(local=2), jax.devices()[:2])
    with jax.set_mesh(mesh):
      received, x = jax.shard_map(
        body, in_specs=(), out_specs=P("local"), check_vma=False
      )()
    self.assertEqual(received.tolist(), [[1, 2], [1, 1]])
    self.assertEqual(
      x.tolist(), [[[10, 0, 0], [20, 21, 0]], [[10, 0, 0], [20, 0, 0]]]
    )

  def test_refuses(self):
    with self.assertRaisesWithLiteralMatch(
      ValueError, "wire='thin': expected one of auto, padded, ragged"
    ):
      exchange.exchange(None, None, None, "local", wire="thin")


class BlocksTest(parameterized.TestCase):
  def test_literal(self):
    """Two experts a block; each block once, in order, and 3 for none."""
    hop = dispatch.Hop(("local",), 3, 2, 2, 4)
    index = jnp.array([[5, 0, 1], [-1, 2, 3], [-1, -1, -1], [7, 4, 99]])
    found = dispatch.blocks_of(index, 0, hop)
    self.assertEqual(found.tolist(), [[0, 2], [1, 3], [3, 3], [2, 3]])

  def test_first_expert(self):
    hop = dispatch.Hop(("local",), 2, 2, 2, 4)
    index = jnp.array([[3, 4], [7, 8]])
    found = dispatch.blocks_of(index, 4, hop)
    self.assertEqual(found.tolist(), [[0, 2], [1, 2]])


def _reached(index, config, *, node: int, local: int) -> list[list[int]]:
  """For each token, the devices on which it lands after the first hop."""
  per_device = index.shape[0] // (node * local)
  hop = dispatch.Hop(
    ("node",),
    node,
    config.n_routed_experts // node,
    ways.reachable(config, node),
    per_device,
  )

  def body(index):
    device = lax.axis_index(("node", "local"))
    block = dispatch.blocks_of(index, 0, hop)
    at = dispatch.places(block, jnp.int32(0), hop)
    own = jnp.arange(per_device, dtype=jnp.int32) + device * per_device
    return dispatch.carry(own[:, None] + 1, (hop,), (at,), "padded") - 1

  with jax.set_mesh(_mesh(node, local)):
    landed = jax.jit(
      jax.shard_map(body, in_specs=_TOKENS, out_specs=_TOKENS, check_vma=False)
    )(index)
  landed = np.asarray(landed).reshape(node * local, -1)
  return [
    [d for d in range(node * local) for t in landed[d] if t == token]
    for token in range(index.shape[0])
  ]


class NodeLimitTest(parameterized.TestCase):
  @settings(max_examples=15, deadline=None)
  @given(
    seed=st.integers(0, 2**31 - 1),
    topk_group=st.sampled_from([1, 2, 4]),
    shape=st.sampled_from([(4, 2), (2, 4)]),
    skew=st.sampled_from([0.0, 3.0]),
  )
  def test_no_token_crosses_to_more_than_topk_group_nodes(
    self, seed, topk_group, shape, skew
  ):
    """Each node once, on the device of the token's own local index."""
    node, local = shape
    config = _config(topk_group=topk_group)
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(48, 16)) + skew * rng.normal(size=(1, 16))
    scores = jax.nn.sigmoid(jnp.asarray(logits, jnp.float32))
    bias = jnp.asarray(rng.normal(size=16), jnp.float32)
    index = np.asarray(routing.route(scores, bias, config).index)
    landed = _reached(index, config, node=node, local=local)
    for token, devices in enumerate(landed):
      nodes = [d // local for d in devices]
      wanted = set(index[token] // (16 // node))
      self.assertCountEqual(nodes, wanted)
      self.assertLessEqual(len(nodes), topk_group)
      own = token // (48 // (node * local)) % local
      self.assertEqual({d % local for d in devices}, {own})

  @parameterized.parameters(
    # (n_group, topk_group, K, method, nodes, most)
    (8, 4, 8, "noaux_tc", 8, 4),
    (8, 4, 8, "noaux_tc", 4, 4),
    (8, 4, 8, "noaux_tc", 2, 2),
    (8, 4, 8, "noaux_tc", 16, 8),
    (8, 2, 8, "noaux_tc", 3, 3),
    (8, 4, 8, "greedy", 8, 8),
    (1, 1, 2, "noaux_tc", 8, 2),
  )
  def test_reachable(self, n_group, topk_group, k, method, nodes, most):
    config = config_lib.DeepSeekConfig(
      n_group=n_group,
      topk_group=topk_group,
      num_experts_per_tok=k,
      topk_method=method,
    )
    self.assertEqual(ways.reachable(config, nodes), most)

  @parameterized.parameters(1, 2, 4, 8, 16)
  def test_reachable_is_reached_and_never_passed(self, nodes):
    """By brute force over random routings."""
    config = _config()
    scores = np.random.default_rng(0).random((4000, 16), np.float32)
    index = np.asarray(routing.route(jnp.asarray(scores), None, config).index)
    distinct = [len(set(row // (16 // nodes))) for row in index]
    self.assertEqual(max(distinct), ways.reachable(config, nodes))


class TransposeTest(parameterized.TestCase):
  @parameterized.parameters((False, 5), (True, 5), (True, 1024))
  def test_collect_is_the_transpose_of_spread(self, two_hop, width):
    """<spread(x), y> = <x, collect(y)>, and each is the other's gradient."""
    node, local, tokens = 2, 4, 6
    config = _config()
    experts = 16 // (node * local)
    if two_hop:
      hops = (
        dispatch.Hop(("node",), node, 8, 2, tokens),
        dispatch.Hop(("local",), local, experts, 4, node * tokens),
      )
    else:
      hops = (dispatch.Hop(("node", "local"), 8, experts, 4, tokens),)
    rng = np.random.default_rng(0)
    scores = jnp.asarray(rng.random((48, 16)), jnp.float32)
    index = np.asarray(routing.route(scores, None, config).index)
    x = rng.normal(size=(48, width)).astype(np.float32)
    rows = hops[-1].blocks * hops[-1].capacity
    y = rng.normal(size=(8 * rows, width)).astype(np.float32)

    def body(x, y, index):
      at, first, found = [], jnp.int32(0), index
      for hop in hops:
        block = dispatch.blocks_of(found, first, hop)
        at.append(dispatch.places(block, jnp.int32(0), hop))
        found = dispatch.carry(found + 1, (hop,), (at[-1],), "padded") - 1
        first += lax.axis_index(hop.axis) * hop.experts
      static = {"at": tuple(at), "hops": hops, "wire": "padded"}
      spread = functools.partial(_call, dispatch.spread, **static)
      collect = functools.partial(_call, dispatch.collect, **static)
      there, pull_there = jax.vjp(spread, x)
      back, pull_back = jax.vjp(collect, y)
      return there, back, pull_there(y)[0], pull_back(x)[0]

    with jax.set_mesh(_mesh(node, local)):
      there, back, back_too, there_too = jax.jit(
        jax.shard_map(
          body, in_specs=_TOKENS, out_specs=_TOKENS, check_vma=False
        )
      )(x, y, index)
    np.testing.assert_allclose(
      np.vdot(there, y), np.vdot(x, back), rtol=1e-5, atol=1e-4
    )
    chex.assert_trees_all_equal(back, back_too)
    chex.assert_trees_all_equal(there, there_too)
    copies = len({(t, e // experts) for t in range(48) for e in index[t]})
    self.assertEqual(int(np.any(np.asarray(there) != 0, axis=1).sum()), copies)


def _call(function, x, *, at, hops, wire):
  return function(x, at, hops, wire, False)
