"""What a run of reinforcement learning is: the dataclass of its gin file.

DeepSeek-R1 section 2.2 (R1-Zero) and 2.3 (R1). A step is one update of the
policy. A rollout draws answers to the problems of `updates_per_rollout` steps
at once; with more than one, the later updates learn from answers of a policy
that is some updates old, which the ratio in the objective accounts for.

Whatever can be found wrong without touching a device or a file is found here,
when the configuration is built.
"""

import dataclasses
import json
from typing import Any

import jax

from dsx.data import pipeline
from dsx.data import prompt_template
from dsx.evals import reasoning
from dsx.inference import decoding as decoding_lib
from dsx.inference import sampling as sampling_lib
from dsx.models import config as config_lib
from dsx.models import precision
from dsx.ops import dtypes as dtypes_lib
from dsx.parallel import mesh as mesh_lib
from dsx.parallel import sharding as sharding_lib
from dsx.rl import advantages
from dsx.rl import alarms as alarms_lib
from dsx.rl import exercises
from dsx.rl import rewards as rewards_lib
from dsx.rl import rollout
from dsx.rl import update as update_lib
from dsx.training import optimizer as optimizer_lib
from dsx.training import pretraining
from dsx.training import schedules
from dsx.training import start

# What decides what is learnt, and must be equal for a run to be gone on with.
# Problems and first weights count too, by their content (`learner.py`).
_IDENTITY = (
  "config template rewards update sampling group_size prompts_per_step"
  " updates_per_rollout learning_rate warmup_steps reference_every"
  " dynamic_sampling overlong_margin overlong_penalty lengthen general_steps"
  " general_share optimizer dtypes seed"
)
# Of these, what says how a thing is computed and not what.
_HOW = {
  "rewards": ("processes", "memory_bytes"),
  "update": ("row_length", "micro_batch_tokens", "vocabulary_chunk"),
}
_AT_LEAST = {
  "steps": 1,
  "group_size": 2,
  "prompts_per_step": 1,
  "updates_per_rollout": 1,
  "warmup_steps": 0,
  "reference_every": 0,
  "dynamic_sampling": 0,
  "overlong_margin": 0,
  "general_steps": 0,
  "seed": 0,
  "evaluate_every": 0,
  "shown_problems": 0,
  "log_every": 1,
  "checkpoint_every": 0,
  "keep_checkpoints": 1,
  "max_skipped_in_a_row": 1,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reinforcement:
  """Everything that a run of reinforcement learning is.

  Attributes:
    config: the model.
    problems: what it learns from and is examined with.
    init: the weights to start from; None for new ones.
    vocabulary: 'byte' or a tokenizer.json.
    template: how a problem is put.
    rewards: what an answer earns.
    update: which policy gradient, and how it is taken.
    sampling: how answers are drawn; its seed is not used.
    decoding: how many at once.
    rollout_dtypes: precision of the sampler; None for the trainer's.
    steps: updates in all.
    group_size: G, answers to each problem.
    prompts_per_step: problems of an update.
    updates_per_rollout: updates for each time that answers are drawn.
    learning_rate: of every update past the warm-up.
    warmup_steps: updates of linear warm-up.
    reference_every: updates after which the policy becomes the reference (R1:
      400); 0 keeps the first.
    dynamic_sampling: how often at most more problems are drawn for a rollout,
      to take the place of groups whose rewards are equal (DAPO); 0 keeps all.
    overlong_margin: last tokens of the longest answer over which a penalty
      grows to `overlong_penalty` (DAPO); 0 for none. Unlike `rewards.length` it
      follows `lengthen`.
    overlong_penalty: its size.
    lengthen: (step, tokens), ...: longest answer from a step on (R1-Zero:
      65,536 from 8,200).
    general: further problems for the last updates (R1's second stage); None
      for none.
    general_steps: how many last updates.
    general_share: of their problems that are from `general`.
    optimizer: AdamW's constants.
    dtypes: precision of each kind of number.
    execution: how the model is run.
    mesh: devices along each axis.
    sharding: where parameters and optimizer state live.
    seed: of the order of problems, of all draws, of new weights.
    evaluation: how held-out problems are answered.
    evaluate_every: updates between evaluations, which also happen first and
      last; 0 for those alone.
    shown_problems: held-out problems whose answers are kept to be read.
    alarms: when to warn.
    log_every: updates between records.
    checkpoint_every: updates between checkpoints; 0 saves at the end alone.
    keep_checkpoints: newest checkpoints kept.
    max_skipped_in_a_row: refused updates that end the run.
  """

  config: config_lib.DeepSeekConfig
  problems: exercises.Exercises
  init: start.Start | None = None
  vocabulary: str = "byte"
  template: prompt_template.Template = prompt_template.Template()
  rewards: rewards_lib.Rewards = rewards_lib.Rewards()
  update: update_lib.Settings = update_lib.Settings()
  sampling: sampling_lib.Sampling = sampling_lib.Sampling(
    max_new_tokens=1024, temperature=1.0
  )
  decoding: decoding_lib.Decoding = rollout.DECODING
  rollout_dtypes: dtypes_lib.Dtypes | None = None
  steps: int = 1000
  group_size: int = 16
  prompts_per_step: int = 32
  updates_per_rollout: int = 1
  learning_rate: float = 3e-6
  warmup_steps: int = 0
  reference_every: int = 400
  dynamic_sampling: int = 0
  overlong_margin: int = 0
  overlong_penalty: float = 1.0
  lengthen: tuple[tuple[int, int], ...] = ()
  general: exercises.Exercises | None = None
  general_steps: int = 0
  general_share: float = 0.5
  optimizer: optimizer_lib.AdamW = optimizer_lib.AdamW()
  dtypes: dtypes_lib.Dtypes = dtypes_lib.Dtypes()
  execution: config_lib.Execution = config_lib.Execution()
  mesh: mesh_lib.MeshShape = mesh_lib.MeshShape()
  sharding: sharding_lib.Sharding = sharding_lib.Sharding()
  seed: int = 0
  evaluation: reasoning.Evaluation = reasoning.Evaluation()
  evaluate_every: int = 50
  shown_problems: int = 8
  alarms: alarms_lib.Alarms = alarms_lib.Alarms()
  log_every: int = 1
  checkpoint_every: int = 100
  keep_checkpoints: int = 2
  max_skipped_in_a_row: int = 10

  def __post_init__(self):
    precision.check(self.config, self.dtypes)
    lengthen = tuple(tuple(map(int, pair)) for pair in self.lengthen)
    object.__setattr__(self, "lengthen", lengthen)
    for field, least in _AT_LEAST.items():
      if not getattr(self, field) >= least:
        raise ValueError(
          f"{field}={getattr(self, field)!r}: expected at least {least};"
          " raise it"
        )
    for field in "learning_rate overlong_penalty".split():
      if not getattr(self, field) > 0:
        raise ValueError(
          f"{field}={getattr(self, field)!r}: expected more than 0; raise it"
        )
    self._check_sampling()
    self._check_general()
    if self.reference_every % self.updates_per_rollout:
      raise ValueError(
        f"reference_every={self.reference_every}: expected a multiple of"
        f" updates_per_rollout={self.updates_per_rollout}, whose answers are"
        " compared with one reference; change either"
      )

  def _check_sampling(self) -> None:
    if not self.sampling.temperature > 0:
      raise ValueError(
        "sampling.temperature=0: expected more than 0, equal answers teach"
        " nothing; R1-Zero's is 1"
      )
    longest = self.config.max_position_embeddings
    most = [self.sampling.max_new_tokens, *(n for _, n in self.lengthen)]
    if max(most) >= longest:
      raise ValueError(
        f"sampling.max_new_tokens={max(most)}: expected less than"
        f" config.max_position_embeddings={longest}, which prompts need room"
        " in, too; lower it"
      )
    if [step for step, _ in self.lengthen] != sorted(
      {step for step, _ in self.lengthen}
    ):
      raise ValueError(
        f"lengthen={self.lengthen}: expected (step, tokens) with growing steps;"
        " put them in order"
      )
    if self.overlong_margin:
      advantages.overlong_penalty(
        0, longest=min(most), margin=self.overlong_margin
      )

  def _check_general(self) -> None:
    if bool(self.general_steps) != (self.general is not None):
      raise ValueError(
        f"general_steps={self.general_steps}: expected some with problems in"
        " general, and 0 without; change either"
      )
    if self.general_steps > self.steps:
      raise ValueError(
        f"general_steps={self.general_steps}: expected at most"
        f" steps={self.steps}; lower it"
      )
    if not 0 < self.general_share <= 1:
      raise ValueError(
        f"general_share={self.general_share!r}: expected more than 0 and at"
        " most 1; change it"
      )

  @property
  def ema_decay(self) -> None:
    """There is no average of the parameters."""

  @property
  def replays(self) -> bool:
    """Whether the experts that the sampler chose have to be recorded."""
    return self.update.replay and self.config.num_moe_layers > 0

  @property
  def prompts_per_rollout(self) -> int:
    """Problems that a rollout draws answers to."""
    return self.prompts_per_step * self.updates_per_rollout

  def rate(self, step: int) -> float:
    """The learning rate of a step, counted from 0."""
    return self.learning_rate * min(1.0, (step + 1) / (self.warmup_steps + 1))

  def longest(self, step: int) -> int:
    """Tokens of the longest answer at a step."""
    tokens = self.sampling.max_new_tokens
    for first, later in self.lengthen:
      tokens = later if step >= first else tokens
    return tokens

  def described(self) -> pretraining.Pretraining:
    """A run that says what the checkpoints are of, to whoever reads them."""
    window = self.config.max_position_embeddings
    return pretraining.Pretraining(
      config=self.config,
      data=pipeline.Data(sequence_length=window, vocabulary=self.vocabulary),
      schedule=schedules.constant(
        steps=1, learning_rate=0.0, batch_size=1, sequence_length=window
      ),
      dtypes=self.dtypes,
    )

  def identity(self) -> dict[str, Any]:
    """What must be equal for a checkpoint to be this run's, as JSON data."""
    plain = dataclasses.asdict(self)
    fields: dict[str, Any] = {name: plain[name] for name in _IDENTITY.split()}
    for part, names in _HOW.items():
      for name in names:
        fields[part].pop(name)
    fields["data"] = self.described().identity()["data"]
    fields["kind"] = "reinforcement"
    fields["ema_decay"] = None
    return json.loads(json.dumps(fields))

  def devices(self) -> jax.sharding.Mesh:
    """The mesh of the devices that there are.

    Raises:
      ValueError: it does not match them; or there are other processes.
    """
    if jax.process_count() > 1:
      raise ValueError(
        f"{jax.process_count()} processes: expected one, which holds all"
        " devices; reinforcement learning does not span processes yet"
      )
    return mesh_lib.make(self.mesh)
