"""One checkpoint is gone on with on 1, 2 and 8 devices, with the same data."""

import contextlib
import functools
import hashlib
import io
import pathlib
import shutil
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from dsx import cost
from dsx.parallel import mesh as mesh_lib
from dsx.training import batches
from dsx.training import loop
from dsx.training import metrics
from dsx.training import report
from dsx.training import step_directory
from tests.training import tiny_run

# 13 steps, over which the batch grows from one micro-batch to three.
_TOKENS = 6_000
_EVERY = 4
_FROM = 8
_kept = contextlib.ExitStack()


def setUpModule():
  """A run on 8 devices, from the first step to the last."""
  global _folder, _whole, _batches
  _folder = _kept.enter_context(tiny_run.folder())
  tiny_run.prepare(_folder / "data")
  _whole = _folder / "whole"
  _batches = _train(_whole, 8)


def tearDownModule():
  _kept.close()


def _train(workdir: pathlib.Path, devices: int) -> dict[int, str]:
  """Trains, or goes on, on some devices; returns digests of batches by step."""
  run = tiny_run.build(
    _folder / "data",
    schedule__total_tokens=_TOKENS,
    checkpoint_every=_EVERY,
    keep_checkpoints=9,
    sample_tokens=0,
  )
  make = functools.partial(mesh_lib.make, devices=jax.devices()[:devices])
  read, found = batches.Batches.__next__, {}

  def recorded(self):
    position, batch = read(self)
    tokens = np.ascontiguousarray(batch["tokens"])
    found[position.step] = hashlib.sha256(tokens.tobytes()).hexdigest()
    return position, batch

  with (
    contextlib.redirect_stdout(io.StringIO()),
    mock.patch.object(mesh_lib, "make", make),
    mock.patch.object(batches.Batches, "__next__", recorded),
    mock.patch.object(report, "write"),
    mock.patch.object(cost, "measure_peak_flops", return_value=1e11),
  ):
    loop.train(run, workdir)
  return found


def _losses(workdir: pathlib.Path) -> dict[int, float]:
  return {
    record["step"]: record["loss"]
    for record in metrics.read(workdir)
    if record["kind"] == "train"
  }


class ResumeTest(parameterized.TestCase):
  @parameterized.parameters(1, 2, 8)
  def test_same_data_and_losses(self, devices):
    workdir = _folder / f"on_{devices}"
    shutil.copytree(_whole, workdir)
    steps = step_directory.StepDirectory(workdir / "checkpoints")
    for step in steps.complete():
      if step > _FROM:
        steps.remove(step)
    self.assertEqual(steps.complete(), [4, _FROM])

    found = _train(workdir, devices)

    self.assertEqual(min(found), _FROM)
    expected = {k: v for k, v in _batches.items() if k >= _FROM}
    self.assertEqual(found, expected)
    self.assertLen(set(found.values()), len(found))  # no two are the same
    before, now = _losses(_whole), _losses(workdir)
    self.assertEqual(before.keys(), now.keys())
    # On as many devices the same numbers; else sums in another order.
    np.testing.assert_allclose(
      list(now.values()),
      list(before.values()),
      rtol=0 if devices == 8 else 1e-4,
    )


if __name__ == "__main__":
  absltest.main()
