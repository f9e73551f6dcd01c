"""A Hugging Face folder becomes a workdir that is read like any run's."""

import dataclasses
import json
import pathlib
import shutil
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import numpy as np

from dsx.convert import deepseek as convert
from dsx.data import byte_tokenizer
from dsx.ops import block_scaled
from dsx.training import checkpoint
from dsx.training import commit
from dsx.training import import_description
from dsx.training import import_journal
from dsx.training import import_plan
from dsx.training import imported
from dsx.training import manifest
from dsx.training import pretrained
from dsx.training import restore
from tests.models import tiny
from tests.training import huggingface_folders
from tests.training import orbax_store_test

# Edges that FP8 blocks of 128 do not divide.
_SIZES = {
  "hidden_size": 136,
  "intermediate_size": 300,
  "moe_intermediate_size": 140,
}
_FILES = {
  "generation_config.json": '{"eos_token_id": 1}\n',
  "tokenizer_config.json": '{"x": 1}\n',
  "modeling.py": "raise SystemExit",
}


def _leaves(variables):
  """Arrays by name; FP8 matrices as their values and scales."""
  with_path = jax.tree_util.tree_leaves_with_path(variables)
  return {jax.tree_util.keystr(p): np.asarray(x) for p, x in with_path}


class Base(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.create_tempdir().full_path)
    self.target = self.root / "run"

  def folder(self, config, dtype="bfloat16", name="hf", **kwargs):
    made = huggingface_folders.tensors(config, dtype, **kwargs)
    return huggingface_folders.write(self.root / name, config, made, **_FILES)

  def assert_refused(self, message: str, source, **kwargs) -> None:
    with self.assertRaisesRegex(ValueError, message) as caught:
      imported.write(source, kwargs.pop("target", self.target), **kwargs)
    self.assertNotIn("\n", str(caught.exception))

  def assert_same(self, found, expected) -> None:
    found, expected = _leaves(found), _leaves(expected)
    self.assertEqual(found.keys(), expected.keys())
    for name, array in expected.items():
      self.assertEqual(found[name].dtype, array.dtype, name)
      np.testing.assert_array_equal(
        found[name].view(np.uint8), array.view(np.uint8), name
      )


