"""One door to models of either kind of folder, in either layout."""

import json
import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from dsx.models import deepseek
from dsx.models import layout as layout_lib
from dsx.ops import block_scaled
from dsx.parallel import mesh as mesh_lib
from dsx.parallel import sharding as sharding_lib
from dsx.training import imported
from dsx.training import pretrained
from tests.evals import workdirs
from tests.models import tiny
from tests.training import huggingface_folders

_SIZES = {
  "hidden_size": 136,
  "intermediate_size": 300,
  "moe_intermediate_size": 144,
  "vocab_size": 320,
}


def _folder(path: pathlib.Path, config, dtype: str, *, mtp: bool = True):
  """A folder whose config.json counts MTP modules that may not be there."""
  made = huggingface_folders.tensors(config, dtype)
  if not mtp:
    last = f"model.layers.{config.num_hidden_layers}."
    made = {k: v for k, v in made.items() if not k.startswith(last)}
  return huggingface_folders.write(path, config, made)


def _numpy(tree):
  return jax.tree.map(np.asarray, tree)


class PretrainedTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.root = pathlib.Path(tempfile.mkdtemp(dir=absltest.TEST_TMPDIR.value))
    cls.config = tiny.config(**_SIZES)
    for dtype in ("bfloat16", "fp8"):
      _folder(cls.root / dtype, cls.config, dtype)
      imported.write(cls.root / dtype, cls.root / f"{dtype}_run")
    cls.run_ = workdirs.run(workdirs.data(cls.root / "data"))
    state = workdirs.state_of(cls.run_, seed=0)
    workdirs.save(cls.root / "run", cls.run_, {4: state})

  def find(self, name: str, **kwargs):
    vocabulary = None if name == "run" else "byte"
    return pretrained.find(self.root / name, vocabulary=vocabulary, **kwargs)

  def test_what_is_said_of_each_kind(self):
    run, folder = self.find("run"), self.find("fp8")
    self.assertEqual((run.kind, folder.kind), ("workdir", "hugging_face"))
    self.assertEqual(run.config, self.run_.config)
    self.assertEqual((run.window, folder.window), (workdirs.LENGTH, 64))
    self.assertIn("step 4 of", run.description)
    self.assertEqual(folder.config, self.config)
    self.assertEqual(folder.dtypes.compute, "float32")
    self.assertEqual(self.find("fp8_run").dtypes.compute, "bfloat16")

  @parameterized.parameters("run", "fp8", "fp8_run")
  def test_layouts(self, name):
    found = self.find(name)
    stacked = found.read(mtp=True)
    self.assertTrue(layout_lib.is_stacked(stacked))
    self.assertIn("mtp_0", stacked["params"])
    layers = found.read(layout="layers", mtp=True)
    self.assertFalse(layout_lib.is_stacked(layers))
    expected = layout_lib.to_layers(found.config, stacked)
    chex.assert_trees_all_equal(_numpy(layers), _numpy(expected))

  @parameterized.parameters("run", "fp8_run")
  def test_without_mtp(self, name):
    found = self.find(name)
    for layout in ("stacked", "layers"):
      variables = found.read(layout=layout)
      self.assertNotIn("mtp_0", variables["params"])
      self.assertNotIn("mtp_0", variables["router_bias"])
    tokens = jnp.zeros((1, 4), jnp.int32)
    logits, _ = jax.jit(found.model.apply)(found.read(), tokens)
    self.assertEqual(logits.shape, (1, 4, found.config.vocab_size))

  def test_mtp_modules_are_counted_in_the_files(self):
    folder = _folder(self.root / "no_mtp", self.config, "bfloat16", mtp=False)
    fields = json.loads((folder / "config.json").read_text())
    self.assertEqual(fields["num_nextn_predict_layers"], 1)
    found = self.find("no_mtp")
    self.assertEqual(found.config.num_nextn_predict_layers, 0)
    self.assertNotIn("mtp_0", found.read(mtp=True)["params"])
    self.assertEqual(self.find("bfloat16").config.num_nextn_predict_layers, 1)

  @parameterized.product(
    dtype=(None, "fp8", "bfloat16", "float32"), name=("fp8", "fp8_run")
  )
  def test_dtypes_of_fp8_weights(self, dtype, name):
    found = self.find(name, dtype=dtype)
    params = found.read()["params"]
    kernel = params["moe_layers"]["mlp"]["experts"]["up_proj"]
    keeps = dtype == "fp8" or (dtype is None and name == "fp8_run")
    self.assertEqual(isinstance(kernel, block_scaled.BlockScaled), keeps)
    plain = params["norm"]["scale"].dtype
    self.assertEqual(plain, found.dtypes.param)
    if dtype == "float32":
      other = self.find("fp8", dtype="fp8").read()["params"]
      exact = other["moe_layers"]["mlp"]["experts"]["up_proj"]
      chex.assert_trees_all_equal(
        np.asarray(kernel), np.asarray(exact.dequantise("float32"))
      )

  @parameterized.parameters("bfloat16", "fp8")
  def test_an_imported_workdir_says_what_its_folder_says(self, dtype):
    folder, run = self.find(dtype, dtype=dtype), self.find(f"{dtype}_run")
    self.assertEqual(folder.config, run.config)
    chex.assert_trees_all_equal(
      _numpy(run.read(mtp=True)), _numpy(folder.read(mtp=True))
    )
    self.assertEqual(folder.dtypes, run.dtypes)

  @parameterized.parameters(
    ("run", "stacked"), ("bfloat16", "layers"), ("fp8_run", "layers")
  )
  def test_mesh(self, name, layout):
    found = self.find(name)
    mesh = mesh_lib.make(mesh_lib.MeshShape(local=2, tensor=2, data=2))
    sharding = sharding_lib.Sharding(strategy="fully_sharded")
    variables = found.read(layout=layout, mesh=mesh, sharding=sharding)
    kernel = variables["params"]["lm_head"]["kernel"]
    self.assertLen(kernel.sharding.device_set, 8)
    part = kernel.addressable_shards[0].data.shape
    self.assertEqual(part, (kernel.shape[0] // 2, kernel.shape[1] // 2))
    if layout == "layers":
      kernel = variables["params"]["layers_0"]["self_attn"]["o_proj"]["kernel"]
      values = getattr(kernel, "values", kernel)
      part = values.addressable_shards[0].data.shape
      self.assertLess(part[0], kernel.shape[0])
    chex.assert_trees_all_equal(
      _numpy(variables), _numpy(found.read(layout=layout))
    )

  def test_average_of_a_run(self):
    found = self.find("run", average=True).read(layout="layers")
    raw = self.find("run").read(layout="layers")
    chex.assert_trees_all_equal(
      _numpy(found["params"]), _numpy(workdirs.changed(raw["params"], 0.5))
    )
    chex.assert_trees_all_equal(
      _numpy(found["router_bias"]), _numpy(raw["router_bias"])
    )

  def test_a_model_reads_its_own_variables(self):
    found = self.find("run")
    model = deepseek.DeepSeek(found.config, found.dtypes)
    tokens = jnp.zeros((1, 4), jnp.int32)
    _, aux = jax.jit(model.apply)(found.read(mtp=True), tokens)
    self.assertLen(aux["mtp_logits"], 1)

  @parameterized.parameters(
    ("bfloat16", "bfloat16: its weights are not FP8: expected a folder conv"),
    ("run", "run: its weights are not FP8: expected a workdir converted from"),
  )
  def test_fp8_of_weights_that_are_not(self, name, message):
    with self.assertRaisesRegex(ValueError, message):
      self.find(name, dtype="fp8")

  def test_bad_arguments(self):
    with self.assertRaisesRegex(
      ValueError, "layout='rows': expected 'stacked'"
    ):
      self.find("run").read(layout="rows")
    with self.assertRaisesRegex(ValueError, "int8"):
      self.find("run", dtype="int8")
    with self.assertRaisesRegex(ValueError, "'bfloat'"):
      self.find("bfloat16", dtype="bfloat")

  def test_finding_reads_no_weights(self):
    folder = _folder(self.root / "nan", self.config, "bfloat16")
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-9000] + b"\xff" * 9000)
    found = pretrained.find(folder, vocabulary="byte")
    with self.assertRaisesRegex(ValueError, "not equal to"):
      found.read(mtp=True)


if __name__ == "__main__":
  absltest.main()
