"""What the device answered, as news of the sequences it is about.

Legend (parallel/axes.py): B batch; M expert layers, K experts per token.
"""

from collections.abc import Sequence
import dataclasses

import numpy as np

from dsx.inference import chunk
from dsx.inference import prefill
from dsx.inference import request as request_lib
from dsx.inference import scheduler as scheduler_lib


@dataclasses.dataclass(kw_only=True, eq=False)
class Record:
  """News of one request in arrays, for whoever has thousands of tokens.

  Attributes:
    request: the number that `Engine.submit` gave it.
    tokens: int32 [n], drawn.
    logprob: float32 [n], under the model itself.
    sampled_logprob: float32 [n], under the distribution drawn from.
    top: int32 [n, m], the best tokens, of as many as anybody asked for.
    top_logprob: float32 [n, m].
    experts: as `request.Update.experts`.
    finish: as `request.Update.finish`.
    prompt: as `request.Update.prompt`.
    n_top: how many of the best tokens were asked for.
  """

  request: int
  tokens: np.ndarray
  logprob: np.ndarray
  sampled_logprob: np.ndarray
  top: np.ndarray
  top_logprob: np.ndarray
  experts: np.ndarray | None = None
  finish: request_lib.Finish | None = None
  prompt: list[request_lib.Drawn | None] | None = None
  n_top: int = 0

  def update(self) -> request_lib.Update:
    """The same, token by token."""
    rows = zip(
      self.tokens.tolist(),
      self.logprob.tolist(),
      self.sampled_logprob.tolist(),
      self.top,
      self.top_logprob,
      strict=True,
    )
    return request_lib.Update(
      request=self.request,
      drawn=[
        request_lib.Drawn(token, logprob, sampled, _top(top, best, self.n_top))
        for token, logprob, sampled, top, best in rows
      ],
      finish=self.finish,
      prompt=self.prompt,
      experts=self.experts,
    )


def of_prompt(
  sequence: scheduler_lib.Sequence, scores: prefill.Scores, row: int
) -> Record:
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
  integers, floats = np.zeros(0, np.int32), np.zeros(0, np.float32)
  return Record(
    request=sequence.number,
    tokens=integers,
    logprob=floats,
    sampled_logprob=floats,
    top=integers[:, None],
    top_logprob=floats[:, None],
    experts=sequence.take_prompt_experts(),
    prompt=prompt,
  )


def of_chunk(
  running: Sequence[scheduler_lib.Sequence], drawn: chunk.Drawn
) -> list[Record]:
  """What a chunk drew for all sequences, which take their tokens.

  Args:
    running: in the order of their slots.
    drawn: the chunk's record, numpy arrays.
  """
  n = drawn.token.shape[2]
  kept = np.arange(n) < drawn.count[:, :, None]
  kept = kept.swapaxes(0, 1)  # [B, steps, L]

  def flat(x):
    return x.swapaxes(0, 1)[kept]

  ends = np.cumsum(drawn.count.sum(0)).tolist()
  starts = [0, *ends]
  tokens, scores = flat(drawn.token), drawn.scores
  columns = {
    "tokens": tokens,
    "logprob": flat(scores.logprob),
    "sampled_logprob": flat(drawn.sampled_logprob),
    "top": flat(scores.top),
    "top_logprob": flat(scores.top_logprob),
  }
  experts = None if drawn.experts is None else flat(drawn.experts)
  listed, found = tokens.tolist(), []
  for sequence in running:
    assert sequence.slot is not None
    mine = slice(starts[sequence.slot], ends[sequence.slot])
    record = Record(
      request=sequence.number,
      **{name: x[mine] for name, x in columns.items()},
      n_top=sequence.request.sampling.top_logprobs,
    )
    if experts is not None:
      before, own = sequence.take_prompt_experts(), experts[mine]
      record.experts = own if before is None else np.concatenate([before, own])
    sequence.tokens += listed[mine]
    found.append(record)
  return found


def _top(tokens, logprobs, n: int) -> tuple[tuple[int, float], ...]:
  if not n:
    return ()
  pairs = zip(tokens[:n].tolist(), logprobs[:n].tolist(), strict=True)
  return tuple(pairs)
