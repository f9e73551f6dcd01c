"""What a pretraining run is: the dataclass that a run's gin file describes.

Whatever can be found wrong without touching a device is found here, when the
configuration is built.
"""

import dataclasses
import json
from typing import Any

import jax

from dsx.data import pipeline
from dsx.models import config as config_lib
from dsx.models import dense_config
from dsx.models import precision
from dsx.ops import dtypes as dtypes_lib
from dsx.parallel import context
from dsx.parallel import mesh as mesh_lib
from dsx.parallel import sharding as sharding_lib
from dsx.training import epochs
from dsx.training import optimizer as optimizer_lib
from dsx.training import schedules
from dsx.training import start


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretraining:
  """Everything that a pretraining run is.

  Attributes:
    config: the model.
    data: what it reads.
    schedule: rates, batch sizes and loss weights over tokens; or over epochs
      of the data, for fine-tuning.
    init: the weights to start from; None for new ones.
    optimizer: AdamW's constants.
    dtypes: precision of each kind of number.
    execution: how the model is run.
    mesh: devices along each axis.
    sharding: where parameters and optimizer state live.
    micro_batch_size: sequences that go through the model at once, over all
      devices; None takes the schedule's first batch whole.
    seed: of the initial weights and of sampling.
    log_every: steps between metrics lines.
    fp8_health_every: steps between measurements of what FP8 loses in each
      layer (`fp8_health.py`), each about as long as a micro-batch; 0 for none.
      It means nothing where `dtypes.fp8` is None.
    evaluate_every: steps between validations; 0 validates at the end alone.
    evaluation_records: validation sequences scored each time.
    final_evaluation_records: validation sequences scored at the end.
    checkpoint_every: steps between checkpoints; 0 saves at the end alone.
    keep_checkpoints: newest checkpoints kept.
    ema_decay: of the average of parameters on the host (section 3.2.3), per
      update; None keeps none.
    ema_every: steps between its updates.
    max_skipped_in_a_row: non-finite updates after which the run stops.
    sample_tokens: length of the text sample at the end; 0 for none.
    sample_prompt: what the sample continues.
    sample_temperature: of the sample.
  """

  config: dense_config.Config
  data: pipeline.Data
  schedule: schedules.Schedule | epochs.Epochs
  init: start.Start | None = None
  optimizer: optimizer_lib.AdamW = optimizer_lib.AdamW()
  dtypes: dtypes_lib.Dtypes = dtypes_lib.Dtypes()
  execution: config_lib.Execution = config_lib.Execution()
  mesh: mesh_lib.MeshShape = mesh_lib.MeshShape()
  sharding: sharding_lib.Sharding = sharding_lib.Sharding()
  micro_batch_size: int | None = None
  seed: int = 0
  log_every: int = 10
  fp8_health_every: int = 100
  evaluate_every: int = 100
  evaluation_records: int = 256
  final_evaluation_records: int = 1024
  checkpoint_every: int = 500
  keep_checkpoints: int = 2
  ema_decay: float | None = None
  ema_every: int = 10
  max_skipped_in_a_row: int = 10
  sample_tokens: int = 400
  sample_prompt: str = "def "
  sample_temperature: float = 0.7

  def __post_init__(self):
    precision.check(self.config, self.dtypes)
    if self.data.sequence_length != self.schedule.sequence_length:
      raise ValueError(
        f"data.sequence_length={self.data.sequence_length}: expected "
        f"schedule.sequence_length={self.schedule.sequence_length}; bind both "
        "to one macro"
      )
    if self.data.sequence_length > self.config.max_position_embeddings:
      raise ValueError(
        f"data.sequence_length={self.data.sequence_length}: expected at most "
        f"config.max_position_embeddings="
        f"{self.config.max_position_embeddings}; shorten it"
      )
    if self.mesh.context > 0:  # -1: checked when the model is traced
      context.check_length(self.data.sequence_length, self.mesh.context)
    for field in ("log_every", "ema_every", "max_skipped_in_a_row"):
      if getattr(self, field) < 1:
        raise ValueError(
          f"{field}={getattr(self, field)!r}: expected at least 1; raise it"
        )
    if self.fp8_health_every < 0:
      raise ValueError(
        f"fp8_health_every={self.fp8_health_every!r}: expected at least 0, "
        "which never measures; raise it"
      )
    sizes = (
      self.schedule.batch_size_start,
      self.schedule.batch_size,
      *(
        (self.schedule.resolved_batch_multiple,)
        if self.schedule.batch_size_start != self.schedule.batch_size
        else ()
      ),
    )
    for size in sizes:
      if size % self.micro_batch:
        raise ValueError(
          f"micro_batch_size={self.micro_batch}: expected a divisor of every "
          f"batch size of the schedule, {size} among them; change it or the "
          "schedule's batch_size_start, batch_size and batch_multiple"
        )

  @property
  def micro_batch(self) -> int:
    """Sequences of one micro-batch."""
    return self.micro_batch_size or self.schedule.batch_size_start

  @property
  def micro_batches(self) -> int:
    """Micro-batches of the largest batch."""
    return self.schedule.batch_size // self.micro_batch

  def schedule_over(self, sequences: int) -> schedules.Schedule:
    """The schedule over data of a size.

    Args:
      sequences: of the training split.
    """
    if isinstance(self.schedule, epochs.Epochs):
      return self.schedule.over(sequences)
    return self.schedule

  def identity(self) -> dict:
    """What must be equal for a checkpoint to be this run's, as JSON data."""
    kept = "config schedule optimizer dtypes seed ema_decay ema_every"
    if self.init is not None:
      kept += " init"
    fields: dict[str, Any] = {
      name: getattr(self, name) for name in kept.split()
    }
    plain = {
      name: dataclasses.asdict(value)
      if dataclasses.is_dataclass(value) and not isinstance(value, type)
      else value
      for name, value in fields.items()
    }
    plain["data"] = self.data.described()
    return json.loads(json.dumps(plain))

  def devices(self) -> jax.sharding.Mesh:
    """The mesh of the devices that there are.

    Raises:
      ValueError: it does not match them, or does not divide a micro-batch.
    """
    mesh = mesh_lib.make(self.mesh)
    self.check_batch(mesh_lib.batch_shards(mesh))
    return mesh

  def check_batch(self, shards: int) -> None:
    """Refuses a micro-batch that does not divide over a mesh.

    Args:
      shards: parts into which the mesh divides a batch.
    """
    if self.execution.overlap == "two_batches" and self.micro_batch % (
      2 * shards
    ):
      raise ValueError(
        f"micro_batch_size={self.micro_batch}: expected a multiple of "
        f"{2 * shards}, because overlap='two_batches' halves what each of the "
        f"{shards} parts of a batch holds; change it or "
        "config.Execution.overlap"
      )
    if self.micro_batch % shards:
      raise ValueError(
        f"micro_batch_size={self.micro_batch}: expected a multiple of the "
        f"{shards} parts into which the mesh divides a batch; change it or "
        "mesh.MeshShape"
      )
