"""Preparing, from sources to batches, here and in a process of its own."""

import concurrent.futures
import dataclasses
import fcntl
import json
import pathlib
import subprocess
import sys
import threading
from unittest import mock

from absl.testing import parameterized
import numpy as np
import seqio
import tensorflow as tf

from dsx.data import bigram
from dsx.data import export
from dsx.data import pipeline
from dsx.data import prepare
from dsx.data import seqio_vocabulary
from dsx.data import store
from dsx.data import vocab

_REGISTERED = ("prepare_test_masked", "prepare_test_mixture")


def _quiet(line: str) -> None:
  del line


class _CorpusTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.create_tempdir().full_path)
    lines = [json.dumps({"text": f"document {i} é\n" * 9}) for i in range(300)]
    (self.root / "a.jsonl").write_text("\n".join(lines))
    self.data = pipeline.Data(
      task="jsonl",
      sequence_length=32,
      files=(str(self.root / "a.jsonl"),),
      cache_dir=str(self.root / "cache"),
    )

  def replaced(self, **changes) -> pipeline.Data:
    return dataclasses.replace(self.data, **changes)

  def prepared(self, **changes) -> pipeline.Data:
    data = self.replaced(**changes)
    prepare.prepare(data, report=_quiet)
    return data


class PrepareTest(_CorpusTest):
  def test_counts_and_what_a_trainer_needs(self):
    data = self.prepared()
    corpus = pipeline.corpus_of(data)
    survey = corpus.survey()
    pairs = {}
    for split in ("train", "validation"):
      texts = [d.text.encode() for d in corpus.split(split, survey)]
      pairs[split] = bigram.count(texts)
      metadata = pipeline.open_split(data, split, shuffle=False).metadata
      self.assertEqual(metadata["documents"], len(texts))
      self.assertEqual(metadata["bytes"], sum(map(len, texts)))
      self.assertEqual(metadata["records"], (metadata["tokens"] - 1) // 32)
    self.assertEqual(
      (metadata["vocabulary"], metadata["vocab_size"]), ("byte", 320)
    )
    self.assertEqual(metadata["special"]["eos"], 257)
    self.assertEqual(metadata["token_bytes"].shape, (320,))
    self.assertAlmostEqual(
      metadata["bigram_bits_per_byte"],
      bigram.bits_per_byte(pairs["train"], pairs["validation"]),
    )

  def test_validation_is_the_held_out_text_and_train_the_rest(self):
    data = self.prepared(fim_rate=0.0)
    corpus = pipeline.corpus_of(data)
    survey = corpus.survey()
    vocabulary = vocab.ByteVocabulary()
    for split in ("train", "validation"):
      opened = pipeline.open_split(data, split, shuffle=False)
      rows = opened.rows(np.arange(len(opened)))["tokens"]
      stream = np.concatenate([rows[:, :-1].ravel(), rows[-1, -1:]])
      expected = []
      for document in corpus.split(split, survey):
        expected += [256, *vocabulary.encode(document.text), 257]
      self.assertEqual(stream.tolist(), expected[: len(stream)])
      self.assertLess(len(expected) - len(stream), 32)

  def test_the_same_content_wherever_it_is_prepared(self):
    digests = []
    for name in ("one", "two"):
      data = self.prepared(cache_dir=str(self.root / name))
      opened = pipeline.open_split(data, "train", shuffle=True)
      digests.append(opened.metadata["digest"])
      opened.verify()
    self.assertEqual(*digests)

  def test_is_done_once(self):
    data = self.prepared()
    path = pipeline.prepared_directory(data) / store.METADATA
    before = path.stat().st_mtime_ns
    with mock.patch.object(export, "write_task") as write:
      prepare.prepare(data, report=_quiet)
      prepare.ensure(data, report=_quiet)
    write.assert_not_called()
    self.assertEqual(path.stat().st_mtime_ns, before)

  def test_a_failure_leaves_nothing_behind(self):
    with mock.patch.object(
      export, "write_task", side_effect=OSError(28, "No space left")
    ):
      with self.assertRaises(OSError):
        prepare.prepare(self.data, report=_quiet)
    self.assertFalse(pipeline.is_prepared(self.data))
    left = {path.name for path in (self.root / "cache" / "prepared").iterdir()}
    self.assertEqual({name[-5:] for name in left}, {".lock"})

  def test_what_a_killed_process_left_is_cleared(self):
    directory = pipeline.prepared_directory(self.data)
    left = directory.with_name(f".{directory.name}.tmp-killed")
    left.mkdir(parents=True)
    (left / "train-00000.array_record").write_bytes(b"half")
    self.prepared()
    self.assertFalse(left.exists())

  def test_two_at_once_take_turns(self):
    # File locks hold between threads that open the file themselves as they do
    # between processes. The one that writes waits for the other to come.
    come, writers, lock = threading.Semaphore(0), [], fcntl.flock

    def announced(*args):
      come.release()
      lock(*args)

    def write(data, survey, place, report):
      del data, survey, report
      writers.append(place)
      for _ in range(2):
        self.assertTrue(come.acquire(timeout=60))
      store.write_metadata(place, {})

    with (
      mock.patch.object(fcntl, "flock", announced),
      mock.patch.object(prepare, "_prepare_source", write),
      concurrent.futures.ThreadPoolExecutor(2) as pool,
    ):
      running = [
        pool.submit(prepare.prepare, self.data, report=_quiet) for _ in range(2)
      ]
      found = {future.result() for future in running}
    self.assertEqual(found, {pipeline.prepared_directory(self.data)})
    self.assertLen(writers, 1)

  def test_without_locks_the_first_to_rename_wins(self):
    def write(data, survey, place, report):
      del survey, report
      store.write_metadata(place, {"by": "this"})
      other = pipeline.prepared_directory(data)
      other.mkdir()
      store.write_metadata(other, {"by": "other"})

    with (
      mock.patch.object(fcntl, "flock", side_effect=OSError(95, "no locks")),
      mock.patch.object(prepare, "_prepare_source", write),
    ):
      directory = prepare.prepare(self.data, report=_quiet)
    self.assertEqual(store.read_metadata(directory), {"by": "other"})
    hidden = [p for p in directory.parent.iterdir() if ".tmp-" in p.name]
    self.assertEmpty(hidden)

  def test_segment_ids(self):
    data = self.prepared(segment_ids=True, fim_rate=0.0)
    rows = pipeline.open_split(data, "train", shuffle=False).rows(np.arange(9))
    self.assertEqual(rows["segment_ids"].shape, rows["tokens"].shape)
    ends = rows["tokens"][:, :-1] == 257
    steps = np.diff(rows["segment_ids"], axis=1)
    np.testing.assert_array_equal(steps, ends.astype(np.int32))

  def test_a_mixture(self):
    (self.root / "b.txt").write_text("another text\n" * 4000)
    data = self.prepared(
      task="mixture",
      mixture=(("jsonl", 3.0), ("text_files", 1.0, str(self.root / "b.txt"))),
    )
    train = pipeline.open_split(data, "train", shuffle=True)
    tokens = train.rows(np.arange(400))["tokens"]
    other = np.array(
      [b"nother" in bytes(r % 256 for r in row) for row in tokens.tolist()]
    )
    self.assertBetween(other.sum(), 90, 110)
    parts = [
      pipeline.open_split(part, "validation", shuffle=False)
      for part, _ in pipeline.components(data)
    ]
    whole = pipeline.open_split(data, "validation", shuffle=False)
    self.assertLen(whole, sum(map(len, parts)))
    self.assertEqual(
      whole.metadata["bytes"], sum(part.metadata["bytes"] for part in parts)
    )
    expected = [p.rows(np.arange(len(p)))["tokens"] for p in parts]
    np.testing.assert_array_equal(
      whole.rows(np.arange(len(whole)))["tokens"], np.concatenate(expected)
    )
    whole.verify()

  def test_a_prepared_directory_needs_no_sources(self):
    directory = str(pipeline.prepared_directory(self.prepared()))
    (self.root / "a.jsonl").unlink()
    data = self.replaced(prepared=directory)
    self.assertEqual(str(prepare.ensure(data)), directory)
    self.assertNotEmpty(pipeline.open_split(data, "train", shuffle=True))
    with self.assertRaisesRegex(
      ValueError, "Data.prepared: .* has sequence_length 32, expected 16"
    ):
      other = self.replaced(prepared=directory, sequence_length=16)
      pipeline.open_split(other, "train", shuffle=True)
    with self.assertRaisesRegex(
      export.PreparationError, "Data.prepared: there is no data set in '/no"
    ):
      prepare.ensure(self.replaced(prepared="/nowhere"))

  def test_a_corpus_shorter_than_a_record(self):
    with self.assertRaisesRegex(
      export.PreparationError,
      r"the validation split of task 'jsonl' has \d+ tokens, expected at least "
      "the 20001 of one record; bring more text or lower",
    ):
      self.prepared(sequence_length=20000)
    self.assertFalse(pipeline.is_prepared(self.replaced(sequence_length=20000)))

  def test_files_that_change_meanwhile(self):
    real = export.write_task

    def and_change(*args):
      real(*args)
      (self.root / "a.jsonl").write_text('{"text": "changed"}\n')

    with mock.patch.object(export, "write_task", and_change):
      with self.assertRaisesRegex(
        export.PreparationError, "the files of 'jsonl' changed while"
      ):
        prepare.prepare(self.data, report=_quiet)


class RegisteredTest(_CorpusTest):
  def setUp(self):
    super().setUp()
    feature = seqio.Feature(
      seqio_vocabulary.SeqioVocabulary(vocab.ByteVocabulary())
    )
    self.ids = [[65, 66, 67, 257]] * 40
    seqio.TaskRegistry.add(
      _REGISTERED[0],
      source=seqio.FunctionDataSource(self._dataset, ("train", "validation")),
      output_features={"targets": feature, "loss_mask": feature},
    )
    seqio.MixtureRegistry.add(_REGISTERED[1], [(_REGISTERED[0], 0.5)])
    self.addCleanup(seqio.TaskRegistry.remove, _REGISTERED[0])
    self.addCleanup(seqio.MixtureRegistry.remove, _REGISTERED[1])

  def _dataset(self, split, shuffle_files):
    del split, shuffle_files
    return tf.data.Dataset.from_tensor_slices(
      {"targets": self.ids, "loss_mask": [[0, 0, 1, 1]] * len(self.ids)}
    )

  @parameterized.parameters(*_REGISTERED)
  def test_tokens_and_loss_mask_are_those_of_the_task(self, name):
    data = self.prepared(task=name)
    opened = pipeline.open_split(data, "train", shuffle=False)
    rows = opened.rows(np.arange(2))
    stream = np.array([65, 66, 67, 257] * 40)
    np.testing.assert_array_equal(rows["tokens"][0], stream[:33])
    np.testing.assert_array_equal(rows["tokens"][1], stream[32:65])
    np.testing.assert_array_equal(
      rows["loss_mask"][0], np.tile([0, 0, 1, 1], 40)[:33]
    )
    self.assertEqual(opened.metadata["bytes"], 40 * 3)

  def test_ids_of_another_vocabulary(self):
    self.ids = [[65, 66, 320, 257]] * 40
    with self.assertRaisesRegex(
      export.PreparationError, r"made an id outside \[0, 320\) of 'byte'"
    ):
      self.prepared(task=_REGISTERED[0])

  def test_a_task_that_fails_says_so_in_a_line(self):
    seqio.TaskRegistry.remove(_REGISTERED[0])

    def broken(split, shuffle_files):
      del split, shuffle_files

      def generate():
        yield {"text": "fine"}
        raise KeyError("no such field")

      return tf.data.Dataset.from_generator(
        generate, output_signature={"text": tf.TensorSpec((), tf.string)}
      )

    text = seqio.Feature(
      seqio.PassThroughVocabulary(1), dtype=tf.string, rank=0
    )
    seqio.TaskRegistry.add(
      _REGISTERED[0],
      source=seqio.FunctionDataSource(broken, ("train", "validation")),
      output_features={"text": text},
    )
    with self.assertRaisesRegex(
      export.PreparationError, "KeyError: 'no such field'"
    ) as caught:
      self.prepared(task=_REGISTERED[0])
    self.assertNotIn("\n", str(caught.exception))


class EnsureTest(_CorpusTest):
  def test_prepares_in_another_process(self):
    code = (
      "import sys, numpy as np\n"
      "from dsx.data import pipeline, prepare\n"
      "data = pipeline.Data.from_json(sys.argv[1])\n"
      "prepare.ensure(data)\n"
      "opened = pipeline.open_split(data, 'train', shuffle=True)\n"
      "rows = opened.rows(np.arange(64))['tokens']\n"
      "heavy = {'tensorflow', 'seqio', 'tensorflow_datasets', 'gin'}\n"
      "print(rows.shape, sorted(heavy & set(sys.modules)))\n"
    )
    result = subprocess.run(
      [sys.executable, "-c", code, self.data.to_json()],
      capture_output=True,
      text=True,
      check=True,
    )
    lines = result.stdout.splitlines()
    self.assertEqual(lines[-1], "(64, 33) []")
    self.assertRegex(lines[0], "^preparing jsonl: 1 files, 300 documents")
    self.assertRegex(lines[1], r"^train: \d+ documents, .* records of 32 \+ 1")
    self.assertLen(lines, 5)
    self.assertTrue(pipeline.is_prepared(self.data))

  def test_a_failure_is_one_line(self):
    (self.root / "a.jsonl").write_text('{"text": "a"}\n{"body": "b"}\n')
    with self.assertRaisesRegex(
      export.PreparationError,
      r"^Data.files: .*a.jsonl:2: found the fields \['body'\], expected an "
      "object with a string field 'text'; Data.text_field names another$",
    ):
      prepare.ensure(self.data, report=_quiet)

  def test_a_killed_process_is_explained(self):
    self.assertRegex(
      prepare._explained(-9, ""), "stopped by SIGKILL; if nobody"
    )
