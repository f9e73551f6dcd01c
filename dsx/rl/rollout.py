"""Answers of a policy to a step's prompts, with all that an update needs.

    roller = Roller(config, decoding=decoding.Decoding(slots=512), eos=1)
    roller.load(variables, version=7)
    samples = roller.sample(
      prompts, group_size=16, sampling=sampling.Sampling(temperature=1.0),
      run_seed=0, step=7)

DeepSeek-R1 section 2.2.1 samples G answers to each prompt. They are requests to
one engine: a prompt is read once for its group, and an answer that ends makes
room for the next. Every answer has a key of its own, folded from the run, the
step, the prompt's number and its own, so that neither slots nor company nor a
resumed run change what is said.

Weights come from the trainer's own tree, in its own layout: nothing is sent
anywhere, and no program compiled anew.

Legend (parallel/axes.py): p tokens of a prompt, n of an answer; G answers to a
prompt.
"""

import collections
from collections.abc import Sequence
import dataclasses
import hashlib

import jax
import jax.numpy as jnp
import numpy as np

from dsx.inference import decoding as decoding_lib
from dsx.inference import engine as engine_lib
from dsx.inference import news
from dsx.inference import request as request_lib
from dsx.inference import sampling as sampling_lib
from dsx.models import config as config_lib
from dsx.ops import dtypes as dtypes_lib
from dsx.ops import platforms
from dsx.parallel import mesh as mesh_lib
from dsx.parallel import sharding as sharding_lib
from dsx.rl import sample as sample_lib

# Unless told otherwise: a step's answers are many, and mostly short.
DECODING = decoding_lib.Decoding(
  slots=512, page_size=16, steps=32, least_context=64
)
# Shorter contexts and fewer slots are not worth programs of their own.
_LEAST_CONTEXT, _LEAST_SLOTS = 64, 8
# A small model's steps leave a CPU's cores at rest, unless several engines take
# turns. Not one for each core: the last bits of a run depend on it.
_LANES = 4


