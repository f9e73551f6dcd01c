"""What the training of a reward model is: the dataclass of its gin file.

DeepSeek-R1's supplement: batches of 256, a rate of 6e-6, one epoch, texts of at
most 8,192 tokens. The helpful model reads the summary, the safety model the
whole response.
"""

import dataclasses
import hashlib
import json
import pathlib
from typing import Any

import jax

from dsx.data import prompt_template
from dsx.models import config as config_lib
from dsx.parallel import mesh as mesh_lib
from dsx.parallel import sharding as sharding_lib
from dsx.rl import preferences as preferences_lib
from dsx.training import optimizer as optimizer_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardTraining:
  """Everything that the training of a reward model is.

  Attributes:
    init: the policy that it starts as: workdir of a run, or a Hugging Face
      folder.
    preferences: file of pairs or of labels, see `preferences.read`.
    part: of a response that is judged: `summary`, or `whole`.
    template: how prompts are put.
    batch_size: pairs, or labelled responses, of an update.
    micro_batch_size: of these that go through the model at once, over all
      devices; None for the whole batch.
    epochs: how often all are read.
    learning_rate: after the warm-up.
    warmup_steps: in which the rate grows from zero.
    longest: tokens of prompt and response; longer ones are left out, counted.
    held_out: share of the prompts that accuracy is measured on.
    optimizer: AdamW's constants.
    execution: how the model is run.
    mesh: devices along each axis.
    sharding: where parameters and optimizer state live.
    seed: of the order.
    log_every: steps between metrics lines.
    evaluate_every: steps between measurements; 0 measures at the end alone.
    checkpoint_every: steps between checkpoints; 0 saves at the end alone.
    keep_checkpoints: newest checkpoints kept.
  """

  init: str
  preferences: str
  part: preferences_lib.Part = "summary"
  template: prompt_template.Template = prompt_template.Template()
  batch_size: int = 256
  micro_batch_size: int | None = None
  epochs: int = 1
  learning_rate: float = 6e-6
  warmup_steps: int = 0
  longest: int = 8192
  held_out: float = 0.05
  optimizer: optimizer_lib.AdamW = optimizer_lib.AdamW()
  execution: config_lib.Execution = config_lib.Execution()
  mesh: mesh_lib.MeshShape = mesh_lib.MeshShape()
  sharding: sharding_lib.Sharding = sharding_lib.Sharding()
  seed: int = 0
  log_every: int = 10
  evaluate_every: int = 0
  checkpoint_every: int = 100
  keep_checkpoints: int = 2

  def __post_init__(self):
    if self.part not in preferences_lib.PARTS:
      raise ValueError(
        f"part={self.part!r}: expected one of"
        f" {', '.join(preferences_lib.PARTS)}; change it"
      )
    for field in "batch_size epochs longest log_every keep_checkpoints".split():
      if getattr(self, field) < 1:
        raise ValueError(
          f"{field}={getattr(self, field)!r}: expected at least 1; raise it"
        )
    for field in "warmup_steps evaluate_every checkpoint_every".split():
      if getattr(self, field) < 0:
        raise ValueError(
          f"{field}={getattr(self, field)!r}: expected at least 0; raise it"
        )
    if not self.learning_rate > 0:
      raise ValueError(
        f"learning_rate={self.learning_rate!r}: expected more than 0; raise it"
      )
    if not 0 <= self.held_out < 1:
      raise ValueError(
        f"held_out={self.held_out!r}: expected 0 to less than 1; change it"
      )
    if self.batch_size % self.micro_batch:
      raise ValueError(
        f"micro_batch_size={self.micro_batch}: expected a divisor of"
        f" batch_size={self.batch_size}; change either"
      )

  @property
  def micro_batch(self) -> int:
    """Pairs or responses of one micro-batch."""
    return self.micro_batch_size or self.batch_size

  def rate(self, step: int) -> float:
    """The learning rate of a step, counted from 0."""
    return self.learning_rate * min(1.0, (step + 1) / (self.warmup_steps + 1))

  def identity(self) -> dict[str, Any]:
    """What must be equal for a checkpoint to be this run's, as JSON data."""
    kept = "init part template batch_size epochs learning_rate warmup_steps"
    kept += " longest held_out optimizer seed"
    plain = dataclasses.asdict(self)
    fields: dict[str, Any] = {name: plain[name] for name in kept.split()}
    fields["kind"] = "reward_model"
    path = pathlib.Path(self.preferences).expanduser()
    fields["preferences"] = hashlib.sha256(path.read_bytes()).hexdigest()
    return json.loads(json.dumps(fields))

  def devices(self) -> jax.sharding.Mesh:
    """The mesh of the devices that there are.

    Raises:
      ValueError: it does not match them, or does not divide a micro-batch.
    """
    mesh = mesh_lib.make(self.mesh)
    shards = mesh_lib.batch_shards(mesh)
    if self.micro_batch % shards:
      raise ValueError(
        f"micro_batch_size={self.micro_batch}: expected a multiple of the"
        f" {shards} parts into which the mesh divides a batch; change it or"
        " mesh.MeshShape"
      )
    return mesh
