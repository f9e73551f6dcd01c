"""Problems as lines: there and back, and every way to get one wrong."""

import json

from absl.testing import absltest
from absl.testing import parameterized

from dsx.data import problems

_ANSWERS = {
  "number": ["4", 4, "1/2", "-1e3"],
  "set": [[1, "a"]],
  "choice": ["B"],
  "countdown": [{"numbers": [1, 2, 2], "target": 5}],
  "code": [[{"stdin": "", "stdout": "4\n"}]],
  "math": ["\\frac{1}{2}"],
  "open": [None, "a poem"],
}
_GOOD = {
  "name": "a",
  "prompt": "2+2?",
  "domain": "sums",
  "kind": "number",
  "answer": "4",
}


def _problem(**changes):
  return problems.Problem(**{**_GOOD, **changes})


class ProblemsTest(parameterized.TestCase):
  def test_there_and_back(self):
    path = self.create_tempdir().full_path + "/p.jsonl"
    made = [
      _problem(name=f"{kind}{i}", kind=kind, answer=answer, language="zh")
      for kind, answers in _ANSWERS.items()
      for i, answer in enumerate(answers)
    ]
    made.append(_problem(name="line", prompt="a\u2028\n\u4e09 <think>"))
    problems.write(path, made)
    got = problems.read(path)
    self.assertEqual(got, made)
    self.assertEqual(problems.digest(got), problems.digest(made))
    self.assertNotEqual(problems.digest(got[::-1]), problems.digest(made))

  def test_every_kind_is_here(self):
    self.assertCountEqual(_ANSWERS, problems.KINDS)

  @parameterized.parameters(
    ({"name": ""}, "name='': expected text of at least one character"),
    ({"prompt": 4}, "prompt=4: expected text"),
    ({"prompt": "\ud800"}, "prompt: text: character 0 is a lone surrogate"),
    ({"kind": "sum"}, "kind='sum': expected one of number, set, choice"),
    ({"answer": 0.5}, "answer=0.5: expected an integer or a number as text"),
    ({"answer": True}, "answer=True: expected an integer"),
    ({"kind": "set", "answer": []}, "a list of at least one integer or text"),
    ({"kind": "set", "answer": "ab"}, "answer='ab': expected a list"),
    ({"kind": "choice", "answer": "AB"}, "expected one letter from A to Z"),
    ({"kind": "choice", "answer": "b"}, "expected one letter from A to Z"),
    ({"kind": "code", "answer": []}, "expected a list of at least one"),
    ({"kind": "code", "answer": [{"stdin": ""}]}, "expected a list of at"),
    ({"kind": "math", "answer": " "}, "answer=' ': expected LaTeX as text"),
    ({"kind": "open", "answer": 1}, "answer=1: expected null or text"),
    (
      {"kind": "countdown", "answer": {"numbers": [-1], "target": 3}},
      "natural numbers",
    ),
    ({"language": None}, "language=None: expected text"),
  )
  def test_refused(self, changes, message):
    with self.assertRaises(ValueError) as caught:
      _problem(**changes)
    self.assertIn(message, str(caught.exception))

  @parameterized.parameters(
    ("{", ":2: not JSON ("),
    ("[1]", ":2: got [1]; expected an object with name, prompt, domain"),
    ('{"name": "b"}', ":2: prompt is missing; expected name, prompt"),
    (json.dumps({**_GOOD, "x": 1}), ":2: 'x' is unknown; expected name"),
    (json.dumps({**_GOOD, "kind": "x"}), ":2: kind='x': expected one of"),
    (json.dumps(_GOOD), ":2: name='a': expected one that no other problem"),
  )
  def test_lines_refused(self, line, message):
    path = self.create_tempfile(content=f"{json.dumps(_GOOD)}\n{line}\n")
    with self.assertRaises(ValueError) as caught:
      problems.read(path.full_path)
    self.assertIn(path.full_path + message, str(caught.exception))

  def test_files_refused(self):
    with self.assertRaisesRegex(ValueError, "cannot read '/no/such'"):
      problems.read("/no/such")
    for content, message in ((b"\n", "no problems"), (b"\xff", "not UTF-8")):
      path = self.create_tempfile(content=content, mode="wb")
      with self.assertRaisesRegex(ValueError, message):
        problems.read(path.full_path)


if __name__ == "__main__":
  absltest.main()
