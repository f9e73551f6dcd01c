"""Samples in packed rows are to the loss what they are alone."""

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from dsx.data import packing
from dsx.models import deepseek
from dsx.parallel import sharding as sharding_lib
from dsx.training import losses
from dsx.training import step as step_lib
from tests.training import tiny

_LENGTH = 24
_SIZES = (5, 9, 14, 3, 7, 25, 11, 8)


def _samples() -> list[dict[str, np.ndarray]]:
  rng = np.random.default_rng(0)
  return [
    {
      "tokens": rng.integers(1, 64, size).astype(np.int32),
      "loss_mask": np.arange(size) >= rng.integers(1, size - 1),
    }
    for size in _SIZES
  ]


def _rows(samples) -> dict:
  """Packed records of samples, [1, B, L+1]."""
  records = list(packing.pack_samples(samples, _LENGTH, pad=0))
  return {
    name: jnp.stack([record[name] for record in records])[None]
    for name in records[0]
  }


class PackedSamplesTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.model = deepseek.DeepSeek(tiny.model_config())
    init = jax.jit(cls.model.init)
    cls.variables = sharding_lib.unbox(
      init(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))
    )
    cls.packed = _rows(_samples())
    # Rows of nothing make one program do, and must not matter either.
    cls.packed = jax.tree.map(
      lambda x: jnp.pad(x, ((0, 0), (0, len(_SIZES) - x.shape[1]), (0, 0))),
      cls.packed,
    )
    alone = [_rows([sample]) for sample in _samples()]
    cls.alone = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *alone)
    # Balance is over a row and not over a sample: eq. 17 speaks of sequences.
    cls.scalars = tiny.scalars(balance_weight=np.float32(0))
    cls.gradients = staticmethod(
      jax.jit(
        lambda v, batch, scalars: step_lib.gradients(
          cls.model, v["params"], v["router_bias"], batch, scalars
        )
      )
    )

  def test_rows_are_fewer(self):
    used = self.packed["segment_ids"].any(-1).sum()
    self.assertEqual((used, self.alone["tokens"].shape[1]), (4, len(_SIZES)))

  def test_loss_and_gradient(self):
    packed, seen = self.gradients(self.variables, self.packed, self.scalars)
    alone, expected = self.gradients(self.variables, self.alone, self.scalars)
    for name in ("loss", "mtp_loss"):
      chex.assert_trees_all_close(seen[name], expected[name], rtol=2e-6)
    # Padding reaches no routed expert, and samples reach the same ones; only
    # the last token of a full record, which is a target alone, is not read.
    chex.assert_trees_all_close(packed, alone, rtol=1e-4, atol=2e-7)

  def test_load_is_of_tokens_that_are_read(self):
    _, seen = self.gradients(self.variables, self.packed, self.scalars)
    read = int((self.packed["segment_ids"][0, :, :-1] > 0).sum())
    k = self.model.config.num_experts_per_tok
    self.assertEqual(int(seen["load"][0].sum()), read * k)

  def test_another_sample_beside_it_changes_nothing(self):
    first = jax.tree.map(lambda x: x[0], self.packed)
    ids = first["segment_ids"]
    other = jnp.where(ids == 2, (first["tokens"] + 7) % 64, first["tokens"])
    forward = jax.jit(
      lambda tokens: losses.token_losses(
        self.model, self.variables, {**first, "tokens": tokens}
      )[0]
    )
    nats = []
    for tokens in (first["tokens"], other):
      own = forward(tokens)
      nats.append([jnp.where(ids[:, :-1] == 1, n, 0) for n in own])
    chex.assert_trees_all_equal(*nats)
    self.assertGreater(float(nats[0][0].sum()), 0)

  def test_positions(self):
    ids = jnp.array([[1, 1, 2, 2, 2, 0], [3, 3, 3, 3, 4, 5]])
    self.assertEqual(
      losses.restarted_positions(ids).tolist(),
      [[0, 1, 0, 1, 2, 0], [0, 1, 2, 3, 0, 0]],
    )


if __name__ == "__main__":
  absltest.main()
