"""A run that kills itself between two updates of a rollout: half of a test.

The fifth step's answers are drawn, its update is taken, and nothing of it is
saved. WORKDIR is where.
"""

import os
import pathlib
import signal

if __name__ == "__main__":
  os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
  os.environ["JAX_PLATFORMS"] = "cpu"

from dsx.rl import learner
from dsx.rl import loop
from tests.rl import tiny_reinforcement


def main() -> None:
  take = learner.Learner.take

  def taken(self, progress):
    record = take(self, progress)
    if progress.step == 5:
      self.keeper.checkpoints.wait()  # else step 4 may not be there yet
      os.kill(os.getpid(), signal.SIGKILL)
    return record

  learner.Learner.take = taken
  with tiny_reinforcement.one_device():
    workdir = pathlib.Path(os.environ["WORKDIR"])
    loop.reinforce(tiny_reinforcement.run(), workdir)


if __name__ == "__main__":
  main()
