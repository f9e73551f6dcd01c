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
