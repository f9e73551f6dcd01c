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
from dsx.inference import weights
from dsx.models import cache
from dsx.models import config as config_lib
from dsx.models import decoder
from dsx.ops import dtypes as dtypes_lib
from dsx.parallel import mesh as mesh_lib
from dsx.parallel import sharding as sharding_lib

# Tokens of prompts that are read at once, so that activations stay small.
_PREFILL_TOKENS = 8192
# Shorter prompts are not worth programs of their own.
_LEAST_PROMPT = 64
# A chunk ends early when others wait and no more than these are left of it.
_STAY = 0.75


_Begun = tuple[list[news.Record], list[scheduler.Sequence], chunk.Drawn | None]


class Engine:
  """Decodes requests as they come; see the module.

  Attributes:
    decoding: how it batches.
    weights: what it decodes with.
  """

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
        saves a copy. MTP modules that do not draft may be absent. Or the
        `weights` of another engine of the same model, to be shared.
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
    self.decoding = decoding
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
      self.weights = (
        variables
        if isinstance(variables, weights.Weights)
        else weights.Weights(self._model, variables, mesh)
      )
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
    if mesh is None:
      # As what comes back from the device, or programs are compiled twice.
      self._pool, self._drafts = (
        jax.device_put(x, jax.tree.map(lambda a: a.sharding, x))
        for x in (self._pool, self._drafts)
      )
    # Whose drafts the device holds, by slot: those of others mean nothing.
    self._drafted: list[int | None] = [None] * decoding.slots
    # What was begun and not finished, and what it leaves to be kept.
    self._begun: _Begun | None = None
    self._read: list[tuple[list[scheduler.Sequence], jax.Array]] = []
    self._sharing: list[tuple[scheduler.Sequence, scheduler.Sequence]] = []
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
    size, pages = self.decoding.page_size, self._scheduler.pages
    return decoding_lib.Stats(
      running=len(self._scheduler.running),
      waiting=len(self._scheduler.waiting),
      cached_tokens=(pages.total - pages.free) * size,
      pool_tokens=pages.total * size,
      **{name: self._counts[name] for name in (decoding_lib.COUNTED)},
    )

  def load(self, variables) -> None:
    """Goes on with other weights, and with nothing in the cache.

    No program is compiled for them, and no array copied that needs no other
    layout: see `weights.Weights`.

    Args:
      variables: as at first, in either layout and in place on the mesh.

    Raises:
      ValueError: there are requests, or these are not variables of the model;
        then all is as before.
    """
    if self.busy or self._begun is not None:
      n = len(self._scheduler.running) + len(self._scheduler.waiting)
      raise ValueError(
        f"load: {n} unfinished requests: expected none, as what is cached of "
        "them is of other weights; let them end or cancel them"
      )
    with self._scope():
      self.weights.load(variables)
    self._drafted = [None] * len(self._drafted)

  def submit(self, request: request_lib.Request) -> int:
    """Queues a request.

    Returns:
      Its number, which its updates bear.

    Raises:
      ValueError: it can never be answered, and why.
    """
    request_lib.check(
      request,
      vocab_size=self._vocab_size,
      context=self._context,
      room=self._scheduler.pages.total * self.decoding.page_size,
    )
    number = self._next
    self._next += 1
    sequence = scheduler.Sequence(number, request, list(request.prompt))
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
    return [record.update() for record in self.advance()]

  def advance(self) -> list[news.Record]:
    """As `step`, with news in arrays."""
    self.begin()
    return self.finish()

  def begin(self) -> None:
    """The first half of `advance`: the device begins, nobody waits for it.

    Whoever has several engines has one work while another's news are read.
    """
    assert self._begun is None, "a chunk was begun and not finished"
    with self._scope():
      records = self._admit()
      self._scheduler.make_room()
      running = self._scheduler.running
      drawn = self._decode(running) if running else None
    self._begun = (records, running, drawn)

  def finish(self) -> list[news.Record]:
    """The second half: waits for the device and reads its news."""
    assert self._begun is not None, "no chunk was begun"
    (records, running, drawn), self._begun = self._begun, None
    for group, experts in self._read:
      _keep_experts(group, np.asarray(experts))
    for sequence, twin in self._sharing:
      sequence.prompt_experts = twin.prompt_experts
    self._read, self._sharing = [], []
    if drawn is None:
      return records
    drawn = jax.tree.map(np.asarray, drawn)
    self._count(drawn)
    # Some may have been cancelled meanwhile.
    running = [sequence for sequence in running if sequence.slot is not None]
    found = news.of_chunk(running, drawn)
    for sequence, record in zip(running, found, strict=True):
      self._end(sequence, record)
    return records + found

  def _admit(self) -> list[news.Record]:
    """Lets requests into free slots and reads their prompts."""
    admitted = self._scheduler.admit()
    records = []
    for group in self._groups(admitted.to_read):
      records += self._prefill(group)
    self._sharing = admitted.sharing
    if admitted.copies:
      copies = batch.copies(
        admitted.copies, self.decoding.slots, self._scheduler.pages.total
      )
      self._pool = _copy_pages(self._pool, *copies)
    for sequence in admitted.to_read:
      if not self._scheduler.remaining(sequence):  # to be scored, no more
        self._scheduler.release(sequence)
    return records

  # Reading prompts.

  def _groups(self, sequences: list[scheduler.Sequence]):
    """Cuts what is to be read into batches of one shape."""
    by_shape = collections.defaultdict(list)
    for sequence in sequences:
      if sequence.cached or sequence.to_score:
        n = self._columns_of(sequence, _LEAST_PROMPT)
        by_shape[n, sequence.to_score].append(sequence)
    for (n, _), alike in by_shape.items():
      most = max(_PREFILL_TOKENS // (n * self.decoding.page_size), 1)
      for start in range(0, len(alike), most):
        yield alike[start : start + most]

  def _columns_of(self, sequence: scheduler.Sequence, least: int) -> int:
    """Pages of what is cached of it, rounded up."""
    tokens = max(sequence.cached, least)
    return min(_power_of_two(self._scheduler.pages_for(tokens)), self._columns)

  def _prefill(self, group: list[scheduler.Sequence]) -> list[news.Record]:
    """Reads the prompts of one group."""
    prompts = batch.prompts(
      group,
      rows=self._divisible(4 ** math.ceil(math.log(len(group), 4))),
      columns=max(self._columns_of(s, _LEAST_PROMPT) for s in group),
      page_size=self.decoding.page_size,
      nowhere=self._scheduler.pages.total,
    )
    self._counts["prompt_tokens"] += sum(len(s.tokens) for s in group)
    score = group[0].to_score
    self._pool, scores, experts = prefill.prefill(
      self._model,
      self.weights.arrays,
      self._pool,
      *prompts,
      score=score,
      n_top=batch.n_top(group) if score else 0,
      vocab_size=self._vocab_size,
      records=self.decoding.record_experts,
    )
    if experts is not None:
      self._read.append((group, experts))
    if not score:
      return []
    scores = jax.tree.map(np.asarray, scores)
    if experts is not None:
      _keep_experts(group, np.asarray(experts))
    return [self._scored(s, scores, row) for row, s in enumerate(group)]

  def _divisible(self, rows: int) -> int:
    """Rows that the mesh can divide a batch into."""
    shards = mesh_lib.batch_shards(self._mesh)
    return -(-rows // shards) * shards

  def _scored(self, sequence, scores, row: int) -> news.Record:
    """What the model thought of a prompt."""
    sequence.scored = True
    record = news.of_prompt(sequence, scores, row)
    if not self._scheduler.remaining(sequence):
      record.finish = "length"
    return record

  # Drawing tokens.

  def _decode(self, running: list[scheduler.Sequence]) -> chunk.Drawn:
    """Has the device decode a chunk of everything that is in a slot."""
    # A text that will stay short meets its last program at once.
    final = max(s.cached + self._scheduler.remaining(s) for s in running)
    least = min(final, self.decoding.least_context)
    context = max(self._columns_of(s, least) for s in running)
    slots = self._scheduler.slots
    numbers = [s.number if s else None for s in slots]
    fresh = [a != b for a, b in zip(numbers, self._drafted, strict=True)]
    self._pool, _, self._drafts, drawn = decode.decode(
      self._model,
      self.weights.arrays,
      self._pool,
      batch.table(slots, self._columns),
      batch.state(self._scheduler),
      self._drafts,
      np.array(fresh),
      batch.shape(slots),
      batch.stop(slots, self._eos),
      np.int32(_STAY * len(running) if self._scheduler.waiting else 0),
      context_pages=context,
      steps=self.decoding.steps,
      n_top=batch.n_top(running),
      vocab_size=self._vocab_size,
      records=self.decoding.record_experts,
    )
    self._drafted = numbers
    return drawn

  def _count(self, drawn: chunk.Drawn) -> None:
    worked = drawn.count > 0
    self._counts["steps"] += int(worked.any(1).sum())
    self._counts["drawn_tokens"] += int(drawn.count.sum())
    self._counts["drafted"] += int(worked.sum()) * self.decoding.drafts
    self._counts["accepted"] += int(drawn.accepted.sum())

  def _end(self, sequence: scheduler.Sequence, record: news.Record) -> None:
    """Lets a sequence go if it has ended."""
    ends = batch.stop_tokens(sequence, self._eos)
    if len(record.tokens) and sequence.tokens[-1] in ends:
      record.finish = "stop"
    elif not self._scheduler.remaining(sequence):
      record.finish = "length"
    if record.finish:
      self._scheduler.release(sequence)


_copy_pages = jax.jit(cache.copy_pages, donate_argnums=0)


def _keep_experts(group: list[scheduler.Sequence], experts) -> None:
  """Keeps those of prompts [B, L, M, K] that were not read before."""
  for row, sequence in enumerate(group):
    if sequence.prompt_experts is None:
      read = len(sequence.request.prompt) - 1
      sequence.prompt_experts = experts[row, :read].copy()


def _power_of_two(n: int) -> int:
  return 1 << (n - 1).bit_length()
