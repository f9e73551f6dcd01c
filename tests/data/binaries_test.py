"""The gin files of this floor and the binaries that take them."""

import pathlib
import subprocess
import sys

from absl.testing import parameterized

from dsx.data import pipeline
from dsx.data import tokenizer_training
from dsx.data import vocab
from experiments import configuration
from experiments import prepare_data
from experiments import train_tokenizer

_FOLDER = "gin_configs/data"
_FILES = "Data.files = ('~/corpus/*.txt',)"


def _run(binary: str, *flags: str) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, "-m", f"experiments.{binary}", *flags],
    capture_output=True,
    text=True,
  )


class GinFilesTest(parameterized.TestCase):
  @parameterized.parameters(
    ("stdlib", "stdlib", "byte"),
    ("stdlib_bpe", "stdlib", "runs/tokenizer/tokenizer.json"),
    ("text_files", "text_files", "byte"),
    ("jsonl", "jsonl", "byte"),
  )
  def test_each_describes_its_data(self, name, task, vocabulary):
    target = prepare_data.TARGET
    configuration.prepare(
      target, [f"{_FOLDER}/{name}.gin"], ["SEQUENCE_LENGTH = 512", _FILES]
    )
    data = configuration.build(target)
    self.assertIsInstance(data, pipeline.Data)
    self.assertEqual((data.task, data.vocabulary), (task, vocabulary))
    self.assertEqual(data.sequence_length, 512)
    self.assertEqual(data.files, ("~/corpus/*.txt",))

  @parameterized.parameters(
    ([], "stdlib"), ([f"{_FOLDER}/text_files.gin"], "text_files")
  )
  def test_a_tokenizer_for_any_corpus(self, more, task):
    target = train_tokenizer.TARGET
    configuration.prepare(
      target, [f"{_FOLDER}/train_tokenizer.gin", *more], [_FILES]
    )
    training = configuration.build(target)
    self.assertIsInstance(training, tokenizer_training.TokenizerTraining)
    self.assertEqual((training.data.task, training.vocab_size), (task, 8192))

  def test_every_file_is_tested(self):
    tested = {"stdlib", "stdlib_bpe", "text_files", "jsonl", "train_tokenizer"}
    found = {path.stem for path in pathlib.Path(_FOLDER).glob("*.gin")}
    self.assertEqual(found, tested)


class BinariesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.create_tempdir().full_path)
    text = "".join(f"x[{i}] = call(y);\n" for i in range(3000))
    (self.root / "a.txt").write_text(text)
    self.flags = [
      f"--gin_bindings=Data.files = ({str(self.root / '*.txt')!r},)",
      f"--gin_bindings=Data.cache_dir = {str(self.root / 'cache')!r}",
    ]

  def test_train_tokenizer(self):
    result = _run(
      "train_tokenizer",
      f"--gin_file={_FOLDER}/train_tokenizer.gin",
      f"--gin_file={_FOLDER}/text_files.gin",
      "--gin_bindings=TokenizerTraining.vocab_size = 384",
      f"--workdir={self.root / 'tokenizer'}",
      *self.flags,
    )
    self.assertEqual((result.returncode, result.stderr), (0, ""))
    self.assertIn("bytes a token", result.stdout)
    self.assertEqual(vocab.load(self.root / "tokenizer").size, 384)

  def test_prepare_data_dry(self):
    result = _run(
      "prepare_data",
      f"--gin_file={_FOLDER}/text_files.gin",
      "--dry_run",
      *self.flags,
    )
    self.assertEqual((result.returncode, result.stderr), (0, ""))
    self.assertRegex(
      result.stdout,
      r"^text_files, weight 1: \d+ documents, 0.\d+ MB, 0 files skipped\n"
      rf"not prepared: {self.root}/cache/prepared/text_files_256_\w+\n$",
    )
    self.assertFalse((self.root / "cache").exists())

  def test_prepare_data_without_files(self):
    result = _run("prepare_data", f"--gin_file={_FOLDER}/text_files.gin")
    self.assertEqual(result.returncode, 1)
    self.assertEqual(result.stdout, "")
    self.assertRegex(result.stderr, r"^Data.files: got no glob, expected .*\n$")
