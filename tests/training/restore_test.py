"""A workdir gives back the model that was saved, and says what is wrong."""

import dataclasses
import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import numpy as np

from dsx.convert import deepseek as convert
from dsx.inference import completion
from dsx.inference import sampling
from dsx.models import config as config_lib
from dsx.ops import dtypes as dtypes_lib
from dsx.ops import fp8_recipe
from dsx.training import checkpoint
from dsx.training import pretrained
from dsx.training import restore
from dsx.training import workdir as workdir_lib
from tests.evals import workdirs

_SCALING = config_lib.RopeScaling(
  factor=2.0, original_max_position_embeddings=32
)


class RestoreTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = pathlib.Path(tempfile.mkdtemp(dir=absltest.TEST_TMPDIR.value))
    cls.workdir = cls.folder / "run"
    cls.run_ = workdirs.run(
      workdirs.data(cls.folder / "data"),
      config=workdirs.model_config(rope_scaling=_SCALING),
    )
    cls.state = workdirs.state_of(cls.run_, seed=0)
    workdirs.save(cls.workdir, cls.run_, {4: cls.state})

  def test_model_and_variables(self):
    found = restore.load(self.workdir)
    self.assertEqual(found.model.config, self.run_.config)
    self.assertEqual(found.model.config.rope_scaling, _SCALING)
    self.assertEqual(found.data.prepared, self.run_.data.prepared)
    self.assertEqual((found.step, found.tokens), (4, 4 * 8 * workdirs.LENGTH))
    self.assertIsNone(found.average)
    chex.assert_trees_all_equal(
      jax.tree.map(np.asarray, found.variables),
      {
        "params": jax.tree.map(np.asarray, self.state.params),
        "router_bias": jax.tree.map(np.asarray, self.state.router_bias),
      },
    )
    for leaf in jax.tree.leaves(found.variables):
      self.assertLen(leaf.devices(), 1)

  def test_average(self):
    found = restore.load(self.workdir, average=True)
    expected = workdirs.changed(self.state.params, 0.5)
    chex.assert_trees_all_equal(
      jax.tree.map(np.asarray, found.average),
      jax.tree.map(np.asarray, expected),
    )

  def test_a_damaged_checkpoint_is_not_used(self):
    damaged = self.folder / "damaged"
    workdirs.save(damaged, self.run_, {4: self.state})
    files = (damaged / "checkpoints" / "4" / "arrays").rglob("*")
    largest = max(
      (f for f in files if f.is_file()), key=lambda f: f.stat().st_size
    )
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    with self.assertRaisesRegex(checkpoint.CheckpointError, "no good step"):
      restore.load(damaged)

  def test_no_checkpoint(self):
    with self.assertRaisesRegex(workdir_lib.WorkdirError, "no checkpoint; exp"):
      restore.load(self.folder / "none")

  def test_a_config_of_another_version(self):
    identity = self.run_.identity()
    identity["config"]["n_dreams"] = 3
    with self.assertRaisesRegex(workdir_lib.WorkdirError, "'n_dreams'"):
      restore.config_of(identity)

  def test_a_recipe_of_fp8_comes_back(self):
    rules = (("*/o_proj", "compute"), ("*", "float8"))
    for recipe in (None, fp8_recipe.Recipe(rules=rules)):
      policy = dtypes_lib.Dtypes(compute="bfloat16", fp8=recipe)
      run = dataclasses.replace(self.run_, dtypes=policy)
      self.assertEqual(restore.dtypes_of(run.identity()), policy)
    before = {"param": "float32", "compute": "float32"}
    found = restore.dtypes_of({"dtypes": before})
    self.assertEqual(found, dtypes_lib.Dtypes())

  # Either kind of folder.

  def complete(self, found):
    how = sampling.Sampling(temperature=0.0, max_new_tokens=5)
    return completion.complete(
      found.model, found.read(), found.vocabulary, "def ", how
    )

  def test_a_hugging_face_folder_says_what_the_workdir_says(self):
    of_run = pretrained.find(self.workdir)
    self.assertEqual(of_run.window, workdirs.LENGTH)
    folder = self.folder / "hugging_face"
    convert.save(folder, self.run_.config, of_run.read(mtp=True))
    of_folder = pretrained.find(folder, vocabulary="byte")
    self.assertEqual(of_folder.window, 64)
    self.assertEqual(self.complete(of_folder), self.complete(of_run))
    with self.assertRaisesRegex(ValueError, "tokenizer.json"):
      pretrained.find(folder)
    with self.assertRaisesRegex(ValueError, "neither a step nor an average"):
      pretrained.find(folder, step=3, vocabulary="byte")

  def test_average_and_dtype_of_a_run(self):
    found = pretrained.find(self.workdir, average=True, dtype="bfloat16")
    embedding = found.read()["params"]["embed_tokens"]["embedding"]
    self.assertEqual(embedding.dtype, "bfloat16")
    expected = self.state.params["embed_tokens"]["embedding"] * np.float32(0.5)
    chex.assert_trees_all_equal(
      np.asarray(embedding), np.asarray(expected.astype("bfloat16"))
    )
    bias = jax.tree.leaves(found.read()["router_bias"])[0]
    self.assertEqual(bias.dtype, "float32")

  def test_an_average_that_is_not_kept(self):
    run = workdirs.run(self.run_.data, config=self.run_.config, ema_decay=None)
    workdirs.save(self.folder / "plain", run, {4: self.state})
    with self.assertRaisesRegex(ValueError, "keeps no average"):
      pretrained.find(self.folder / "plain", average=True)

  def test_neither_kind(self):
    with self.assertRaisesRegex(ValueError, "no checkpoint; .* Hugging Face"):
      pretrained.find(self.folder / "none")


if __name__ == "__main__":
  absltest.main()
