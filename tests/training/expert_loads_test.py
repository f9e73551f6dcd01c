"""Loads are read from runs and files, or refused in one line."""

import json
import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from dsx.training import expert_loads


def _record(step=None, load=((1.0, 2.0),), layers=("3",), **more):
  record = {"kind": "load", "layers": list(layers), "load": load, **more}
  return record if step is None else {"step": step, **record}


class ExpertLoadsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  def read(self, text, name="loads.json"):
    path = self.folder / name
    path.write_text(text)
    return expert_loads.read(path)

  def test_metrics_of_a_run(self):
    records = [
      {"kind": "train", "step": 10, "loss": 1.0},
      _record(10, [[1, 2]]),
      _record(30, [[5, 6]]),
      _record(20, [[9, 9]]),
      _record(20, [[3, 4]]),  # measured again after a restart
    ]
    lines = "\n".join(map(json.dumps, records)) + '\n{"kind": "load", "st'
    (self.folder / "metrics.jsonl").write_text(lines)
    found = expert_loads.read(self.folder)
    self.assertEqual(found.layers, ["3"])
    self.assertEqual(found.names, ["step 10", "step 20", "step 30"])
    np.testing.assert_array_equal(found.load[:, 0], [[1, 2], [3, 4], [5, 6]])

  def test_records_without_steps(self):
    records = [_record(load=[[1, 2]]), _record(load=[[3, 4]])]
    for text in (
      json.dumps(records),
      "".join(json.dumps(record) + "\n" for record in records),
    ):
      found = self.read(text)
      self.assertEqual(found.names, ["record 1", "record 2"])
      np.testing.assert_array_equal(found.load[:, 0], [[1, 2], [3, 4]])

  def test_one_record(self):
    found = self.read(json.dumps(_record(1200), indent=1))
    self.assertEqual(found.names, ["step 1,200"])
    self.assertEqual(found.load.shape, (1, 1, 2))

  @parameterized.parameters(
    ("", "there is no record with `layers` and `load`"),
    ("\0\n{", "there is no record"),
    ("[" * 100_000, "no loads of experts"),
    ("17", "there is no record"),
    ('[{"kind": "train"}]', "there is no record"),
    (json.dumps({"load": [[1]]}), "layers=None: expected the names"),
    (json.dumps({"load": [[1]], "layers": [3]}), r"layers=\[3\]: expected"),
    (json.dumps(_record(load=[1, 2])), r"load of shape \(2,\): expected a row"),
    (json.dumps(_record(load=[[1], [2]])), r"load of shape \(2, 1\): expected"),
    (json.dumps(_record(load=[[]])), r"load of shape \(1, 0\): expected a"),
    (json.dumps(_record(load=[[1, None]])), "load: expected numbers from 0"),
    (json.dumps(_record(load=[[1, -1]])), "load: expected numbers from 0"),
    (json.dumps(_record(load=[["x"]])), "no loads of experts: could not"),
    (json.dumps(_record(step="x", load=[[1]])), "step='x': expected a whole"),
    (
      json.dumps([_record(), _record(layers=["4"])]),
      r"layers=\['3'\] in one record and \['4'\] in the last",
    ),
  )
  def test_no_loads(self, text, message):
    with self.assertRaisesRegex(ValueError, message) as caught:
      self.read(text)
    self.assertStartsWith(
      str(caught.exception), f"{self.folder}/loads.json: no loads of experts"
    )

  def test_a_folder_without(self):
    with self.assertRaisesRegex(ValueError, "expected metrics.jsonl with"):
      expert_loads.read(self.folder)


if __name__ == "__main__":
  absltest.main()
