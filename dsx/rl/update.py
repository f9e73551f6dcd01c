"""From answers and their advantages to a better policy.

DeepSeek-R1 section 2.2.1. Two passes, each compiled once:

  recompute  log-probabilities of the answers under the policy that drew them
             (the sampler's own numbers come from another program) and under
             the reference, and how far the sampler was from the first
  update     one step of the optimizer along the objective's gradient,
             accumulated over micro-batches

What sums are divided by is that of all answers of a step, so that neither the
size of micro-batches nor packing nor devices change it (beyond rounding).

Legend (parallel/axes.py): N answers, B rows of a micro-batch, L columns;
M micro-batches, n tokens of an answer.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
from typing import Literal

import jax
import numpy as np

from dsx.inference import sampling as sampling_lib
from dsx.models import deepseek
from dsx.ops import platforms
from dsx.parallel import mesh as mesh_lib
from dsx.parallel import scheduling
from dsx.parallel import sharding as sharding_lib
from dsx.rl import mismatch
from dsx.rl import objective as objective_lib
from dsx.rl import passes
from dsx.rl import rows as rows_lib
from dsx.rl import sample as sample_lib
from dsx.training import state as state_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """How a policy is updated.

  Attributes:
    objective: which policy gradient.
    correction: what is done about a sampler whose numbers differ.
    old: whose log-probabilities the ratio divides by: those that the `trainer`
      recomputes, or the `sampler`'s own, which spares a forward pass, cannot
      tell how far both are apart, and needs sampling without truncation.
    replay: whether the experts that the sampler chose are taken, where they
      are recorded (gate weights are the trainer's, and have gradients). The
      reference always chooses its own: it is another policy.
    mtp_weight: of the MTP modules' losses over answers, in order that drafts
      keep up with the policy. The reports do not say. 0 leaves them as they
      are.
    mtp_detached: whether these losses move the MTP modules alone, and neither
      the main model nor the embedding and output head that they share.
    balance_weight: of the sequence-wise balance loss (DeepSeek-V3 eq. 17),
      here of rows, weighed by their tokens: the only term that packing
      changes.
    bias_update_speed: of the router biases, by the loads of a step's tokens,
      prompts included; 0 leaves them as they are. MTP modules' are moved if
      their losses count.
    row_length: L; None for a power of two with room for the longest answer.
    micro_batch_tokens: columns that go through the model at once, at least a
      row on each device.
    vocabulary_chunk: columns of the output head that are held at once.
  """

  objective: objective_lib.Objective = objective_lib.Objective()
  correction: mismatch.Correction = mismatch.Correction()
  old: Literal["trainer", "sampler"] = "trainer"
  replay: bool = True
  mtp_weight: float = 0.0
  mtp_detached: bool = True
  balance_weight: float = 0.0
  bias_update_speed: float = 0.0
  row_length: int | None = None
  micro_batch_tokens: int = 8192
  vocabulary_chunk: int = 16384

  def __post_init__(self):
    if self.old not in ("trainer", "sampler"):
      raise ValueError(f"old={self.old!r}: expected trainer or sampler")
    for field in ("mtp_weight", "balance_weight", "bias_update_speed"):
      if not getattr(self, field) >= 0:
        raise ValueError(
          f"{field}={getattr(self, field)!r}: expected at least 0; raise it"
        )
    for field in ("row_length", "micro_batch_tokens", "vocabulary_chunk"):
      value = getattr(self, field)
      if value is not None and value < 1:
        raise ValueError(f"{field}={value!r}: expected at least 1; raise it")

  @property
  def mtp(self) -> Literal["trained", "detached", "none"]:
    """How MTP modules take part in a step."""
    if not self.mtp_weight:
      return "none"
    return "detached" if self.mtp_detached else "trained"


@dataclasses.dataclass(frozen=True, eq=False)
class Recomputed:
  """What the first pass knows of N answers.

  Attributes:
    logprobs: by name, float32 [n] of each answer: `old`, `importance` (weights
      for the sampler's difference), `entropy` (not with `old='sampler'`), and
      `reference` if there is one. `Updater.update` takes them as they are.
    divergence: float32 [N], k1 of each answer (log old - log reference, over
      its tokens), to be taken off rewards with `kl_in_reward`; zeros without a
      reference.
    facts: `entropy`, `mismatch_*`, `importance_*` (means over tokens) and
      `recompute_filled`, the share of columns that hold a token.
    refusal: why nothing should be learnt from these answers, in a line; empty
      if all is well.
  """

  logprobs: dict[str, list[np.ndarray]]
  divergence: np.ndarray
  facts: dict[str, float]
  refusal: str


class Updater:
  """Takes steps of a policy.

  Everything that changes is in the `TrainState`; this holds programs only. To
  be used under `sharding.use` of the mesh and rules that `placement` is for.
  """

  def __init__(
    self,
    model: deepseek.DeepSeek,
    optimizer,
    settings: Settings,
    *,
    sampling: sampling_lib.Sampling,
    vocab_size: int | None = None,
    placement: state_lib.TrainState | None = None,
    mesh: jax.sharding.Mesh | None = None,
  ):
    """Checks what goes together; compiles nothing.

    Args:
      model: the policy.
      optimizer: `optimizer.AdamW.transformation`.
      settings: how it is updated.
      sampling: how answers are drawn.
      vocab_size: ids from here on only pad the model's vocabulary.
      placement: where a state lives (`state.shardings`); None for wherever it
        is.
      mesh: the devices; None for one.

    Raises:
      ValueError: the settings do not go together, or not with the mesh.
    """
    _check(settings, sampling, model)
    self.model, self.settings, self.mesh = model, settings, mesh
    self._temperature = np.float32(sampling.temperature)
    self._raw = _truncates(sampling)
    self._multiple = mesh_lib.batch_shards(mesh)
    if model.execution.overlap == "two_batches":
      self._multiple *= 2
    static = passes.Static(model, settings, vocab_size, self._raw)
    options = scheduling.options(model.execution.overlap, platforms.target())
    self._recompute = jax.jit(
      functools.partial(passes.recompute, static), compiler_options=options
    )
    places = {}
    if placement is not None:
      places["in_shardings"] = (placement, None, None)
      places["out_shardings"] = (placement, None)
    self._step = jax.jit(
      functools.partial(passes.step, static, optimizer),
      donate_argnums=0,
      compiler_options=options,
      **places,
    )

  @property
  def needs_reference(self) -> bool:
    """Whether `recompute` wants a reference."""
    o = self.settings.objective
    return bool(o.kl_coefficient) and (o.kl != "none" or o.kl_in_reward)

  def pack(self, samples: Sequence[sample_lib.Sample]) -> rows_lib.Packed:
    """Answers as this updater reads them."""
    length = self.settings.row_length
    if length is None:
      longest = max(len(s.prompt) + len(s.tokens) - 1 for s in samples)
      length = rows_lib.row_length(longest)
    return rows_lib.pack(
      samples,
      length=length,
      micro_batch=self.settings.micro_batch_tokens // length,
      multiple=self._multiple,
    )

  def recompute(
    self, variables, samples: Sequence[sample_lib.Sample], reference=None
  ) -> Recomputed:
    """The first pass, of a whole rollout at once.

    Args:
      variables: `params` and `router_bias` (or a `TrainState`) of the policy
        as it is before the first step on these answers.
      samples: N answers.
      reference: likewise of the reference policy; needed if
        `needs_reference`.

    Raises:
      ValueError: there is no reference and one is needed; or of `rows.pack`.
    """
    if self.needs_reference and reference is None:
      raise ValueError(
        "reference=None: expected the reference policy's variables, because"
        f" kl_coefficient={self.settings.objective.kl_coefficient}; give them"
        " or set it to 0"
      )
    sampler = self.settings.old == "sampler"
    found, sums, facts = {}, None, {}
    if not (sampler and reference is None):
      packed = self.pack(samples)
      found, sums = self._recompute(
        None if sampler else _variables(variables),
        None if reference is None else _variables(reference),
        self._placed(packed.rows),
        {
          "temperature": self._temperature,
          "micro_batches": np.int32(packed.micro_batches),
        },
      )
      found = {
        name: packed.unpacked(state_lib.whole(x)) for name, x in found.items()
      }
      facts["recompute_filled"] = packed.filled
    refusal = ""
    if sampler:
      found["old"] = [s.sampled_logprob for s in samples]
      found["importance"] = [np.ones_like(x) for x in found["old"]]
    else:
      assert sums is not None
      sums = mismatch.added([jax.device_get(sums)])
      facts |= mismatch.metrics(sums)
      facts["entropy"] = _mean(found["entropy"])
      refusal = mismatch.refusal(sums, self.settings.correction)
    divergence = np.zeros(len(samples), np.float32)
    if reference is not None:
      pairs = zip(found["old"], found["reference"], strict=True)
      divergence = np.array([(a - b).sum() for a, b in pairs], np.float32)
    return Recomputed(found, divergence, facts, refusal)

  def update(
    self,
    state: state_lib.TrainState,
    samples: Sequence[sample_lib.Sample],
    advantages: np.ndarray,
    logprobs: Mapping[str, Sequence[np.ndarray]],
    *,
    counted: np.ndarray | None = None,
    learning_rate: float,
  ) -> tuple[state_lib.TrainState, dict[str, float]]:
    """One step of the optimizer.

    Args:
      state: of training; its arrays are given up.
      samples: N answers.
      advantages: float32 [N].
      logprobs: of `Recomputed`, those of these answers.
      counted: bool [N]; the rest teach nothing and are not in what sums are
        divided by. None for all.
      learning_rate: of the step.

    Returns:
      (state, facts): `loss`, `kl`, `clipped`, `ratio` (means over the tokens
      that were read: where only the gain counts, answers without advantage are
      not), `tokens`, `grad_norm`, `finite` (0 if the step was refused),
      `mtp_loss`, `balance_loss`, `max_violation` where they are asked for,
      `update_filled`.
    """
    advantages, counted = _checked(samples, advantages, counted, logprobs)
    if not counted.any():
      return self.refused(state), {"tokens": 0.0, "finite": 0.0}
    reads = counted
    if self._only_gain:
      reads = counted & (advantages != 0)
      # Moments decay and weights too: a step is taken all the same.
      reads = reads if reads.any() else counted
    chosen = np.flatnonzero(reads).tolist()
    packed = self.pack([samples[i] for i in chosen])
    size = _power_of_two(len(samples))
    length = np.zeros(size, np.int32)
    # In the order of what is read, then the rest, which only count.
    order = [*chosen, *np.flatnonzero(counted & ~reads).tolist()]
    length[: len(order)] = [len(samples[i].tokens) for i in order]
    padded = np.zeros(size, np.float32)
    padded[: len(order)] = advantages[order]

    def laid(name):
      return packed.laid([logprobs[name][i] for i in chosen])

    batch = {
      "rows": packed.rows,
      "old": laid("old"),
      "importance": laid("importance"),
    }
    if "reference" in logprobs:
      batch["reference"] = laid("reference")
    scalars = {
      "learning_rate": np.float32(learning_rate),
      "temperature": self._temperature,
      "micro_batches": np.int32(packed.micro_batches),
      "length": length,
      "advantage": padded,
    }
    state, facts = self._step(state, self._placed(batch), scalars)
    facts = {name: float(x) for name, x in jax.device_get(facts).items()}
    return state, facts | {"update_filled": packed.filled}

  def refused(self, state: state_lib.TrainState) -> state_lib.TrainState:
    """The state after a step that was not taken: counted as skipped."""
    return state.replace(
      step=state.step + 1,
      skipped=state.skipped + 1,
      skipped_in_a_row=state.skipped_in_a_row + 1,
    )

  @property
  def _only_gain(self) -> bool:
    """Whether an answer without advantage has no part in a step."""
    s, o = self.settings, self.settings.objective
    others = (
      o.kl != "none" and o.kl_coefficient,
      o.entropy_coefficient,
      s.mtp_weight,
      s.balance_weight,
      s.bias_update_speed,
    )
    return not any(others)

  def _placed(self, tree):
    """Arrays [M, B, L, ...] on their devices."""
    if self.mesh is None:
      return tree
    placement = sharding_lib.batch_sharding(self.mesh, leading=1)
    return jax.tree.map(
      lambda x: jax.make_array_from_callback(
        x.shape, placement, lambda index, x=x: x[index]
      ),
      tree,
    )


def _power_of_two(n: int) -> int:
  return 1 << (n - 1).bit_length()


def _mean(lists) -> float:
  return float(np.concatenate(lists).mean(dtype=np.float64))


def _variables(tree):
  """`params` and `router_bias` of a state or of variables."""
  if isinstance(tree, state_lib.TrainState):
    return {"params": tree.params, "router_bias": tree.router_bias}
  return {
    "params": tree["params"],
    "router_bias": tree.get("router_bias", {}),
  }


def _truncates(sampling: sampling_lib.Sampling) -> bool:
  return sampling.top_k > 0 or sampling.top_p < 1 or sampling.min_p > 0


def _check(
  settings: Settings, sampling: sampling_lib.Sampling, model: deepseek.DeepSeek
) -> None:
  if not sampling.temperature > 0:
    raise ValueError(
      f"temperature={sampling.temperature!r}: expected above 0, because the"
      " best token alone has no gradient; 1 is usual"
    )
  if settings.old == "sampler" and _truncates(sampling):
    raise ValueError(
      "old='sampler': expected 'trainer' with top_k, top_p or min_p, under"
      " which the sampler's log-probabilities are not the model's; change"
      " either"
    )
  if settings.mtp_weight and not model.config.num_nextn_predict_layers:
    raise ValueError(
      f"mtp_weight={settings.mtp_weight}: expected 0, because the model has no"
      " MTP modules (num_nextn_predict_layers=0); set it"
    )


def _checked(samples, advantages, counted, logprobs):
  """Advantages and what counts as arrays [N].

  Raises:
    ValueError: they are not of N answers, or not finite where they count.
  """
  n = len(samples)
  advantages = np.asarray(advantages, np.float32)
  if counted is None:
    counted = np.ones(n, bool)
  counted = np.asarray(counted, bool)
  lengths = {"advantages": len(advantages), "counted": len(counted)}
  lengths |= {f"logprobs[{k!r}]": len(v) for k, v in logprobs.items()}
  for name, found in lengths.items():
    if found != n:
      raise ValueError(
        f"{name} of {found} answers: expected {n}, as many as samples; give"
        " those of the same answers"
      )
  for name in ("old", "importance"):
    if name not in logprobs:
      raise ValueError(
        f"logprobs has {sorted(logprobs)}: expected {name!r} too; take them"
        " from Updater.recompute"
      )
  wrong = np.flatnonzero(counted & ~np.isfinite(advantages))
  if wrong.size:
    raise ValueError(
      f"advantages[{wrong[0]}]={advantages[wrong[0]]}: expected a finite"
      " number; do not count an answer without a reward"
    )
  return np.where(counted, advantages, 0.0), counted
