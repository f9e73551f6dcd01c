"""Hundreds of damaged checkpoints: one line each, or the very same model."""

import json
import os
import pathlib
import shutil
import tempfile

from absl import logging
from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from dsx.convert import conversion
from dsx.convert import folder as folder_lib
from dsx.convert import huggingface_source
from tests.convert import checkpoints

SEED = int(os.environ.get("DSX_FUZZ_SEED", "0"))
_VALUES = (None, True, -1, 0, 3, 1e400, 10**30, "", "x", "\ud800", [], {}, [1])


def _flipped(rng, content: bytes) -> bytes:
  """With some bytes replaced, removed or repeated."""
  data = bytearray(content)
  for _ in range(rng.integers(1, 4)):
    at = int(rng.integers(len(data)))
    kind = rng.integers(3)
    if kind == 0:
      data[at] = rng.integers(256)
    elif kind == 1:
      del data[at : at + int(rng.integers(1, 9))]
    else:
      data[at:at] = data[at : at + int(rng.integers(1, 9))]
    if not data:
      return b""
  return bytes(data)


def _changed(rng, value):
  """A JSON value with one thing in it changed."""
  if isinstance(value, dict) and value and rng.integers(8):
    key = list(value)[rng.integers(len(value))]
    kind = rng.integers(4)
    if kind == 0:
      return {k: v for k, v in value.items() if k != key}
    if kind == 1:
      return {**value, key + "x": value[key]}
    return {**value, key: _changed(rng, value[key])}
  if isinstance(value, list) and value and rng.integers(4):
    at = int(rng.integers(len(value)))
    return [*value[:at], _changed(rng, value[at]), *value[at + 1 :]]
  return _VALUES[rng.integers(len(_VALUES))]


class FuzzTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    made = tempfile.TemporaryDirectory()
    cls.addClassCleanup(made.cleanup)
    cls.folder = pathlib.Path(made.name) / "checkpoint"
    checkpoints.write(cls.folder, dtype="fp8", shard_bytes=800_000)
    cls.original = {
      path.name: path.read_bytes() for path in cls.folder.iterdir()
    }
    cls.verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    cls.addClassCleanup(logging.set_verbosity, cls.verbosity)

  def _try(self, name: str, content: bytes) -> bool:
    """Whether a damaged folder is refused; in one line, if it is."""
    path = self.folder / name
    path.write_bytes(content)
    target = self.folder.parent / "target"
    try:
      conversion.write(
        huggingface_source.find(self.folder),
        target,
        conversion.Conversion(target_format="hf_fp8"),
      )
    except ValueError as error:
      self.assertNotIn("\n", str(error))
      self.assertFalse(target.exists(), str(error))
      return True
    finally:
      path.write_bytes(self.original[name])
      shutil.rmtree(target, ignore_errors=True)
    return False

  @parameterized.parameters(folder_lib.CONFIG, folder_lib.INDEX)
  def test_json_fields(self, name):
    rng = np.random.default_rng((SEED, 1))
    whole = json.loads(self.original[name])
    refused = 0
    for _ in range(60):
      content = json.dumps(_changed(rng, whole)).encode()
      refused += self._try(name, content)
    self.assertGreater(refused, 20)

  @parameterized.parameters(folder_lib.CONFIG, folder_lib.INDEX)
  def test_json_bytes(self, name):
    rng = np.random.default_rng((SEED, 2))
    refused = 0
    for _ in range(60):
      content = _flipped(rng, self.original[name])
      refused += self._try(name, content)
    self.assertGreater(refused, 20)

  def test_header_fields(self):
    rng = np.random.default_rng((SEED, 3))
    name = sorted(n for n in self.original if n.endswith(".safetensors"))[0]
    whole = self.original[name]
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    refused = 0
    for _ in range(60):
      text = json.dumps(_changed(rng, header)).encode()
      content = len(text).to_bytes(8, "little") + text + whole[8 + length :]
      refused += self._try(name, content)
    self.assertGreater(refused, 40)

  def test_header_bytes(self):
    rng = np.random.default_rng((SEED, 4))
    name = sorted(n for n in self.original if n.endswith(".safetensors"))[-1]
    whole = self.original[name]
    length = int.from_bytes(whole[:8], "little")
    refused = 0
    for _ in range(60):
      start = _flipped(rng, whole[: 8 + length])
      refused += self._try(name, start + whole[8 + length :])
    self.assertGreater(refused, 40)


if __name__ == "__main__":
  absltest.main()
