"""Samples mixed and written: proportions, order, duplicates, lineage."""

import hashlib
import json
import pathlib

from absl.testing import absltest
from absl.testing import parameterized

from dsx.data import sft
from dsx.data import source_files
from dsx.rl import curated_set


def _sampled(n):
  return [{"prompt": f"p{i}", "response": f"r{i}"} for i in range(n)]


class CuratedSetTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self._folder = pathlib.Path(self.create_tempdir().full_path)

  def _general(self, n, name="g.jsonl"):
    lines = [
      {"prompt": f"g{i}", "response": "\u4e09", "id": i} for i in range(n)
    ]
    path = self._folder / name
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return (str(path),)

  def _write(self, sampled, general=(), ratio=3.0, seed=0):
    written = curated_set.write(
      self._folder, sampled, general=general, ratio=ratio, seed=seed
    )
    raw = (self._folder / curated_set.SAMPLES).read_bytes()
    self.assertEqual(hashlib.sha256(raw).hexdigest(), written.digest)
    return written, [json.loads(line) for line in raw.decode().splitlines()]

  def test_three_to_one(self):
    written, lines = self._write(_sampled(30), self._general(50))
    self.assertEqual((written.reasoning, written.general), (30, 10))
    self.assertLen(lines, 40)
    general = [line for line in lines if "source" in line]
    self.assertLen(general, 10)
    self.assertEqual(
      general[0]["source"], f"general g.jsonl:{general[0]['id'] + 1}"
    )
    # Mixed, and not one part after the other.
    where = [i for i, line in enumerate(lines) if "source" in line]
    self.assertGreater(max(where) - min(where), 15)
    self.assertLen(written.general_files, 1)

  def test_too_few_others(self):
    """All of them are taken, and no sampled one is lost."""
    written, lines = self._write(_sampled(30), self._general(4))
    self.assertEqual((written.reasoning, written.general), (30, 4))
    self.assertLen(lines, 34)

  def test_none_others(self):
    written, lines = self._write(_sampled(3))
    self.assertEqual((written.general, len(lines)), (0, 3))
    self.assertEqual(written.general_files, [])

  def test_the_same_file_whichever_came_first(self):
    general = self._general(9)
    one, _ = self._write(_sampled(12), general)
    other, _ = self._write(_sampled(12)[::-1], general)
    self.assertEqual(one.digest, other.digest)
    third, _ = self._write(_sampled(12), general, seed=1)
    self.assertNotEqual(one.digest, third.digest)

  def test_duplicates(self):
    lines = [
      {"prompt": "p", "response": "R  r", "problem": "first"},
      {"prompt": "P", "response": "r\nr"},
      {"prompt": "q", "response": "r r"},
    ]
    written, found = self._write(lines)
    self.assertEqual((written.reasoning, written.duplicates), (2, 1))
    self.assertIn(lines[0], found)

  def test_read_by_fine_tuning(self):
    self._write(_sampled(3), self._general(1))
    files = source_files.matched([str(self._folder / curated_set.SAMPLES)])
    read = [sample for _, sample in sft.read(files[0])]
    self.assertIn(sft.Sample((("user", "p0"),), "r0"), read)
    self.assertIn(sft.Sample((("user", "g0"),), "\u4e09"), read)

  def test_nothing(self):
    with self.assertRaisesRegex(ValueError, "samples: none was good enough"):
      self._write([], self._general(3))

  def test_others_refused(self):
    with self.assertRaisesRegex(ValueError, "general: no file matches 'none"):
      curated_set.check(("none*",))
    path = self._folder / "bad.jsonl"
    path.write_text('{"prompt": "p"}\n')
    with self.assertRaisesRegex(ValueError, "general: .*bad.jsonl:1: response"):
      curated_set.check((str(path),))
    path.write_text("{\n")
    with self.assertRaisesRegex(ValueError, "general: .*bad.jsonl:1: not JSON"):
      curated_set.check((str(path),))


if __name__ == "__main__":
  absltest.main()
