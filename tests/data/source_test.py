"""Global batches: the same on any number of hosts, at any resume."""

import pathlib

from absl.testing import parameterized
import numpy as np

from dsx.data import records
from dsx.data import source
from dsx.data import store

_LENGTH = 4
_BATCH = 16


class SourceTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.create_tempdir().full_path)

  def _reader(self, name: str, count: int, first: int = 0) -> store.Reader:
    """Record i holds the token first + i and says so in every place."""
    place = self.root / name
    place.mkdir()
    layout = records.Layout(_LENGTH, 100_000, ["tokens"])
    writer = store.Writer(place, "train", layout)
    for i in range(count):
      writer.write({"tokens": np.full(_LENGTH + 1, first + i, np.int32)})
    metadata = {
      "sequence_length": _LENGTH,
      "vocab_size": 100_000,
      "features": ["tokens"],
      "splits": {"train": writer.close()},
    }
    return store.Reader(place, "train", metadata)

  def _source(self, readers, order) -> source.Source:
    metadata = {"sequence_length": _LENGTH, "features": ["tokens"]}
    return source.Source(readers, order, metadata)

  def _shuffled(self, count: int, seed: int) -> source.Source:
    reader = self._reader(f"{count}_{seed}", count)
    return self._source([reader], source.in_turn([count], seed))

  def _mixture(self) -> source.Source:
    readers = [self._reader("a", 70), self._reader("b", 31, first=1000)]
    return self._source(readers, source.mixed([70, 31], [3.0, 1.0], 5))

  def _ids(self, opened: source.Source, indices) -> list[int]:
    return opened.rows(np.asarray(indices))["tokens"][:, 0].tolist()

  @parameterized.parameters(False, True)
  def test_global_batches_are_the_same_on_1_2_4_8_hosts(self, mixture):
    opened = self._mixture() if mixture else self._shuffled(101, 0)
    steps = range(200)
    whole = [
      self._ids(opened, np.arange(s * _BATCH, (s + 1) * _BATCH)) for s in steps
    ]
    for hosts in (2, 4, 8):
      share = _BATCH // hosts
      for step in steps:
        batch = []
        for host in range(hosts):
          start = step * _BATCH + host * share
          batch += self._ids(opened, np.arange(start, start + share))
        self.assertEqual(batch, whole[step])

  @parameterized.parameters(0, 1, 99, 100, 101, 102, 555)
  def test_resuming_goes_on_where_it_stopped(self, start):
    opened = self._shuffled(101, 0)
    whole = self._ids(opened, np.arange(700))
    again = self._source(opened._readers, source.in_turn([101], 0))
    self.assertEqual(self._ids(again, np.arange(start, 700)), whole[start:])

  def test_each_epoch_has_every_record_once_in_another_order(self):
    opened = self._shuffled(101, 0)
    epochs = [
      self._ids(opened, np.arange(e * 101, (e + 1) * 101)) for e in range(5)
    ]
    for epoch in epochs:
      self.assertEqual(sorted(epoch), list(range(101)))
    self.assertLen({tuple(epoch) for epoch in epochs}, 5)

  def test_seeds_differ_and_do_not_meet_in_later_epochs(self):
    orders = set()
    for seed in range(4):
      opened = self._shuffled(50, seed)
      for epoch in range(4):
        orders.add(tuple(self._ids(opened, np.arange(50) + 50 * epoch)))
    self.assertLen(orders, 16)

  def test_unshuffled_goes_through_components_in_turn_and_again(self):
    readers = [self._reader("a", 3), self._reader("b", 2, first=10)]
    opened = self._source(readers, source.in_turn([3, 2], None))
    self.assertLen(opened, 5)
    self.assertEqual(self._ids(opened, np.arange(7)), [0, 1, 2, 10, 11, 0, 1])

  def test_a_mixture_keeps_its_weights_and_its_epochs(self):
    ids = np.array(self._ids(self._mixture(), np.arange(4000)))
    from_b = ids >= 1000
    self.assertAlmostEqual(from_b.mean(), 0.25, delta=0.001)
    for start in range(0, 4000, 100):  # evenly, not only in the mean
      self.assertBetween(from_b[start : start + 100].sum(), 24, 26)
    for component, count in ((ids[~from_b], 70), (ids[from_b], 31)):
      for start in range(0, len(component) - count, count):
        self.assertLen(set(component[start : start + count].tolist()), count)

  def test_rows_come_in_the_order_asked_for(self):
    opened = self._mixture()
    indices = [90, 3, 3, 0, 512]
    single = [self._ids(opened, [i])[0] for i in indices]
    self.assertEqual(self._ids(opened, indices), single)

  def test_no_indices_give_no_rows(self):
    rows = self._shuffled(10, 0).rows(np.zeros(0, np.int64))
    self.assertEqual(rows["tokens"].shape, (0, _LENGTH + 1))
    self.assertEqual(rows["tokens"].dtype, np.int32)

  @parameterized.parameters(
    ([[1, 2]], "got shape"), ([0.5], "type float64"), ([3, -1], "got -1")
  )
  def test_bad_indices(self, indices, message):
    with self.assertRaisesRegex(ValueError, f"indices: .*{message}|{message}"):
      self._shuffled(10, 0).rows(np.array(indices))
