"""A workdir becomes a Hugging Face folder, and nothing is lost on the way."""

import dataclasses
import json
import pathlib
import shutil
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from dsx.convert import conversion
from dsx.convert import deepseek as convert
from dsx.data import byte_tokenizer
from dsx.data import vocab
from dsx.training import array_database
from dsx.training import checkpoint_source
from dsx.training import exported
from dsx.training import imported
from dsx.training import pretrained
from dsx.training import restore
from tests.evals import workdirs
from tests.models import tiny
from tests.training import huggingface_folders

_SIZES = {
  "hidden_size": 136,
  "intermediate_size": 300,
  "moe_intermediate_size": 140,
}


def _options(dtype: str | None = "float32", **fields):
  fields = {"target_format": "hf"} | fields
  return conversion.Conversion(dtype=dtype, **fields)


class RoundTripTest(parameterized.TestCase):
  """Hugging Face, workdir, Hugging Face: every tensor bit for bit."""

  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.create_tempdir().full_path)

  def there_and_back(self, config, made, options):
    source = huggingface_folders.write(
      self.root / "hf", config, made, **{"tokenizer.json": "{}"}
    )
    imported.write(source, self.root / "run")
    back = self.root / "back"
    exported.write(self.root / "run", back, options)
    found = huggingface_folders.read(back)
    self.assertEqual(found.keys(), made.keys())
    for name, array in made.items():
      self.assertEqual(found[name].dtype, array.dtype, name)
      self.assertEqual(found[name].tobytes(), array.tobytes(), name)
    return back

  @parameterized.product(
    dtype=("float32", "float16", "bfloat16"), copies=(True, False)
  )
  def test_one_dtype(self, dtype, copies):
    config = tiny.config()
    made = huggingface_folders.tensors(config, dtype, copies=copies)
    back = self.there_and_back(config, made, _options(dtype))
    self.assertEqual((back / "tokenizer.json").read_text(), "{}")
    fields = json.loads((back / "config.json").read_text())
    self.assertEqual(fields["x_of_another_program"], [1, "two"])

  @parameterized.parameters("float32", "float8_e8m0fnu")
  def test_fp8(self, scales):
    config = tiny.config(**_SIZES)
    made = huggingface_folders.tensors(config, "fp8", scales=scales)
    # As in V3's files: what is not quantised need not have one dtype.
    for name in ("model.layers.1.mlp.gate.weight", "model.norm.weight"):
      made[name] = made[name].astype(np.float32)
    options = _options(None, target_format="hf_fp8")
    back = self.there_and_back(config, made, options)
    before, after = (
      json.loads((self.root / name / "config.json").read_text())
      for name in ("hf", "back")
    )
    self.assertEqual(before, after)
    self.assertTrue((back / "config.json").exists())

  @parameterized.parameters("v2", "v3_no_query_rank")
  def test_other_models(self, variant):
    config = tiny.config(**tiny.VARIANTS[variant])
    made = huggingface_folders.tensors(config)
    self.there_and_back(config, made, _options("bfloat16"))

  def test_small_chunks_make_no_difference(self):
    config = tiny.config(**_SIZES)
    made = huggingface_folders.tensors(config, "fp8")
    with mock.patch.object(array_database, "_CHUNK_BYTES", 20_000):
      self.there_and_back(config, made, _options(None, target_format="hf_fp8"))


class ExportedRunTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = pathlib.Path(tempfile.mkdtemp(dir=absltest.TEST_TMPDIR.value))
    cls.workdir = cls.folder / "run"
    cls.run_ = workdirs.run(workdirs.data(cls.folder / "data"))
    cls.states = {
      step: workdirs.state_of(cls.run_, seed=step) for step in (4, 8)
    }
    workdirs.save(cls.workdir, cls.run_, cls.states)

  def setUp(self):
    super().setUp()
    self.target = pathlib.Path(self.create_tempdir().full_path) / "hf"

  def assert_same(self, found, params, router_bias) -> None:
    expected = {"params": params, "router_bias": router_bias}
    found, expected = (
      jax.tree_util.tree_leaves_with_path(tree) for tree in (found, expected)
    )
    self.assertEqual([path for path, _ in found], [p for p, _ in expected])
    for (path, one), (_, two) in zip(found, expected, strict=True):
      self.assertEqual(one.dtype, two.dtype, path)
      self.assertEqual(np.asarray(one).tobytes(), np.asarray(two).tobytes())

  def test_there_and_back(self):
    exported.write(self.workdir, self.target, _options())
    imported.write(self.target, self.target.with_name("again"))
    found = restore.load(self.target.with_name("again"))
    state = self.states[8]
    self.assertEqual(found.model.config, self.run_.config)
    self.assert_same(found.variables, state.params, state.router_bias)

  @parameterized.parameters((4, False), (8, True))
  def test_step_and_average(self, step, average):
    exported.write(
      self.workdir, self.target, _options(), step=step, average=average
    )
    config, found = convert.load(self.target)
    self.assertEqual(config, self.run_.config)
    state = self.states[step]
    params = workdirs.changed(state.params, 0.5) if average else state.params
    self.assert_same(found, params, state.router_bias)

  def test_as_fp8(self):
    options = _options(None, target_format="hf_fp8")
    exported.write(self.workdir, self.target, options)
    _, found = convert.load(self.target, dtype="fp8")
    kernel = found["params"]["moe_layers"]["mlp"]["experts"]["up_proj"]
    self.assertEqual(kernel.values.dtype, "float8_e4m3fn")
    self.assertEqual(pretrained.find(self.target, dtype="fp8").window, 64)

  def test_the_vocabulary_of_bytes(self):
    exported.write(self.workdir, self.target, _options())
    own, found = vocab.ByteVocabulary(), vocab.load(self.target)
    self.assertEqual(found.special, own.special)
    text = "def spam(eggs):\n  return 'é'"
    self.assertEqual(found.encode(text), own.encode(text))
    ids = {"bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258}
    settings = json.loads((self.target / "generation_config.json").read_text())
    self.assertEqual(settings, ids)
    fields = json.loads((self.target / "config.json").read_text())
    self.assertEqual(
      (fields["bos_token_id"], fields["eos_token_id"]), (256, 257)
    )

  @parameterized.parameters(True, False)
  def test_a_vocabulary_of_its_own(self, has_config):
    home = self.target.with_name("tokenizer")
    home.mkdir()
    texts = byte_tokenizer.files(16)
    (home / "tokenizer.json").write_text(texts["tokenizer.json"])
    if has_config:
      (home / "tokenizer_config.json").write_text('{"eos_token": "<think>"}')
    path = str(home / "tokenizer.json")
    data = dataclasses.replace(self.run_.data, vocabulary=path)
    run = dataclasses.replace(self.run_, data=data)
    workdir = self.target.with_name("bpe")
    workdirs.save(workdir, run, {4: self.states[4]})
    exported.write(workdir, self.target, _options())
    text = (self.target / "tokenizer.json").read_text()
    self.assertEqual(text, texts["tokenizer.json"])
    own, found = vocab.load(path), vocab.load(self.target)
    self.assertEqual(found.special, own.special)
    settings = json.loads((self.target / "generation_config.json").read_text())
    self.assertEqual(settings["eos_token_id"], 265 if has_config else 257)
    shutil.rmtree(home)
    with self.assertRaisesRegex(ValueError, "vocabulary: cannot read"):
      exported.write(workdir, self.target.with_name("again"), _options())
    exported.write(
      workdir,
      self.target.with_name("again"),
      _options(),
      vocabulary=str(self.target),
    )
    again = self.target.with_name("again") / "tokenizer.json"
    self.assertEqual(again.read_text(), texts["tokenizer.json"])

  def test_a_stack_of_one_chunk_is_read_by_slices(self):
    source = checkpoint_source.find(self.workdir)
    state = self.states[8]
    experts = state.params["moe_layers"]["mlp"]["experts"]["up_proj"]
    for expert in (0, 5):
      found = source.read(f"model.layers.0.mlp.experts.{expert}.up_proj.weight")
      np.testing.assert_array_equal(found, np.asarray(experts[0, expert]).T)

  def test_goes_on_and_ends_once(self):
    said = exported.write(self.workdir, self.target, _options())
    self.assertIn("written", said)
    said = exported.write(self.workdir, self.target, _options())
    self.assertIn("complete already", said)
    with self.assertRaisesRegex(ValueError, "different source"):
      exported.write(self.workdir, self.target, _options(), step=4)

  # Bad inputs.

  def assert_refused(self, message: str, workdir=None, **kwargs) -> None:
    with self.assertRaisesRegex(ValueError, message) as caught:
      exported.write(workdir or self.workdir, self.target, _options(), **kwargs)
    self.assertNotIn("\n", str(caught.exception))
    self.assertFalse(self.target.exists())

  def test_what_is_not_there(self):
    self.assert_refused("none: no checkpoint; expected", self.folder / "none")
    self.assert_refused("no good step 5 in checkpoint directory", step=5)
    self.assert_refused("vocabulary: cannot read 'x'", vocabulary="x")

  def test_a_target_among_the_checkpoints(self):
    for place in ("checkpoints/x", "checkpoints/8/x"):
      target = self.workdir / place
      with self.assertRaisesRegex(ValueError, "the source or a folder in it"):
        exported.write(self.workdir, target, _options())
      self.assertFalse(target.exists())

  def test_an_average_that_is_not_kept(self):
    run = workdirs.run(self.run_.data, ema_decay=None)
    workdirs.save(self.folder / "plain", run, {4: self.states[4]})
    self.assert_refused("keeps no average", self.folder / "plain", average=True)

  @parameterized.parameters("flip", "cut", "add", "manifest")
  def test_a_damaged_checkpoint(self, how):
    damaged = self.target.with_name("damaged")
    shutil.copytree(self.workdir, damaged)
    step = damaged / "checkpoints" / "8"
    files = (path for path in (step / "arrays").rglob("*") if path.is_file())
    largest = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    if how == "flip":
      content[len(content) // 2] ^= 1
      largest.write_bytes(content)
    elif how == "cut":
      largest.write_bytes(content[:-100])
    elif how == "add":
      (step / "arrays" / "more").write_text("")
    else:
      path = step / "manifest.json"
      path.write_text(path.read_text().replace('"step": 8', '"step": 9'))
    self.assert_refused(
      "checkpoints/8 is damaged: '.*; convert another step of the run", damaged
    )
    exported.write(damaged, self.target, _options(), step=4)

  def test_numbers_that_are_not_those_that_were_saved(self):
    source = checkpoint_source.find(self.workdir)
    for leaf in source.manifest.leaves.values():
      object.__setattr__(leaf, "checksum", leaf.checksum ^ 1)
    with self.assertRaisesRegex(
      ValueError, "values of 'state/params/.*' are n"
    ):
      source.verify()

  def test_fp8_of_a_run(self):
    with self.assertRaisesRegex(
      ValueError, "run: its weights are not FP8: expected a workdir converted"
    ):
      pretrained.find(self.workdir, dtype="fp8")


if __name__ == "__main__":
  absltest.main()
