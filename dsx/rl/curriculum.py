"""Which problem comes next: an order that follows from a seed and a place.

Every problem comes once before any comes again, each time in another order.
The place is a number of problems; nothing else has to be saved to go on.
"""

from collections.abc import Sequence
import functools

import numpy as np


class Curriculum:
  """Problems in the order in which a run meets them."""

  def __init__(self, problems: Sequence, seed: int):
    """Holds the problems.

    Args:
      problems: at least one, of any kind.
      seed: of the orders.
    """
    if not problems:
      raise ValueError(
        "problems=(): expected at least one problem to train on; give files"
        " that hold some"
      )
    self._problems = problems
    self._seed = seed
    self._order = functools.lru_cache(maxsize=2)(self._shuffled)

  def __len__(self) -> int:
    return len(self._problems)

  def _shuffled(self, epoch: int) -> np.ndarray:
    rng = np.random.default_rng((self._seed, epoch))
    return rng.permutation(len(self._problems))

  def take(self, place: int, n: int) -> list:
    """The `n` problems from `place` on, places counted over all epochs."""
    size = len(self._problems)
    return [
      self._problems[self._order(i // size)[i % size]]
      for i in range(place, place + n)
    ]

  def epoch(self, place: int) -> float:
    """How often all problems have been met at a place."""
    return place / len(self._problems)
