"""Folder to folder: what is written, resumed and refused."""

import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from dsx.convert import conversion
from dsx.convert import deepseek as convert
from dsx.convert import folder as folder_lib
from dsx.convert import huggingface_source
from dsx.convert import journal as journal_lib
from dsx.convert import name_map
from tests.convert import checkpoints

_ROOT = pathlib.Path(__file__).parents[2]
_UP = "model.layers.1.mlp.experts.3.up_proj.weight"


class ConversionTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls._made = tempfile.TemporaryDirectory()
    cls.addClassCleanup(cls._made.cleanup)
    checkpoints.write(pathlib.Path(cls._made.name) / "bf16")
    checkpoints.write(pathlib.Path(cls._made.name) / "fp8", dtype="fp8")

  def setUp(self):
    super().setUp()
    temporary = tempfile.TemporaryDirectory()
    self.addCleanup(temporary.cleanup)
    self.root = pathlib.Path(temporary.name).resolve()
    self.target = self.root / "target"

  def _source(self, kind: str = "bf16") -> pathlib.Path:
    folder = self.root / kind
    shutil.copytree(pathlib.Path(self._made.name) / kind, folder)
    return folder

  def _convert(self, folder, target=None, progress=None, **options) -> str:
    return conversion.write(
      huggingface_source.find(folder),
      target or self.target,
      conversion.Conversion(**options),
      progress=progress,
    )

  def _refuses(self, message, folder, **kwargs):
    with self.assertRaisesRegex(ValueError, message) as caught:
      self._convert(folder, **kwargs)
    self.assertNotIn("\n", str(caught.exception))

  def test_bfloat16_to_fp8_and_back(self):
    """Equal to `load` and `save`, which take the way through variables."""
    bf16, fp8 = self._source(), self.root / "saved"
    convert.save(fp8, *convert.load(bf16, dtype="bfloat16"), dtype="fp8")
    self._convert(bf16, target_format="hf_fp8")
    self.assertEqual(checkpoints.content(self.target), checkpoints.content(fp8))
    self.assertEqual(
      checkpoints.fields(self.target)["quantization_config"],
      checkpoints.fields(fp8)["quantization_config"],
    )
    self._convert(self.target, self.root / "back", target_format="hf")
    self.assertNotIn(
      "quantization_config", checkpoints.fields(self.root / "back")
    )
    before, after = (
      checkpoints.tensors(folder) for folder in (bf16, self.root / "back")
    )
    self.assertEqual(before.keys(), after.keys())
    for name, array in after.items():
      wide = array.astype(np.float32)
      error = np.abs(wide - before[name].astype(np.float32)).max()
      self.assertLessEqual(error, np.abs(wide).max() / 16)

  def test_powers_of_two_come_back_exactly(self):
    """Through bfloat16, which holds every product of such a scale."""
    options = {"target_format": "hf_fp8", "scale_format": "ue8m0"}
    self._convert(self._source(), **options)
    self._convert(self.target, self.root / "back")
    self._convert(self.root / "back", self.root / "again", **options)
    self._convert(self.root / "again", self.root / "last")
    self.assertEqual(
      checkpoints.content(self.root / "last"),
      checkpoints.content(self.root / "back"),
    )

  def test_copies_bit_for_bit(self):
    for kind, target_format in (("bf16", "hf"), ("fp8", "hf_fp8")):
      folder = self._source(kind)
      target = self.root / f"to_{kind}"
      self._convert(folder, target, target_format=target_format)
      self.assertEqual(checkpoints.content(target), checkpoints.content(folder))
      self.assertEqual(checkpoints.fields(target), checkpoints.fields(folder))

  @parameterized.parameters("float32", "float16")
  def test_other_dtypes(self, dtype):
    folder = self._source()
    self._convert(folder, dtype=dtype)
    before = checkpoints.tensors(folder)
    for name, array in checkpoints.tensors(self.target).items():
      is_bias = name.endswith("e_score_correction_bias")
      self.assertEqual(array.dtype, np.float32 if is_bias else dtype)
      np.testing.assert_array_equal(array, before[name].astype(array.dtype))
    self.assertEqual(checkpoints.fields(self.target)["torch_dtype"], dtype)

  def test_scales_change_their_dtype_and_not_their_values(self):
    fp8 = self._source("fp8")
    self._convert(
      self._source("bf16"), target_format="hf_fp8", scale_format="ue8m0"
    )
    for scale_format, dtype in (
      ("e8m0", "float8_e8m0fnu"),
      ("float32", "float32"),
    ):
      target = self.root / scale_format
      self._convert(
        self.target, target, target_format="hf_fp8", scale_format=scale_format
      )
      before = checkpoints.tensors(self.target)
      for name, array in checkpoints.tensors(target).items():
        if name.endswith(name_map.SCALES):
          self.assertEqual(array.dtype.name, dtype)
        np.testing.assert_array_equal(
          array.astype(np.float32), before[name].astype(np.float32)
        )
      quantization = checkpoints.fields(target)["quantization_config"]
      self.assertEqual(quantization["scale_fmt"], "ue8m0")
    self._refuses(
      "has scales that are not powers of two: expected them for scale_format="
      "'e8m0'; leave it out",
      fp8,
      target=self.root / "x",
      target_format="hf_fp8",
      scale_format="e8m0",
    )

  def test_carries_along_what_belongs_to_weights(self):
    folder = self._source()
    checkpoints.edit(folder, bos_token_id=0, dsx_unknown={"a": [1]})
    carried = {
      "tokenizer.json": b'{"a": 1}',
      "tokenizer_config.json": b"{}",
      "generation_config.json": b'{"temperature": 0.6}',
      "special_tokens_map.json": b"{}",
      "chat_template.jinja": b"{{ messages }}",
      "LICENSE-MODEL": "\u00a9".encode(),
      "LICENSE.txt": b"MIT",
    }
    left = {
      "modeling_deepseek.py": b"import os",
      "README.md": b"#",
      "model.bin": b"pickle",
      "notes.txt": b"",
    }
    for name, content in (carried | left).items():
      (folder / name).write_bytes(content)
    self._convert(folder, target_format="hf_fp8")
    for name, content in carried.items():
      self.assertEqual((self.target / name).read_bytes(), content)
    for name in left:
      self.assertFalse((self.target / name).exists(), name)
    fields = checkpoints.fields(self.target)
    self.assertEqual(fields["dsx_unknown"], {"a": [1]})
    self.assertEqual(fields["bos_token_id"], 0)

  def test_dtype_under_its_new_name(self):
    folder = self._source()
    checkpoints.edit(folder, dtype="bfloat16", torch_dtype=...)
    self._convert(folder, dtype="float32")
    fields = checkpoints.fields(self.target)
    self.assertEqual(fields["dtype"], "float32")
    self.assertNotIn("torch_dtype", fields)

  def test_shards_and_their_index(self):
    folder = self._source()
    self._convert(folder, shard_bytes=1_000_000)
    files = sorted(p.name for p in self.target.glob("*.safetensors"))
    self.assertEqual(files[0], f"model-00001-of-{len(files):05d}.safetensors")
    self.assertLen(files, 3)
    index = json.loads((self.target / folder_lib.INDEX).read_text())
    self.assertCountEqual(
      index["weight_map"], checkpoints.content(folder).keys()
    )
    self.assertEqual(
      checkpoints.content(self.target), checkpoints.content(folder)
    )

  def test_plan_reads_nothing(self):
    folder = self._source()
    (folder / "model.safetensors").chmod(0o400)
    planned = conversion.plan(
      huggingface_source.find(folder),
      conversion.Conversion(target_format="hf_fp8", shard_bytes=1_000_000),
    )
    self.assertRegex(
      planned.description,
      r"bf16: 167 tensors, 1\.5 MB \(BF16 .* kB, F32 .* kB, F8_E4M3 1\.3 MB\) "
      r"in 2 shard\(s\)",
    )
    self.assertFalse(self.target.exists())

  def test_progress(self):
    seen = []
    folder = self._source()
    self._convert(folder, progress=lambda *args: seen.append(args))
    phases = [words.split()[0] for _, _, words in seen]
    self.assertEqual(sorted(set(phases)), ["checking", "writing"])
    for phase in ("checking", "writing"):
      rows = [row for row in seen if row[2].startswith(phase)]
      self.assertEqual(rows[-1][0], rows[-1][1])
      self.assertLen({total for _, total, _ in rows}, 1)

  # What is wrong is found before the target has a file.

  @parameterized.named_parameters(
    ("missing", lambda t: t.pop(_UP), f"tensor '{_UP}' is missing"),
    ("extra", lambda t: t.update(x=np.ones(1)), "does not explain, the first"),
    (
      "shape",
      lambda t: t.update({_UP: t[_UP].T.copy()}),
      r"has shape \[160, 136\]: config.json says \[136, 160\]",
    ),
    (
      "dtype",
      lambda t: t.update({_UP: t[_UP].astype(np.int32)}),
      f"'{_UP}' is I32: expected F32, BF16, F16, or F8_E4M3 with scales",
    ),
    (
      "nan",
      lambda t: t[_UP].put(3, np.nan),
      rf"'{_UP}' has 1 value\(s\) that are not finite as float32; fetch",
    ),
    (
      "name_that_leads_out",
      lambda t: t.update({"../../x": np.ones(1, np.float32)}),
      "does not explain, the first '../../x'",
    ),
  )
  def test_checks_everything_first(self, change, message):
    folder = self._source()
    checkpoints.edit(folder, change)
    self._refuses(message, folder, target_format="hf_fp8")
    self.assertFalse(self.target.exists())

  def test_too_large_for_the_dtype(self):
    folder = self._source()
    checkpoints.edit(folder, lambda t: t[_UP].put(3, 1e6))
    self._refuses(
      "not finite as float16; choose a dtype that holds",
      folder,
      dtype="float16",
    )
    self.assertFalse(self.target.exists())
    self._convert(folder)

  def test_pickles(self):
    folder = self._source()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    self._refuses("a pickle, which can run code", folder)

  def test_companion_that_leads_out(self):
    folder = self._source()
    (self.root / "secret").write_text("{}")
    (folder / "tokenizer.json").symlink_to(self.root / "secret")
    self._refuses("tokenizer.json: a link to .*, outside the folder", folder)
    self.assertFalse(self.target.exists())

  def test_companion_too_large(self):
    folder = self._source()
    with (folder / "tokenizer.json").open("wb") as file:
      file.truncate((64 << 20) + 1)
    self._refuses("tokenizer.json: 67108865 bytes: expected at most", folder)

  def test_target_within_the_source(self):
    folder = self._source()
    for target in (folder, folder / "x" / "y", folder / ".." / "bf16"):
      self._refuses(
        "the source or a folder in it; give another", folder, target=target
      )
    (self.root / "link").symlink_to(folder)
    self._refuses(
      "the source or a folder in it", folder, target=self.root / "link" / "x"
    )

  def test_target_that_holds_something(self):
    folder = self._source()
    self.target.mkdir()
    (self.target / "notes").write_text("mine")
    self._refuses("target: holds notes already; give an empty", folder)
    self._refuses("a file: expected", folder, target=self.target / "notes")

  def test_another_source_or_other_options(self):
    folder = self._source()
    self._convert(folder)
    self.assertRegex(self._convert(folder), "complete already; nothing was")
    self._refuses(
      "different options: dtype=None, now 'float32'; give an empty folder",
      folder,
      dtype="float32",
    )
    os.utime(folder / "model.safetensors", (1, 1))
    self._refuses("a conversion with different source; give an", folder)

  def test_foreign_journal(self):
    folder = self._source()
    self.target.mkdir()
    for content in ("{", "[]", "{}", '{"version": 1, "shards": {"../x": {}}}'):
      (self.target / journal_lib.FILE).write_text(content)
      self._refuses("conversion.json: (not|a JSON list)", folder)

  def test_full_disk(self):
    folder = self._source()
    with self.assertRaisesRegex(
      ValueError, r"1.0 kB are free, and \d.\d MB are to be"
    ):
      with _free_space(1000):
        self._convert(folder)
    self.assertFalse(self.target.exists())

  @parameterized.parameters(
    {"target_format": "gguf"},
    {"dtype": "int8"},
    {"scale_format": "ue4m3"},
    {"shard_bytes": 0},
  )
  def test_options(self, **options):
    ((name, value),) = options.items()
    with self.assertRaisesRegex(ValueError, f"{name}={value!r}: expected"):
      conversion.Conversion(**options)

  def test_options_are_frozen(self):
    with self.assertRaises(dataclasses.FrozenInstanceError):
      conversion.Conversion().dtype = "float32"

  # Interruptions.

  def _run(self, folder, *, before: str):
    """Converts in a process of its own, into many shards."""
    code = (
      "import os, sys, signal\n"
      "from dsx.convert import conversion, huggingface_source, journal\n"
      f"{before}\n"
      "conversion.write(huggingface_source.find(sys.argv[1]), sys.argv[2],\n"
      "  conversion.Conversion(shard_bytes=500_000))\n"
    )
    return subprocess.run(
      [sys.executable, "-c", code, str(folder), str(self.target)],
      cwd=_ROOT,
      stderr=subprocess.PIPE,
      text=True,
    )

  def _looks_complete(self) -> bool:
    return (self.target / folder_lib.CONFIG).exists()

  def test_resumes_after_a_kill(self):
    """Killed while the third shard is written, then at other points."""
    folder = self._source()
    after_shards = (
      "finish = journal.Journal.finish_shard\n"
      "def killing(self, name, digest):\n"
      "  if len(self.shards) == 2: os.kill(os.getpid(), signal.SIGKILL)\n"
      "  finish(self, name, digest)\n"
      "journal.Journal.finish_shard = killing"
    )
    process = self._run(folder, before=after_shards)
    self.assertEqual(process.returncode, -signal.SIGKILL)
    self.assertFalse(self._looks_complete())
    before = {
      path: path.stat().st_mtime_ns
      for path in sorted(self.target.glob("*.safetensors"))[:2]
    }
    in_the_middle = (
      "from dsx.convert import safetensors\n"
      "contents = safetensors._contents\n"
      "def killing(*args):\n"
      "  for i, data in enumerate(contents(*args)):\n"
      "    if i == 4: os.kill(os.getpid(), signal.SIGKILL)\n"
      "    yield data\n"
      "safetensors._contents = killing"
    )
    process = self._run(folder, before=in_the_middle)
    self.assertEqual(process.returncode, -signal.SIGKILL)
    self.assertFalse(self._looks_complete())
    self.assertLen(list(self.target.glob("*.tmp")), 1)
    before_config = (
      "from dsx.convert import folder\n"
      "folder.finish = lambda *args: os.kill(os.getpid(), signal.SIGKILL)"
    )
    process = self._run(folder, before=before_config)
    self.assertEqual(process.returncode, -signal.SIGKILL)
    self.assertFalse(self._looks_complete())
    said = self._convert(folder, shard_bytes=500_000)
    self.assertRegex(
      said, r"2\.8 MB written; \d+ shard\(s\) were there already"
    )
    self.assertEqual(
      checkpoints.content(self.target), checkpoints.content(folder)
    )
    for path, changed in before.items():
      self.assertEqual(path.stat().st_mtime_ns, changed)
    self.assertEqual(list(self.target.glob("*.tmp")), [])

  def test_damaged_shard_is_written_again(self):
    folder = self._source()
    stop = "from dsx.convert import folder\nfolder.finish = None"
    self.assertEqual(self._run(folder, before=stop).returncode, 1)
    damaged, missing = sorted(self.target.glob("*.safetensors"))[1:3]
    content = bytearray(damaged.read_bytes())
    content[-3] ^= 1
    damaged.write_bytes(content)
    missing.unlink()
    with self.assertLogs(level="WARNING") as logs:
      self._convert(folder, shard_bytes=500_000)
    self.assertLen(logs.output, 2)
    self.assertIn(f"{damaged}: not as it was finished", logs.output[0])
    self.assertEqual(
      checkpoints.content(self.target), checkpoints.content(folder)
    )

  def test_write_that_fails(self):
    """The kernel refuses to let a file grow, as a full disk does."""
    folder = self._source()
    limit = (
      "import resource\n"
      "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))"
    )
    process = self._run(folder, before=limit)
    self.assertEqual(process.returncode, 1)
    self.assertRegex(
      process.stderr.strip().splitlines()[-1],
      "ValueError: .*: File too large; what is done stays: mend that, and run "
      "the same command again",
    )
    self.assertFalse(self._looks_complete())
    self._convert(folder, shard_bytes=500_000)
    self.assertEqual(
      checkpoints.content(self.target), checkpoints.content(folder)
    )

  def test_scales_in_another_shard_than_their_matrix(self):
    """Made again for the second shard, if the first was there already."""
    folder = self._source()
    options = {"target_format": "hf_fp8", "shard_bytes": 1}
    self._convert(folder, self.root / "whole", **options)
    source = huggingface_source.find(folder)
    planned = conversion.plan(source, conversion.Conversion(**options))
    for shard in planned.shards:
      (tensor,) = shard.tensors
      if tensor.name.endswith(name_map.SCALES):
        alone = np.concatenate(list(tensor.parts()))
        written = checkpoints.tensors(self.root / "whole")[tensor.name]
        np.testing.assert_array_equal(alone, written)
        return

  def test_two_at_once(self):
    folder = self._source()
    self.target.mkdir()
    with conversion._alone(self.target):
      self._refuses("another process writes into it; wait for it", folder)


def _free_space(n_bytes: int):
  usage = shutil.disk_usage("/")._replace(free=n_bytes)
  return absltest.mock.patch.object(shutil, "disk_usage", return_value=usage)


if __name__ == "__main__":
  absltest.main()
