"""Answers that were drawn and not yet learnt from, kept beside a checkpoint.

A rollout feeds several updates. What is left of it when a run is stopped can't
be drawn again, because the policy has moved on: it is written to a file that
the checkpoint names with its digest. One file, written once, serves all
checkpoints of its rollout.
"""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import hashlib
import io
import json
import os
import pathlib
import re

import numpy as np

from dsx.rl import sample as sample_lib

FOLDER = "rollouts"

_LISTS = ("prompt", "tokens", "logprob", "sampled_logprob", "version")
_NAME = re.compile(r"rollout_(\d+)\.npz")


class PendingError(ValueError):
  """A file of answers that is missing or damaged."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Rollout:
  """Answers with all that an update needs to know of them.

  Attributes:
    number: of the rollout, from 0.
    samples: the answers of all its updates, groups beside each other.
    advantages: float32 [N].
    counted: bool [N]; the rest teach nothing.
    logprobs: by name (`old`, `reference`), float32 [n] of each answer.
    facts: numbers for the records of its updates.
  """

  number: int
  samples: Sequence[sample_lib.Sample]
  advantages: np.ndarray
  counted: np.ndarray
  logprobs: Mapping[str, Sequence[np.ndarray]]
  facts: Mapping[str, float]

  def part(self, index: int, parts: int) -> "Rollout":
    """The answers of one of its updates.

    Args:
      index: of the update, from 0.
      parts: updates in all; they divide the answers.
    """
    size, rest = divmod(len(self.samples), parts)
    if rest:
      raise ValueError(
        f"parts={parts}: expected a divisor of {len(self.samples)} answers"
      )
    some = slice(index * size, (index + 1) * size)
    return Rollout(
      number=self.number,
      samples=self.samples[some],
      advantages=self.advantages[some],
      counted=self.counted[some],
      logprobs={name: of[some] for name, of in self.logprobs.items()},
      facts=self.facts,
    )


def encode(rollout: Rollout) -> bytes:
  """A rollout as a file's content; the same for the same rollout."""
  samples = rollout.samples
  arrays = {
    "numbers": np.asarray(
      [(s.prompt_number, s.number, s.truncated) for s in samples], np.int32
    ),
    "advantages": rollout.advantages,
    "counted": rollout.counted,
  }
  for name in _LISTS:
    arrays |= _joined(name, [getattr(s, name) for s in samples])
  experts = [s.experts for s in samples]
  if any(one is not None for one in experts):
    arrays |= _joined("experts", experts)
  for name, lists in rollout.logprobs.items():
    arrays |= _joined(f"trainer_{name}", lists)
  facts = json.dumps({"number": rollout.number, "facts": dict(rollout.facts)})
  arrays["facts"] = np.frombuffer(facts.encode(), np.uint8)
  buffer = io.BytesIO()
  np.savez(buffer, **arrays)
  return buffer.getvalue()


def decode(content: bytes) -> Rollout:
  """The inverse of `encode`."""
  with np.load(io.BytesIO(content), allow_pickle=False) as file:
    arrays = dict(file)
  facts = json.loads(arrays["facts"].tobytes())
  numbers = arrays["numbers"]
  lists = {name: _parted(arrays, name) for name in _LISTS}
  experts = [None] * len(numbers)
  if "experts" in arrays:
    experts = _parted(arrays, "experts")
  samples = [
    sample_lib.Sample(
      prompt_number=int(prompt),
      number=int(number),
      truncated=bool(truncated),
      experts=experts[i],
      **{name: lists[name][i] for name in _LISTS},
    )
    for i, (prompt, number, truncated) in enumerate(numbers)
  ]
  names = [
    name.removeprefix("trainer_").removesuffix("_lengths")
    for name in arrays
    if name.startswith("trainer_") and name.endswith("_lengths")
  ]
  return Rollout(
    number=facts["number"],
    samples=samples,
    advantages=arrays["advantages"],
    counted=arrays["counted"],
    logprobs={name: _parted(arrays, f"trainer_{name}") for name in names},
    facts=facts["facts"],
  )


def _joined(name: str, lists) -> dict[str, np.ndarray]:
  """Arrays of several lengths as one, and their lengths."""
  lengths = np.asarray([len(one) for one in lists], np.int64)
  return {name: np.concatenate(list(lists)), f"{name}_lengths": lengths}


def _parted(arrays, name: str) -> list[np.ndarray]:
  ends = np.cumsum(arrays[f"{name}_lengths"])
  return np.split(arrays[name], ends[:-1])


def path(workdir: pathlib.Path, number: int) -> pathlib.Path:
  """Where a rollout of a run is kept."""
  return workdir / FOLDER / f"rollout_{number}.npz"


def write(workdir: pathlib.Path, rollout: Rollout) -> str:
  """Writes a rollout so that a kill leaves all of it or nothing.

  Returns:
    The digest of the file.
  """
  content = encode(rollout)
  digest = hashlib.sha256(content).hexdigest()
  target = path(workdir, rollout.number)
  target.parent.mkdir(exist_ok=True)
  partial = target.with_name(target.name + ".partial")
  with open(partial, "wb") as file:
    file.write(content)
    file.flush()
    os.fsync(file.fileno())
  os.replace(partial, target)
  return digest


def read(workdir: pathlib.Path, number: int, digest: str) -> Rollout:
  """Reads a rollout.

  Args:
    workdir: of the run.
    number: of the rollout.
    digest: from `write`.

  Raises:
    PendingError: it is not there, or not as it was written.
  """
  source = path(workdir, number)
  try:
    content = source.read_bytes()
  except FileNotFoundError as error:
    raise PendingError(f"{source}: missing") from error
  found = hashlib.sha256(content).hexdigest()
  if found != digest:
    raise PendingError(
      f"{source}: sha256 {found[:12]}, expected {digest[:12]}: damaged"
    )
  return decode(content)


def keep_only(workdir: pathlib.Path, numbers: Iterable[int]) -> None:
  """Removes files of rollouts that no checkpoint needs any more."""
  kept = set(numbers)
  for file in (workdir / FOLDER).glob("rollout_*"):
    match = _NAME.fullmatch(file.name)
    if match is None or int(match[1]) not in kept:
      file.unlink(missing_ok=True)
