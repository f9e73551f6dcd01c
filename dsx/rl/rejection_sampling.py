"""What a run of rejection sampling is: the dataclass of its gin file.

DeepSeek-R1 section 2.3.3, between the two stages of reinforcement learning:
several answers to each problem, verified and filtered (`rejection`), the best
kept, mixed with other data 3 to 1, and written for fine-tuning (`curated_set`).
"""

import dataclasses
import json
import math
from typing import Any

from dsx.data import prompt_template
from dsx.inference import decoding as decoding_lib
from dsx.inference import sampling as sampling_lib
from dsx.ops import dtypes as dtypes_lib
from dsx.parallel import mesh as mesh_lib
from dsx.parallel import sharding as sharding_lib
from dsx.rl import exercises
from dsx.rl import rejection
from dsx.rl import rewards as rewards_lib
from dsx.rl import rollout
from dsx.training import start as start_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class RejectionSampling:
  """What to sample, and what to keep.

  Attributes:
    problems: those to train on are answered, those held out never.
    policy: whose answers; a run's workdir or a Hugging Face folder.
    template: how problems are put.
    rewards: how answers are graded; `preference` and a `reward_model` are
      needed for problems that no rule decides.
    filters: which are kept.
    sampling: how answers are drawn; its seed is not used.
    answers: to each problem.
    general: globs of other samples to mix in.
    ratio: sampled ones for each of these.
    at_once: problems that are answered before anything is saved.
    decoding: how many answers at once.
    dtypes: of the policy as it samples; None for its own.
    mesh: devices to spread over.
    sharding: rules that go with the mesh.
    seed: of the draws and of the mixture.
  """

  problems: exercises.Exercises
  policy: start_lib.Start
  template: prompt_template.Template = prompt_template.Template()
  rewards: rewards_lib.Rewards = rewards_lib.Rewards()
  filters: rejection.Filters = rejection.Filters()
  sampling: sampling_lib.Sampling = sampling_lib.Sampling(
    max_new_tokens=1024, temperature=1.0
  )
  answers: int = 16
  general: tuple[str, ...] = ()
  ratio: float = 3.0
  at_once: int = 256
  decoding: decoding_lib.Decoding = rollout.DECODING
  dtypes: dtypes_lib.Dtypes | None = None
  mesh: mesh_lib.MeshShape = mesh_lib.MeshShape()
  sharding: sharding_lib.Sharding = sharding_lib.Sharding()
  seed: int = 0

  def __post_init__(self):
    if isinstance(self.general, str):
      raise ValueError(
        f"general={self.general!r}: expected a tuple of globs; write"
        f" ({self.general!r},)"
      )
    object.__setattr__(self, "general", tuple(self.general))
    for field in ("answers", "at_once"):
      if getattr(self, field) < 1:
        raise ValueError(
          f"{field}={getattr(self, field)!r}: expected at least 1; raise it"
        )
    if not (math.isfinite(self.ratio) and self.ratio > 0):
      raise ValueError(
        f"ratio={self.ratio!r}: expected more than 0; leave general out for no"
        " other samples"
      )
    if self.answers > 1 and not self.sampling.temperature > 0:
      raise ValueError(
        f"sampling.temperature={self.sampling.temperature!r}: expected more"
        f" than 0 for answers={self.answers}, which would all be the same;"
        " raise it"
      )

  def identity(self) -> dict[str, Any]:
    """What decides the samples, as JSON data; the rest is how they are made."""
    fields = dataclasses.asdict(self)
    for name in ("decoding", "mesh", "sharding", "policy", "problems"):
      del fields[name]
    for name in ("processes", "memory_bytes"):
      del fields["rewards"][name]
    return json.loads(json.dumps({"kind": "rejection_sampling", **fields}))
