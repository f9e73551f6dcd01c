"""A run that contradicts itself is refused when it is described."""

import dataclasses

from absl.testing import absltest
from absl.testing import parameterized

from dsx.data import pipeline
from dsx.parallel import mesh as mesh_lib
from dsx.training import pretraining
from dsx.training import schedules
from tests.training import tiny


def _schedule(**changes) -> schedules.Schedule:
  fields = {
    "total_tokens": 8 * 24 * 100,
    "sequence_length": 8,
    "batch_size_start": 8,
    "batch_size": 24,
  }
  return schedules.Schedule(**(fields | changes))


def _run(**changes) -> pretraining.Pretraining:
  fields = {
    "config": tiny.model_config(),
    "data": pipeline.Data(sequence_length=8),
    "schedule": _schedule(),
  }
  return pretraining.Pretraining(**(fields | changes))


class PretrainingTest(parameterized.TestCase):
  @parameterized.named_parameters(
    (
      "two_lengths",
      {"data": pipeline.Data(sequence_length=16)},
      "data.sequence_length=16: expected schedule.sequence_length=8; bind both"
      " to one macro",
    ),
    (
      "too_long",
      {
        "data": pipeline.Data(sequence_length=128),
        "schedule": _schedule(sequence_length=128),
      },
      "data.sequence_length=128: expected at most"
      " config.max_position_embeddings=64; shorten it",
    ),
    (
      "context",
      {"mesh": mesh_lib.MeshShape(data=1, context=8)},
      "sequence length 8: expected a multiple of 16, twice"
      " mesh.MeshShape.context=8, so that every device has an early and a late"
      " chunk of a sequence; change the length or the mesh",
    ),
    (
      "log_every",
      {"log_every": 0},
      "log_every=0: expected at least 1; raise it",
    ),
    (
      "fp8_health_every",
      {"fp8_health_every": -1},
      "fp8_health_every=-1: expected at least 0, which never measures; raise"
      " it",
    ),
    (
      "max_skipped",
      {"max_skipped_in_a_row": 0},
      "max_skipped_in_a_row=0: expected at least 1; raise it",
    ),
    (
      "micro_batch",
      {"micro_batch_size": 5},
      "micro_batch_size=5: expected a divisor of every batch size of the"
      " schedule, 8 among them; change it or the schedule's batch_size_start,"
      " batch_size and batch_multiple",
    ),
    (
      "micro_batch_on_the_ramp",
      {"schedule": _schedule(batch_multiple=4)},
      "micro_batch_size=8: expected a divisor of every batch size of the"
      " schedule, 4 among them; change it or the schedule's batch_size_start,"
      " batch_size and batch_multiple",
    ),
  )
  def test_contradiction(self, changes, message):
    with self.assertRaises(ValueError) as caught:
      _run(**changes)
    self.assertEqual(str(caught.exception), message)

  def test_micro_batches(self):
    self.assertEqual((_run().micro_batch, _run().micro_batches), (8, 3))
    small = _run(micro_batch_size=4)
    self.assertEqual((small.micro_batch, small.micro_batches), (4, 6))

  def test_multiple_does_not_matter_without_a_ramp(self):
    schedule = _schedule(batch_size_start=24, batch_multiple=4)
    self.assertEqual(_run(schedule=schedule).micro_batch, 24)

  def test_devices(self):
    mesh = _run().devices()
    self.assertEqual(mesh.shape["data"], 8)
    with self.assertRaisesRegex(ValueError, "does not match 8 devices"):
      _run(mesh=mesh_lib.MeshShape(data=3)).devices()
    with self.assertRaisesRegex(
      ValueError,
      "^micro_batch_size=4: expected a multiple of the 8 parts into which the"
      " mesh divides a batch; change it or mesh.MeshShape$",
    ):
      _run(micro_batch_size=4).devices()

  def test_identity_names_what_changes_training(self):
    base = _run().identity()
    changed = {
      "seed": _run(seed=1),
      "ema": _run(ema_decay=0.5),
      "rate": _run(schedule=_schedule(learning_rate=1e-3)),
      "data": _run(data=pipeline.Data(sequence_length=8, seed=3)),
    }
    for name, run in changed.items():
      self.assertNotEqual(run.identity(), base, name)
    same = {
      "log": _run(log_every=1, fp8_health_every=3),
      "place": _run(data=pipeline.Data(sequence_length=8, cache_dir="/x")),
      "mesh": _run(mesh=mesh_lib.MeshShape(data=1, local=8)),
    }
    for name, run in same.items():
      self.assertEqual(run.identity(), base, name)

  def test_frozen(self):
    with self.assertRaises(dataclasses.FrozenInstanceError):
      _run().seed = 3


if __name__ == "__main__":
  absltest.main()
