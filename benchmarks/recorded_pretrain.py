"""`experiments.pretrain` that also writes down which batches it trained on.

Appends one JSON object a step to `batches.jsonl` in the workdir: the step and
the sha256 of the batch's tokens. A step that is taken again after a resume is
written again, so that both can be compared.
"""

import hashlib
import json

import numpy as np

from experiments import cli
from experiments import pretrain


def main(argv):
  """Trains as `experiments.pretrain` does."""
  from dsx.training import batches

  read = batches.Batches.__next__
  path = cli.workdir() / "batches.jsonl"

  def recorded(self):
    position, batch = read(self)
    tokens = np.ascontiguousarray(batch["tokens"])
    digest = hashlib.sha256(tokens.tobytes()).hexdigest()
    line = json.dumps({"step": position.step, "sha256": digest}) + "\n"
    with path.open("ab", buffering=0) as stream:
      stream.write(line.encode())
    return position, batch

  batches.Batches.__next__ = recorded
  return pretrain.main(argv)


if __name__ == "__main__":
  cli.run(main, target=pretrain.TARGET)
