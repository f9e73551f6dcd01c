"""A run of a few steps whose answers differ in reward from the first one on.

A policy of random weights never adds right; what it says repeats itself more or
less, and that is what it is rewarded for here.
"""

import json
from unittest import mock

import jax

from dsx.data import arithmetic
from dsx.data import prompt_template
from dsx.evals import reasoning
from dsx.inference import decoding
from dsx.inference import sampling
from dsx.models import config as config_lib
from dsx.parallel import mesh
from dsx.rl import alarms
from dsx.rl import exercises
from dsx.rl import objective
from dsx.rl import reinforcement
from dsx.rl import report
from dsx.rl import rewards
from dsx.rl import update
from dsx.training import manifest
from dsx.training import optimizer
from dsx.training import workdir as workdir_lib
from tests.training import tiny

STEPS = 7
_MAKE = mesh.make
_CLOCK = ("seconds", "tokens_per_second")


def run(**changes) -> reinforcement.Reinforcement:
  """Three updates to a rollout, a new reference every three.

  Args:
    **changes: fields of `Reinforcement`.
  """
  fields = {
    "config": tiny.model_config(
      vocab_size=320,
      num_hidden_layers=1,
      first_k_dense_replace=0,
      num_nextn_predict_layers=0,
    ),
    "problems": exercises.Exercises(
      generated=(arithmetic.Generated(digits=1, train=40, held_out=4),)
    ),
    "template": prompt_template.Template(kind="plain"),
    "rewards": rewards.Rewards(
      repetition=1.0, repetition_words=1, unended="graded"
    ),
    "update": update.Settings(
      objective=objective.Objective(kl_coefficient=0.01),
      balance_weight=0.001,
      bias_update_speed=0.001,
      micro_batch_tokens=512,
    ),
    "sampling": sampling.Sampling(max_new_tokens=12, temperature=1.0),
    "decoding": decoding.Decoding(slots=16, page_size=16, steps=12),
    "steps": STEPS,
    "group_size": 4,
    "prompts_per_step": 2,
    "updates_per_rollout": 3,
    "reference_every": 3,
    "learning_rate": 1e-2,
    "warmup_steps": 2,
    "optimizer": optimizer.AdamW(moment_dtype="float32"),
    "execution": config_lib.Execution(unroll_layers=True),
    "mesh": mesh.MeshShape(data=1),
    "evaluation": reasoning.Evaluation(samples=2, k=(2,)),
    "evaluate_every": 4,
    "shown_problems": 2,
    "alarms": alarms.Alarms(window=2, truncated=0.5),
    "checkpoint_every": 2,
    "keep_checkpoints": 100,
  }
  return reinforcement.Reinforcement(**(fields | changes))


def one_device():
  """A context in which there is one, so that programs are small."""
  return mock.patch.object(
    mesh, "make", lambda shape, _=None: _MAKE(shape, jax.devices()[:1])
  )


def records(workdir) -> list[str]:
  """Everything recorded but the clock, in order."""
  found = report.read(workdir)
  return [
    json.dumps({k: v for k, v in r.items() if not k.startswith(_CLOCK)})
    for r in (*found.steps, *found.examinations, *found.alarms)
  ]


def leaves(workdir) -> dict:
  """Shape, dtype and checksum of all that the last checkpoint holds."""
  folder = workdir / workdir_lib.CHECKPOINTS
  steps = [int(path.name) for path in folder.iterdir() if path.name.isdigit()]
  return manifest.read(folder / str(max(steps))).leaves