class ImportedTest(Base):
  @parameterized.parameters("bfloat16", "float32", "fp8")
  def test_what_the_files_have(self, dtype):
    config = tiny.config(**tiny.VARIANTS["v3_yarn"], **_SIZES)
    source = self.folder(config, dtype)
    said = imported.write(source, self.target)
    self.assertRegex(said, r"run: .* written as step 0$")
    found = restore.load(self.target)
    expected, variables = convert.load(source, dtype=dtype)
    self.assertEqual(found.model.config, expected)
    self.assert_same(found.variables, variables)
    plain = "bfloat16" if dtype == "fp8" else dtype
    self.assertEqual(found.model.dtypes.compute, plain)
    self.assertEqual((found.step, found.tokens, found.notes), (0, 0, ()))

  @parameterized.parameters("v2", "v3_no_query_rank", "v3_dense")
  def test_other_models(self, variant):
    config = tiny.config(**tiny.VARIANTS[variant])
    source = self.folder(config)
    imported.write(source, self.target)
    found = restore.load(self.target)
    self.assertEqual(found.model.config, config)
    self.assert_same(found.variables, convert.load(source, dtype="bfloat16")[1])

  @parameterized.parameters(("fp8", "bfloat16"), ("bfloat16", "float32"))
  def test_another_dtype(self, stored, dtype):
    source = self.folder(tiny.config(**_SIZES), stored)
    imported.write(source, self.target, dtype=dtype)
    variables = convert.load(source, dtype=dtype)[1]
    self.assert_same(restore.load(self.target).variables, variables)

  def test_fp8_of_files_that_are_not(self):
    source = self.folder(tiny.config(**_SIZES), "float32")
    imported.write(source, self.target, dtype="fp8")
    plain = convert.load(source, dtype="float32")[1]["params"]
    found = restore.load(self.target).variables["params"]
    for part in ("gate_proj", "down_proj"):
      expected = block_scaled.quantise(
        np.asarray(plain["moe_layers"]["mlp"]["experts"][part])
      )
      self.assert_same(found["moe_layers"]["mlp"]["experts"][part], expected)
    self.assertEqual(found["lm_head"]["kernel"].dtype, "bfloat16")
    self.assertEqual(
      found["moe_layers"]["mlp"]["gate"]["kernel"].dtype, "bfloat16"
    )

  def test_small_chunks_make_no_difference(self):
    source = self.folder(tiny.config(**_SIZES), "fp8")
    with mock.patch("dsx.training.array_database._CHUNK_BYTES", 20_000):
      imported.write(source, self.target)
      imported.write(source, self.root / "wide", dtype="float32")
    variables = convert.load(source, dtype="fp8")[1]
    self.assert_same(restore.load(self.target).variables, variables)
    variables = convert.load(source, dtype="float32")[1]
    self.assert_same(restore.load(self.root / "wide").variables, variables)

  def test_files_of_the_workdir(self):
    config = tiny.config()
    imported.write(self.folder(config), self.target)
    self.assertEqual(
      sorted(path.name for path in self.target.iterdir()),
      [
        "checkpoints",
        "config.gin",
        "config.json",
        "generation_config.json",
        "run.json",
        "tokenizer_config.json",
      ],
    )
    self.assertEqual(
      (self.target / "generation_config.json").read_text(),
      _FILES["generation_config.json"],
    )
    fields = json.loads((self.target / "config.json").read_text())
    self.assertEqual(fields["x_of_another_program"], [1, "two"])
    steps = sorted(p.name for p in (self.target / "checkpoints").iterdir())
    self.assertEqual(steps, ["0"])
    identity = json.loads((self.target / "run.json").read_text())
    self.assertEqual(restore.config_of(identity), config)

  def test_a_flipped_bit_is_found(self):
    imported.write(self.folder(tiny.config()), self.target)
    files = (self.target / "checkpoints/0/arrays").rglob("*")
    largest = max(
      (f for f in files if f.is_file()), key=lambda f: f.stat().st_size
    )
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    with self.assertRaisesRegex(checkpoint.CheckpointError, "is damaged"):
      restore.load(self.target)

  def test_a_workdir_that_is_moved_finds_its_tokenizer(self):
    source = self.folder(tiny.config(vocab_size=320))
    for name, text in byte_tokenizer.files(64).items():
      (source / name).write_text(text)
    imported.write(source, self.target)
    shutil.rmtree(source)
    moved = self.target.rename(self.root / "elsewhere")
    found = pretrained.find(moved)
    self.assertEqual(found.vocabulary.encode("ab"), [97, 98])
    self.assertEqual(found.window, 64)
    self.assertEqual(found.dtypes.param, "bfloat16")

  def test_progress_counts_up_to_the_bytes_of_all_arrays(self):
    seen: list[tuple[int, int, str]] = []
    source = self.folder(tiny.config(), "float32")
    imported.write(
      source, self.target, progress=lambda *call: seen.append(call)
    )
    arrays = jax.tree.leaves(restore.load(self.target).variables)
    size = sum(array.nbytes for array in arrays)
    writing = [call for call in seen if call[2].startswith("writing ")]
    self.assertEqual(writing[-1][:2], (size, size))
    self.assertEqual(sorted(writing), sorted(set(writing)))
    self.assertStartsWith(seen[0][2], "checking ")

  def test_plan(self):
    source = self.folder(tiny.config(**_SIZES), "fp8")
    said = imported.plan(source)
    entries = len(huggingface_folders.read(source))
    self.assertRegex(
      said,
      rf"hf: {entries} tensors make \d+ arrays, .* \(bfloat16 .*, "
      r"float32 .*, float8_e4m3fn .*\)$",
    )


