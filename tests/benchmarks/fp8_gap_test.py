"""The comparison of losses in FP8 and bfloat16, on runs of a few steps."""

import dataclasses
import json
import math
import pathlib
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from benchmarks import fp8_gap
from benchmarks import fp8_gap_report
from benchmarks import fp8_page
from tests.training import tiny_run


def _result(precision, seed, loss, *, config="v3_tiny", validation=2.0):
  return {
    "config": config,
    "precision": precision,
    "steps": len(loss),
    "seed": seed,
    "loss": loss,
    "validation": validation,
  }


class ReportTest(parameterized.TestCase):
  def test_smoothing_is_the_report_s(self):
    np.testing.assert_allclose(
      fp8_gap_report.smoothed([4.0, 2.0, 3.0]), [4.0, 3.8, 3.72]
    )

  def test_difference_is_in_percent_of_the_baseline(self):
    np.testing.assert_allclose(
      fp8_gap_report.relative([4.0, 2.0], [5.0, 5.0]), [-20.0, -24.0]
    )

  @parameterized.parameters(
    ([5.0, 4.0, 3.0, 3.1], False),
    ([5.0, 4.0, math.nan], True),
    ([5.0] * 30 + [3.0] * 40 + [5.0] * 40, True),
  )
  def test_divergence(self, loss, expected):
    self.assertEqual(fp8_gap_report.has_diverged(loss), expected)

  def test_runs_are_compared_with_the_same_seed_and_length(self):
    results = [
      _result("bfloat16", 0, [4.0, 4.0], validation=4.0),
      _result("bfloat16", 1, [5.0, 5.0], validation=5.0),
      _result("bfloat16", 1, [1.0, 1.0, 1.0]),
      _result("fp8", 0, [4.04, 4.04], validation=4.04),
      _result("fp8", 1, [5.15, 5.15], validation=5.0),
      _result("fp8", 2, [9.0, 9.0]),  # no such baseline
    ]
    found = {c.name: c for c in fp8_gap_report.comparisons(results)}
    self.assertCountEqual(found, ["fp8", fp8_gap_report.OTHER_SEED])
    np.testing.assert_allclose(found["fp8"].curves, [[1.0] * 2, [3.0] * 2])
    self.assertEqual(
      found["fp8"].row,
      [
        *("v3_tiny", "2", "fp8", "2", "+2.00% ± 1.00", "3.00%"),
        *("+2.00% ± 1.00", "3.00%", "+0.50% ± 0.50", "0 of 2"),
      ],
    )
    other = found[fp8_gap_report.OTHER_SEED]
    np.testing.assert_allclose(other.curves, [[-20.0] * 2])

  def test_a_run_that_is_not_finite_is_said_to_be(self):
    results = [
      _result("bfloat16", 0, [4.0, 4.0]),
      _result("fp8", 0, [4.0, math.nan], validation=math.nan),
    ]
    (found,) = fp8_gap_report.comparisons(results)
    self.assertIn("not finite", found.row)
    self.assertEqual(found.row[-1], "1 of 1")

  def test_models_are_in_order_of_size(self):
    results = [
      _result(name, 0, [3.0] * steps, config=config)
      for config, steps in (("v3_mini", 3), ("v3_tiny", 2), ("v3_tiny", 4))
      for name in ("bfloat16", "fp8")
    ]
    found = fp8_gap_report.comparisons(results)
    self.assertEqual(
      [(c.config, c.steps) for c in found],
      [("v3_tiny", 4), ("v3_tiny", 2), ("v3_mini", 3)],
    )

  def test_plot_and_page(self):
    results = [
      _result(name, seed, [3.0 + seed + i / 100 for i in range(60)])
      for name in ("bfloat16", "float32", "fp8", "fp8_per_tensor")
      for seed in range(2)
    ]
    folder = pathlib.Path(self.create_tempdir().full_path)
    path = folder / "images" / "gap.png"
    fp8_gap_report.plot(fp8_gap_report.comparisons(results), path)
    self.assertEqual(path.read_bytes()[:4], b"\x89PNG")
    page = folder / "page.md"
    page.write_text("A\n<!-- gap: by hand -->\nold\n<!-- /gap -->\nB\n")
    fp8_page.write("gap", "| new |", page)
    text = page.read_text()
    self.assertRegex(text, r"^A\n<!-- gap: by hand -->\n\n\d{4}-.* commit \S+")
    self.assertTrue(text.endswith("\n\n| new |\n\n<!-- /gap -->\nB\n"))
    self.assertNotIn("old", text)
    with self.assertRaisesRegex(ValueError, "one section `<!-- speed: "):
      fp8_page.write("speed", "", page)


class TrainedTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    data = tiny_run.prepare(
      pathlib.Path(absltest.get_default_test_tmpdir()) / "fp8_gap_data"
    )
    cls.run_of_ci = tiny_run.build(data, final_evaluation_records=8)
    schedule = cls.run_of_ci.schedule
    tokens = 3 * schedule.batch_size_start * schedule.sequence_length
    cls.run_of_ci = dataclasses.replace(
      cls.run_of_ci, schedule=dataclasses.replace(schedule, total_tokens=tokens)
    )

  def test_a_seed_is_an_initialisation_and_finished_runs_are_kept(self):
    work = pathlib.Path(self.create_tempdir().full_path)
    setting = fp8_gap.Setting("ci", "float32", 3, seeds=2)
    with mock.patch.object(fp8_gap, "build", lambda _: self.run_of_ci):
      fp8_gap.complete(setting, work)
    first, second = fp8_gap.finished(work)
    self.assertEqual((first["seed"], second["seed"]), (0, 1))
    self.assertNotEqual(first["loss"], second["loss"])
    again = fp8_gap.Trained(self.run_of_ci).train(0)
    self.assertEqual(again["loss"], first["loss"])
    self.assertEqual(again["validation"], first["validation"])
    with mock.patch.object(fp8_gap, "build", side_effect=AssertionError):
      fp8_gap.complete(setting, work)
    self.assertLen(fp8_gap.finished(work), 2)


class SettingsTest(parameterized.TestCase):
  @parameterized.parameters(*(s.name for s in fp8_gap.SETTINGS))
  def test_builds(self, name):
    (setting,) = fp8_gap.chosen([name], None)
    run = fp8_gap.build(setting)
    self.assertEqual(run.schedule.total_steps(), setting.steps)
    in_float8 = setting.precision.startswith("fp8")
    self.assertEqual(run.dtypes.fp8 is not None, in_float8)
    json.dumps(run.identity())

  def test_another_name_is_refused(self):
    with self.assertRaisesRegex(ValueError, "--only v3:fp8: expected some of"):
      list(fp8_gap.chosen(["v3:fp8"], None))


if __name__ == "__main__":
  absltest.main()
