"""How requests are batched, and counts of how that goes."""

import dataclasses
from typing import NamedTuple

import jax

from dsx.data import vocab as vocab_lib
from dsx.models import cache
from dsx.models import config as config_lib
from dsx.parallel import axes
from dsx.parallel import mesh as mesh_lib

_CACHE_BYTES = 8 * 2**30  # unless `Decoding.cache_tokens` says otherwise


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoding:
  """How requests are batched; none of it changes what they say.

  Attributes:
    slots: B, sequences that are decoded at once.
    page_size: tokens of a page.
    cache_tokens: tokens that the cache has room for, all sequences together;
      None for as many as all slots can need, within 8 GiB (and at least one
      context): what does not fit waits.
    steps: steps of a chunk, after which tokens are handed out and new requests
      are let in. More of them cost less, fewer answer sooner.
    drafts: tokens that MTP modules propose per step, one module each.
    context: longest prompt and answer together; None for as many tokens as
      the model is meant for.
    least_context: contexts are as long as the longest sequence, in powers of
      two, each with a program of its own; shorter ones than this, in tokens,
      are not worth one.
    record_experts: whether to hand out the experts that each token was sent
      to, for a trainer to replay (`Update.experts`).
  """

  slots: int = 8
  page_size: int = 64
  cache_tokens: int | None = None
  steps: int = 16
  drafts: int = 0
  context: int | None = None
  least_context: int = 256
  record_experts: bool = False

  def __post_init__(self):
    least = {"drafts": 0, "context": 2, "record_experts": False}
    for field in dataclasses.fields(self):
      value, bound = getattr(self, field.name), least.get(field.name, 1)
      if value is not None and value < bound:
        raise ValueError(
          f"{field.name}={value!r}: expected at least {bound}; raise it"
        )


class Stats(NamedTuple):
  """Counts since the engine was made, and how full it is now.

  Attributes:
    running: sequences in slots.
    waiting: requests without one.
    prompt_tokens: tokens of prompts that were read, repeats included.
    drawn_tokens: tokens that were drawn.
    steps: steps of the model while there was something to draw.
    drafted: drafts that were proposed.
    accepted: drafts that stood.
    cached_tokens: room that sequences hold in the cache, in tokens.
    pool_tokens: room of the whole cache.
  """

  running: int
  waiting: int
  prompt_tokens: int
  drawn_tokens: int
  steps: int
  drafted: int
  accepted: int
  cached_tokens: int
  pool_tokens: int


# Fields of `Stats` that only grow.
COUNTED = ("prompt_tokens", "drawn_tokens", "steps", "drafted", "accepted")


def cache_tokens(
  decoding: Decoding,
  config: config_lib.DeepSeekConfig,
  *,
  context: int,
  bytes_per_value: int,
) -> int:
  """Tokens that the cache has room for, see `Decoding.cache_tokens`."""
  if decoding.cache_tokens is not None:
    return decoding.cache_tokens
  layers = cache.n_layers(config, decoding.drafts)
  each = layers * cache.width(config) * bytes_per_value
  within = max(_CACHE_BYTES // each, context)
  return min(decoding.slots * context, within)


def check_model(
  config: config_lib.DeepSeekConfig,
  *,
  drafts: int = 0,
  vocabulary: vocab_lib.Vocabulary | None = None,
) -> None:
  """Refuses drafts and words that a model has not.

  Raises:
    ValueError: and why.
  """
  if vocabulary is not None and vocabulary.size > config.vocab_size:
    raise ValueError(
      f"vocabulary {vocabulary.name!r} has {vocabulary.size} ids, the model "
      f"{config.vocab_size}: expected the vocabulary it was trained with"
    )
  if drafts > config.num_nextn_predict_layers:
    raise ValueError(
      f"drafts={drafts}: expected at most {config.num_nextn_predict_layers}, "
      "one for each MTP module of this checkpoint; lower it"
    )


def check(
  decoding: Decoding,
  config: config_lib.DeepSeekConfig,
  mesh: jax.sharding.Mesh | None = None,
) -> None:
  """Refuses what a model or a mesh has no room for.

  Raises:
    ValueError: and why.
  """
  check_model(config, drafts=decoding.drafts)
  longest = config.max_position_embeddings
  if decoding.context is not None and decoding.context > longest:
    raise ValueError(
      f"context={decoding.context}: expected at most "
      f"max_position_embeddings={longest}, the model's context; shorten it"
    )
  if decoding.record_experts and not config.num_moe_layers:
    raise ValueError(
      f"record_experts=True: expected a model with experts, its "
      f"{config.num_hidden_layers} layers are dense; set it to False"
    )
  shape = {} if mesh is None else mesh.shape
  for axis in (axes.PIPE, axes.CONTEXT):
    if shape.get(axis, 1) > 1:
      raise ValueError(
        f"mesh axis {axis!r} of {shape[axis]} devices: decoding spreads over "
        f"{', '.join(axes.BATCH_MESH_AXES)} and {axes.TENSOR} alone; set it "
        "to 1"
      )
  shards = mesh_lib.batch_shards(mesh)
  if decoding.slots % shards:
    raise ValueError(
      f"slots={decoding.slots}: expected a multiple of {shards}, into which "
      "the mesh divides a batch; change either"
    )
