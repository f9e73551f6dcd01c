"""Neither conversion ever holds a stack of layers."""

import pathlib
import subprocess
import sys

from absl.testing import absltest

from tests.models import tiny
from tests.training import huggingface_folders

_ROOT = pathlib.Path(__file__).resolve().parents[2]
# What does not grow with the model: chunks on their way to the disk, buffers.
_CONSTANT = 170_000_000


class ConversionMemoryTest(absltest.TestCase):
  def test_peak_is_of_tensors_and_not_of_stacks(self):
    root = pathlib.Path(self.create_tempdir().full_path)
    small = tiny.config()
    large = tiny.config(
      vocab_size=8192,
      hidden_size=512,
      intermediate_size=512,
      moe_intermediate_size=768,
      num_hidden_layers=7,
      n_routed_experts=40,
      num_nextn_predict_layers=0,
    )
    sources = []
    for name, config in (("small", small), ("large", large)):
      made = huggingface_folders.tensors(config)
      largest = max(array.nbytes for array in made.values())
      path = huggingface_folders.write(root / "sources" / name, config, made)
      sources.append(str(path))
    done = subprocess.run(
      [
        *(sys.executable, "-m", "tests.training.conversion_memory"),
        *(str(root), *sources),
      ],
      cwd=_ROOT,
      capture_output=True,
      text=True,
      check=False,
    )
    self.assertEqual(done.returncode, 0, done.stderr)
    bound = 2 * largest + _CONSTANT
    layers, experts = 6, 40
    stack = layers * experts * 512 * 768 * 2
    self.assertGreater(stack, bound)
    for peak in map(int, done.stdout.split()[-2:]):
      self.assertGreater(peak, largest)
      self.assertLess(peak, bound)


if __name__ == "__main__":
  absltest.main()
