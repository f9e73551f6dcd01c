"""Shards on disk: written, read, and every kind of damage named."""

import pathlib
from unittest import mock

from absl.testing import parameterized
from array_record.python import array_record_module
import numpy as np

from dsx.data import records
from dsx.data import store

_LENGTH = 32
_COUNT = 1500


class StoreTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.place = pathlib.Path(self.create_tempdir().full_path)
    generator = np.random.default_rng(0)
    self.tokens = generator.integers(0, 320, (_COUNT, _LENGTH + 1), np.int32)
    layout = records.Layout(_LENGTH, 320, ["tokens"])
    with mock.patch.object(store, "SHARD_BYTES", 40_000):
      writer = store.Writer(self.place, "train", layout)
      for row in self.tokens:
        writer.write({"tokens": row})
      self.metadata = {
        "sequence_length": _LENGTH,
        "vocab_size": 320,
        "features": ["tokens"],
        "splits": {"train": writer.close()},
      }
    store.write_metadata(self.place, self.metadata)
    self.shards = self.metadata["splits"]["train"]["shards"]

  def _reader(self) -> store.Reader:
    return store.Reader(self.place, "train", store.read_metadata(self.place))

  def _change(self, shard: int, change) -> pathlib.Path:
    path = self.place / self.shards[shard]["name"]
    content = bytearray(path.read_bytes())
    path.write_bytes(bytes(change(content)))
    return path

  def test_reads_what_was_written_in_any_order(self):
    self.assertGreater(len(self.shards), 2)
    reader = self._reader()
    self.assertLen(reader, _COUNT)
    numbers = np.random.default_rng(1).integers(0, _COUNT, 300).tolist()
    found = reader.read(numbers)["tokens"]
    self.assertEqual(found.dtype, np.int32)
    np.testing.assert_array_equal(found, self.tokens[numbers])
    reader.verify()

  def test_a_flipped_bit_is_named_or_harmless(self):
    # ArrayRecord pads its files: a flip there changes no record.
    generator = np.random.default_rng(2)
    size = self.shards[1]["bytes"]
    first = self.shards[0]["records"]
    inside = range(first, first + self.shards[1]["records"])
    path = self.place / self.shards[1]["name"]
    intact = path.read_bytes()
    named = 0
    for at in generator.integers(0, size, 60).tolist():
      flipped = bytearray(intact)
      flipped[at] ^= 1 << int(generator.integers(8))
      path.write_bytes(bytes(flipped))
      try:
        found = self._reader().read(list(inside))["tokens"]
      except store.CorruptionError as error:
        named += 1
        self.assertRegex(
          str(error),
          r"^record \d+ of shard '.*train-00001.array_record' is corrupt: .*; "
          r"delete '.*' and prepare the data again$",
        )
        self.assertNotIn("\n", str(error))
      else:
        np.testing.assert_array_equal(
          found, self.tokens[inside.start : inside.stop]
        )
    self.assertGreater(named, 5)

  @parameterized.parameters(1, 60)
  def test_names_the_record_that_is_corrupt_and_reads_the_others(self, around):
    # Record 3 of the second shard becomes a copy of the split's record 0.
    layout = records.Layout(_LENGTH, 320, ["tokens"])
    first = self.shards[0]["records"]
    path = self.place / self.shards[1]["name"]
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for i in range(first, first + self.shards[1]["records"]):
      number = 0 if i == first + 3 else i
      writer.write(layout.encode(number, {"tokens": self.tokens[number]}))
    writer.close()
    reader = self._reader()
    number = first + 3
    others = [*range(number - around, number), *range(number + 1, number + 60)]
    with self.assertRaisesRegex(
      store.CorruptionError,
      r"^record 3 of shard '.*train-00001.array_record' is corrupt: "
      "record 0 of the split stands in its place",
    ):
      reader.read([*others[:around], number])
    found = reader.read(others)["tokens"]
    np.testing.assert_array_equal(found, self.tokens[others])

  def test_truncated_shard(self):
    path = self._change(1, lambda content: content[: len(content) // 2])
    with self.assertRaisesRegex(
      store.CorruptionError, rf"shard '{path}' is truncated to \d+ bytes"
    ):
      self._reader()

  def test_longer_shard(self):
    self._change(1, lambda content: content + b"x")
    with self.assertRaisesRegex(store.CorruptionError, r"is \d+ bytes long"):
      self._reader()

  def test_missing_shard(self):
    (self.place / self.shards[1]["name"]).unlink()
    with self.assertRaisesRegex(
      store.CorruptionError, "train-00001.array_record' is missing"
    ):
      self._reader()

  def test_swapped_shards_of_one_length(self):
    first, second = (self.place / self.shards[i]["name"] for i in (0, 1))
    contents = first.read_bytes(), second.read_bytes()
    self.assertLen(contents[0], len(contents[1]))
    first.write_bytes(contents[1])
    second.write_bytes(contents[0])
    with self.assertRaisesRegex(
      store.CorruptionError, "record 0 of shard .*train-00000.* in its place"
    ):
      self._reader().read([0])

  def test_verify_compares_the_content(self):
    self.metadata["splits"]["train"]["digest"] = "0" * 64
    store.write_metadata(self.place, self.metadata)
    with self.assertRaisesRegex(store.CorruptionError, "expected 0000"):
      self._reader().verify()

  def test_every_flipped_bit_of_the_metadata_is_found(self):
    path = self.place / store.METADATA
    intact = path.read_bytes()
    generator = np.random.default_rng(3)
    for at in generator.integers(0, len(intact), 100).tolist():
      flipped = bytearray(intact)
      flipped[at] ^= 1 << int(generator.integers(7))
      path.write_bytes(bytes(flipped))
      try:
        found = store.read_metadata(self.place)
      except store.CorruptionError as error:
        self.assertIn("metadata.json' is damaged", str(error))
      else:  # white space between values
        self.assertEqual(found, self.metadata)

  def test_the_digest_does_not_depend_on_how_tokens_are_stored(self):
    digests = []
    for size in (320, 100_000):
      layout = records.Layout(_LENGTH, size, ["tokens"])
      writer = store.Writer(self.place, f"size{size}", layout)
      for row in self.tokens[:10]:
        writer.write({"tokens": row})
      digests.append(writer.close()["digest"])
    self.assertEqual(digests[0], digests[1])
