"""`python -m experiments.generate` as a person calls it."""

import json
import pathlib
import subprocess
import sys

from absl.testing import absltest
from absl.testing import parameterized

from dsx.convert import deepseek
from dsx.data import vocab
from dsx.inference import completion
from dsx.inference import uncached
from dsx.training import pretrained
from tests.experiments import trained_run
from tests.inference import pieces

_BYTE = vocab.ByteVocabulary()
_ROOT = pathlib.Path(__file__).resolve().parents[2]
_EXPECTED = 'expected an object such as {"prompt": "some text"}'


class GenerateTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.workdir = trained_run.make()

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  def call(self, *arguments):
    arguments = [a.format(self.workdir, self.folder) for a in arguments]
    return trained_run.call("generate", *arguments)

  def written(self, *arguments):
    """The objects of --output."""
    done = self.call(*arguments, "--output={1}/out.jsonl")
    self.assertEqual(done.returncode, 0, done.stderr)
    self.assertEqual(done.stdout, "")
    lines = (self.folder / "out.jsonl").read_text().split("\n")
    self.assertEqual(lines.pop(), "")
    return [json.loads(line) for line in lines]

  def slow_way(self, prompt, n_tokens, folder=None):
    """Greedy tokens of the model without a cache."""
    found = pretrained.find(folder or self.workdir)
    return uncached.generate(
      found.model,
      found.read(),
      completion.prompt_tokens(found.vocabulary, prompt),
      n_tokens=n_tokens,
      window=64,
      temperature=0.0,
      stop=found.vocabulary.special["eos"],
      vocab_size=found.vocabulary.size,
    )

  def test_prompt_and_continuation(self):
    arguments = ("--prompt=def f(", "--max_new_tokens=5", "--seed=3")
    done = self.call("--checkpoint={}", *arguments)
    self.assertEqual(done.returncode, 0, done.stderr)
    self.assertStartsWith(done.stdout, "def f(")
    self.assertGreater(len(done.stdout), len("def f(\n"))
    first, last = done.stderr.splitlines()
    self.assertEqual(
      first,
      f"step 4 of {self.workdir}; prompt of 7 tokens, window=16, seed=3, "
      "max_new_tokens=5, temperature=0.7",
    )
    self.assertRegex(
      last,
      r"^5 tokens, as many as asked for, [0-9.]+ s \([0-9.]+ s to the first\), "
      r"[0-9.]+ tokens/s$",
    )
    # The workdir may be named as everywhere else; the seed decides.
    again = self.call("--workdir={}", *arguments)
    self.assertEqual(again.stdout, done.stdout)

  def test_until_the_context_is_full(self):
    done = self.call("--checkpoint={}", "--prompt=def f(", "--temperature=0")
    tokens = self.slow_way("def f(", 9)
    self.assertEqual(done.stdout, "def f(" + _BYTE.decode(tokens) + "\n")
    self.assertIn("9 tokens, the context is full, ", done.stderr)

  def test_a_file_of_prompts(self):
    prompts = ["def", "x = 1", "a"]
    lines = [json.dumps({"prompt": prompt}) for prompt in prompts]
    (self.folder / "prompts.jsonl").write_text("\n".join(lines))
    found = self.written(
      "--checkpoint={}",
      "--prompts_file={1}/prompts.jsonl",
      "--temperature=0",
      "--max_new_tokens=6",
      "--slots=2",
    )
    self.assertEqual([f["prompt"] for f in found], prompts)
    for record in found:
      tokens = self.slow_way(record["prompt"], 6)
      self.assertEqual(record["token_ids"], tokens)
      self.assertEqual(record["text"], _BYTE.decode(tokens))
      self.assertLen(record["logprobs"], len(tokens))
      self.assertLess(max(record["logprobs"]), 0)
      self.assertEqual(record["finish_reason"], "length")

  @parameterized.parameters("float32", "fp8")
  def test_a_hugging_face_folder(self, dtype):
    folder = self.folder / "hf"
    found = pretrained.find(self.workdir)
    variables = found.read(mtp=True)
    deepseek.save(folder, found.config, variables, dtype=dtype)
    pieces.tokenizer(folder, "def ")
    done = self.call(
      f"--checkpoint={folder}",
      "--prompt=def f",
      "--temperature=0",
      "--max_new_tokens=12",
      "--drafts=1",
      f"--dtype={dtype}",
    )
    self.assertEqual(done.returncode, 0, done.stderr)
    first, last = done.stderr.splitlines()
    described = f"Hugging Face folder {folder}; prompt of 3 tokens, "
    self.assertStartsWith(first, described)
    self.assertRegex(last, r", \d+ of \d+ drafts accepted \(\d+%\)$")
    if dtype == "float32":
      tokens = self.slow_way("def f", 12, folder)
      text = vocab.load(folder).decode(tokens)
      self.assertEqual(done.stdout, f"def f{text}\n")

  def test_a_stop_string(self):
    text = _BYTE.decode(self.slow_way("a", 14))
    found = self.written(
      "--checkpoint={}",
      "--prompt=a",
      "--temperature=0",
      "--stop=not to be found",
      f"--stop={text[1:3]}",
    )
    self.assertEqual(found[0]["text"], text[: text.index(text[1:3])])
    self.assertEqual(found[0]["finish_reason"], "stop")

  def test_plain_prompts_sampled_in_another_precision(self):
    (self.folder / "prompts.txt").write_text("a\n\nb\n")
    found = self.written(
      "--checkpoint={}",
      "--prompts_file={1}/prompts.txt",
      "--samples=2",
      "--dtype=bfloat16",
      "--average",
      "--top_k=40",
      "--top_p=0.9",
      "--min_p=0.01",
    )
    places = [(f["prompt"], f["sample"]) for f in found]
    self.assertEqual(places, [("a", 0), ("a", 1), ("b", 0), ("b", 1)])
    self.assertLen({tuple(f["token_ids"]) for f in found}, 4)

  def test_on_a_mesh(self):
    (found,) = self.written(
      "--checkpoint={}",
      "--prompt=ab",
      "--temperature=0",
      "--gin_bindings=Generation.mesh = @MeshShape()",
      "--gin_bindings=MeshShape.tensor = 2",
    )
    self.assertEqual(found["token_ids"], self.slow_way("ab", 13))

  def test_a_chat_over_a_pipe(self):
    arguments = ("--window=32", "--temperature=0", "--max_new_tokens=5")
    done = subprocess.run(
      [sys.executable, "-m", "experiments.generate", "--chat", *arguments]
      + [f"--checkpoint={self.workdir}", "--think=off"],
      input="Hi\n\nWhy?\n/reset\nHi\n/quit\nHi\n",
      cwd=_ROOT,
      capture_output=True,
      text=True,
      check=False,
    )
    self.assertEqual(done.returncode, 0, done.stderr)
    self.assertIn("a chat, window=32", done.stderr)
    self.assertIn("15 tokens in 3 texts", done.stderr)
    middle = len(done.stdout) // 2
    first = done.stdout[: done.stdout.index("\n") + 1]
    self.assertStartsWith(done.stdout, first)
    self.assertEndsWith(done.stdout[middle:], first)

  def test_dry_run(self):
    done = self.call(
      "--checkpoint={}", "--prompt=abc", "--dry_run", "--print_config"
    )
    self.assertEqual(done.returncode, 0, done.stderr)
    self.assertIn("temperature = 0.7", done.stdout)
    self.assertIn(f"step 4 of {self.workdir}; prompt of 4 tokens", done.stdout)
    self.assertIn("--prompt: 4 tokens: 256 97 98 99", done.stdout)
    done = self.call(
      "--checkpoint={}", "--chat_template", "--prompt=abc", "--dry_run"
    )
    self.assertIn("--prompt: 8 tokens: 256 262 97 98 99 263", done.stdout)

  @parameterized.parameters(
    (("--prompt=a",), "--checkpoint is missing"),
    (
      ("--checkpoint={}",),
      "nothing to continue: expected one of --prompt, --prompts_file, --chat; "
      "give one",
    ),
    (
      ("--checkpoint={}", "--prompt=a", "--chat"),
      "--prompt and --chat: expected one of",
    ),
    (("--checkpoint={}", "--prompt="), "--prompt is empty"),
    (("--checkpoint=/tmp/dsx_none", "--prompt=a"), "dsx_none: no checkpoint"),
    (("--checkpoint={}", "--prompt=a", "--temperature=nan"), "temperature=nan"),
    (
      ("--checkpoint={}", "--prompt=seventeen letters"),
      "--prompt: prompt of 18 tokens: expected fewer than window=16; shorten "
      "it, or raise the window (this model's context is 64)",
    ),
    (
      ("--checkpoint={}", "--prompt=a", "--drafts=2"),
      "drafts=2: expected at most 1, one for each MTP module",
    ),
    (
      ("--checkpoint={}", "--prompt=a", "--output={1}/none/out.jsonl"),
      "/none' is no folder; expected an existing one, make it first",
    ),
    (
      ("--checkpoint={}", "--chat", "--output={1}/out.jsonl"),
      "--output: expected none with --chat; leave it out",
    ),
    (
      ("--checkpoint={}", "--prompt=a", "--system=b"),
      "--system: expected with --chat or --chat_template only",
    ),
    (
      ("--checkpoint={}", "--prompts_file={1}/none"),
      "none' (No such file or directory), expected a file of prompts",
    ),
    (
      ("--checkpoint={}", "--prompts_file={1}/bad.jsonl"),
      f'bad.jsonl:2: got {{"text": "b"}}; {_EXPECTED}',
    ),
    (
      ("--checkpoint={}", "--prompt=b\udcff"),
      "--prompt: text: character 1 is a lone surrogate",
    ),
    (("--checkpoint={}", "--prompt=a", "--dtype=fp8"), "are not FP8"),
  )
  def test_errors_in_one_line(self, arguments, message):
    lines = ['{"prompt": "a"}', '{"text": "b"}']
    (self.folder / "bad.jsonl").write_text("\n".join(lines))
    done = self.call(*arguments)
    self.assertEqual(done.returncode, 1, done.stderr)
    self.assertEqual(done.stdout, "")
    self.assertLen(done.stderr.splitlines(), 1, done.stderr)
    self.assertIn(message, done.stderr)

  def test_an_unknown_precision(self):
    done = self.call("--checkpoint={}", "--prompt=a", "--dtype=int4")
    self.assertEqual(done.returncode, 2)
    self.assertLen(done.stderr.splitlines(), 1, done.stderr)
    self.assertIn("float32|bfloat16|float16|fp8", done.stderr)


if __name__ == "__main__":
  absltest.main()
