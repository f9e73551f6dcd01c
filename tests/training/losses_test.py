"""Masks and shifts by hand."""

from absl.testing import parameterized
import jax.numpy as jnp

from dsx.training import losses


class TargetMaskTest(parameterized.TestCase):
  def test_literal(self):
    batch = {"tokens": jnp.arange(5)[None, :]}
    rows = [losses.target_mask(batch, k)[0].tolist() for k in range(3)]
    self.assertEqual(
      rows,
      [
        [True, True, True, True],
        [True, True, True, False],
        [True, True, False, False],
      ],
    )

  def test_targets_are_shifted(self):
    record = jnp.array([[10, 11, 12, 13, 14]])
    self.assertEqual(losses.shifted(record, 0).tolist(), [[11, 12, 13, 14]])
    self.assertEqual(losses.shifted(record, 1)[0, :3].tolist(), [12, 13, 14])

  def test_segments_and_loss_mask(self):
    batch = {
      "tokens": jnp.zeros((1, 5), jnp.int32),
      "segment_ids": jnp.array([[1, 1, 1, 2, 2]]),
    }
    self.assertEqual(
      losses.target_mask(batch, 0)[0].tolist(), [True, True, False, True]
    )
    self.assertEqual(
      losses.target_mask(batch, 1)[0].tolist(), [True, False, False, False]
    )
    batch["loss_mask"] = jnp.array([[0, 0, 1, 1, 1]])
    self.assertEqual(
      losses.target_mask(batch, 0)[0].tolist(), [False, True, False, True]
    )