class Stop(Exception):
  """Ends an import as a kill would."""


class InterruptedTest(Base):
  def setUp(self):
    super().setUp()
    self.source = self.folder(tiny.config(**_SIZES), "fp8")
    # Several chunks an array and several journal lines.
    patch = mock.patch("dsx.training.array_database._CHUNK_BYTES", 20_000)
    patch.start()
    self.addCleanup(patch.stop)
    self.made: list[str] = []

  def import_until(self, stop: int | None) -> None:
    """Imports, and stops when `stop` parts were made."""
    make = import_plan.Assembler.make

    def counted(assembler, array, box):
      if len(self.made) == stop:
        raise Stop
      self.made.append(f"{array.name} {box}")
      return make(assembler, array, box)

    with mock.patch.object(import_plan.Assembler, "make", counted):
      imported.write(self.source, self.target)

  def assert_complete(self) -> None:
    variables = convert.load(self.source, dtype="fp8")[1]
    self.assert_same(restore.load(self.target).variables, variables)
    steps = sorted(p.name for p in (self.target / "checkpoints").iterdir())
    self.assertEqual(steps, ["0"])

  @parameterized.parameters(1, 40)
  def test_goes_on_where_it_stopped(self, stop):
    with self.assertRaises(Stop):
      self.import_until(stop)
    with self.assertRaisesRegex(checkpoint.CheckpointError, "there is none"):
      restore.load(self.target)
    before = len(self.made)
    self.import_until(None)
    self.assert_complete()
    # Done twice is at most what no line of the journal tells of.
    self.assertLess(len(self.made) - len(set(self.made)), 4)
    self.assertLen(self.made[:before], stop)

  def test_a_torn_line_of_the_journal_is_forgotten(self):
    with self.assertRaises(Stop):
      self.import_until(40)
    journal = self.target / "checkpoints/importing/journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-9])
    self.import_until(None)
    self.assert_complete()

  @parameterized.parameters("commit", "adopt")
  def test_stopped_before_the_manifest(self, place):
    where = {
      "commit": mock.patch.object(commit, "commit", side_effect=Stop),
      "adopt": mock.patch.object(import_description, "write", side_effect=Stop),
    }
    with where[place], self.assertRaises(Stop):
      self.import_until(None)
    with self.assertRaises(checkpoint.CheckpointError):
      restore.load(self.target)
    before = len(self.made)
    self.import_until(None)
    self.assertLen(self.made, before)
    self.assert_complete()

  def test_another_source_or_dtype_is_refused(self):
    with self.assertRaises(Stop):
      self.import_until(10)
    other = self.folder(tiny.config(**_SIZES), "fp8", name="other", seed=1)
    self.assert_refused(
      r"importing: holds the beginning of another conversion, with another "
      r"source \('.*/hf'\): give another target, or remove this folder",
      other,
    )
    self.assert_refused(
      r"with another dtype \(None\)", self.source, dtype="fp8"
    )
    file = self.source / "model.safetensors"
    file.touch()
    self.assert_refused("with another files: give another", self.source)

  def test_two_at_once(self):
    with self.assertRaises(Stop):
      self.import_until(10)
    journal = self.target / "checkpoints/importing/journal.jsonl"
    identity = json.loads(journal.read_bytes().split(b"\n")[0])["identity"]
    with import_journal.Journal(journal, identity):
      self.assert_refused("another process writes into it", self.source)

  def test_a_damaged_journal(self):
    with self.assertRaises(Stop):
      self.import_until(10)
    journal = self.target / "checkpoints/importing/journal.jsonl"
    journal.write_bytes(b"[1]\n" + journal.read_bytes())
    self.assert_refused("journal.jsonl is damaged .*: remove", self.source)


