"""Metrics survive kills, full disks and resumptions."""

import json
import math
import os
import pathlib
import resource
import struct
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np
from tensorboardX.proto import event_pb2

from dsx.training import metrics


def _train(step, **fields):
  return {"kind": "train", "step": step, "loss": 5.0 / (step + 1), **fields}


def _events(path):
  """The events of a TensorBoard file: length, checksum, bytes, checksum."""
  data, events = path.read_bytes(), []
  while data:
    (length,) = struct.unpack("<Q", data[:8])
    events.append(event_pb2.Event.FromString(data[12 : 12 + length]))
    data = data[16 + length :]
  return events


class MaxViolationTest(parameterized.TestCase):
  @parameterized.parameters(
    ([5, 5, 5, 5], 0.0),
    ([3, 1], 0.5),
    ([8, 0, 0, 0], 3.0),  # E - 1: one expert has everything
    ([0.5, 1.5, 1.0], 0.5),
  )
  def test_literal(self, load, expected):
    self.assertAlmostEqual(float(metrics.max_violation(load)), expected)

  def test_layers_are_separate_and_units_do_not_matter(self):
    load = np.asarray([[1.0, 3.0], [2.0, 2.0]])
    np.testing.assert_allclose(metrics.max_violation(load), [0.5, 0.0])
    np.testing.assert_allclose(metrics.max_violation(1e6 * load), [0.5, 0.0])

  def test_no_tokens_is_nan(self):
    self.assertTrue(math.isnan(metrics.max_violation([0, 0])))


class MetricsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.workdir = pathlib.Path(self.create_tempdir().full_path)
    self.path = self.workdir / metrics.FILE_NAME

  def _write(self, records, **kwargs):
    with metrics.Writer(self.workdir, **kwargs) as writer:
      for record in records:
        writer.write(record)

  def test_reads_what_was_written(self):
    record = _train(3, tokens=2**40, mtp_loss=[2.5, 2.75], note="warm-up")
    self._write([record])
    self.assertEqual(metrics.read(self.workdir), [record])

  def test_float32_is_exact(self):
    values = np.random.default_rng(0).normal(size=200).astype(np.float32)
    values = np.concatenate([values, 1e-38 * values, 1e38 * values])
    self._write([{"kind": "train", "step": 1, "values": values}])
    read = np.asarray(metrics.read(self.workdir)[0]["values"], np.float32)
    np.testing.assert_array_equal(read, values)

  def test_takes_numpy_and_jax_numbers(self):
    self._write(
      [_train(np.int64(1), loss=jnp.float32(0.5), mtp_loss=jnp.ones([2]))]
    )
    expected = {"kind": "train", "step": 1, "loss": 0.5, "mtp_loss": [1.0, 1.0]}
    self.assertEqual(metrics.read(self.workdir), [expected])

  def test_what_is_not_finite_is_null_in_strict_json(self):
    self._write([_train(1, loss=math.nan, mtp_loss=[1.0, -math.inf])])

    def refuse(constant):
      self.fail(f"{constant} is not JSON")

    raw = json.loads(self.path.read_text(), parse_constant=refuse)
    self.assertIsNone(raw["loss"])
    self.assertEqual(raw["mtp_loss"], [1.0, None])
    read = metrics.read(self.workdir)[0]
    self.assertTrue(math.isnan(read["loss"]))
    self.assertTrue(math.isnan(read["mtp_loss"][1]))

  def test_resumed_file_is_that_of_an_uninterrupted_run(self):
    records = [_train(step) for step in range(1, 9)]
    records.insert(4, {"kind": "validation", "step": 4, "loss": 1.0})
    self._write(records)
    whole = self.path.read_bytes()
    later = [record for record in records if record["step"] > 4]
    self._write(later, resume_step=4)
    self.assertEqual(self.path.read_bytes(), whole)

  def test_a_new_run_drops_what_was_there(self):
    self._write([_train(0), _train(1)])
    self._write([_train(0)])
    self.assertEqual(metrics.read(self.workdir), [_train(0)])

  def test_every_half_written_last_line_is_repaired(self):
    self._write([_train(1), _train(2, note='a "quoted" word, ü')])
    whole = self.path.read_bytes()
    first = whole.splitlines(keepends=True)[0]
    for cut in range(len(first) + 1, len(whole)):
      self.path.write_bytes(whole[:cut])
      self.assertLen(
        metrics.read(self.workdir), 2 if cut == len(whole) - 1 else 1
      )
      self._write([], resume_step=2)
      # Without its line break alone, the last line is still whole.
      expected = whole if cut == len(whole) - 1 else first
      self.assertEqual(self.path.read_bytes(), expected, f"cut at {cut}")

  def test_a_kill_while_dropping_leaves_the_old_file(self):
    self._write([_train(step) for step in range(4)])
    before = self.path.read_bytes()
    with mock.patch.object(os, "replace", side_effect=KeyboardInterrupt):
      with self.assertRaises(KeyboardInterrupt):
        metrics.Writer(self.workdir, resume_step=1)
    self.assertEqual(self.path.read_bytes(), before)

  def test_a_full_disk_is_an_error_and_leaves_whole_lines(self):
    with metrics.Writer(self.workdir) as writer:
      writer.write(_train(1))
      size = self.path.stat().st_size
      _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
      resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, hard))
      try:
        with self.assertRaises(OSError):
          writer.write(_train(2))
      finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
      self.assertEqual(self.path.stat().st_size, size)
      writer.write(_train(3))
    steps = [record["step"] for record in metrics.read(self.workdir)]
    self.assertEqual(steps, [1, 3])

  def test_no_metrics_reads_as_none(self):
    self.assertEqual(metrics.read(self.workdir), [])

  @parameterized.parameters(
    ({"step": 1}, "kind=None: expected the record's kind"),
    ({"kind": "train"}, "step=None: expected the number of finished steps"),
    ({"kind": "train", "step": 1.0}, "step=1.0: expected the number"),
    ({"kind": "train", "step": True}, "step=True: expected the number"),
  )
  def test_refuses_nameless_records(self, record, message):
    with metrics.Writer(self.workdir) as writer:
      with self.assertRaisesRegex(ValueError, message):
        writer.write(record)
    self.assertEqual(self.path.read_bytes(), b"")

  def test_tensorboard_has_the_same_numbers(self):
    load = {"kind": "load", "step": 7, "layers": ["1", "mtp_0"]}
    self._write(
      [
        _train(7, mtp_loss=[2.0, 3.0], grad_norm=math.nan),
        {**load, "load": [[1.0, 1.0], [0.5, 1.5]]},
      ]
    )
    (path,) = (self.workdir / metrics.TENSORBOARD_NAME).iterdir()
    values = {
      value.tag: value
      for event in _events(path)
      for value in event.summary.value
      if event.step == 7
    }
    scalars = {
      tag: value.simple_value
      for tag, value in values.items()
      if not value.HasField("histo")
    }
    self.assertTrue(math.isnan(scalars.pop("train/grad_norm")))
    expected = {
      "train/loss": np.float32(0.625),
      "train/mtp_loss/0": 2.0,
      "train/mtp_loss/1": 3.0,
    }
    self.assertEqual(scalars, expected)
    self.assertEqual(values["load/load/mtp_0"].histo.max, 1.5)
    self.assertEqual(values["load/load/1"].histo.min, 1.0)

  def test_fp8_is_a_curve_of_each_layer_in_tensorboard(self):
    shares = [0.123456, math.nan]
    names = ["3/self_attn/o_proj", "mtp_0/eh_proj"]
    record = {"kind": "fp8", "step": 7, "layers": names}
    self._write([record | {"gradient_underflow": shares}])
    read = metrics.read(self.workdir)[0]
    self.assertEqual(read["layers"], names)
    self.assertEqual(read["gradient_underflow"][0], 0.1235)
    (path,) = (self.workdir / metrics.TENSORBOARD_NAME).iterdir()
    values = {
      value.tag: value.simple_value
      for event in _events(path)
      for value in event.summary.value
    }
    self.assertEqual(
      list(values), [f"fp8/gradient_underflow/{name}" for name in names]
    )
    first = values[f"fp8/gradient_underflow/{names[0]}"]
    self.assertEqual(first, np.float32(0.1235))

  def test_tensorboard_hides_steps_that_are_done_again(self):
    self._write([_train(step) for step in range(1, 6)])
    self._write([_train(4)], resume_step=3)
    folder = self.workdir / metrics.TENSORBOARD_NAME
    first, second = sorted(folder.iterdir())
    starts = [
      event.step
      for path in (first, second)
      for event in _events(path)
      if event.HasField("session_log")
    ]
    self.assertEqual(starts, [0, 4])


if __name__ == "__main__":
  absltest.main()
