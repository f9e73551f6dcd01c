"""Signs that reinforcement learning goes wrong, each a rule with a number.

  entropy       the mean over the last `window` steps fell below
                `entropy_share` of that of the first `window`: the policy has
                all but stopped trying things
  pass_at_k     held-out pass@k is `pass_at_k_drop` or more below its best, in
                two evaluations running: what the policy could once do is lost,
                however its pass@1 looks
  length        answers grew by a factor `length_growth` from one window to the
                next, while the reward did not rise: length for its own sake
  truncation    more than `truncated` of the window's answers had no room
  repetition    more than `repetition` of the window's n-grams were repeats
  zero_std      more than `zero_std` of the window's groups had equal rewards:
                nothing is learnt from them
  hacking       since the best held-out accuracy, the reward in training rose
                and the accuracy fell by `hacking_drop` or more, in two
                evaluations running: the reward is no longer what it stands for
  mismatch      sampler and trainer differ by more than `mismatch` nats a token
                on the window's mean

A rule is spoken of once in a run: what it has seen is saved with the run, and
comes back with it. R1 section 2.3.4 found hacking of a preference reward as a
fall of CodeForces scores while that reward rose; DAPO and others describe the
collapse of entropy.
"""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any
from typing import NamedTuple

RULES = (
  "entropy",
  "pass_at_k",
  "length",
  "truncation",
  "repetition",
  "zero_std",
  "hacking",
  "mismatch",
)
# What of a step's record the rules look at.
_FIELDS = (
  "entropy",
  "length",
  "reward",
  "truncated",
  "repetition",
  "zero_std",
  "mismatch_mean",
)


class Alarm(NamedTuple):
  """A rule that was broken.

  Attributes:
    rule: of `RULES`.
    step: finished steps.
    words: what was seen and what it may mean, in one line.
  """

  rule: str
  step: int
  words: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Alarms:
  """When to speak; the module says what each number means.

  Attributes:
    window: steps of a mean.
    entropy_share: of the first window's entropy.
    pass_at_k_drop: absolute.
    length_growth: a factor.
    truncated: share of answers.
    repetition: share of n-grams.
    zero_std: share of groups.
    hacking_drop: absolute, of accuracy.
    mismatch: nats per token.
    stop_on: rules that end the run, which is saved and can be gone on with.
  """

  window: int = 20
  entropy_share: float = 0.1
  pass_at_k_drop: float = 0.1
  length_growth: float = 1.5
  truncated: float = 0.25
  repetition: float = 0.3
  zero_std: float = 0.9
  hacking_drop: float = 0.1
  mismatch: float = 0.05
  stop_on: tuple[str, ...] = ()

  def __post_init__(self):
    if self.window < 1:
      raise ValueError(f"window={self.window!r}: expected at least 1; raise it")
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if field.name not in ("window", "stop_on") and not value > 0:
        raise ValueError(
          f"{field.name}={value!r}: expected more than 0; raise it, to a large"
          " number to switch the rule off"
        )
    if self.length_growth <= 1:
      raise ValueError(
        f"length_growth={self.length_growth!r}: expected a factor above 1;"
        " raise it"
      )
    # gin gives lists; a run's fields are compared with what JSON brings back.
    object.__setattr__(self, "stop_on", tuple(self.stop_on))
    for rule in self.stop_on:
      if rule not in RULES:
        raise ValueError(
          f"stop_on={rule!r}: expected rules of {', '.join(RULES)}; mend it"
        )


