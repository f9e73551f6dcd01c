"""Records of equal length, overlapping by one token."""

from absl.testing import parameterized
import numpy as np

from dsx.data import packing


def _documents(*lengths: int) -> list[dict[str, np.ndarray]]:
  """Documents of consecutive numbers, so that every token is known."""
  ends = np.cumsum(lengths)
  return [
    {"tokens": np.arange(end - length, end, dtype=np.int32)}
    for end, length in zip(ends, lengths, strict=True)
  ]


class PackTest(parameterized.TestCase):
  def test_a_small_stream(self):
    records = list(packing.pack(_documents(3, 4, 3), 4))
    found = [record["tokens"].tolist() for record in records]
    # Token 9 would need a record of its own, of which there is one target.
    self.assertEqual(found, [[0, 1, 2, 3, 4], [4, 5, 6, 7, 8]])
    self.assertEqual(list(records[0]), ["tokens"])
    self.assertEqual(records[0]["tokens"].dtype, np.int32)

  @parameterized.parameters(
    (1, [5, 1, 3]),
    (7, [100] * 30),
    (3, [0, 4, 0, 9]),
    (2, [5000, 1, 12000]),  # past the size at which the stream is flushed
    (16, [1] * 1000),
  )
  def test_every_token_is_predicted_once(self, length, lengths):
    total = sum(lengths)
    records = list(packing.pack(_documents(*lengths), length))
    targets = np.concatenate([r["tokens"][1:] for r in records])
    self.assertEqual(len(records), (total - 1) // length)
    np.testing.assert_array_equal(targets, np.arange(1, len(targets) + 1))
    inputs = np.concatenate([r["tokens"][:-1] for r in records])
    np.testing.assert_array_equal(inputs, np.arange(len(inputs)))

  @parameterized.parameters(0, 1, 4)
  def test_too_short_gives_nothing(self, total):
    self.assertEmpty(list(packing.pack(_documents(total), 4)))
    self.assertEmpty(list(packing.pack([], 4, pad=0)))

  def test_segments_count_from_one_in_each_record(self):
    records = packing.pack(_documents(3, 4, 6), 4, segment_ids=True)
    found = [record["segment_ids"].tolist() for record in records]
    self.assertEqual(found, [[1, 1, 1, 2, 2], [1, 1, 1, 2, 2], [1, 1, 1, 1, 1]])

  def test_padding_has_segment_and_loss_zero(self):
    documents = [
      {"tokens": np.arange(1, 4), "loss_mask": np.array([0, 1, 1])},
      {"tokens": np.arange(4, 8), "loss_mask": np.array([0, 0, 1, 1])},
    ]
    records = list(packing.pack(documents, 4, segment_ids=True, pad=99))
    self.assertLen(records, 2)
    self.assertEqual(records[0]["tokens"].tolist(), [1, 2, 3, 4, 5])
    self.assertEqual(records[0]["loss_mask"].tolist(), [0, 1, 1, 0, 0])
    self.assertEqual(records[1]["tokens"].tolist(), [5, 6, 7, 99, 99])
    self.assertEqual(records[1]["segment_ids"].tolist(), [1, 1, 1, 0, 0])
    self.assertEqual(records[1]["loss_mask"].tolist(), [0, 1, 1, 0, 0])

  def test_no_record_of_padding_alone(self):
    records = list(packing.pack(_documents(5), 4, pad=99))
    self.assertLen(records, 1)


def _samples(*lengths: int) -> list[dict[str, np.ndarray]]:
  """Documents of which all but the first two tokens are learnt."""
  return [
    {**document, "loss_mask": np.arange(len(document["tokens"])) >= 2}
    for document in _documents(*lengths)
  ]


class PackSamplesTest(parameterized.TestCase):
  def test_a_few_samples(self):
    records = packing.pack_samples(_samples(3, 5, 2, 4), 6, pad=99)
    found = {
      tuple(record["tokens"].tolist()): (
        record["segment_ids"].tolist(),
        record["loss_mask"].tolist(),
      )
      for record in records
    }
    # The five tokens and the two fill one record, four and three the other.
    self.assertEqual(
      found,
      {
        (3, 4, 5, 6, 7, 8, 9): ([1] * 5 + [2] * 2, [0, 0, 1, 1, 1, 0, 0]),
        (0, 1, 2, 10, 11, 12, 13): ([1] * 3 + [2] * 4, [0, 0, 1, 0, 0, 1, 1]),
      },
    )

  @parameterized.parameters((1 << 20,), (100,))
  def test_every_sample_lies_whole_in_one_record(self, window):
    lengths = np.random.default_rng(0).integers(1, 34, 500).tolist()
    samples = _samples(*lengths)
    records = list(
      packing.pack_samples(samples, 32, pad=-1, window_tokens=window)
    )
    found = []
    for record in records:
      ids = record["segment_ids"]
      np.testing.assert_array_equal(ids > 0, record["tokens"] >= 0)
      self.assertEqual(sorted(set(ids) - {0}), list(range(1, ids.max() + 1)))
      for segment in range(1, ids.max() + 1):
        found.append(record["tokens"][ids == segment].tolist())
    expected = [sample["tokens"].tolist() for sample in samples]
    self.assertEqual(sorted(found), sorted(expected))
    # No two that are longer than half a record share one, and the rest fits
    # into what these leave, where all are seen at once.
    if window > 100:
      self.assertLen(records, sum(length > 16 for length in lengths))

  def test_what_stands_before_does_not_predict_a_sample(self):
    sample = {"tokens": np.arange(3), "loss_mask": np.ones(3)}
    (record,) = packing.pack_samples([sample], 3, pad=0)
    self.assertEqual(record["loss_mask"].tolist(), [0, 1, 1, 0])

  def test_the_order_of_records_is_random_and_the_same(self):
    def first(seed):
      records = packing.pack_samples(
        _samples(*range(1, 33)), 32, pad=-1, seed=seed
      )
      return [int(record["tokens"][0]) for record in records]

    self.assertEqual(first(0), first(0))
    self.assertLen({tuple(first(seed)) for seed in range(5)}, 5)
    self.assertEqual(sorted(first(0)), sorted(first(1)))

  def test_longer_than_a_record(self):
    with self.assertRaisesRegex(
      ValueError, "^sample of 6 tokens: expected at most sequence_length .* = 5"
    ):
      list(packing.pack_samples(_samples(6), 4, pad=0))

  def test_nothing(self):
    self.assertEmpty(list(packing.pack_samples([], 4, pad=0)))

  def test_best_fit_by_hand(self):
    # 6; then 5 leaves 5, 4 goes to the 6 that it fills, 3 to the 5, 2 as well.
    self.assertEqual(packing.best_fit([2, 3, 4, 5, 6], 10), [[2, 4], [0, 1, 3]])
