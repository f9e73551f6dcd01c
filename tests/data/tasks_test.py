"""seqio Tasks: what an example holds, and tasks that users register."""

import dataclasses
import pathlib

from absl.testing import parameterized
import seqio
import tensorflow as tf

from dsx.data import pipeline
from dsx.data import seqio_vocabulary
from dsx.data import tasks
from dsx.data import vocab

_NAMES = ("tasks_test_text", "tasks_test_other", "tasks_test_mixture")


class TasksTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.create_tempdir().full_path)
    lines = "".join(f'{{"text": "document {i}"}}\n' for i in range(300))
    (self.root / "a.jsonl").write_text(lines)
    self.data = pipeline.Data(
      task="jsonl",
      sequence_length=8,
      files=(str(self.root / "a.jsonl"),),
      fim_rate=0.5,
    )
    self.addCleanup(self._forget)

  def _forget(self):
    for name in _NAMES:
      seqio.TaskRegistry.remove(name)
      seqio.MixtureRegistry.remove(name)

  def _examples(self, task: seqio.Task, split: str) -> list[dict]:
    dataset = task.get_dataset(split=split, shuffle=False)
    return list(dataset.as_numpy_iterator())

  def test_examples_are_documents_with_their_tokens(self):
    task = tasks.build(self.data)
    self.assertIsInstance(task, seqio.Task)
    vocabulary = vocab.ByteVocabulary()
    eos = vocabulary.special["eos"]
    begin = vocabulary.special["fim_begin"]
    rearranged = {}
    for split in ("train", "validation"):
      examples = self._examples(task, split)
      rearranged[split] = 0
      for example in examples:
        self.assertEqual(example["targets"][-1], eos)
        self.assertEqual((example["targets"] == eos).sum(), 1)
        self.assertEqual(example["targets"][0], vocabulary.special["bos"])
        rearranged[split] += int(example["targets"][1] == begin)
        if example["targets"][1] != begin:
          decoded = vocabulary.decode(example["targets"])
          self.assertEqual(decoded, example["text"].decode())
    self.assertBetween(rearranged["train"], 100, 180)
    self.assertEqual(rearranged["validation"], 0)  # training alone

  def test_a_mixture_draws_documents_by_weight(self):
    text = "".join(f"line {i}\n" for i in range(20000))
    (self.root / "b.txt").write_text(text)
    mixture = tasks.build(
      dataclasses.replace(
        self.data,
        task="mixture",
        mixture=(("jsonl", 3), ("text_files", 1, str(self.root / "b.txt"))),
      )
    )
    self.assertIsInstance(mixture, seqio.Mixture)
    dataset = mixture.get_dataset(
      split="train", shuffle=False, seed=1, num_epochs=None
    )
    sizes = [len(example["targets"]) for example in dataset.take(800)]
    self.assertBetween(sum(size > 1000 for size in sizes), 150, 250)

  def test_an_unknown_name_gets_a_suggestion(self):
    with self.assertRaisesRegex(
      ValueError, "Data.task: got 'stdlb', expected .*; did you mean 'stdlib'?"
    ):
      tasks.registered("stdlb")

  def test_a_registered_text_task_is_tokenised_as_ours_are(self):
    seqio.TaskRegistry.add(
      _NAMES[0],
      source=seqio.FunctionDataSource(
        lambda split, shuffle_files: tf.data.Dataset.from_tensor_slices(
          {"text": [f"{split} {i}" for i in range(3)]}
        ),
        splits=("train", "validation"),
      ),
      output_features={
        "text": seqio.Feature(
          seqio.PassThroughVocabulary(1), dtype=tf.string, rank=0
        )
      },
    )
    found = tasks.from_registered(self.data, tasks.registered(_NAMES[0]))
    examples = self._examples(found, "validation")
    vocabulary = vocab.ByteVocabulary()
    self.assertEqual(
      [vocabulary.decode(example["targets"]) for example in examples],
      ["validation 0", "validation 1", "validation 2"],
    )

  def test_a_registered_task_with_targets_is_taken_as_it_is(self):
    feature = seqio.Feature(
      seqio_vocabulary.SeqioVocabulary(vocab.ByteVocabulary())
    )
    task = seqio.TaskRegistry.add(
      _NAMES[1],
      source=seqio.FunctionDataSource(
        lambda split, shuffle_files: tf.data.Dataset.from_tensors(
          {"targets": tf.constant([1, 2, 3])}
        ),
        splits=("train", "validation"),
      ),
      output_features={"targets": feature},
    )
    self.assertIs(tasks.from_registered(self.data, task), task)

  def test_a_registered_mixture_is_found(self):
    self.test_a_registered_task_with_targets_is_taken_as_it_is()
    seqio.MixtureRegistry.add(_NAMES[2], [(_NAMES[1], 2.0)])
    self.assertIsInstance(tasks.registered(_NAMES[2]), seqio.Mixture)

  def test_a_task_without_text_is_refused(self):
    seqio.TaskRegistry.add(
      _NAMES[0],
      source=seqio.FunctionDataSource(
        lambda split, shuffle_files: tf.data.Dataset.from_tensors(
          {"body": "x"}
        ),
        splits=("train", "validation"),
      ),
      output_features={},
    )
    found = tasks.from_registered(self.data, tasks.registered(_NAMES[0]))
    with self.assertRaisesRegex(
      ValueError, r"have \['body'\], expected 'text'"
    ):
      self._examples(found, "train")
