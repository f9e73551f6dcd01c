"""The file format: against the reference library, and against bad files."""

import json
import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import ml_dtypes
import numpy as np
from safetensors import numpy as reference

from dsx.convert import safetensors


def _file(header, data: bytes = b"") -> bytes:
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  return len(text).to_bytes(8, "little") + text + data


def _entry(dtype="F32", shape=(2,), begin=0, end=8):
  return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


class SafetensorsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.path = pathlib.Path(folder.name) / "model.safetensors"

  def test_literal_file(self):
    values = np.array([1.0, -2.0], np.float32)
    self.path.write_bytes(_file({"a": _entry()}, values.tobytes()))
    tensor = safetensors.header(self.path)["a"]
    self.assertEqual((tensor.dtype, tensor.shape), ("F32", (2,)))
    np.testing.assert_array_equal(safetensors.read(tensor), values)

  @parameterized.parameters(*safetensors.DTYPES)
  def test_written_file_is_read_by_the_reference_library(self, name):
    dtype = safetensors.DTYPES[name]
    arrays = {
      "matrix": np.arange(1, 7).reshape(2, 3).astype(dtype),
      "scalar": np.ones((), dtype),
      "empty": np.ones((0, 4), dtype),
    }
    safetensors.write(self.path, [_plan(k, v) for k, v in arrays.items()])
    read = {
      k: safetensors.read(t) for k, t in safetensors.header(self.path).items()
    }
    for key, value in arrays.items():
      self.assertEqual(read[key].dtype, dtype)
      np.testing.assert_array_equal(read[key], value)
    if name in ("F64", "F32", "F16", "I64", "I32", "I16", "I8", "U8", "BOOL"):
      for key, value in reference.load_file(self.path).items():
        np.testing.assert_array_equal(value, arrays[key])

  def test_reads_what_the_reference_library_writes(self):
    rng = np.random.default_rng(0)
    arrays = {
      f"t{i}": rng.normal(size=(i, 3)).astype(dtype)
      for i, dtype in enumerate((np.float32, np.float16, ml_dtypes.bfloat16))
    }
    reference.save_file(arrays, self.path, metadata={"format": "pt"})
    header = safetensors.header(self.path)
    self.assertEqual(header.keys(), arrays.keys())
    for key, value in arrays.items():
      read = safetensors.read(header[key])
      self.assertEqual(read.dtype, value.dtype)
      np.testing.assert_array_equal(read, value)

  def test_unfinished_file_does_not_bear_the_name(self):
    def fail():
      raise OSError("disk full")

    shape, dtype = (1,), np.dtype(np.float32)
    with self.assertRaisesRegex(OSError, "disk full"):
      safetensors.write(
        self.path, [safetensors.Planned("a", shape, dtype, fail)]
      )
    self.assertFalse(self.path.exists())

  def test_refuses_to_write_what_was_not_planned(self):
    plan = _plan("a", np.zeros(2, np.float32))._replace(shape=(3,))
    with self.assertRaisesRegex(ValueError, "a: 2 rows: expected 3, as plann"):
      safetensors.write(self.path, [plan])
    plan = plan._replace(shape=(2,), dtype=np.dtype(np.float16))
    with self.assertRaisesRegex(
      ValueError, r"a: float32 \(2,\): expected .*16"
    ):
      safetensors.write(self.path, [plan])

  @parameterized.named_parameters(
    ("empty", b"", "0 bytes do not hold its header"),
    ("short", b"\x01\x00", "2 bytes do not hold its header"),
    ("huge_header", b"\xff" * 16, "16 bytes do not hold its header"),
    ("not_json", _file(b"{]"), r"not valid JSON \("),
    ("deep", _file(b"[" * 100_000), r"not valid JSON \("),
    ("not_utf8", _file(b'{"\xff": 1}'), r"not valid JSON \("),
    ("no_object", _file(b"[1]"), "a JSON list: expected an object"),
    ("twice", _file(b'{"a": 1, "a": 1}'), "a key occurs twice"),
    ("no_entry", _file({"a": 1}), "tensor 'a' has no readable dtype"),
    (
      "dtype",
      _file({"a": _entry(dtype="F4")}, bytes(8)),
      "dtype 'F4': expected one of F64, F32",
    ),
    (
      "shape",
      _file({"a": _entry(shape=(3,))}, bytes(8)),
      r"'a' of F32 \[3\] lies at bytes 0 to 8, which does not fit",
    ),
    (
      "negative",
      _file({"a": _entry(shape=(-1, -2))}, bytes(8)),
      r"'a' of F32 \[-1, -2\] lies at",
    ),
    (
      "boolean",
      _file({"a": _entry(shape=(True, 2))}, bytes(8)),
      r"'a' of F32 \[True, 2\] lies at",
    ),
    (
      "hole",
      _file({"a": _entry(begin=4, end=12)}, bytes(12)),
      "'a' begins at byte 4, where 0 was expected",
    ),
    (
      "overlap",
      _file({"a": _entry(), "b": _entry(begin=4, end=12)}, bytes(12)),
      "'b' begins at byte 4, where 8 was expected",
    ),
    (
      "truncated",
      _file({"a": _entry()}, bytes(7)),
      "tensors take 8 bytes and the file holds 7",
    ),
    (
      "more_data",
      _file({"a": _entry()}, bytes(9)),
      "tensors take 8 bytes and the file holds 9",
    ),
  )
  def test_refuses(self, content, message):
    self.path.write_bytes(content)
    with self.assertRaisesRegex(ValueError, message) as caught:
      safetensors.header(self.path)
    text = str(caught.exception)
    self.assertStartsWith(text, str(self.path))
    self.assertNotIn("\n", text)

  def test_file_that_shrinks_while_it_is_read(self):
    self.path.write_bytes(_file({"a": _entry()}, bytes(8)))
    tensor = safetensors.header(self.path)["a"]
    self.path.write_bytes(self.path.read_bytes()[:-4])
    with self.assertRaisesRegex(ValueError, "the file ends inside a tensor"):
      safetensors.read(tensor)


def _plan(name, array) -> safetensors.Planned:
  return safetensors.Planned(name, array.shape, array.dtype, lambda: [array])


if __name__ == "__main__":
  absltest.main()