class Watch:
  """Looks at what a run records, step by step."""

  def __init__(self, alarms: Alarms, state: Mapping[str, Any] | None = None):
    """Begins to watch.

    Args:
      alarms: when to speak.
      state: what an earlier process had seen, from `state`.
    """
    self._alarms = alarms
    state = state or {}
    self._first: dict[str, float] = dict(state.get("first", {}))
    self._recent: list[dict] = [dict(r) for r in state.get("recent", [])]
    self._best: dict[str, float] = dict(state.get("best", {}))
    self._lower: dict[str, int] = dict(state.get("lower", {}))
    self.raised: dict[str, int] = dict(state.get("raised", {}))

  def state(self) -> dict[str, Any]:
    """All that was seen and still matters, as JSON data."""
    return {
      "first": dict(self._first),
      "recent": [dict(record) for record in self._recent],
      "best": dict(self._best),
      "lower": dict(self._lower),
      "raised": dict(self.raised),
    }

  def trained(self, record: Mapping[str, Any]) -> list[Alarm]:
    """Looks at a step.

    Args:
      record: of kind `reinforcement` (`measures.py`).
    """
    alarms, window = self._alarms, self._alarms.window
    seen = {name: _number(record, name) for name in _FIELDS}
    self._recent = [*self._recent, seen][-2 * window :]
    if len(self._recent) < window:
      return []
    now = _means(self._recent[-window:])
    if not self._first:
      self._first = dict(now)
    found = {
      "truncation": (
        now["truncated"] > alarms.truncated,
        f"{now['truncated']:.0%} of answers had no room: raise"
        " sampling.max_new_tokens, or punish length",
      ),
      "repetition": (
        now["repetition"] > alarms.repetition,
        f"{now['repetition']:.0%} of n-grams in answers are repeats: look at"
        " the answers",
      ),
      "zero_std": (
        now["zero_std"] > alarms.zero_std,
        f"{now['zero_std']:.0%} of groups have equal rewards and teach"
        " nothing: take other problems, or dynamic_sampling",
      ),
      "mismatch": (
        now["mismatch_mean"] > alarms.mismatch,
        f"sampler and trainer differ by {now['mismatch_mean']:.3g} nats a"
        " token: sample in higher precision, or replay the experts",
      ),
      "entropy": (
        now["entropy"] < alarms.entropy_share * self._first["entropy"],
        f"entropy fell from {self._first['entropy']:.3g} to"
        f" {now['entropy']:.3g} nats a token: lower the learning rate, raise"
        " clip_high, or reward entropy",
      ),
    }
    if len(self._recent) == 2 * window:
      before = _means(self._recent[:window])
      longer = now["length"] > alarms.length_growth * before["length"]
      found["length"] = (
        longer and now["reward"] <= before["reward"],
        f"answers grew from {before['length']:.4g} to {now['length']:.4g}"
        f" tokens in {window} steps without more reward: look at them",
      )
    return self._said(found, int(record["step"]))

  def evaluated(self, record: Mapping[str, Any]) -> list[Alarm]:
    """Looks at an evaluation on held-out problems.

    Args:
      record: of kind `reasoning`, with `pass_1` and `pass_k`.
    """
    accuracy, at_k = _number(record, "pass_1"), _number(record, "pass_k")
    reward = _means(self._recent[-self._alarms.window :]).get("reward")
    found = {}
    best, drop = self._best.get("pass_k", at_k), self._alarms.pass_at_k_drop
    found["pass_at_k"] = (
      self._twice("pass_k", at_k <= best - drop),
      f"held-out pass@{record['k']} fell from {best:.3f} to {at_k:.3f}: stop,"
      " and go back to an earlier checkpoint",
    )
    self._best["pass_k"] = max(best, at_k)
    best = self._best.get("pass_1", accuracy)
    before = self._best.get("reward", math.inf)
    fell = accuracy <= best - self._alarms.hacking_drop
    rose = reward is not None and reward > before
    found["hacking"] = (
      self._twice("pass_1", fell and rose),
      f"held-out accuracy fell from {best:.3f} to {accuracy:.3f} while the"
      f" reward rose to {reward or 0.0:.3f}: the reward is being hacked",
    )
    if accuracy >= best:
      self._best["pass_1"] = accuracy
      if reward is not None:
        self._best["reward"] = reward
    return self._said(found, int(record["step"]))

  def stopping(self, alarms: list[Alarm]) -> Alarm | None:
    """The first of some alarms that is to end the run."""
    stop_on = self._alarms.stop_on
    return next((alarm for alarm in alarms if alarm.rule in stop_on), None)

  def _twice(self, name: str, lower: bool) -> bool:
    """Whether something was lower for the second time running."""
    self._lower[name] = self._lower.get(name, 0) + 1 if lower else 0
    return self._lower[name] >= 2

  def _said(self, found, step: int) -> list[Alarm]:
    """What is broken now and was not spoken of before."""
    alarms = []
    for rule, (broken, words) in found.items():
      if broken and rule not in self.raised:
        self.raised[rule] = step
        alarms.append(Alarm(rule, step, words))
    return alarms


def _number(record: Mapping[str, Any], name: str) -> float:
  """A field; 0 where there is none or it is not finite, as JSON wants it."""
  value = record.get(name)
  value = 0.0 if value is None else float(value)
  return value if math.isfinite(value) else 0.0


def _means(records: list[dict]) -> dict[str, float]:
  if not records:
    return {}
  return {
    name: math.fsum(record[name] for record in records) / len(records)
    for name in records[0]
  }