class Roller:
  """Samples groups of answers; see the module."""

  def __init__(
    self,
    config: config_lib.DeepSeekConfig,
    dtypes: dtypes_lib.Dtypes = dtypes_lib.Dtypes(),  # noqa: B008, frozen
    *,
    decoding: decoding_lib.Decoding = DECODING,
    eos: int | None = None,
    vocab_size: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
    sharding: sharding_lib.Sharding | None = None,
  ):
    """Makes one without weights; `load` them first.

    Args:
      config: the policy.
      dtypes: of parameters and products. Weights that come in another type are
        rounded to `param`, whatever the trainer keeps.
      decoding: how to batch, at most. There are no more slots than answers,
        and without a `context` it is as long as prompts and answers need, both
        in powers of two.
      eos: the token that ends every answer, if there is one.
      vocab_size: ids from here on are never drawn, and have no share in any
        probability: rows that only pad the model's vocabulary. None for all.
      mesh: devices to spread over, with the weights in place on them.
      sharding: rules that go with the mesh.

    Raises:
      ValueError: a number does not fit the model or the mesh.
    """
    decoding_lib.check(decoding, config, mesh)
    cpu = mesh is None and platforms.target() == "cpu"
    self._n_lanes = _LANES if cpu else 1
    self._config, self._dtypes, self._decoding = config, dtypes, decoding
    self._eos, self._vocab_size = eos, vocab_size
    self._mesh, self._sharding = mesh, sharding
    self._lanes: list[engine_lib.Engine] = []
    self._counts = collections.Counter()
    self._variables, self._version = None, 0

  def load(self, variables, version: int) -> None:
    """Takes the weights of a policy.

    Arrays are shared with the trainer wherever layout and type allow: once an
    update was given them to overwrite, its results are loaded before anything
    else is sampled.

    Args:
      variables: `{'params': ..., 'router_bias': ...}`, in either layout.
      version: of the policy, for `Sample.version`.

    Raises:
      ValueError: they are not of the model.
    """
    if self._lanes:
      self._lanes[0].load(variables)
    self._variables, self._version = variables, version

  def sample(
    self,
    prompts: Sequence[Sequence[int]],
    *,
    group_size: int,
    sampling: sampling_lib.Sampling,
    run_seed: int,
    step: int,
    first_prompt: int = 0,
  ) -> list[sample_lib.Sample]:
    """Answers to prompts, `group_size` to each.

    Args:
      prompts: token ids of each.
      group_size: G.
      sampling: length, temperature, truncation and stop tokens. Its seed is
        not used.
      run_seed: of the whole run.
      step: of the run; each draws anew.
      first_prompt: number of the first prompt in its step, if others of this
        step were sampled before.

    Returns:
      Samples in the order of their prompts and numbers.

    Raises:
      ValueError: a prompt can't be answered, or no weights are loaded.
    """
    _check(prompts, group_size, sampling)
    lanes = self._fitting(prompts, group_size, sampling)
    asked: list[tuple[int, int]] = []  # (lane, request) of each answer
    try:
      for index, prompt in enumerate(prompts):
        lane, prompt = index % len(lanes), tuple(prompt)
        for number in range(group_size):
          seed = seed_of(run_seed, step, first_prompt + index, number)
          request = request_lib.Request(
            prompt=prompt, sampling=dataclasses.replace(sampling, seed=seed)
          )
          asked.append((lane, lanes[lane].submit(request)))
      records = _run(lanes)
    except BaseException:
      self._lanes = []  # with whatever they were about
      raise
    arrays = [np.asarray(prompt, np.int32) for prompt in prompts]
    return [
      self._sample(
        records[key],
        first_prompt + place // group_size,
        place % group_size,
        arrays[place // group_size],
      )
      for place, key in enumerate(asked)
    ]

  def _sample(
    self,
    records: list[news.Record],
    prompt_number: int,
    number: int,
    prompt: np.ndarray,
  ) -> sample_lib.Sample:
    """All that came of one answer."""
    tokens = _joined([r.tokens for r in records])
    experts = None
    if self._decoding.record_experts:
      experts = _joined([r.experts for r in records]).astype(np.int32)
    return sample_lib.Sample(
      prompt_number=prompt_number,
      number=number,
      prompt=prompt,
      tokens=tokens,
      logprob=_joined([r.logprob for r in records]),
      sampled_logprob=_joined([r.sampled_logprob for r in records]),
      experts=experts,
      version=np.full(len(tokens), self._version, np.int32),
      truncated=records[-1].finish == "length",
    )

  @property
  def stats(self) -> decoding_lib.Stats:
    """Counts of all that was sampled, and how full the caches are."""
    found = [decoding_lib.Stats(*[0] * len(decoding_lib.Stats._fields))]
    found += [lane.stats for lane in self._lanes]
    total = decoding_lib.Stats(*map(sum, zip(*found, strict=True)))
    past = {name: n + self._counts[name] for name, n in total._asdict().items()}
    return decoding_lib.Stats(**past)

  def _fitting(
    self,
    prompts: Sequence[Sequence[int]],
    group_size: int,
    sampling: sampling_lib.Sampling,
  ) -> list[engine_lib.Engine]:
    """Engines with room for prompts and answers.

    Their slots follow from what is asked alone, and not from what was asked
    before: a resumed run meets the same programs.
    """
    if self._variables is None:
      raise ValueError("no weights: expected those of a policy; call `load`")
    most = self._decoding
    n = min(self._n_lanes, len(prompts), most.slots)
    slots = _power_of_two(-(-len(prompts) * group_size // n))
    slots = min(max(slots, _LEAST_SLOTS), -(-most.slots // n))
    shards = mesh_lib.batch_shards(self._mesh)
    slots = -(-slots // shards) * shards
    longest = max(map(len, prompts)) + sampling.max_new_tokens
    longest = max(_LEAST_CONTEXT, _power_of_two(longest))
    longest = min(longest, self._config.max_position_embeddings)
    context = most.context or longest
    if self._lanes:
      context = max(context, self._lanes[0].context)
    decoding = dataclasses.replace(
      most,
      slots=slots,
      context=context,
      cache_tokens=most.cache_tokens and -(-most.cache_tokens // n),
    )
    if [lane.decoding for lane in self._lanes] != [decoding] * n:
      self._make(decoding, n)
    if self._lanes[0].weights.deleted:
      raise ValueError(
        f"weights of version {self._version} were given away to be "
        "overwritten: expected others; call `load` after an update"
      )
    return self._lanes

  def _make(self, decoding: decoding_lib.Decoding, n: int) -> None:
    """Makes n engines with the same weights, after others are gone."""
    for lane in self._lanes:
      counts = lane.stats._asdict()
      self._counts.update({name: counts[name] for name in decoding_lib.COUNTED})
    weights = _rounded(self._variables, self._dtypes.param)
    self._lanes = []
    for _ in range(n):
      self._lanes.append(
        engine_lib.Engine(
          self._config,
          weights,
          dtypes=self._dtypes,
          decoding=decoding,
          eos=self._eos,
          vocab_size=self._vocab_size,
          mesh=self._mesh,
          sharding=self._sharding,
        )
      )
      weights = self._lanes[0].weights


def _run(
  lanes: list[engine_lib.Engine],
) -> dict[tuple[int, int], list[news.Record]]:
  """All news of all requests, by lane and request.

  While the news of one lane are read, the device works for the others.
  """
  found = collections.defaultdict(list)
  for lane in lanes:
    lane.begin()
  at_work = list(range(len(lanes)))
  while at_work:
    for number in list(at_work):
      for record in lanes[number].finish():
        found[number, record.request].append(record)
      if lanes[number].busy:
        lanes[number].begin()
      else:
        at_work.remove(number)
  return found


def seed_of(run_seed: int, step: int, prompt: int, number: int) -> int:
  """The seed of one answer's draws, 0 to 2**64 - 1."""
  words = f"rollout {run_seed} {step} {prompt} {number}".encode()
  return int.from_bytes(hashlib.sha256(words).digest()[:8], "big")


def _check(prompts, group_size: int, sampling: sampling_lib.Sampling) -> None:
  """Refuses what is not for a rollout."""
  if not len(prompts):
    raise ValueError("prompts=[]: expected at least one; give some")
  if group_size < 1:
    raise ValueError(
      f"group_size={group_size!r}: expected at least 1; raise it"
    )
  unused = {"seed": 0, "stop": (), "top_logprobs": 0}
  for field, nothing in unused.items():
    got = getattr(sampling, field)
    if got != nothing:
      raise ValueError(
        f"sampling.{field}={got!r}: expected {nothing!r}, a rollout has keys "
        "from (run, step, prompt, sample), ends at tokens and records what "
        "was drawn; leave it out, and give stop_tokens for stop"
      )
  if not sampling.max_new_tokens:
    raise ValueError("max_new_tokens=0: expected at least 1; raise it")


def _rounded(variables, dtype: str):
  """Variables with parameters of the type that decoding keeps them in."""

  def leaf(x):
    wide = jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize > 1
    return x.astype(dtype) if wide and x.dtype != dtype else x

  params = jax.tree.map(leaf, variables["params"])
  return {**variables, "params": params}


def _joined(parts: list) -> np.ndarray:
  return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _power_of_two(n: int) -> int:
  return 1 << (n - 1).bit_length()
