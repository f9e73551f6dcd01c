"""`Data`: what it refuses, and what makes a prepared data set another one."""

import dataclasses
import os
import pathlib
import subprocess
import sys
from unittest import mock

from absl.testing import parameterized

from dsx.data import pipeline
from dsx.data import source_files
from dsx.data import store
from dsx.data import tokenizer_training
from dsx.data import vocab


class DataTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ("length_zero", {"sequence_length": 0}, "sequence_length: got 0, expected"),
    ("length_float", {"sequence_length": 2.0}, "sequence_length: got 2.0"),
    ("length_bool", {"sequence_length": True}, "sequence_length: got True"),
    ("seed", {"seed": -1}, "seed: got -1, expected an int >= 0"),
    ("fim_rate", {"fim_rate": 1.1}, "fim_rate: got 1.1, expected 0 to 1"),
    ("split_rate", {"split_rate": -0.1}, "split_rate: got -0.1"),
    ("all_held_out", {"validation_fraction": 1.0}, "validation_fraction: got"),
    ("files_string", {"files": "a.txt"}, "files: got the string 'a.txt'"),
    ("mixture_without_parts", {"task": "mixture"}, r"mixture: got \(\)"),
    (
      "parts_without_mixture",
      {"mixture": (("stdlib", 1),)},
      "mixture: got .* with task 'stdlib'",
    ),
    (
      "weight_zero",
      {"task": "mixture", "mixture": (("stdlib", 0),)},
      "mixture: got the entry",
    ),
    (
      "no_weight",
      {"task": "mixture", "mixture": (("stdlib",),)},
      "mixture: got the entry",
    ),
    (
      "mixture_of_mixtures",
      {"task": "mixture", "mixture": (("mixture", 1.0),)},
      "mixture: got the entry",
    ),
  )
  def test_refuses(self, fields, message):
    with self.assertRaisesRegex(ValueError, "^Data." + message) as caught:
      pipeline.Data(**{"sequence_length": 8, **fields})
    self.assertNotIn("\n", str(caught.exception))

  def test_survives_json_and_lists(self):
    data = pipeline.Data(
      task="mixture",
      sequence_length=8,
      files=["a", "b"],
      mixture=[["stdlib", 2], ["jsonl", 0.5, "c*.jsonl"]],
    )
    again = pipeline.Data.from_json(data.to_json())
    self.assertEqual(again, data)
    self.assertEqual(hash(again), hash(data))
    self.assertEqual(data.mixture, (("stdlib", 2), ("jsonl", 0.5, "c*.jsonl")))

  def test_components_of_a_mixture(self):
    data = pipeline.Data(
      task="mixture",
      sequence_length=8,
      files=("a",),
      mixture=(("text_files", 2), ("jsonl", 0.5, "b", "c")),
    )
    parts = pipeline.components(data)
    self.assertEqual([weight for _, weight in parts], [2.0, 0.5])
    self.assertEqual([part.task for part, _ in parts], ["text_files", "jsonl"])
    self.assertEqual([part.files for part, _ in parts], [("a",), ("b", "c")])

  def test_the_cache_is_where_the_environment_says_unless_bound(self):
    with mock.patch.dict(os.environ, {"DSX_DATA_DIR": "/somewhere"}):
      self.assertEqual(pipeline.Data(sequence_length=8).cache_dir, "/somewhere")
      bound = pipeline.Data(sequence_length=8, cache_dir="/else")
      self.assertEqual(bound.cache_dir, "/else")
    with mock.patch.dict(os.environ):
      os.environ.pop("DSX_DATA_DIR", None)
      self.assertEqual(
        pipeline.Data(sequence_length=8).cache_dir, "~/.cache/dsx"
      )


class DirectoryTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.create_tempdir().full_path)
    for i in range(3):
      (self.root / f"{i}.txt").write_text(f"text {i}\n")
    self.data = pipeline.Data(
      task="text_files",
      sequence_length=8,
      files=(str(self.root / "*.txt"),),
      cache_dir=str(self.root / "cache"),
    )

  def _name(self, **changes) -> str:
    changed = dataclasses.replace(self.data, **changes)
    return pipeline.prepared_directory(changed).name

  def test_lies_in_the_cache_and_says_what_it_is(self):
    found = pipeline.prepared_directory(self.data)
    self.assertEqual(found.parent, self.root / "cache" / "prepared")
    self.assertStartsWith(found.name, "text_files_8_")

  @parameterized.parameters(
    {"sequence_length": 9},
    {"fim_rate": 0.2},
    {"split_rate": 0.2},
    {"validation_fraction": 0.2},
    {"segment_ids": True},
    {"seed": 1},
    {"task": "jsonl"},
    {"task": "stdlib"},
  )
  def test_follows_what_decides_the_content(self, **changes):
    self.assertNotEqual(self._name(**changes), self._name())

  def test_does_not_follow_the_rest(self):
    self.assertEqual(self._name(cache_dir="/else"), self._name())
    self.assertEqual(self._name(text_field="body"), self._name())
    globs = tuple(str(self.root / f"{i}.txt") for i in (2, 0, 1))
    self.assertEqual(self._name(files=globs), self._name())

  def test_follows_the_content_of_files(self):
    before = self._name()
    (self.root / "1.txt").write_text("text X\n")
    changed = self._name()
    self.assertNotEqual(changed, before)
    (self.root / "3.txt").write_text("")
    self.assertNotEqual(self._name(), changed)

  def test_follows_the_content_of_the_vocabulary(self):
    trained = tokenizer_training.train(["ab ab ab"], vocab_size=320)
    path = tokenizer_training.save(trained, self.root / "tokenizer")
    first = self._name(vocabulary=str(path))
    self.assertNotEqual(first, self._name())
    self.assertEqual(first, self._name(vocabulary=str(path.parent)))
    self.assertEqual(vocab.load(path).size, 320)
    trained = tokenizer_training.train(["cd cd cd"], vocab_size=320)
    path.write_text(trained.to_str())
    self.assertNotEqual(self._name(vocabulary=str(path)), first)

  def test_a_mixture_follows_its_weights(self):
    names = {
      self._name(task="mixture", mixture=(("text_files", a), ("stdlib", b)))
      for a, b in ((1, 1), (1, 2), (2, 1))
    }
    self.assertLen(names, 3)

  def test_opening_what_is_not_prepared_says_how_to(self):
    self.assertFalse(pipeline.is_prepared(self.data))
    with self.assertRaisesRegex(
      ValueError, "is not prepared in .*; run python -m experiments.prepare"
    ):
      pipeline.open_split(self.data, "train", shuffle=True)

  def test_an_unknown_split(self):
    with self.assertRaisesRegex(ValueError, "split: got 'test', expected"):
      pipeline.open_split(self.data, "test", shuffle=False)

  def test_no_file(self):
    data = dataclasses.replace(self.data, files=(str(self.root / "*.md"),))
    with self.assertRaisesRegex(source_files.CorpusError, "no file matches"):
      pipeline.prepared_directory(data)

  def test_damaged_metadata(self):
    directory = pipeline.prepared_directory(self.data)
    directory.mkdir(parents=True)
    (directory / store.METADATA).write_text("{}")
    with self.assertRaisesRegex(store.CorruptionError, "is damaged; delete"):
      pipeline.open_split(self.data, "train", shuffle=True)


class ImportTest(parameterized.TestCase):
  @parameterized.parameters("pipeline", "prepare", "tokenizer_training")
  def test_tensorflow_stays_out(self, module):
    code = (
      f"import sys; from dsx.data import {module}; "
      "heavy = {'tensorflow', 'seqio', 'tensorflow_datasets', 'gin'}; "
      "print(sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run(
      [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    self.assertEqual(result.stdout.strip(), "[]")
