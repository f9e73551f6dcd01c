"""Which sampled answers are good enough to learn from.

DeepSeek-R1 section 2.3.3: of several answers to each problem the right ones are
kept, without those that mix languages, have long paragraphs or code blocks in
the chain of thought. Section 2.3.1 adds repetition. The report gives no
thresholds; those here are a user's to set. Each answer that is refused is
refused for one reason, the first in the order of `REASONS`, so that reasons can
be counted.
"""

from collections.abc import Sequence
import dataclasses
import math
import re
from typing import Literal

from dsx.data import problems as problems_lib
from dsx.rl import language
from dsx.rl import repetition
from dsx.rl import response

REASONS = (
  "error",
  "cut off",
  "wrong form",
  "wrong answer",
  "poor answer",
  "mixed languages",
  "long paragraph",
  "code block",
  "repetition",
  "duplicate",
  "not among the best",
)
Best = Literal["reward", "likeliest", "shortest"]
_BEST = ("reward", "likeliest", "shortest")
_PARAGRAPHS = re.compile(r"\n[ \t]*\n")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Filters:
  """What is kept.

  Attributes:
    keep: best answers to each problem, at most; 0 for all.
    best: which are best: those of the highest `reward` (of open problems a
      reward model's), the `likeliest` (mean log-probability of a token) or the
      `shortest`. Equals go by length, then by number.
    least_language: share of words in the problem's language below which
      languages are mixed; a chain of thought without words is in any.
    longest_paragraph: characters between blank lines in the chain of thought;
      0 for any.
    code_blocks: whether it may have any.
    most_repetition: share of repeated n-grams in the whole response.
    repetition_words: n.
    least_score: of a reward model, for problems that no rule decides; None
      for any.
  """

  keep: int = 1
  best: Best = "reward"
  least_language: float = 0.9
  longest_paragraph: int = 2000
  code_blocks: bool = False
  most_repetition: float = 0.2
  repetition_words: int = 8
  least_score: float | None = None

  def __post_init__(self):
    if self.best not in _BEST:
      raise ValueError(
        f"best={self.best!r}: expected one of {', '.join(_BEST)}; change it"
      )
    for field in ("keep", "longest_paragraph"):
      if getattr(self, field) < 0:
        raise ValueError(
          f"{field}={getattr(self, field)!r}: expected at least 0; raise it"
        )
    for field in ("least_language", "most_repetition"):
      if not 0 <= getattr(self, field) <= 1:
        raise ValueError(
          f"{field}={getattr(self, field)!r}: expected a share, 0 to 1; change"
          " it"
        )
    repetition.share("", self.repetition_words)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
  """An answer, and what is known about it.

  Attributes:
    number: which answer to its problem.
    text: the response, `<think>` included.
    tokens: of it, EOS included.
    truncated: whether it was cut off.
    right: 1 or 0; NaN where no rule decides.
    error: why it could not be graded.
    reward: in all.
    logprob: mean over its tokens, in nats.
    score: of a reward model, for problems that no rule decides; NaN else.
  """

  number: int
  text: str
  tokens: int
  truncated: bool
  right: float
  error: str
  reward: float
  logprob: float
  score: float = float("nan")


def select(
  problem: problems_lib.Problem,
  candidates: Sequence[Candidate],
  filters: Filters,
  form: response.Form,
) -> tuple[list[Candidate], list[tuple[Candidate, str]]]:
  """Selects among the answers to one problem.

  Args:
    problem: that was put.
    candidates: answers to it.
    filters: what is kept.
    form: of responses.

  Returns:
    (those that are kept, the best first; those that are not, each with one of
    `REASONS`).
  """
  good, refused = [], []
  seen: set[str] = set()
  for candidate in sorted(candidates, key=lambda c: _rank(c, filters.best)):
    why = reason(problem, candidate, filters, form)
    key = plain(candidate.text)
    if not why and key in seen:
      why = "duplicate"
    elif not why and filters.keep and len(good) == filters.keep:
      why = "not among the best"
    if why:
      refused.append((candidate, why))
    else:
      good.append(candidate)
      seen.add(key)
  return good, refused


def reason(
  problem: problems_lib.Problem,
  candidate: Candidate,
  filters: Filters,
  form: response.Form,
) -> str:
  """Why an answer by itself is not good enough; empty if it is."""
  if candidate.error:
    return "error"
  if candidate.truncated:
    return "cut off"
  parsed = response.parse(candidate.text, form=form)
  if not parsed.well_formed:
    return "wrong form"
  if problem.kind == "open":
    # A score that could not be had is no good one.
    least = -math.inf if filters.least_score is None else filters.least_score
    if not parsed.answer or not candidate.score >= least:
      return "poor answer"
  elif candidate.right != 1:
    return "wrong answer"
  thought = parsed.thought
  if _is_mixed(thought, problem.language, filters.least_language):
    return "mixed languages"
  longest = max(map(len, _PARAGRAPHS.split(thought.strip())))
  if filters.longest_paragraph and longest > filters.longest_paragraph:
    return "long paragraph"
  if not filters.code_blocks and "```" in thought:
    return "code block"
  share = repetition.share(candidate.text, filters.repetition_words)
  return "repetition" if share > filters.most_repetition else ""


def plain(text: str) -> str:
  """A text as duplicates are told by: whatever its spaces and capitals."""
  return " ".join(text.casefold().split())


def _is_mixed(thought: str, name: str, least: float) -> bool:
  # A thought in numbers alone has no language to leave.
  spoken = next(language.words(thought), None) is not None
  return spoken and language.consistency(thought, name) < least


def _rank(candidate: Candidate, best: Best) -> tuple[float, int, int]:
  """Sorts the best first."""
  merits = {"reward": candidate.reward, "likeliest": candidate.logprob}
  merit = merits.get(best, 0.0)
  merit = -math.inf if math.isnan(merit) else merit
  return (-merit, candidate.tokens, candidate.number)
