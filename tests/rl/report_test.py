"""Plots of runs of every kind: whole, short, resumed, with gaps and alarms."""

import hashlib
import math
import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import matplotlib
from matplotlib import figure
import numpy as np

from dsx.rl import alarms
from dsx.rl import measures
from dsx.rl import panels
from dsx.rl import report
from dsx.training import canvas
from dsx.training import metrics

_PANELS = "accuracy reward entropy length groups mismatch update time".split()


def _step(step: int, **changes) -> dict:
  return {
    "kind": measures.STEP,
    "step": step,
    "reward": 0.5 + step / 100,
    "reward_accuracy": step / 50,
    "reward_format": 1.0,
    "pass_1": step / 50,
    "entropy": 1.0 / step,
    "kl": step / 1000,
    "length": 20.0 + step,
    "longest": 60,
    "truncated": 0.1,
    "repetition": 0.0,
    "all_right": 0.1,
    "all_wrong": 0.3,
    "zero_std": 0.4,
    "mismatch_mean": 1e-6,
    "mismatch_max": 1e-4,
    "grad_norm": 1.0,
    "clipped": 0.01,
    "reference_step": step // 10 * 10,
    "seconds_generate": 1.0,
    "seconds_score": 0.1,
    "seconds_recompute": 0.3,
    "seconds_update": 0.6,
    **changes,
  }


def _examination(step: int, k: int = 8) -> dict:
  found = {"kind": measures.EVALUATION, "step": step, "k": k}
  for name, value in (("pass_1", 0.4), ("pass_k", 0.8), ("cons_k", 0.5)):
    found |= {name: value, f"{name}_low": value - 0.1}
    found |= {f"{name}_high": value + 0.1}
  return found


class ReportTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  def _write(self, *records, resume_step=None):
    with metrics.Writer(self.folder, resume_step) as writer:
      for record in records:
        writer.write(record)

  def test_draws_everything_and_the_same_again(self):
    alarm = alarms.Alarm("entropy", 12, "fell")
    self._write(
      _examination(0),
      *map(_step, range(1, 21)),
      _examination(20),
      {"kind": measures.ALARM, "step": 12, "rule": alarm.rule, "words": "fell"},
    )
    paths = report.write(self.folder, title="a run")
    self.assertEqual([path.stem for path in paths], ["overview", *_PANELS])
    before = [hashlib.sha256(p.read_bytes()).digest() for p in paths]
    paths = report.write(self.folder, title="a run")
    after = [hashlib.sha256(p.read_bytes()).digest() for p in paths]
    self.assertEqual(before, after)
    self.assertGreater(paths[0].stat().st_size, 30_000)

  def test_a_step_counts_once(self):
    self._write(*map(_step, range(1, 6)))
    self._write(
      _step(4, reward=0.9),
      _examination(4),
      _examination(4, k=16),
      resume_step=3,
    )
    found = report.read(self.folder)
    self.assertEqual([r["step"] for r in found.steps], [1, 2, 3, 4])
    self.assertEqual(found.steps[-1]["reward"], 0.9)
    self.assertEqual([r["k"] for r in found.examinations], [16])

  def test_nothing_recorded(self):
    self.assertEmpty(report.write(self.folder))

  @parameterized.parameters(*_PANELS)
  def test_panel_without_most_of_it(self, name):
    gaps = {field: math.nan for field in _step(1) if field not in "kind step"}
    one = panels.Records([_step(1, **gaps)], [], [])
    none = {"kind": measures.STEP, "step": 1}
    with matplotlib.rc_context(canvas.STYLE):
      for run in (one, panels.Records([none], [_examination(1, k=1)], [])):
        drawing = figure.Figure(layout="constrained")
        getattr(panels, name)(drawing, run)
        drawing.canvas.draw()
        self.assertNotEmpty(drawing.axes)

  def test_alarms_are_marked_in_every_panel(self):
    alarm = {"kind": measures.ALARM, "step": 7, "rule": "zero_std"}
    run = panels.Records([*map(_step, range(1, 11))], [], [alarm])
    for name in _PANELS:
      drawing = figure.Figure()
      getattr(panels, name)(drawing, run)
      for axes in drawing.axes:
        marks = [
          line
          for line in axes.lines
          if np.array_equal(np.asarray(line.get_xdata()), [7, 7])
        ]
        self.assertLen(marks, 1, name)


if __name__ == "__main__":
  absltest.main()
