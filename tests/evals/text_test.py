"""Bits per byte: by hand, whatever the batch, and without side effects."""

import math
import types

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import numpy as np

from dsx.evals import text
from dsx.models import deepseek
from dsx.parallel import mesh as mesh_lib
from dsx.parallel import sharding as sharding_lib
from tests.training import tiny

_RECORDS, _LENGTH = 11, 12


class _Source:
  """Random records of a vocabulary in which token i stands for i % 3 bytes."""

  def __init__(self, **features):
    self.tokens = tiny.tokens(_RECORDS, _LENGTH + 1)
    self.features = features
    self.metadata = {"token_bytes": np.arange(64) % 3}

  def __len__(self):
    return _RECORDS

  def rows(self, indices):
    every = {"tokens": self.tokens, **self.features}
    return {name: table[indices] for name, table in every.items()}


class TextTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    config = tiny.model_config(num_hidden_layers=1, first_k_dense_replace=0)
    cls.model = deepseek.DeepSeek(config)
    variables = jax.jit(cls.model.init)(jax.random.key(0), tiny.tokens(1, 8))
    cls.apply = staticmethod(jax.jit(cls.model.apply))
    cls.variables = sharding_lib.unbox(variables)
    # With larger weights predictions differ from one token to the next.
    cls.variables["params"] = jax.tree.map(
      lambda p: p * np.float32(3), cls.variables["params"]
    )

  def score(self, source, *, batch_size=8, records=_RECORDS, devices=1):
    mesh = mesh_lib.make(mesh_lib.MeshShape(), jax.devices()[:devices])
    evaluator = text.Evaluator(
      self.model, source, mesh, batch_size=batch_size, records=records
    )
    with sharding_lib.use(mesh, sharding_lib.Sharding(strategy="replicated")):
      return evaluator.score(*self.parts())

  def parts(self):
    return self.variables["params"], self.variables["router_bias"]

  def by_hand(self, source, records=_RECORDS, mask=None):
    """Scores one token at a time, from the model's logits, in float64."""
    tokens = source.tokens
    logits, aux = self.apply(self.variables, tokens[:, :-1])
    nats, n_bytes, count = [0.0, 0.0], 0, [0, 0]
    for depth, table in enumerate((logits, *aux["mtp_logits"])):
      table = np.asarray(table, np.float64)
      for row in range(records):
        for i in range(_LENGTH - depth):
          target = tokens[row, i + depth + 1]
          if mask is not None and not mask[row, i + depth + 1]:
            continue
          line = table[row, i]
          norm = np.log(np.exp(line - line.max()).sum()) + line.max()
          nats[depth] += norm - line[target]
          count[depth] += 1
          n_bytes += target % 3 if depth == 0 else 0
    return types.SimpleNamespace(
      loss=nats[0] / count[0],
      mtp_loss=nats[1] / count[1],
      bits_per_byte=nats[0] / math.log(2) / n_bytes,
      tokens=count[0],
    )

  def check(self, score, expected):
    self.assertEqual(score.tokens, expected.tokens)
    found = (score.loss, *score.mtp_loss, score.bits_per_byte)
    wanted = (expected.loss, expected.mtp_loss, expected.bits_per_byte)
    np.testing.assert_allclose(found, wanted, rtol=2e-5)

  def test_by_hand(self):
    source = _Source()
    found = self.score(source, batch_size=_RECORDS)
    self.check(found, self.by_hand(source))

  @parameterized.parameters((4, 1), (16, 1), (8, 8))
  def test_what_fills_the_last_batch_does_not_count(self, batch_size, devices):
    source = _Source()
    found = self.score(source, batch_size=batch_size, devices=devices)
    self.check(found, self.by_hand(source))

  def test_only_the_first_records_count(self):
    source = _Source()
    found = self.score(source, batch_size=4, records=6)
    self.check(found, self.by_hand(source, records=6))

  def test_the_loss_mask_counts(self):
    mask = np.random.default_rng(1).integers(0, 2, (_RECORDS, _LENGTH + 1))
    source = _Source(loss_mask=mask.astype(np.uint8))
    found = self.score(source, batch_size=4)
    self.check(found, self.by_hand(source, mask=mask))

  @parameterized.parameters((4, 2), (11, 1), (16, 1), (5, 2))
  def test_loads_of_whole_batches(self, batch_size, batches):
    source = _Source()
    mesh = mesh_lib.make(mesh_lib.MeshShape(), jax.devices()[:1])
    evaluator = text.Evaluator(
      self.model, source, mesh, batch_size=batch_size, records=_RECORDS
    )
    with sharding_lib.use(mesh, sharding_lib.Sharding(strategy="replicated")):
      score, load = evaluator.measure(*self.parts())
    self.assertEqual(score, self.score(source, batch_size=batch_size))
    self.assertLen(load, batches)
    for batch, found in enumerate(load):
      rows = np.arange(batch * batch_size, (batch + 1) * batch_size)
      tokens = source.tokens[np.minimum(rows, _RECORDS - 1)]
      _, aux = self.apply(self.variables, tokens[:, :-1])
      np.testing.assert_array_equal(found, aux["load"])

  def test_nothing_changes(self):
    before = jax.tree.map(np.array, self.variables)
    first = self.score(_Source())
    chex.assert_trees_all_equal(self.variables, before)
    self.assertEqual(self.score(_Source()), first)

  def test_router_biases_take_part(self):
    plain = self.score(_Source())
    kept = self.variables
    self.addCleanup(setattr, type(self), "variables", kept)
    steep = np.linspace(0, 9, 8, dtype=np.float32)
    type(self).variables = kept | {
      "router_bias": jax.tree.map(
        lambda b: np.broadcast_to(steep, b.shape), kept["router_bias"]
      )
    }
    steered = self.score(_Source())
    self.assertNotAlmostEqual(steered.loss, plain.loss, places=5)
    self.check(steered, self.by_hand(_Source()))

  def test_nothing_to_score(self):
    with self.assertRaisesRegex(ValueError, "records=0 .* at least 1; raise"):
      self.score(_Source(), records=0)


if __name__ == "__main__":
  absltest.main()
