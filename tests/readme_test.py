"""README's first two blocks are commands that CI can take over."""

import importlib.util
import pathlib

from absl.testing import absltest

_ROOT = pathlib.Path(__file__).parents[1]
_EXAMPLE = """
# A project

```sh
git clone https://example.org/project && cd project
python3 -m venv .venv
pip install -e .
python -m experiments.pretrain \\
  --gin_file=a.gin  # five minutes
```

```python
not_this()
```

```sh
pip install -e '.[test]'
python -m pytest -n 2
```
"""


def _readme():
  path = _ROOT / ".ci" / "readme.py"
  spec = importlib.util.spec_from_file_location("readme", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


class ReadmeTest(absltest.TestCase):
  def test_the_training_command_alone_gets_flags(self):
    script = _readme().script(_EXAMPLE, ["--workdir=/a b"])
    self.assertEqual(
      script.splitlines(),
      [
        "stage install",
        "python3 -m venv .venv",
        "pip install -e .",
        "stage training",
        "python -m experiments.pretrain --gin_file=a.gin '--workdir=/a b'"
        " # five minutes",
        "stage 'install for tests'",
        "pip install -e '.[test]'",
        "stage lint",
        "ruff check .",
        "ruff format --check .",
        "stage types",
        "pyright",
        "stage tests",
        "python -m pytest -n 2",
      ],
    )

  def test_our_readme_has_the_two_commands(self):
    script = _readme().script((_ROOT / "README.md").read_text(), ["--FLAG"])
    training = [line for line in script.splitlines() if "--FLAG" in line]
    self.assertLen(training, 1)
    self.assertIn("gin_configs/runs/v3_tiny.gin", training[0])

  def test_a_readme_without_the_tests_is_refused(self):
    text = _EXAMPLE.replace("pytest", "nothing")
    with self.assertRaisesRegex(SystemExit, "expected one command with"):
      _readme().script(text, [])


if __name__ == "__main__":
  absltest.main()
