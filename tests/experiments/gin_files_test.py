"""Every gin file that comes with the code passes the preflight and builds."""

import importlib
import pathlib

from absl.testing import absltest
from absl.testing import parameterized

from experiments import configuration
from experiments import preflight
from experiments.bindings import sources

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_CONFIG = "dsx.models.config.DeepSeekConfig"
_DATA = "dsx.data.pipeline.Data"
_PRETRAINING = "dsx.training.pretraining.Pretraining"


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

  def test_there_are_some_of_each_kind(self):
    for kind in ("models", "runs", "parallel", "data"):
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
