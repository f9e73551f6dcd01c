"""The report's pictures are written, can be read, and are reproducible."""

import math
import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
from matplotlib import image
import numpy as np

from dsx.training import metrics
from dsx.training import report

_FILES = (
  "overview.png",
  "loss.png",
  "schedule.png",
  "expert_load.png",
  "max_violation.png",
  "gradient_norm.png",
  "throughput.png",
)
_TENSORS = ("activation", "weight", "gradient")
_STATISTICS = (
  "underflow",
  "saturated",
  "not_finite",
  "scale_min",
  "scale_median",
  "scale_max",
)


def _record(workdir, steps):
  """Writes what a run with 3 layers of 4 experts and one MTP depth would."""
  random = np.random.default_rng(0)
  with metrics.Writer(workdir) as writer:
    for step in range(1, steps + 1):
      load = np.exp(random.normal(size=(3, 4)) / step)
      load /= load.mean(axis=1, keepdims=True)
      loss = math.nan if step == 150 else 1.3 + 4 / step
      writer.write(
        {
          "kind": "train",
          "step": step,
          "tokens": 4096 * step,
          "loss": loss,
          "mtp_loss": [1.2 * loss],
          "bits_per_byte": loss / math.log(2),
          "grad_norm": math.inf if step == 150 else 1 / step,
          "skipped": int(step >= 150),
          "learning_rate": 1e-3,
          "batch_size": 16,
          "max_violation_by_layer": metrics.max_violation(load),
          "tokens_per_second": 16000.0,
          "mfu": 0.25,
          "data_wait": 0.01,
        }
      )
      if step % 50 == 0 or step == steps:
        layers = ["1", "2", "mtp_0"]
        writer.write(
          {"kind": "load", "step": step, "layers": layers, "load": load}
        )
        bits = {"loss": 1.4, "bits_per_byte": 1.4 / math.log(2)}
        writer.write({"kind": "validation", "step": step, **bits})


class ReportTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.workdir = pathlib.Path(
      self.enterContext(tempfile.TemporaryDirectory())
    )

  @parameterized.parameters(1, 2, 200)
  def test_every_picture_has_ink(self, steps):
    _record(self.workdir, steps)
    paths = report.write(self.workdir, title="v3_tiny", bigram=3.53)
    self.assertEqual(tuple(path.name for path in paths), _FILES)
    for path in paths:
      self.assertEqual(path.parent, self.workdir / "report")
      pixels = image.imread(path)[..., :3]
      self.assertGreater(min(pixels.shape[:2]), 500)
      self.assertGreater(np.mean(pixels < 0.5), 0.001, path.name)

  def test_fp8_has_a_picture_where_it_was_measured(self):
    fields = ["layers", *(f"{t}_{f}" for t in _TENSORS for f in _STATISTICS)]
    numbers = {name: [0.01, 0.5] for name in fields}
    record = {"kind": "fp8", "step": 1, **numbers, "layers": ["0/a", "1/a"]}
    with metrics.Writer(self.workdir) as writer:
      writer.write({"kind": "train", "step": 1, "loss": 5.0})
      writer.write(record)
    paths = report.write(self.workdir)
    names = tuple(path.name for path in paths)
    self.assertEqual(names, (*_FILES, "fp8.png"))
    pixels = image.imread(paths[-1])[..., :3]
    self.assertGreater(np.mean(pixels < 0.5), 0.001)

  def test_a_resumed_run_has_the_pictures_of_an_uninterrupted_one(self):
    with metrics.Writer(self.workdir) as writer:
      for step in range(1, 8):
        writer.write({"kind": "train", "step": step, "loss": 5.0 / step})
    whole = {p.name: p.read_bytes() for p in report.write(self.workdir)}
    with metrics.Writer(self.workdir, resume_step=3) as writer:
      for step in range(4, 8):
        writer.write({"kind": "train", "step": step, "loss": 5.0 / step})
    again = {p.name: p.read_bytes() for p in report.write(self.workdir)}
    self.assertEqual(again, whole)

  def test_without_a_training_step_there_is_no_report(self):
    self.assertEqual(report.write(self.workdir), [])
    self.assertFalse((self.workdir / "report").exists())


if __name__ == "__main__":
  absltest.main()
