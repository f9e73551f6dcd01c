"""What is recorded of a run, and when refused updates end it."""

import contextlib
import io
import math
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np

from dsx.evals import text
from dsx.training import metrics as metrics_lib
from dsx.training import observer
from dsx.training import schedules

_LENGTH, _BATCH, _STEPS = 8, 4, 24
_LOAD = np.array([[6.0, 2.0, 4.0, 4.0], [4.0, 4.0, 4.0, 4.0]], np.float32)


def _schedule() -> schedules.Schedule:
  return schedules.constant(
    steps=_STEPS, learning_rate=0.5, batch_size=_BATCH, sequence_length=_LENGTH
  )


def _metrics(loss: float, finite: bool = True) -> dict:
  return {
    "loss": jnp.float32(loss),
    "mtp_loss": jnp.array([2 * loss], jnp.float32),
    "balance_loss": jnp.float32(1.0),
    "load": jnp.asarray(_LOAD),
    "dropped": jnp.float32(0.25 * np.sum(_LOAD)),
    "grad_norm": jnp.float32(3.0),
    "max_violation": jnp.array([0.5, 0.0]),
    "finite": jnp.asarray(finite),
  }


class ObserverTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.workdir = self.create_tempdir().full_path
    self.enter_context(contextlib.redirect_stdout(io.StringIO()))

  def _observer(self, **changes) -> observer.Observer:
    fields = {
      "schedule": _schedule(),
      "first_step": 0,
      "skipped": 0,
      "skipped_in_a_row": 0,
      "bytes_per_token": 2.0,
      "mfu": lambda speed: speed / 1e12,
      "layers": ["1", "mtp_0"],
      "log_every": 5,
      "max_skipped_in_a_row": 3,
    }
    return observer.Observer(self.workdir, **(fields | changes))

  def _take(self, show, first: int, last: int, **wrong) -> None:
    """Takes steps `first` to `last`; step n has loss n."""
    for step in range(first, last):
      position = _schedule().position(step)
      finite = step not in wrong.get("refused", ())
      loss = step + 1.0 if finite else math.nan
      phase = _schedule().phase(step)
      show.took(position, phase, _metrics(loss, finite), 0.25 * step)

  def _records(self, kind="train") -> list[dict]:
    found = metrics_lib.read(self.workdir)
    return [record for record in found if record["kind"] == kind]

  def test_a_record_is_the_mean_since_the_one_before(self):
    with self._observer() as show:
      self._take(show, 0, _STEPS)
      show.flush()
    records = self._records()
    steps = [record["step"] for record in records]
    self.assertEqual(steps, [1, 2, 5, 10, 15, 20, _STEPS])
    losses = [record["loss"] for record in records]
    self.assertEqual(losses, [1, 2, 4, 8, 13, 18, 22.5])
    last = records[-1]
    self.assertEqual(last["mtp_loss"], [45])
    self.assertEqual(last["tokens"], _STEPS * _BATCH * _LENGTH)
    self.assertAlmostEqual(
      last["bits_per_byte"], 22.5 / math.log(2) / 2, places=5
    )
    self.assertEqual(last["learning_rate"], 0.5)
    self.assertEqual(last["batch_size"], _BATCH)
    self.assertEqual(last["max_violation"], 0.5)
    self.assertEqual(last["max_violation_by_layer"], [0.5, 0])
    self.assertEqual(last["skipped"], 0)
    self.assertEqual(last["dropped"], 0.25)
    self.assertEqual(show.train_loss, 22.5)
    self.assertEqual(show.max_violation, 0.5)

  def test_load_is_relative_to_its_mean(self):
    with self._observer(log_every=1) as show:
      self._take(show, 0, 2)
      show.flush()
    record = self._records("load")[-1]
    self.assertEqual(record["layers"], ["1", "mtp_0"])
    self.assertEqual(record["load"], [[1.5, 0.5, 1, 1], [1, 1, 1, 1]])

  def test_a_step_is_read_after_the_next_was_dispatched(self):
    with self._observer(log_every=1) as show:
      self._take(show, 0, 3)
      self.assertEqual([r["step"] for r in self._records()], [1, 2])
      show.flush()
      self.assertEqual([r["step"] for r in self._records()], [1, 2, 3])
      show.flush()
      self.assertLen(self._records(), 3)

  def test_speed_leaves_out_compilation_and_pauses(self):
    clock = mock.Mock(return_value=0.0)
    with mock.patch.object(observer.time, "monotonic", clock):
      with self._observer() as show:
        self._take(show, 0, 1)
        clock.return_value = 100.0  # compiling
        show.flush()
        self._take(show, 1, 5)
        clock.return_value = 104.0
        with show.pause():
          clock.return_value = 150.0  # validating
        clock.return_value = 152.0
        show.flush()
        speed = show.tokens_per_second()
    # Steps 2 to 5; 4 + 2 seconds, of which 0 to step 2.
    self.assertAlmostEqual(speed, 4 * _BATCH * _LENGTH / 6.0)
    self.assertTrue(math.isnan(self._records()[0]["tokens_per_second"]))

  def test_refused_updates_are_counted_and_left_out(self):
    with self._observer() as show:
      self._take(show, 0, 10, refused=(2, 3, 7))
      show.flush()
    records = self._records()
    self.assertEqual([r["skipped"] for r in records], [0, 0, 2, 3])
    self.assertEqual(records[2]["loss"], 5)  # step 5 alone
    self.assertEqual(records[3]["loss"], np.mean([6, 7, 9, 10]))

  def test_too_many_in_a_row_end_the_run(self):
    with (
      self._observer() as show,
      self.assertRaisesRegex(
        observer.TrainingError, r"^3 updates in a row up to step 7 were not"
      ),
    ):
      self._take(show, 0, _STEPS, refused=(1, 2, 4, 5, 6))
    self.assertLess(self._records()[-1]["step"], 7)

  def test_goes_on_counting_after_a_resume(self):
    with self._observer(first_step=6, skipped=4, skipped_in_a_row=2) as show:
      self._take(show, 6, 8, refused=())
      show.flush()
      self._take(show, 8, 10, refused=(9,))
      show.flush()
    self.assertEqual(self._records()[-1]["skipped"], 5)
    with (
      self._observer(first_step=6, skipped=4, skipped_in_a_row=2) as show,
      self.assertRaisesRegex(observer.TrainingError, "3 updates in a row"),
    ):
      self._take(show, 6, 7, refused=(6,))
      show.flush()

  def test_validation(self):
    score = text.TextScore(
      loss=1.5, mtp_loss=(2.0,), bits_per_byte=2.1, tokens=8
    )
    with self._observer() as show:
      self.assertIsNone(show.validation)
      show.validated(_schedule().position(7), score, ema_bits_per_byte=2.2)
    self.assertEqual(show.validation, score)
    self.assertEqual(
      self._records("validation"),
      [
        {
          "kind": "validation",
          "step": 7,
          "tokens": 7 * _BATCH * _LENGTH,
          "loss": 1.5,
          "mtp_loss": [2.0],
          "bits_per_byte": 2.1,
          "ema_bits_per_byte": 2.2,
        }
      ],
    )

  def test_a_note_is_a_record_and_a_line(self):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), self._observer() as show:
      show.note({"kind": "fp8", "step": 7}, "warning: look")
      show.note({"kind": "fp8", "step": 8})
    self.assertEqual([r["step"] for r in self._records("fp8")], [7, 8])
    self.assertEqual(printed.getvalue(), "warning: look\n")


if __name__ == "__main__":
  absltest.main()
