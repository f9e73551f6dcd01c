"""Every gin file that comes with the code passes the preflight and builds."""

import dataclasses
import importlib
import math
import pathlib
import re

from absl.testing import absltest
from absl.testing import parameterized

from dsx.ops import fp8_recipe
from dsx.training import dry_run
from experiments import configuration
from experiments import preflight
from experiments.bindings import sources

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_CONFIG = "dsx.models.config.DeepSeekConfig"
_DATA = "dsx.data.pipeline.Data"
_PRETRAINING = "dsx.training.pretraining.Pretraining"
_MESHES = (
  # (mesh, model, devices, published GiB of one)
  ("one_device", "v3_small", 1, 74.5),
  ("gpu_8", "v2_lite", 8, 74.5),
  ("h100_256", "v3", 256, 74.5),
  ("h800_2048", "v3", 2048, 74.5),
  ("v5p_1024", "v3", 512, 95.0),
  ("v5p_2048", "v3", 1024, 95.0),
  ("v5p_4096", "v3", 2048, 95.0),
  ("v6e_256", "v2", 256, 32.0),
)


def _files(kind):
  return sorted(
    str(path.relative_to(_ROOT))
    for path in (_ROOT / "gin_configs" / kind).glob("*.gin")
  )


class GinFilesTest(parameterized.TestCase):
  @parameterized.parameters(*_files("models"))
  def test_model(self, file):
    configuration.prepare(_CONFIG, [file])
    self.assertGreater(configuration.build(_CONFIG).hidden_size, 0)

  @parameterized.parameters(*_files("runs"))
  def test_run(self, file):
    configuration.prepare(_PRETRAINING, [file], seed=3)
    run = configuration.build(_PRETRAINING)
    self.assertEqual(run.seed, 3)

  @parameterized.parameters(*_files("runs"))
  def test_data_of_a_run_needs_no_model(self, file):
    configuration.prepare(_DATA, [file], also=[_PRETRAINING])
    self.assertNotIn("dsx.models", configuration.requested(_DATA))
    configuration.build(_DATA)

  @parameterized.parameters(*_files("parallel"))
  def test_mesh_takes_the_place_of_a_run_s(self, file):
    run = "gin_configs/runs/v3_pretrain.gin"
    preflight.check([run, file], target=_PRETRAINING)

  @parameterized.parameters(*_MESHES)
  def test_mesh_resolves_against_its_model(self, mesh, model, devices, gib):
    files = [
      "gin_configs/runs/v3_pretrain.gin",
      f"gin_configs/models/{model}.gin",
      f"gin_configs/parallel/{mesh}.gin",
    ]
    configuration.prepare(_PRETRAINING, files)
    run = configuration.build(_PRETRAINING)
    if run.mesh.data == -1:
      open_axes = dataclasses.replace(run.mesh, data=devices)
      run = dataclasses.replace(run, mesh=open_axes)
    sizes = dry_run.abstract_mesh(run).shape
    self.assertEqual(math.prod(sizes.values()), devices)
    text = dry_run.describe(run)  # every matrix divides, and the batch
    total = re.search(r"^total +([\d.]+) GiB$", text, re.MULTILINE)
    self.assertLess(float(total[1]), gib)

  def test_every_mesh_has_its_model(self):
    tested = {case[0] for case in _MESHES}
    found = {pathlib.Path(file).stem for file in _files("parallel")}
    self.assertEqual(tested, found)

  @parameterized.parameters(*_files("data"))
  def test_data(self, file):
    also = ["dsx.data.tokenizer_training.TokenizerTraining"]
    configuration.prepare(_DATA, [file], also=also)
    configuration.build(_DATA)

  @parameterized.parameters(
    *(file for file in _files("data") if "tokenizer" not in file)
  )
  def test_data_takes_the_place_of_a_run_s(self, file):
    run = "gin_configs/runs/v3_tiny.gin"
    program = preflight.check([run, file], target=_PRETRAINING)
    self.assertIn(f"  # {file}:", program.text([_PRETRAINING]))

  @parameterized.product(
    file=_files("precision"), run=("v3_tiny", "v3_pretrain")
  )
  def test_precision_takes_the_place_of_a_run_s(self, file, run):
    files = [f"gin_configs/runs/{run}.gin", file]
    configuration.prepare(_PRETRAINING, files)
    dtypes = configuration.build(_PRETRAINING).dtypes
    self.assertEqual(dtypes.compute, "bfloat16")
    if file.endswith("bfloat16.gin"):
      self.assertIsNone(dtypes.fp8)
    else:
      plain = file.endswith("/fp8.gin")
      self.assertEqual(dtypes.fp8 == fp8_recipe.Recipe(), plain)

  def test_rule_that_decides_for_no_layer_is_refused(self):
    files = ["gin_configs/runs/v3_tiny.gin", "gin_configs/precision/fp8.gin"]
    rules = '(("*/q_projection", "compute"), ("*", "float8"))'
    binding = f"fp8_recipe.Recipe.rules = {rules}"
    configuration.prepare(_PRETRAINING, files, [binding])
    with self.assertRaisesRegex(ValueError, "q_projection.*for no layer"):
      configuration.build(_PRETRAINING)

  def test_there_are_some_of_each_kind(self):
    for kind in ("models", "runs", "parallel", "data", "precision"):
      self.assertNotEmpty(_files(kind), kind)


class SourcesTest(absltest.TestCase):
  def test_fields_read_from_the_text_are_those_of_the_classes(self):
    index = sources.Sources(preflight.PACKAGES)
    for name in (_CONFIG, _DATA, _PRETRAINING):
      module, _, last = name.rpartition(".")
      cls = getattr(importlib.import_module(module), last)
      fields = cls.__dataclass_fields__
      self.assertEqual(list(index.fields(name)), list(fields), name)


if __name__ == "__main__":
  absltest.main()
