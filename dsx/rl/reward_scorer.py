"""A trained reward model as a judge."""

from collections.abc import Sequence
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from dsx.data import prompt_template
from dsx.data import vocab as vocab_lib
from dsx.parallel import mesh as mesh_lib
from dsx.parallel import sharding as sharding_lib
from dsx.rl import reward_batches
from dsx.rl import reward_model
from dsx.rl import reward_update
from dsx.training import checkpoint as checkpoint_lib
from dsx.training import restore
from dsx.training import workdir as workdir_lib

# Rows that go through the model at once are filled up to this many.
_ROWS = 32


class RewardScorer:
  """A `preference_judge.Judge` read back from the workdir of its training.

  Attributes:
    part: of a response that it judges.
  """

  def __init__(
    self,
    workdir: str | os.PathLike[str],
    *,
    mesh: jax.sharding.Mesh | None = None,
    sharding: sharding_lib.Sharding | None = None,
  ):
    """Reads the newest good checkpoint.

    Args:
      workdir: of a `RewardTraining`.
      mesh: where to; by default one device.
      sharding: how; by default `Sharding()`'s rules.

    Raises:
      ValueError: there is none, or it is of something else.
    """
    path = pathlib.Path(workdir).expanduser()
    if not restore.is_workdir(path):
      raise workdir_lib.WorkdirError(
        f"{path}: no checkpoint; expected the workdir of"
        " experiments.reward_model"
      )
    self._mesh = mesh or mesh_lib.make(mesh_lib.MeshShape(), jax.devices()[:1])
    self._sharding = sharding or sharding_lib.Sharding()
    with checkpoint_lib.Checkpointer(
      path / workdir_lib.CHECKPOINTS
    ) as checkpoints:
      metadata = checkpoints.metadata(None)
      run = metadata["run"]
      if run.get("kind") != "reward_model":
        raise workdir_lib.WorkdirError(
          f"{path}: a run of another kind; expected the workdir of"
          " experiments.reward_model"
        )
      self._model = reward_model.RewardModel(
        restore.config_of(metadata), restore.dtypes_of(metadata)
      )
      target = restore.abstract(
        self._model, self._sharding.parameters, self._mesh
      )
      restored = checkpoints.restore({"state": target}, partial=True)
    self._variables = restored.arrays["state"]
    self.part = run["part"]
    self._longest = run["longest"]
    vocabulary = workdir_lib.vocabulary(path, metadata["vocabulary"])
    self._encoder = reward_batches.Encoder(
      vocab_lib.load(vocabulary),
      prompt_template.Template(**run["template"]),
      self.part,
    )
    self._score = jax.jit(
      lambda variables, rows: reward_update.rewards(
        self._model,
        variables["params"],
        variables.get("router_bias", {}),
        rows,
      )
    )

  def scores(
    self, prompts: Sequence[str], groups: Sequence[Sequence[str]]
  ) -> list[np.ndarray]:
    """See `preference_judge.Judge`; texts that are too long get NaN."""
    texts = [
      self._encoder.text(prompt, answer)
      for prompt, group in zip(prompts, groups, strict=True)
      for answer in group
    ]
    found = np.full(len(texts), np.nan, np.float32)
    # Texts of a like length go together, so that few rows are mostly padding.
    short = [i for i, text in enumerate(texts) if len(text) <= self._longest]
    short.sort(key=lambda i: len(texts[i]))
    with sharding_lib.use(self._mesh, self._sharding):
      for start in range(0, len(short), _ROWS):
        part = short[start : start + _ROWS]
        filled = [*part, *[part[-1]] * (_ROWS - len(part))]
        tokens, length = reward_batches.rows([texts[i] for i in filled])
        rows = (jnp.asarray(tokens), jnp.asarray(length))
        scores = np.asarray(self._score(self._variables, rows))
        found[part] = scores[: len(part)]
    ends = np.cumsum([len(group) for group in groups])[:-1]
    return np.split(found, ends)
