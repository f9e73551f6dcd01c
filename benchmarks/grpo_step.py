"""Steps a second of GRPO: dsx beside trl's `GRPOTrainer`, on this CPU.

  python benchmarks/grpo_step.py [--rounds 3] [--steps 2] [--record]

Both learn from the same policy (gin_configs/models/r1_tiny.gin, after some
steps of learning to add; trl reads it as `transformers`' DeepSeek-V3, without
the MTP module), the same sums, as many answers to each, as long at most, the
same rewards of the same Python functions, a reference policy, one step of AdamW
to a rollout, in float32. Each side is a process that has all cores; they take
turns, round after round, so that whatever else the machine does falls on both
alike, and a round's ratio says more than its seconds. trl is given the fastest
of its model's settings, and no vLLM, which this machine has no GPU for.

What differs: dsx recomputes the log-probabilities of its sampler, replays its
experts, and keeps the MTP module; trl takes the policy's own for the old ones.

Needs trl, which nothing else of dsx does: `pip install trl`.
"""

import argparse
import dataclasses
import importlib.util
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks import fp8_page
from benchmarks import grpo_step_sides as sides
from benchmarks import report

SECTION = "grpo"
MODEL = "r1_tiny"


class Side:
  """A side in its own process."""

  def __init__(self, name: str, setting: sides.Setting):
    """Starts it; what it has to load, it loads when first asked."""
    environment = dict(os.environ, JAX_PLATFORMS="cpu")
    environment["TOKENIZERS_PARALLELISM"] = "false"
    # Threads of PyTorch that wait for one another by spinning cost a busy
    # machine a hundred times what they save it.
    environment |= {"HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    self.name = name
    self._process = subprocess.Popen(
      [
        sys.executable,
        sides.__file__,
        name,
        json.dumps(dataclasses.asdict(setting)),
      ],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      env=environment,
      cwd=report.RESULTS.parents[1],
      text=True,
    )

  def take(self, steps: int) -> list[dict[str, float]]:
    """Takes steps; returns what each took.

    Raises:
      ValueError: the process ended.
    """
    assert self._process.stdin and self._process.stdout
    try:
      self._process.stdin.write(f"{steps}\n")
      self._process.stdin.flush()
    except BrokenPipeError:
      pass  # it has no answer either
    line = self._process.stdout.readline()
    if not line:
      raise ValueError(
        f"{self.name} ended with {self._process.wait()}: expected {steps} "
        "steps; its message is above"
      )
    return json.loads(line)

  def close(self) -> None:
    """Ends the process, and waits for it."""
    assert self._process.stdin and self._process.stdout
    self._process.stdin.close()
    try:
      self._process.wait(60)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()
    self._process.stdout.close()


def prepare(folder: str, steps: int) -> None:
  """Trains the policy and writes it in Hugging Face's layout, in float32."""
  from benchmarks import adding_policy
  from dsx.convert import conversion
  from dsx.convert import variables_source

  config = adding_policy.build(MODEL)
  variables, loss = adding_policy.trained(config, steps=steps)
  print(f"{MODEL}: {loss:.3f} nats a token after {steps} steps", flush=True)
  conversion.write(
    variables_source.VariablesSource(config, variables),
    folder,
    conversion.Conversion(target_format="hf", dtype="float32"),
  )


def alternate(
  ours: Side, theirs: Side, rounds: int, steps: int
) -> list[dict[str, list[dict[str, float]]]]:
  """Rounds of steps of either side, in turns.

  Programs are compiled, and trl's settings tried, before.

  Returns:
    For each round, by side, what each step took.
  """
  for side in (ours, theirs):
    side.take(2)
  found = []
  for number in range(rounds):
    # Whoever is second in a round is first in the next.
    order = (ours, theirs) if number % 2 == 0 else (theirs, ours)
    found.append({side.name: side.take(steps) for side in order})
    line = row(str(number + 1), found[-1])
    print(" ".join(line), f"load {os.getloadavg()[0]:.1f}", flush=True)
  return found


def row(name: str, taken: dict[str, list[dict[str, float]]]) -> list[str]:
  """A round's seconds a step of both sides, and their ratio."""
  ours, theirs = (seconds(taken[side]) for side in ("dsx", "trl"))
  return [name, f"{ours:.2f}", f"{theirs:.2f}", f"{theirs / ours:.2f}"]


def seconds(steps: list[dict[str, float]]) -> float:
  """Mean seconds of steps."""
  return statistics.fmean(step["seconds"] for step in steps)


def tables(rounds: list[dict[str, list[dict[str, float]]]]) -> str:
  """Rounds with the ratio's median and spread, and the split of a step."""
  lines = [row(str(i), taken) for i, taken in enumerate(rounds, 1)]
  means = {
    side: [seconds(taken[side]) for taken in rounds] for side in ("dsx", "trl")
  }
  ratios = [b / a for a, b in zip(means["dsx"], means["trl"], strict=True)]
  lines.append(
    [
      "median",
      *(f"{statistics.median(means[side]):.2f}" for side in means),
      f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to "
      f"{max(ratios):.2f})",
    ]
  )
  header = ["round", "dsx s a step", "trl s a step", "steps/s, dsx : trl"]
  split = []
  for side in means:
    steps = [step for taken in rounds for step in taken[side]]
    mean = {
      name: statistics.fmean(step[name] for step in steps) for name in steps[0]
    }
    parts = [mean[name] for name in sides.PHASES]
    split.append(
      [
        side,
        f"{1 / mean['seconds']:.3f}",
        *(f"{part:.2f}" for part in parts),
        f"{mean['seconds'] - sum(parts):.2f}",
        f"{mean['tokens']:,.0f}",
        f"{mean['tokens'] / mean['generate']:,.0f}",
        f"{mean['reward']:.2f}",
      ]
    )
  names = ["side", "steps/s", *(f"{name} s" for name in sides.PHASES), "rest s"]
  names += ["answer tokens", "tokens/s generated", "reward"]
  return f"{report.table(header, lines)}\n\n{report.table(names, split)}"


def measure(flags: argparse.Namespace) -> str:
  """The tables of a measurement, and a line about it."""
  with tempfile.TemporaryDirectory() as folder:
    weights = str(pathlib.Path(folder) / "policy")
    prepare(weights, flags.learning_steps)
    setting = sides.Setting(
      weights=weights,
      prompts=flags.prompts,
      group=flags.group,
      longest=flags.longest,
      kl=flags.kl,
      attention=flags.attention,
      experts=flags.experts,
      threads=flags.threads,
    )
    both = [Side(name, setting) for name in ("dsx", "trl")]
    try:
      found = alternate(*both, flags.rounds, flags.steps)
    finally:
      for side in both:
        side.close()
  load = os.getloadavg()[1]
  busy = load > 1.5 * len(os.sched_getaffinity(0))
  about = (
    f"`python {' '.join(sys.argv)}`: {flags.prompts} x {flags.group} answers "
    f"of at most {flags.longest} tokens, {flags.steps} steps a round; load "
    f"average {load:.1f} over 5 minutes"
    + (", others' work included: the ratio is what counts." if busy else ".")
  )
  return f"{about}\n\n{tables(found)}"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
  """Flags."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--steps", type=int, default=2, help="of a round")
  parser.add_argument("--prompts", type=int, default=32)
  parser.add_argument("--group", type=int, default=16)
  parser.add_argument("--longest", type=int, default=64, help="answer, tokens")
  parser.add_argument("--kl", type=float, default=0.001)
  parser.add_argument("--learning_steps", type=int, default=200)
  for name, choices in (
    ("attention", sides.ATTENTION),
    ("experts", sides.EXPERTS),
  ):
    words = "of trl's model; by default the fastest"
    parser.add_argument(f"--{name}", choices=choices, help=words)
  parser.add_argument(
    "--threads", type=int, help="of PyTorch; by default the fastest number"
  )
  parser.add_argument("--record", action="store_true")
  return parser.parse_args(arguments)


def main():
  """Prints the tables, and records them if asked to."""
  flags = parse()
  if importlib.util.find_spec("trl") is None:
    sys.exit(
      "trl is not installed, and this measurement alone needs it: `pip install "
      "trl`, in an environment of its own if the others' versions matter"
    )
  try:
    body = measure(flags)
  except ValueError as error:
    sys.exit(str(error))
  print(body)
  if flags.record:
    fp8_page.write(SECTION, body, report.RESULTS)


if __name__ == "__main__":
  main()
