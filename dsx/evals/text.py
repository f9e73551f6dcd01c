"""How well a model predicts held-out text, in bits per byte.

Bits per byte do not depend on the vocabulary: all nats of the predicted
tokens, divided by ln 2 and by the bytes that those tokens stand for.
"""

import dataclasses
import functools
import math

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dsx.models import language_model
from dsx.parallel import sharding as sharding_lib
from dsx.training import batches
from dsx.training import losses


@dataclasses.dataclass(frozen=True)
class TextScore:
  """Results over one split.

  Attributes:
    loss: nats per token of the main model.
    mtp_loss: nats per token of each MTP module.
    bits_per_byte: of the main model.
    tokens: predicted tokens.
  """

  loss: float
  mtp_loss: tuple[float, ...]
  bits_per_byte: float
  tokens: int


def sums(model: language_model.Model, params, router_bias, batch, token_bytes):
  """Sums over one batch, from which scores are made.

  Args:
    model: the model.
    params: parameters.
    router_bias: router biases.
    batch: leaves [1, B, L+1], see `losses.target_mask`.
    token_bytes: int32 [V], bytes that each token stands for.

  Returns:
    `nats` and `tokens` float32 [depths], `bytes` float32 [], and `load` float32
    [M, E], tokens at each expert of the M layers that have any.
  """
  batch = jax.tree.map(lambda x: x[0], batch)
  variables = {"params": params, "router_bias": router_bias}
  nats, masks, aux = losses.token_losses(model, variables, batch)
  length = token_bytes[losses.shifted(batch["tokens"], 0)]
  return {
    "nats": jnp.stack([n.sum() for n in nats]),
    "tokens": jnp.stack([m.sum() for m in masks]).astype(jnp.float32),
    "bytes": jnp.where(masks[0], length, 0).sum().astype(jnp.float32),
    "load": aux["load"],
  }


@functools.lru_cache(maxsize=8)
def _compiled(model, mesh, rules):
  """`sums` of a model, jitted once for all who score it in the same way.

  The rules of logical axes are read while tracing, where `jit` does not see
  them: they are a key here.
  """
  del rules
  # Replicated, so that every process can read them.
  return jax.jit(
    functools.partial(sums, model),
    out_shardings=sharding_lib.replicated(mesh),
  )


class Evaluator:
  """Scores parameters on the first records of a split, always the same.

  Evaluation changes nothing, router biases and loads included.

  Attributes:
    records: sequences that are scored.
  """

  def __init__(self, model, source, mesh, *, batch_size: int, records: int):
    """Prepares.

    Args:
      model: the model.
      source: a `data.pipeline.Source`, not shuffled.
      mesh: the device mesh.
      batch_size: sequences at a time, a multiple of the mesh's batch shards.
      records: how many to score; all if there are fewer.

    Raises:
      ValueError: there is nothing to score.
    """
    self._model, self._source, self._mesh = model, source, mesh
    self._batch_size = batch_size
    self.records = min(records, len(source))
    if self.records < 1:
      raise ValueError(
        f"evaluation records={records} of a split of {len(source)}: expected "
        "at least 1; raise it, or bring a larger corpus"
      )
    self._token_bytes = np.asarray(source.metadata["token_bytes"], np.int32)

  def _batches(self):
    for start in range(0, self.records, self._batch_size):
      rows = start + np.arange(self._batch_size)
      # What only fills the last batch is its last record again, uncounted.
      indices = np.minimum(rows, self.records - 1)[None, :]
      batch = batches.place(self._source, indices, self._mesh)
      used = (rows < self.records)[None, :, None]
      used = np.broadcast_to(used, batch["tokens"].shape)
      used = jax.device_put(used, batch["tokens"].sharding)
      batch["loss_mask"] = used * batch.get("loss_mask", True)
      yield batch

  def score(self, params, router_bias) -> TextScore:
    """Scores parameters."""
    return self.measure(params, router_bias)[0]

  def measure(self, params, router_bias) -> tuple[TextScore, np.ndarray]:
    """Scores parameters; returns loads of experts, too.

    Returns:
      (score, load): float [batches, M, E], without a last batch that is not
      full, unless it is the only one.
    """
    compiled = _compiled(self._model, self._mesh, nn.get_logical_axis_rules())
    parts = []
    for batch in self._batches():
      part = compiled(params, router_bias, batch, self._token_bytes)
      parts.append(jax.tree.map(lambda x: np.asarray(x, np.float64), part))
    whole = max(self.records // self._batch_size, 1)
    load = np.stack([part.pop("load") for part in parts[:whole]])
    for part in parts[whole:]:
      del part["load"]
    total = jax.tree.map(lambda *each: sum(each), *parts)
    loss, *mtp = total["nats"] / total["tokens"]
    score = TextScore(
      loss=float(loss),
      mtp_loss=tuple(float(x) for x in mtp),
      bits_per_byte=float(total["nats"][0] / math.log(2) / total["bytes"]),
      tokens=int(total["tokens"][0]),
    )
    return score, load
