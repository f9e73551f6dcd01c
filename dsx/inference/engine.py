"""Continuous batching: many requests through one model, each as it comes.

    engine = Engine(config, variables, eos=1)
    number = engine.submit(request.Request(prompt=(5, 7)))
    while engine.busy:
      for update in engine.step():
        ...

A request waits until a slot and pages for its prompt are free; its prompt is
read together with those of others (`prefill`), and its tokens are drawn a
chunk at a time beside whatever is in the other slots (`decode`). When pages run
out, the youngest sequence gives its own back and is read again later; its
draws are keyed by position, so that nothing of what it says changes. Equal
prompts, as of several samples, are read once and share their pages.

Shapes are rounded up, lengths to powers of two and numbers of prompts to powers
of four, so that few programs are compiled.

One thread calls it. Legend (parallel/axes.py): B batch (the slots).
"""

import collections
import contextlib
import math

import jax
import jax.numpy as jnp
import numpy as np

from dsx.inference import batch
from dsx.inference import chunk
from dsx.inference import decode
from dsx.inference import decoding as decoding_lib
from dsx.inference import news
from dsx.inference import prefill
from dsx.inference import request as request_lib
from dsx.inference import scheduler
from dsx.models import cache
from dsx.models import config as config_lib
from dsx.models import decoder
from dsx.models import layout
from dsx.ops import dtypes as dtypes_lib
from dsx.parallel import mesh as mesh_lib
from dsx.parallel import sharding as sharding_lib

# Tokens of prompts that are read at once, so that activations stay small.
_PREFILL_TOKENS = 8192
# Shorter contexts and prompts are not worth programs of their own.
_LEAST_CONTEXT = 256
_LEAST_PROMPT = 64


