"""A process as the launcher starts it, without JAX: half of a test.

The first argument is a folder of the run, the second what is to happen: a
comma-separated list, an item for each start. 'N=kill' kills process N and has
the others say that they lost it, 'N=stop' stops it, 'N=K' ends it with exit
code K; 'save' first leaves a checkpoint; 'wait' waits for SIGTERM; else all is
well.
"""

import os
import pathlib
import re
import signal
import sys

from dsx.parallel import liveness
from dsx.training import manifest


def main() -> int:
  """Does what is to happen in this start; returns the exit code."""
  folder, plan, *flags = sys.argv[1:]
  told = dict(re.findall(r"--(\w+)=(\S+)", " ".join(flags)))
  process = int(told["process_id"])
  # Every start is at another port, which tells it from those before.
  starts = pathlib.Path(folder) / f"starts.{process}"
  with starts.open("a") as file:
    print(*flags, os.environ.get("XLA_FLAGS"), file=file)
  start = len(starts.read_text().splitlines())
  for event in plan.split(",")[start - 1].split("+"):
    if event == "save":
      step = pathlib.Path(folder) / "checkpoints" / str(10 * start)
      step.mkdir(parents=True, exist_ok=True)
      (step / manifest.NAME).touch()
    elif event == "wait":
      print("waiting", flush=True)
      number = signal.sigwait([signal.SIGTERM])
      print(f"stopped by {signal.Signals(number).name}")
    elif "=" in event:
      victim, what = event.split("=")
      if process != int(victim):
        return 0 if what == "0" else liveness.LOST
      if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
      if what == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
      print(f"ends with {what}", file=sys.stderr)
      return int(what)
  print("all is well")
  return 0


if __name__ == "__main__":
  # Waited for, and not obeyed.
  signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
  sys.exit(main())
