"""Rejection sampling from a `RejectionSampling` to its set of samples.

A run is a folder. Problems are answered some at a time, and what came of them
is a file of its own, so that the same run goes on where it was killed; every
draw has a key from its problem and its number, so that it ends the same.
"""

from collections.abc import Callable
from collections.abc import Sequence
import contextlib
import json
import os
import pathlib
from typing import Any

import jax

from dsx.data import problems as problems_lib
from dsx.parallel import mesh as mesh_lib
from dsx.parallel import sharding as sharding_lib
from dsx.rl import curated_set
from dsx.rl import preference_judge
from dsx.rl import rejection
from dsx.rl import rejection_sampler
from dsx.rl import rejection_sampling
from dsx.rl import rewards as rewards_lib
from dsx.training import workdir as workdir_lib

Part = rejection_sampler.Part
_PARTS = "parts"


def run(
  settings: rejection_sampling.RejectionSampling,
  workdir: pathlib.Path,
  *,
  judge: preference_judge.Judge | None = None,
  say: Callable[[str], None] = print,
) -> dict[str, Any]:
  """Samples, filters, mixes and writes; goes on with what a folder has.

  Leaves samples.jsonl, provenance.json, refused.jsonl and summary.json.

  Args:
    settings: of the run.
    workdir: its folder.
    judge: instead of `Rewards.reward_model`.
    say: shows a line.

  Returns:
    The summary.

  Raises:
    ValueError: in one line, what is wrong with settings, files or policy, or
      that no answer was good enough.
  """
  if jax.process_count() > 1:
    raise ValueError(
      f"{jax.process_count()} processes: expected one, which holds all devices;"
      " give each machine a share of the problems and a workdir of its own"
    )
  problems = settings.problems.train()
  curated_set.check(settings.general)
  with contextlib.ExitStack() as stack:
    grader = stack.enter_context(
      rewards_lib.Grader(
        settings.rewards, opened=settings.template.opens_thought, judge=judge
      )
    )
    grader.check(problems)
    _check_open(problems, settings.rewards.preference)
    mesh = mesh_lib.make(settings.mesh)
    stack.enter_context(sharding_lib.use(mesh, settings.sharding))
    sampler = rejection_sampler.Sampler(settings, grader, mesh)
    identity = {
      **settings.identity(),
      "problems": problems_lib.digest(problems),
      "policy": sampler.policy["digest"],
    }
    _claim(workdir, identity)
    say(
      f"{len(problems):,} problems, {settings.answers} answers each,"
      f" {sampler.note}"
    )
    parts = []
    for first in range(0, len(problems), settings.at_once):
      some = problems[first : first + settings.at_once]
      part = _read(workdir, first) or sampler.sample(some, first)
      _save(workdir, first, part)
      parts.append(part)
      say(_progress(first + len(some), len(problems), parts))
  return _finish(settings, workdir, parts, identity, sampler.policy)


def _check_open(
  problems: Sequence[problems_lib.Problem], preference: float
) -> None:
  for problem in problems:
    if problem.kind == "open" and not preference:
      raise ValueError(
        "rewards.preference=0: expected a weight and a reward_model for"
        f" problem {problem.name!r}, which no rule decides; give both, or take"
        " such problems out"
      )


def _claim(workdir: pathlib.Path, identity: dict[str, Any]) -> None:
  """Makes the folder, or finds that it holds this very run."""
  try:
    (workdir / _PARTS).mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise workdir_lib.WorkdirError(
      f"workdir {workdir} cannot be written: {error.strerror}; give another"
      " --workdir"
    ) from None
  file = workdir / workdir_lib.IDENTITY
  if file.exists() and any((workdir / _PARTS).iterdir()):
    try:
      old = json.loads(file.read_text())
    except ValueError as error:
      raise workdir_lib.WorkdirError(
        f"{file} is damaged: {error}; give another --workdir"
      ) from None
    found = workdir_lib.difference(old, identity)
    if found:
      name, before, now = found
      raise workdir_lib.WorkdirError(
        f"workdir {workdir} holds a run with {name}={before!r}, this one has"
        f" {now!r}: give another --workdir, or the old value to go on"
      )
  workdir_lib.describe(
    workdir, **{workdir_lib.IDENTITY: json.dumps(identity, indent=1)}
  )


def _file(workdir: pathlib.Path, first: int) -> pathlib.Path:
  return workdir / _PARTS / f"{first:09d}.json"


def _save(workdir: pathlib.Path, first: int, part: Part) -> None:
  file = _file(workdir, first)
  partial = file.with_suffix(".partial")
  partial.write_text(json.dumps(part._asdict(), ensure_ascii=False))
  os.replace(partial, file)


def _read(workdir: pathlib.Path, first: int) -> Part | None:
  """What was done before; None if it wasn't, or can't be read."""
  try:
    return Part(**json.loads(_file(workdir, first).read_text()))
  except (OSError, ValueError, TypeError):
    return None


def _total(
  parts: Sequence[Part],
) -> dict[str, dict[str, int]]:
  """Answers by domain, and there by what became of them."""
  total: dict[str, dict[str, int]] = {}
  for part in parts:
    for domain, counts in part.counts.items():
      own = total.setdefault(domain, {})
      for what, number in counts.items():
        own[what] = own.get(what, 0) + number
  order = ("kept", *rejection.REASONS)
  return {
    domain: {what: own[what] for what in order if what in own}
    for domain, own in sorted(total.items())
  }


def _progress(done: int, problems: int, parts: Sequence[Part]) -> str:
  counts = _total(parts)
  kept = sum(own.get("kept", 0) for own in counts.values())
  answers = sum(sum(own.values()) for own in counts.values())
  return f"{done:,} of {problems:,} problems: {kept:,} of {answers:,} kept"


def _finish(
  settings: rejection_sampling.RejectionSampling,
  workdir: pathlib.Path,
  parts: Sequence[Part],
  identity: dict[str, Any],
  policy: dict[str, Any],
) -> dict[str, Any]:
  """Writes the set, where all of it is from, and the summary."""
  written = curated_set.write(
    workdir,
    (line for part in parts for line in part.kept),
    general=settings.general,
    ratio=settings.ratio,
    seed=settings.seed,
  )
  counts = _total(parts)
  refused = [
    json.dumps(line, ensure_ascii=False) for p in parts for line in p.refused
  ]
  provenance = {
    curated_set.SAMPLES: written.digest,
    "samples": {
      "reasoning": written.reasoning,
      curated_set.GENERAL: written.general,
      "duplicates_left_out": written.duplicates,
    },
    "policy": policy,
    "general_files": written.general_files,
    "answers": counts,
    "settings": identity,
  }
  answers = sum(sum(own.values()) for own in counts.values())
  kept = sum(own.get("kept", 0) for own in counts.values())
  summary = {
    "samples": written.reasoning + written.general,
    "reasoning": written.reasoning,
    "general": written.general,
    "answers": answers,
    "share_kept": round(kept / answers, 4),
    "samples_digest": written.digest,
    "finished": True,
  }
  short = round(written.reasoning / settings.ratio) - written.general
  if settings.general and short > 0:
    summary["too_few_general"] = short
  workdir_lib.describe(
    workdir,
    **{
      curated_set.PROVENANCE: json.dumps(provenance, indent=1) + "\n",
      "refused.jsonl": "".join(f"{line}\n" for line in refused),
      workdir_lib.SUMMARY: json.dumps(summary, indent=1) + "\n",
    },
  )
  return summary