class Engine:
  """Decodes requests as they come; see the module."""

  def __init__(
    self,
    config: config_lib.DeepSeekConfig,
    variables,
    *,
    dtypes: dtypes_lib.Dtypes = dtypes_lib.Dtypes(),  # noqa: B008, frozen
    decoding: decoding_lib.Decoding = decoding_lib.Decoding(),  # noqa: B008
    eos: int | None = None,
    vocab_size: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
    sharding: sharding_lib.Sharding | None = None,
  ):
    """Makes an engine, with an empty cache.

    Args:
      config: the model.
      variables: its parameters and router biases, in either layout; `layers`
        saves a copy. MTP modules that do not draft may be absent.
      dtypes: of parameters and products; the cache has the compute dtype.
      decoding: how to batch.
      eos: the token that ends every text, if there is one.
      vocab_size: ids from here on are never drawn: rows that only pad the
        model's vocabulary. None for all.
      mesh: devices to spread over, with `variables` in place on them.
      sharding: rules that go with the mesh.

    Raises:
      ValueError: a number does not fit the model or the mesh.
    """
    self._decoding = decoding
    decoding_lib.check(decoding, config, mesh)
    self._model = decoder.Decoder(config, dtypes, n_mtp=decoding.drafts)
    self._mesh, self._sharding = mesh, sharding or sharding_lib.Sharding()
    self._eos = eos
    self._vocab_size = vocab_size or config.vocab_size
    self._context = decoding.context or config.max_position_embeddings
    size = decoding.page_size
    longest = -(-self._context // size)
    room = decoding_lib.cache_tokens(
      decoding,
      config,
      context=longest * size,
      bytes_per_value=jnp.dtype(dtypes.compute).itemsize,
    )
    self._columns = longest
    self._scheduler = scheduler.Scheduler(
      slots=decoding.slots,
      pages=-(-room // size),
      page_size=size,
      context=self._context,
      chunk=decoding.steps * (1 + decoding.drafts),
    )
    with self._scope():
      variables = layout.to_layers(config, variables)
      self._variables = decoder.absorbed(self._model, variables)
      self._pool = cache.empty_pages(
        config,
        n_pages=self._scheduler.pages.total,
        page_size=size,
        dtype=dtypes.compute,
        mtp=decoding.drafts,
      )
      self._drafts = chunk.Drafts.none(
        decoding.slots, decoding.drafts, self._vocab_size
      )
    # Whose drafts the device holds, by slot: those of others mean nothing.
    self._drafted: list[int | None] = [None] * decoding.slots
    self._next = 0
    self._counts: collections.Counter[str] = collections.Counter()

  @contextlib.contextmanager
  def _scope(self):
    if self._mesh is None:
      yield
      return
    with sharding_lib.use(self._mesh, self._sharding):
      yield

  @property
  def context(self) -> int:
    """Longest prompt and answer together, in tokens."""
    return self._context

  @property
  def busy(self) -> bool:
    """Whether any request is unfinished."""
    return bool(self._scheduler.waiting or self._scheduler.running)

  @property
  def stats(self) -> decoding_lib.Stats:
    """Counts, see `Stats`."""
    size, pages = self._decoding.page_size, self._scheduler.pages
    return decoding_lib.Stats(
      running=len(self._scheduler.running),
      waiting=len(self._scheduler.waiting),
      cached_tokens=(pages.total - pages.free) * size,
      pool_tokens=pages.total * size,
      **{
        name: self._counts[name]
        for name in (
          "prompt_tokens drawn_tokens steps drafted accepted".split()
        )
      },
    )

  def submit(self, request: request_lib.Request) -> int:
    """Queues a request.

    Returns:
      Its number, which its updates bear.

    Raises:
      ValueError: it can never be answered, and why.
    """
    prompt, how = request.prompt, request.sampling
    if not prompt:
      raise ValueError("prompt=(): expected at least one token; begin with BOS")
    wrong = [t for t in prompt if not 0 <= t < self._vocab_size]
    if wrong:
      raise ValueError(
        f"prompt: id {wrong[0]}: expected ids from 0 to {self._vocab_size - 1}"
        "; use the model's own vocabulary"
      )
    if len(prompt) >= self._context + (how.max_new_tokens == 0):
      raise ValueError(
        f"prompt of {len(prompt)} tokens: expected fewer than the context of "
        f"{self._context}; shorten it"
      )
    if not (how.max_new_tokens or request.score_prompt):
      raise ValueError(
        "max_new_tokens=0: expected at least 1, unless the prompt is scored; "
        "raise it"
      )
    longest = min(len(prompt) + how.max_new_tokens, self._context)
    pages = self._scheduler.pages.total
    if self._scheduler.pages_for(longest) > pages:
      room = pages * self._decoding.page_size
      raise ValueError(
        f"prompt of {len(prompt)} tokens and max_new_tokens="
        f"{how.max_new_tokens}: expected at most cache_tokens={room} together; "
        "lower max_new_tokens or raise cache_tokens"
      )
    number = self._next
    self._next += 1
    sequence = scheduler.Sequence(number, request, list(prompt))
    self._scheduler.waiting.append(sequence)
    return number

  def cancel(self, number: int) -> None:
    """Forgets a request; does nothing if it has ended or never was."""
    self._scheduler.cancel(number)

  def step(self) -> list[request_lib.Update]:
    """Lets requests in, reads their prompts and decodes a chunk.

    Returns:
      News of every request that has any; nothing if the engine is idle.
    """
    with self._scope():
      updates = self._admit()
      self._scheduler.make_room()
      if self._scheduler.running:
        updates += self._decode()
    return updates

  def _admit(self) -> list[request_lib.Update]:
    """Lets requests into free slots and reads their prompts."""
    admitted = self._scheduler.admit()
    updates = []
    for group in self._groups(admitted.to_read):
      updates += self._prefill(group)
    for source, target in admitted.copies:
      self._pool = _copy_page(self._pool, source, target)
    for sequence in admitted.to_read:
      if not self._scheduler.remaining(sequence):  # to be scored, no more
        self._scheduler.release(sequence)
    return updates

  # Reading prompts.

  def _groups(self, sequences: list[scheduler.Sequence]):
    """Cuts what is to be read into batches of one shape."""
    by_shape = collections.defaultdict(list)
    for sequence in sequences:
      if sequence.cached or sequence.to_score:
        n = self._columns_of(sequence, _LEAST_PROMPT)
        by_shape[n, sequence.to_score].append(sequence)
    for (n, _), alike in by_shape.items():
      most = max(_PREFILL_TOKENS // (n * self._decoding.page_size), 1)
      for start in range(0, len(alike), most):
        yield alike[start : start + most]

  def _columns_of(self, sequence: scheduler.Sequence, least: int) -> int:
    """Pages of what is cached of it, rounded up."""
    tokens = max(sequence.cached, least)
    return min(_power_of_two(self._scheduler.pages_for(tokens)), self._columns)

  def _prefill(
    self, group: list[scheduler.Sequence]
  ) -> list[request_lib.Update]:
    """Reads the prompts of one group."""
    prompts = batch.prompts(
      group,
      rows=self._divisible(4 ** math.ceil(math.log(len(group), 4))),
      columns=max(self._columns_of(s, _LEAST_PROMPT) for s in group),
      page_size=self._decoding.page_size,
      nowhere=self._scheduler.pages.total,
    )
    self._counts["prompt_tokens"] += sum(len(s.tokens) for s in group)
    score = group[0].to_score
    self._pool, scores = prefill.prefill(
      self._model,
      self._variables,
      self._pool,
      *prompts,
      score=score,
      n_top=batch.n_top(group) if score else 0,
      vocab_size=self._vocab_size,
    )
    if not score:
      return []
    scores = jax.tree.map(np.asarray, scores)
    return [self._scored(s, scores, row) for row, s in enumerate(group)]

  def _divisible(self, rows: int) -> int:
    """Rows that the mesh can divide a batch into."""
    shards = mesh_lib.batch_shards(self._mesh)
    return -(-rows // shards) * shards

  def _scored(self, sequence, scores, row: int) -> request_lib.Update:
    """The update with what the model thought of a prompt."""
    sequence.scored = True
    return request_lib.Update(
      request=sequence.number,
      prompt=news.of_prompt(sequence, scores, row),
      finish=None if self._scheduler.remaining(sequence) else "length",
    )

  # Drawing tokens.

  def _decode(self) -> list[request_lib.Update]:
    """Decodes a chunk of everything that is in a slot."""
    running = self._scheduler.running
    # A text that will stay short meets its last program at once.
    final = max(s.cached + self._scheduler.remaining(s) for s in running)
    least = min(final, _LEAST_CONTEXT)
    context = max(self._columns_of(s, least) for s in running)
    slots = self._scheduler.slots
    numbers = [s.number if s else None for s in slots]
    fresh = [a != b for a, b in zip(numbers, self._drafted, strict=True)]
    self._pool, _, self._drafts, drawn = decode.decode(
      self._model,
      self._variables,
      self._pool,
      batch.table(slots, self._columns),
      batch.state(self._scheduler),
      self._drafts,
      np.array(fresh),
      batch.shape(slots),
      batch.stop(slots, self._eos),
      context_pages=context,
      steps=self._decoding.steps,
      n_top=batch.n_top(running),
      vocab_size=self._vocab_size,
    )
    self._drafted = numbers
    drawn = jax.tree.map(np.asarray, drawn)
    self._count(drawn)
    return [self._update(sequence, drawn) for sequence in running]

  def _count(self, drawn: chunk.Drawn) -> None:
    worked = drawn.count > 0
    self._counts["steps"] += int(worked.any(1).sum())
    self._counts["drawn_tokens"] += int(drawn.count.sum())
    self._counts["drafted"] += int(worked.sum()) * self._decoding.drafts
    self._counts["accepted"] += int(drawn.accepted.sum())

  def _update(self, sequence: scheduler.Sequence, drawn) -> request_lib.Update:
    """What a chunk brought for one sequence; lets it go when it has ended."""
    found = news.of_chunk(sequence, drawn)
    sequence.tokens += [token.token for token in found]
    update = request_lib.Update(request=sequence.number, drawn=found)
    ends = batch.stop_tokens(sequence, self._eos)
    if found and found[-1].token in ends:
      update.finish = "stop"
    elif not self._scheduler.remaining(sequence):
      update.finish = "length"
    if update.finish:
      self._scheduler.release(sequence)
    return update


_copy_page = jax.jit(cache.copy_page, donate_argnums=0)


def _power_of_two(n: int) -> int:
  return 1 << (n - 1).bit_length()
