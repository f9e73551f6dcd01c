"""Prompts are read in order, and each mistake is named by its line."""

import json
import pathlib

from absl.testing import absltest
from absl.testing import parameterized

from dsx.inference import prompts_file

_EXPECTED = 'expected an object such as {"prompt": "some text"}'


class PromptsFileTest(parameterized.TestCase):
  def file(self, content, name="prompts.txt") -> pathlib.Path:
    path = pathlib.Path(self.create_tempdir().full_path) / name
    raw = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(raw)
    return path

  def test_plain_lines(self):
    path = self.file("one\n\n  two \r\n\n{three\nfour\u2028\x0bfive\n\n")
    found = prompts_file.read(path)
    self.assertEqual(
      found,
      [
        ("one", f"{path}:1"),
        ("  two ", f"{path}:3"),
        ("{three", f"{path}:5"),
        ("four\u2028\x0bfive", f"{path}:6"),
      ],
    )

  def test_no_line_feed_at_the_end(self):
    found = prompts_file.read(self.file("\ufeffone\ntwo"))
    self.assertEqual([prompt.text for prompt in found], ["one", "two"])

  @parameterized.parameters("prompts.jsonl", "prompts.txt", "prompts")
  def test_json_lines(self, name):
    prompts = ["one\ntwo", "é\u2028", "three"]
    lines = [json.dumps({"prompt": p, "id": 3}) for p in prompts]
    path = self.file("\n\n".join(lines) + "\n \n", name)
    found = prompts_file.read(path)
    self.assertEqual([prompt.text for prompt in found], prompts)
    self.assertEqual(found[1].place, f"{path}:3")

  @parameterized.parameters(
    '{"text": "a"}', "[1]", '"prompt"', "{", "[" * 99999
  )
  def test_json_that_is_no_prompt_is_a_plain_line(self, line):
    self.assertEqual(prompts_file.read(self.file(line))[0].text, line)

  @parameterized.parameters(
    ("", ": no prompts; expected one on each line"),
    ("\n\r\n\n", ": no prompts; expected one on each line"),
    (
      b"a\nb\xff\n",
      ":2: not UTF-8 at byte 3 (invalid start byte); expected UTF-8 text, "
      "convert it",
    ),
    (
      '{"prompt": "a"}\n{"prompt": b}',
      ":2: not JSON (Expecting value: line 1 column 12 (char 11)); "
      f"{_EXPECTED} on each line",
    ),
    (
      '{"prompt": "a"}\n{"promt": "b"}',
      f':2: got {{"promt": "b"}}; {_EXPECTED}',
    ),
    ('{"prompt": "a"}\n"b"', f':2: got "b"; {_EXPECTED}'),
    (
      '{"prompt": "a"}\n\n{"prompt": ""}',
      ":3: prompt='': expected text of at least one character",
    ),
    (
      '{"prompt": ["a"]}',
      ":1: prompt=['a']: expected text of at least one character",
    ),
    (
      '{"prompt": "ab\\ud800"}',
      ":1: prompt: text: character 2 is a lone surrogate ('\\ud800'), expected "
      "Unicode text that UTF-8 can hold; replace or drop that character",
    ),
  )
  def test_errors_name_file_and_line(self, content, message):
    path = self.file(content)
    with self.assertRaises(ValueError) as caught:
      prompts_file.read(path)
    self.assertEqual(str(caught.exception), f"{path}{message}")

  def test_a_long_line_is_not_repeated_whole(self):
    path = self.file(json.dumps({"text": "a" * 1000}), "prompts.jsonl")
    with self.assertRaisesRegex(ValueError, r'got \{"text": "a{47}\.\.\.; exp'):
      prompts_file.read(path)

  def test_deep_json(self):
    path = self.file("[" * 100_000, "prompts.jsonl")
    with self.assertRaisesRegex(ValueError, ":1: not JSON"):
      prompts_file.read(path)

  def test_no_file(self):
    folder = self.create_tempdir().full_path
    for path, why in (
      (folder, "Is a directory"),
      (folder + "/none.txt", "No such file or directory"),
    ):
      with self.assertRaises(ValueError) as caught:
        prompts_file.read(path)
      self.assertEqual(
        str(caught.exception),
        f"--prompts_file: cannot read {path!r} ({why}), expected a file of "
        "prompts; give one a line",
      )


if __name__ == "__main__":
  absltest.main()
