"""Two processes of two devices train as one process of eight does."""

import contextlib
import io
import json
import socket
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from dsx import cost
from dsx.data import pipeline
from dsx.data import store
from dsx.parallel import liveness
from dsx.training import checkpoint
from dsx.training import loop
from dsx.training import metrics
from dsx.training import report
from tests.training import tiny_run

# Long enough that the word of a signal gets round before the end.
_TOKENS = 30_000
_kept = contextlib.ExitStack()


def setUpModule():
  global _folder, _data
  _folder = _kept.enter_context(tiny_run.folder())
  _data = tiny_run.prepare(_folder / "data")


def tearDownModule():
  _kept.close()


def _free_port() -> int:
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    return probe.getsockname()[1]


class TwoProcessesTest(parameterized.TestCase):
  def _start(self, workdir, data=None, terminated=None):
    """Both processes; they are ended when the test ends.

    Args:
      workdir: of the run.
      data: a prepared data set, if not the good one.
      terminated: which process gets a SIGTERM before its fourth step.
    """
    port = _free_port()
    processes = []
    for rank in range(2):
      process = tiny_run.start(
        tiny_run.arguments(
          data or _data,
          workdir,
          f"--gin.Schedule.total_tokens={_TOKENS}",
          "--gin.Pretraining.checkpoint_every=1000",
          "--gin.Pretraining.sample_tokens=4",
          f"--coordinator_address=127.0.0.1:{port}",
          "--num_processes=2",
          f"--process_id={rank}",
        ),
        devices=2,
        module="tests.training.signalled_trainer",
        SIGNAL="SIGTERM",
        JAX_DISABLE_MOST_OPTIMIZATIONS="1",  # compiles faster
        MOMENT="3" if rank == terminated else "-1",
      )
      self.addCleanup(self._end, process)
      processes.append(process)
    return processes

  def _end(self, process):
    if process.poll() is None:
      process.kill()
    process.communicate()

  def _single(self):
    """Loss by step, and summary, of one process with eight devices."""
    run = tiny_run.build(
      _data,
      schedule__total_tokens=_TOKENS,
      checkpoint_every=0,
      sample_tokens=0,
    )
    with (
      contextlib.redirect_stdout(io.StringIO()),
      mock.patch.object(report, "write"),
      mock.patch.object(cost, "measure_peak_flops", return_value=1e11),
    ):
      summary = loop.train(run, _folder / "single")
    return self._losses(_folder / "single"), summary

  def _losses(self, workdir) -> dict[int, float]:
    return {
      record["step"]: record["loss"]
      for record in metrics.read(workdir)
      if record["kind"] == "train"
    }

  def test_sigterm_to_one_stops_both_at_one_step(self):
    workdir = _folder / "two"
    processes = self._start(workdir, terminated=1)
    outcomes = [tiny_run.outcome(process) for process in processes]
    for code, _, errors in outcomes:
      self.assertEqual(code, 0, errors)
    said = outcomes[0][1]
    self.assertRegex(said, r"stopped by SIGTERM after step \d+")
    self.assertIn("to resume: python -m experiments.pretrain", said)
    # What process 1 would say is the same: it says nothing.
    self.assertNotIn("step", outcomes[1][1].replace("[Gloo]", ""))
    (stopped,) = checkpoint.Checkpointer(workdir / "checkpoints").steps()
    summary = json.loads((workdir / "summary.json").read_text())
    self.assertEqual(summary["steps"], stopped)

    processes = self._start(workdir)
    outcomes = [tiny_run.outcome(process) for process in processes]
    for code, _, errors in outcomes:
      self.assertEqual(code, 0, errors)
    self.assertIn(f"resumed at step {stopped}", outcomes[0][1])

    summary = json.loads((workdir / "summary.json").read_text())
    losses, single = self._single()
    self.assertLess(stopped, summary["steps"])
    self.assertEqual(summary["steps"], single["steps"])
    self.assertEqual(summary["tokens"], single["tokens"])
    found = self._losses(workdir)
    self.assertEqual(found.keys(), losses.keys())
    # Sums in another order; Adam magnifies their difference step by step.
    first = sorted(losses)[:20]
    np.testing.assert_allclose(
      [found[step] for step in first],
      [losses[step] for step in first],
      rtol=1e-3,
    )
    self.assertAlmostEqual(
      summary["validation_bits_per_byte"],
      single["validation_bits_per_byte"],
      delta=0.02,
    )

  def test_one_that_fails_does_not_wait_for_the_other(self):
    data = _folder / "corrupt"
    self._damage_for_the_second(data)
    processes = self._start(_folder / "failed", data=data)
    code, _, errors = tiny_run.outcome(processes[1])
    lines = [line for line in errors.splitlines() if "Gloo" not in line]
    self.assertEqual(code, 1, errors)
    self.assertLen(lines, 1)
    self.assertRegex(lines[0], r"^record \d+ of shard .* is corrupt: ")
    # The first waits for it in a collective, and is told why it will not come.
    code, _, errors = tiny_run.outcome(processes[0])
    self.assertEqual(code, liveness.LOST, errors)
    self.assertRegex(
      errors,
      r"(?m)^process 1 on .* is lost: it failed: CorruptionError: record \d+ "
      r"of shard .*; process 0 ends, at ",
    )

  def _damage_for_the_second(self, directory):
    """Prepares data with one bad sequence in process 1's first batch."""
    tiny_run.prepare(directory)
    shard = directory / "train-00000.array_record"
    content = shard.read_bytes()
    data = tiny_run.build(directory).data
    for position in range(1000, len(content) // 4, 60):
      changed = bytearray(content)
      changed[position] ^= 1
      shard.write_bytes(changed)
      source = pipeline.open_split(data, "train", shuffle=True)
      bad = [row for row in range(24) if not self._good(source, row)]
      if len(bad) == 1 and 4 <= bad[0] < 8:
        return
    self.fail("no byte of the shard belongs to these sequences alone")

  def _good(self, source, row: int) -> bool:
    try:
      source.rows(np.array([row]))
    except store.CorruptionError:
      return False
    return True


if __name__ == "__main__":
  absltest.main()
