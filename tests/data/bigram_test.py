"""The bigram model against its definition."""

import math

from absl.testing import absltest
import numpy as np

from dsx.data import bigram


class BigramTest(absltest.TestCase):
  def test_counts_within_documents(self):
    counts = bigram.count([b"aba", b"b", b"", b"ab"])
    self.assertEqual(counts[ord("a"), ord("b")], 2)
    self.assertEqual(counts[ord("b"), ord("a")], 1)
    self.assertEqual(counts.sum(), 3)

  def test_large_documents_are_counted_in_blocks(self):
    counts = bigram.count([b"ab" * 600_000] * 3)
    self.assertEqual(counts[ord("a"), ord("b")], 1_800_000)
    self.assertEqual(counts[ord("b"), ord("a")], 1_799_997)

  def test_add_one_smoothing_by_hand(self):
    train = bigram.count([b"aab"])  # a is followed by a once and by b once
    validation = bigram.count([b"ab", b"ca"])
    expected = -(math.log2(2 / 258) + math.log2(1 / 256)) / 2
    self.assertAlmostEqual(
      bigram.bits_per_byte(train, validation), expected, places=12
    )

  def test_knowing_nothing_costs_eight_bits(self):
    nothing = np.zeros((256, 256), np.int64)
    self.assertEqual(bigram.bits_per_byte(nothing, bigram.count([b"xyz"])), 8)
    self.assertEqual(bigram.bits_per_byte(nothing, nothing), 8)


if __name__ == "__main__":
  absltest.main()
