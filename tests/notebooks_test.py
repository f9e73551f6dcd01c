"""The notebooks run from the first cell to the last, and are kept clean."""

import os
import pathlib
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import nbclient
import nbformat

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_NOTEBOOKS = [(path.stem, path) for path in _ROOT.glob("notebooks/*.ipynb")]


def _environment() -> dict[str, str]:
  """One CPU device, and our code in reach from any folder."""
  path = os.environ.get("PYTHONPATH")
  return {
    "XLA_FLAGS": "",
    "JAX_PLATFORMS": "cpu",
    "PYTHONPATH": os.pathsep.join([str(_ROOT), *([path] if path else [])]),
  }


def _pictures(cell) -> int:
  return sum("image/png" in output.get("data", {}) for output in cell.outputs)


class NotebooksTest(parameterized.TestCase):
  @parameterized.named_parameters(_NOTEBOOKS)
  def test_outputs_are_cleared(self, path):
    for cell in nbformat.read(path, as_version=4).cells:
      if cell.cell_type == "code":
        self.assertEmpty(cell.outputs)
        self.assertIsNone(cell.execution_count)

  @parameterized.named_parameters(_NOTEBOOKS)
  def test_runs(self, path):
    notebook = nbformat.read(path, as_version=4)
    folder = self.create_tempdir().full_path
    client = nbclient.NotebookClient(
      notebook,
      timeout=600,
      kernel_name="python3",
      resources={"metadata": {"path": folder}},
    )
    with mock.patch.dict(os.environ, _environment()):
      client.execute()  # raises what a cell raises
    for cell in notebook.cells:
      if "plt.subplots" in cell.source:
        self.assertEqual(_pictures(cell), 1, cell.source)
    # It ran without anything but what is installed.
    self.assertEmpty(os.listdir(folder))


if __name__ == "__main__":
  absltest.main()
