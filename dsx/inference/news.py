"""What the device answered, as tokens of the sequences it is about."""

import numpy as np

from dsx.inference import chunk
from dsx.inference import prefill
from dsx.inference import request as request_lib
from dsx.inference import scheduler as scheduler_lib


def of_prompt(
  sequence: scheduler_lib.Sequence, scores: prefill.Scores, row: int
) -> list[request_lib.Drawn | None]:
  """What the model thought of each token of a prompt.

  Args:
    sequence: whose prompt it is.
    scores: of a group, numpy arrays [B, L, ...].
    row: of the sequence in the group.
  """
  n_top = sequence.request.sampling.top_logprobs
  prompt: list[request_lib.Drawn | None] = [None]
  for place, token in enumerate(sequence.request.prompt[1:]):
    logprob = float(scores.logprob[row, place])
    top = _top(scores.top[row, place], scores.top_logprob[row, place], n_top)
    prompt.append(request_lib.Drawn(token, logprob, logprob, top))
  return prompt


def of_chunk(
  sequence: scheduler_lib.Sequence, drawn: chunk.Drawn
) -> list[request_lib.Drawn]:
  """What a chunk drew for one sequence.

  Args:
    sequence: in a slot.
    drawn: the whole chunk's record, numpy arrays.
  """
  slot, n_top = sequence.slot, sequence.request.sampling.top_logprobs
  kept = np.arange(drawn.token.shape[2]) < drawn.count[:, slot, None]
  scores = drawn.scores
  rows = zip(
    drawn.token[:, slot][kept].tolist(),
    scores.logprob[:, slot][kept].tolist(),
    drawn.sampled_logprob[:, slot][kept].tolist(),
    scores.top[:, slot][kept],
    scores.top_logprob[:, slot][kept],
    strict=True,
  )
  return [
    request_lib.Drawn(token, logprob, sampled, _top(top, top_logprob, n_top))
    for token, logprob, sampled, top, top_logprob in rows
  ]


def _top(tokens, logprobs, n: int) -> tuple[tuple[int, float], ...]:
  pairs = zip(tokens[:n].tolist(), logprobs[:n].tolist(), strict=True)
  return tuple(pairs)
