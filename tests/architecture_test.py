"""The house stands: folders are floors, imports go down, nothing goes round.

Read from the sources, imports inside functions included, so that a lazy import
cannot hide a circle.
"""

import ast
import pathlib
import subprocess
import sys

from absl.testing import absltest
from absl.testing import parameterized

_ROOT = pathlib.Path(__file__).parents[1]
_FLOORS = {
  "dsx.ops": 1,
  "dsx.data": 1,
  "dsx.parallel": 2,
  "dsx.models": 3,
  "dsx.inference": 4,
  "dsx.convert": 4,
  "dsx.cost": 4,
  "dsx.training": 5,
  "dsx.evals": 5,
  "dsx.serving": 5,
  "dsx.rl": 6,
  "experiments": 7,
}
_TENSORFLOW = {
  "clu",
  "seqio",
  "t5",
  "tensorboard",
  "tensorflow",
  "tensorflow_datasets",
  "tensorflow_text",
}
_NAMELESS = {"common", "core", "helpers", "misc", "util", "utils"}


def _module_name(path):
  parts = path.relative_to(_ROOT).with_suffix("").parts
  return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


_PATHS = {
  _module_name(path): path
  for folder in ("dsx", "experiments")
  for path in sorted((_ROOT / folder).rglob("*.py"))
}
_TREES = {
  name: ast.parse(path.read_text(), str(path)) for name, path in _PATHS.items()
}


def _imported(tree):
  """Yields (package or module, name or None) for every import of a file."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      for alias in node.names:
        yield alias.name, None
    elif isinstance(node, ast.ImportFrom):
      for alias in node.names:
        yield "." * node.level + (node.module or ""), alias.name


def _ours(name):
  return name.split(".")[0] in ("dsx", "experiments")


def _graph():
  """Our modules, each with those of ours that it imports."""
  graph = {}
  for module, tree in _TREES.items():
    graph[module] = set()
    for package, name in _imported(tree):
      if _ours(package):
        target = f"{package}.{name}" if name else package
        graph[module].add(target if target in _PATHS else package)
  return graph


def _room(module):
  """The folder, or single file, that has a floor."""
  rooms = [room for room in _FLOORS if f"{module}.".startswith(f"{room}.")]
  return max(rooms, key=len, default=None)


def _circle(graph):
  """Some circle of a graph as a list of its nodes, or None."""
  done, path = set(), []

  def visit(node):
    if node in path:
      return path[path.index(node) :] + [node]
    if node in done:
      return None
    path.append(node)
    for target in sorted(graph.get(node, ())):
      if found := visit(target):
        return found
    path.pop()
    done.add(node)
    return None

  for node in sorted(graph):
    if found := visit(node):
      return found
  return None


class ArchitectureTest(parameterized.TestCase):
  def test_every_module_is_on_a_floor(self):
    homeless = [
      module for module in _PATHS if module != "dsx" and not _room(module)
    ]
    self.assertEmpty(homeless)

  def test_imports_never_go_up(self):
    self.assertEmpty(
      [
        f"{module} (floor {_FLOORS[_room(module)]}) imports {target}"
        f" (floor {_FLOORS[_room(target)]})"
        for module, targets in _graph().items()
        for target in targets
        if _room(target) and _FLOORS[_room(target)] > _FLOORS[_room(module)]
      ]
    )

  def test_no_circle_of_modules(self):
    self.assertIsNone(_circle(_graph()))

  def test_a_circle_would_be_found(self):
    self.assertEqual(
      _circle({"a": ["b", "c"], "b": [], "c": ["d"], "d": ["c"]}),
      ["c", "d", "c"],
    )

  def test_modules_are_imported_and_not_names(self):
    self.assertEmpty(
      [
        f"{module}: from {package} import {name}"
        for module, tree in _TREES.items()
        for package, name in _imported(tree)
        if _ours(package) and name and f"{package}.{name}" not in _PATHS
      ]
    )

  def test_imports_are_absolute(self):
    self.assertEmpty(
      [
        f"{module}: from {package} import {name}"
        for module, tree in _TREES.items()
        for package, name in _imported(tree)
        if package.startswith(".")
      ]
    )

  def test_gin_is_read_at_the_door_only(self):
    self.assertEmpty(
      [
        module
        for module, tree in _TREES.items()
        for package, _ in _imported(tree)
        if package.split(".")[0] == "gin" and module.startswith("dsx")
      ]
    )

  def test_tensorflow_stays_in_data(self):
    self.assertEmpty(
      [
        f"{module}: {package}"
        for module, tree in _TREES.items()
        for package, _ in _imported(tree)
        if package.split(".")[0] in _TENSORFLOW and _room(module) != "dsx.data"
      ]
    )

  def test_packages_are_a_docstring(self):
    for name, path in _PATHS.items():
      if path.name == "__init__.py":
        body = _TREES[name].body
        self.assertLen(body, 1, path)
        self.assertIsNotNone(ast.get_docstring(_TREES[name]), path)

  def test_files_bear_the_name_of_what_they_hold(self):
    stems = {path.stem.strip("_"): path for path in _PATHS.values()}
    self.assertEmpty(_NAMELESS & stems.keys())

  def test_nothing_is_left_undone(self):
    marks = ("TO" + "DO", "FIX" + "ME", "NotImplemented" + "Error")
    self.assertEmpty(
      [
        f"{path}: {mark}"
        for path in _PATHS.values()
        for mark in marks
        if mark in path.read_text()
      ]
    )

  def test_mains_are_short(self):
    for module, tree in _TREES.items():
      if module.startswith("experiments."):
        for node in tree.body:
          if isinstance(node, ast.FunctionDef) and node.name == "main":
            length = node.end_lineno - node.lineno + 1
            self.assertLessEqual(length, 60, module)

  def test_everything_but_data_leaves_tensorflow_alone(self):
    """Models, parallelism, training, inference and conversion run without it.

    Seen in a fresh process, because another library may import it for them.
    """
    rooms = set(_FLOORS) - {"dsx.data", "experiments"}
    modules = [module for module in _PATHS if _room(module) in rooms]
    self.assertNotEmpty(modules)
    modules += [
      m for m in ("dsx.data.pipeline", "dsx.data.vocab") if m in _PATHS
    ]
    program = (
      "import importlib, sys\n"
      f"for module in {modules!r}:\n"
      "  importlib.import_module(module)\n"
      f"  found = sorted({_TENSORFLOW!r} & sys.modules.keys())\n"
      "  if found:\n"
      "    sys.exit(f'{module} brings {found}')\n"
    )
    done = subprocess.run(
      [sys.executable, "-c", program], cwd=_ROOT, capture_output=True, text=True
    )
    self.assertEqual(done.returncode, 0, done.stderr)


if __name__ == "__main__":
  absltest.main()
