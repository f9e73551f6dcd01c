"""`experiments.pretrain` that sends itself a signal: half of a test.

The environment says which and when: SIGNAL is a name, MOMENT a step before
which it is sent, or 'commit N' for the N-th save of this process, whose arrays
are on the disk then and whose manifest is not.
"""

import os
import signal

from experiments import cli
from experiments import pretrain


def main(argv):
  """Trains until the moment has come."""
  from dsx.training import commit
  from dsx.training import schedules

  number = signal.Signals[os.environ["SIGNAL"]]
  what, _, count = os.environ["MOMENT"].rpartition(" ")
  left = int(count)
  phase, commit_step = schedules.Schedule.phase, commit.commit

  def at_step(self, step):
    if step == left:
      os.kill(os.getpid(), number)
    return phase(self, step)

  def at_commit(*args, **kwargs):
    nonlocal left
    left -= 1
    if not left:
      os.kill(os.getpid(), number)
    return commit_step(*args, **kwargs)

  if what == "commit":
    commit.commit = at_commit
  else:
    schedules.Schedule.phase = at_step
  return pretrain.main(argv)


if __name__ == "__main__":
  cli.run(main, target=pretrain.TARGET)
