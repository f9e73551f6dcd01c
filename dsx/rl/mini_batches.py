"""Several updates from the answers of one rollout.

DeepSeek-R1 draws 8,192 answers at once, deals them out at random to 16 updates
and goes over them once; the later updates learn from a policy that is some
steps old, which the ratio of the objective accounts for.

Legend: N answers.
"""

from collections.abc import Sequence

import numpy as np

from dsx.rl import sample as sample_lib
from dsx.rl import update as update_lib
from dsx.training import state as state_lib


def shuffled(n: int, parts: int, seed) -> list[np.ndarray]:
  """Answers 0 to n - 1 dealt out at random, in `parts` as equal as can be.

  Raises:
    ValueError: there are fewer answers than parts.
  """
  if not 1 <= parts <= n:
    raise ValueError(
      f"mini_batches={parts}: expected 1 to {n}, the answers there are; lower"
      " it"
    )
  order = np.arange(n)
  if parts > 1:
    order = np.random.default_rng(seed).permutation(n)
  return [np.sort(part) for part in np.array_split(order, parts)]


def learn(
  updater: update_lib.Updater,
  state: state_lib.TrainState,
  samples: Sequence[sample_lib.Sample],
  advantages: np.ndarray,
  recomputed: update_lib.Recomputed,
  *,
  counted: np.ndarray | None = None,
  learning_rates: Sequence[float],
  mini_batches: int = 1,
  epochs: int = 1,
  seed: int = 0,
) -> tuple[state_lib.TrainState, list[dict[str, float]]]:
  """All updates of a rollout.

  Args:
    updater: takes the steps.
    state: of training; its arrays are given up.
    samples: N answers.
    advantages: float32 [N].
    recomputed: of `Updater.recompute`. If it refuses, so does this: every
      update is counted as skipped.
    counted: bool [N], of `Updater.update`.
    learning_rates: of each of the `mini_batches` x `epochs` updates.
    mini_batches: into how many parts the answers are dealt, anew in each epoch.
    epochs: how often each answer is learnt from.
    seed: of the dealing.

  Returns:
    (state, facts of each update).

  Raises:
    ValueError: there are not as many rates as updates, or of `update`.
  """
  if len(learning_rates) != mini_batches * epochs:
    raise ValueError(
      f"learning_rates of {len(learning_rates)} updates: expected"
      f" {mini_batches * epochs}, mini_batches={mini_batches} times"
      f" epochs={epochs}; give one each"
    )
  n = len(samples)
  counted = np.ones(n, bool) if counted is None else np.asarray(counted, bool)
  advantages = np.asarray(advantages, np.float32)
  facts = []
  for number, rate in enumerate(learning_rates):
    epoch, part = divmod(number, mini_batches)
    some = shuffled(n, mini_batches, (seed, epoch))[part]
    if recomputed.refusal:
      state = updater.refused(state)
      facts.append({"tokens": 0.0, "finite": 0.0})
      continue
    state, own = updater.update(
      state,
      [samples[i] for i in some],
      advantages[some],
      {name: [of[i] for i in some] for name, of in recomputed.logprobs.items()},
      counted=counted[some],
      learning_rate=rate,
    )
    facts.append(own)
  return state, facts