class BadInputTest(Base):
  def test_targets(self):
    source = self.folder(tiny.config())
    (self.root / "file").write_text("")
    self.assert_refused(
      "file: a file: expected a new or an empty folder",
      source,
      target=self.root / "file",
    )
    self.assert_refused(
      "hf: holds config.json already; give a new or an empty folder",
      source,
      target=source,
    )
    for place in (source / "x", source / ".." / "hf" / "x" / "y"):
      message = "the source or a folder in it; give another target"
      self.assert_refused(message, source, target=place)
      self.assertFalse(place.exists())
    imported.write(source, self.target)
    said = imported.write(source, self.target)
    self.assertIn("run: complete already; nothing was done", said)
    self.assert_refused(
      "run: holds checkpoints already", source, dtype="float32"
    )

  def test_sources(self):
    self.assert_refused("no such folder", self.root / "none")
    source = self.folder(tiny.config())
    self.assert_refused("dtype='int8': expected", source, dtype="int8")
    file = source / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    self.assert_refused("truncated or damaged", source)
    self.assertFalse(self.target.exists())

  @parameterized.parameters("bfloat16", "fp8")
  def test_numbers_that_are_not_finite(self, dtype):
    config = tiny.config()
    made = huggingface_folders.tensors(config, dtype)
    name = "model.layers.1.mlp.experts.3.up_proj.weight"
    made[name][2, 1] = np.nan
    source = huggingface_folders.write(self.root / "hf", config, made)
    self.assert_refused(f"'{name}' has 1 value.* not finite", source)
    self.assertFalse(self.target.exists())

  def test_a_stack_that_is_partly_fp8(self):
    config = tiny.config()
    made = huggingface_folders.tensors(config, "fp8")
    name = "model.layers.2.self_attn.o_proj.weight"
    del made[f"{name}_scale_inv"]
    made[name] = made[name].astype("bfloat16")
    source = huggingface_folders.write(self.root / "hf", config, made)
    self.assert_refused(
      "o_proj.weight' some are F8_E4M3 and some are not, which one stack "
      "cannot hold; convert with dtype bfloat16",
      source,
    )
    imported.write(source, self.target, dtype="bfloat16")

  def test_a_full_disk(self):
    source = self.folder(tiny.config())
    usage = mock.Mock(free=1000)
    with mock.patch.object(shutil, "disk_usage", return_value=usage):
      self.assert_refused(
        r"run has 0.0 MiB free, and the checkpoint takes 0.0 MiB: make room",
        source,
      )
    self.assertFalse(self.target.exists())
    full = OSError(28, "No space left on device")
    with mock.patch.object(manifest, "write", side_effect=full):
      self.assert_refused(
        "run: the import was interrupted: .*No space left on device; mend that "
        "and do the same again, it goes on where it stopped",
        source,
      )
    imported.write(source, self.target)
    chex.assert_trees_all_equal_dtypes(
      restore.load(self.target).variables,
      convert.load(source, dtype="bfloat16")[1],
    )

  @parameterized.parameters(500, 30_000)
  def test_a_file_that_cannot_grow(self, size):
    source = self.folder(tiny.config(**_SIZES))
    with orbax_store_test.largest_file(size):
      self.assert_refused(
        "run: the import was interrupted: File too large; mend that", source
      )
    said = imported.write(source, self.target)
    self.assertIn("; part of it was there already", said)
    self.assert_same(
      restore.load(self.target).variables,
      convert.load(source, dtype="bfloat16")[1],
    )


class ConfigTest(Base):
  def test_the_identity_is_what_a_run_would_say(self):
    config = tiny.config(**tiny.VARIANTS["v3_yarn"])
    imported.write(self.folder(config), self.target)
    with restore.checkpoints(self.target) as checkpoints:
      metadata = checkpoints.metadata()
    self.assertEqual(metadata["run"]["data"]["vocabulary"], "tokenizer.json")
    self.assertEqual(metadata["run"]["config"], dataclasses.asdict(config))
    self.assertIsNone(metadata["run"]["ema_decay"])


if __name__ == "__main__":
  absltest.main()
