"""What scores answers that no rule can verify.

DeepSeek-R1 section 2.3.4: for general data a reward model stands for what
people prefer. A trained scalar model (`reward_scorer`) and a language model
that compares answers (`generative_judge`) are used alike.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np


class Judge(Protocol):
  """Scores answers; higher is better."""

  def scores(
    self, prompts: Sequence[str], groups: Sequence[Sequence[str]]
  ) -> list[np.ndarray]:
    """Scores the answers to each prompt.

    Args:
      prompts: bare questions.
      groups: answers to each, at least one.

    Returns:
      float32 [number of answers] for each prompt; NaN where no score could be
      had.
    """
    ...
