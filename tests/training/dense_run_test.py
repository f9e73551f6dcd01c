"""A dense student is trained like any model: started, restored, sent on."""

import contextlib
import io
import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import numpy as np

from dsx.convert import conversion
from dsx.convert import deepseek as convert
from dsx.models import dense
from dsx.models import dense_config
from dsx.training import dry_run
from dsx.training import epochs
from dsx.training import exported
from dsx.training import loop
from dsx.training import pretrained
from dsx.training import restore
from dsx.training import start as start_lib
from tests.evals import workdirs

_CONFIG = dense_config.DenseConfig(
  vocab_size=320,
  hidden_size=32,
  intermediate_size=48,
  num_hidden_layers=2,
  num_attention_heads=4,
  num_key_value_heads=2,
  head_dim=8,
  max_position_embeddings=64,
  rope_scaling=dense_config.Llama3Scaling(original_max_position_embeddings=16),
)


def _host(tree):
  return jax.tree.map(np.asarray, tree)


class DenseRunTest(parameterized.TestCase):
  def test_road(self):
    folder = pathlib.Path(tempfile.mkdtemp(dir=absltest.TEST_TMPDIR.value))
    run = workdirs.run(
      workdirs.data(folder / "data"),
      config=_CONFIG,
      schedule=epochs.Epochs(
        count=8,
        sequence_length=workdirs.LENGTH,
        batch_size=8,
        learning_rate=1e-2,
        final_learning_rate=1e-3,
      ),
      sample_tokens=4,
      evaluate_every=0,
    )
    first = folder / "first"
    with contextlib.redirect_stdout(io.StringIO()):
      summary = loop.train(run, first)
    # A few lines, over and over: far below the 5.8 nats of guessing.
    self.assertLess(summary["train_loss"], 3.5)
    self.assertEqual(summary["max_violation"], 0.0)
    trained = restore.load(first, average=True)
    self.assertIsInstance(trained.model, dense.DenseModel)
    self.assertEqual(trained.model.config, _CONFIG)
    self.assertEqual(set(trained.variables), {"params"})
    # Out in Hugging Face's layout, and the start of another run from there.
    hf = folder / "hf"
    exported.write(first, hf, conversion.Conversion(dtype="float32"))
    config, variables = convert.load(hf)
    self.assertEqual(config.rope_scaling, _CONFIG.rope_scaling)
    chex.assert_trees_all_equal(_host(variables), _host(trained.variables))
    second = workdirs.run(
      run.data,
      config=_CONFIG,
      schedule=run.schedule,
      init=start_lib.Start(path=str(hf)),
      ema_decay=None,
      sample_tokens=0,
      evaluate_every=0,
    )
    with contextlib.redirect_stdout(io.StringIO()):
      again = loop.train(second, folder / "second")
    self.assertLess(again["train_loss"], summary["train_loss"])
    self.assertIn("dense_layers/self_attn/k_proj/bias", dry_run.describe(run))
    for path in (first, hf):
      with self.assertRaisesRegex(ValueError, "found a dense model, expected"):
        pretrained.find(path, vocabulary="byte")


if __name__ == "__main__":
  absltest.main()
