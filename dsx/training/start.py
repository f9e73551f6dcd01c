"""Which weights a run starts from, where it does not start from none."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
  """The parameters and router biases of another model.

  Optimizer, schedule and data position begin anew. `starting.load` reads them.

  Attributes:
    path: workdir of a run (or of `experiments.convert`), or a folder in
      Hugging Face's layout.
    step: of a run's checkpoints; None takes the newest good one.
    average: of a run: the moving average of its parameters instead of them.
  """

  path: str
  step: int | None = None
  average: bool = False

  def __post_init__(self):
    if not isinstance(self.path, str) or not self.path:
      raise ValueError(
        f"path={self.path!r}: expected the workdir of a run, or a Hugging Face "
        "folder; give its path"
      )
    if self.step is not None and (
      isinstance(self.step, bool)
      or not isinstance(self.step, int)
      or self.step < 0
    ):
      raise ValueError(
        f"step={self.step!r}: expected the number of a checkpoint, or None for "
        "the newest; change it"
      )
