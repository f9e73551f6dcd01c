"""The bytes of a record: what is read is what was written, at its place."""

from absl.testing import parameterized
import numpy as np

from dsx.data import records


def _record(generator: np.random.Generator, size: int) -> dict:
  return {
    "tokens": generator.integers(0, size, 9).astype(np.int32),
    "segment_ids": np.arange(9, dtype=np.int32),
    "loss_mask": generator.integers(0, 2, 9).astype(np.uint8),
  }


class LayoutTest(parameterized.TestCase):
  @parameterized.parameters(320, 1 << 16, (1 << 16) + 1, 129280)
  def test_round_trip(self, size):
    generator = np.random.default_rng(0)
    layout = records.Layout(8, size, ["tokens", "segment_ids", "loss_mask"])
    written = [_record(generator, size) for _ in range(5)]
    written[0]["tokens"][0] = size - 1
    raws = [layout.encode(i, record) for i, record in enumerate(written)]
    read = layout.decode(raws)
    for name, values in read.items():
      self.assertEqual((values.dtype, values.shape), (np.int32, (5, 9)))
      expected = np.stack([record[name] for record in written])
      np.testing.assert_array_equal(values, expected)
    damage = [layout.damage(i, raw) for i, raw in enumerate(raws)]
    self.assertEqual(damage, [None] * 5)

  def test_small_vocabularies_take_two_bytes_a_token(self):
    record = _record(np.random.default_rng(0), 320)
    sizes = [
      len(records.Layout(8, size, ["tokens"]).encode(0, record))
      for size in (320, 100_000)
    ]
    self.assertEqual(sizes, [12 + 18, 12 + 36])

  def test_every_flipped_bit_is_found(self):
    layout = records.Layout(8, 320, ["tokens", "loss_mask"])
    raw = layout.encode(7, _record(np.random.default_rng(0), 320))
    for bit in range(8 * len(raw)):
      flipped = bytearray(raw)
      flipped[bit // 8] ^= 1 << bit % 8
      self.assertIsNotNone(layout.damage(7, bytes(flipped)), msg=f"bit {bit}")

  def test_another_record_in_its_place_is_found(self):
    layout = records.Layout(8, 320, ["tokens"])
    raw = layout.encode(7, _record(np.random.default_rng(0), 320))
    self.assertEqual(
      layout.damage(8, raw), "record 7 of the split stands in its place"
    )

  def test_another_length_is_found(self):
    layout = records.Layout(8, 320, ["tokens"])
    raw = layout.encode(0, _record(np.random.default_rng(0), 320))
    self.assertEqual(layout.damage(0, raw[:-1]), "29 bytes instead of 30")
