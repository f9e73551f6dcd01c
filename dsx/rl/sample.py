"""One sampled answer and everything that was known when it was drawn.

A rollout's record, from which an update can be computed without the sampler:
DeepSeek-R1 section 2.2.1 needs the old policy's log-probabilities; the experts
that the sampler chose and its own log-probabilities tell how far the trainer's
forward pass is from the sampler's.

Legend (parallel/axes.py): M expert layers, K experts per token; p tokens of the
prompt, n of the answer.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
  """An answer to a prompt.

  Attributes:
    prompt_number: which prompt of its step it answers, from 0; answers to one
      prompt are a group.
    number: which answer of its group, from 0.
    prompt: int32 [p].
    tokens: int32 [n], what was drawn, EOS included if it was.
    logprob: float32 [n], under the model itself (temperature 1, nothing
      truncated), as the sampler computed it.
    sampled_logprob: float32 [n], under the distribution drawn from, with
      temperature and truncation.
    experts: int32 [p + n - 1, M, K], chosen for each token that the sampler
      read (all but the last), in the order of `DeepSeekConfig.expert_layers`
      without MTP modules; None if not recorded.
    version: int32 [n], of the policy that drew each token.
    truncated: whether it ended for want of room instead of at EOS or at a
      stop token.
  """

  prompt_number: int
  number: int
  prompt: np.ndarray
  tokens: np.ndarray
  logprob: np.ndarray
  sampled_logprob: np.ndarray
  experts: np.ndarray | None
  version: np.ndarray
  truncated: bool
