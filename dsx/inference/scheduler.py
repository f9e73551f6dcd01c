"""Which requests are in which slots, and which pages of the cache are theirs.

Kept on the host, in plain numbers. A request waits until a slot is free and
pages for its prompt and one chunk; when pages run out, the youngest sequence
gives its own back and waits to be read again. Sequences with the prompt of one
in a slot share its full pages and copy the page that both will write to; when
the last of them ends before the next can begin, that one inherits its pages.
"""

import collections
import dataclasses
import heapq

import numpy as np

from dsx.inference import pages as pages_lib
from dsx.inference import request as request_lib


@dataclasses.dataclass
class Sequence:
  """A request on its way.

  Attributes:
    number: of the request; older ones are smaller.
    request: what was asked for.
    tokens: the prompt, then what was drawn.
    scored: whether the scores of its prompt were handed out.
    pages: of the cache, in order.
    slot: where it is decoded, if it is.
    prompt_experts: integers [cached, M, K] of when its prompt was first read,
      if they are recorded.
    told: whether those were handed out.
  """

  number: int
  request: request_lib.Request
  tokens: list[int]
  scored: bool = False
  pages: list[int] = dataclasses.field(default_factory=list)
  slot: int | None = None
  prompt_experts: np.ndarray | None = None
  told: bool = False

  @property
  def cached(self) -> int:
    """Tokens that the cache has to hold: all but the last."""
    return len(self.tokens) - 1

  @property
  def drawn(self) -> int:
    """Tokens behind the prompt."""
    return len(self.tokens) - len(self.request.prompt)

  @property
  def to_score(self) -> bool:
    """Whether its prompt has still to be scored."""
    return self.request.score_prompt and not self.scored

  def take_prompt_experts(self) -> np.ndarray | None:
    """`prompt_experts`, the first time."""
    told, self.told = self.told, True
    return None if told else self.prompt_experts


@dataclasses.dataclass
class Admitted:
  """Sequences that were given slots.

  Attributes:
    to_read: those whose prompts have to be read.
    sharing: (sequence, the one whose prompt it shares).
    copies: (source, target) pages to be copied once they are.
  """

  to_read: list[Sequence] = dataclasses.field(default_factory=list)
  sharing: list[tuple[Sequence, Sequence]] = dataclasses.field(
    default_factory=list
  )
  copies: list[tuple[int, int]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class _Legacy:
  """What the last sequence in a slot with some prompt leaves to the next.

  Attributes:
    pages: of the prompt.
    by: whom; its `prompt_experts` may come later than its end.
  """

  pages: list[int]
  by: Sequence


class Scheduler:
  """Slots, pages and the queue before them."""

  def __init__(
    self, *, slots: int, pages: int, page_size: int, context: int, chunk: int
  ):
    """Starts with nothing.

    Args:
      slots: sequences that are decoded at once.
      pages: of the cache.
      page_size: tokens of a page.
      context: longest prompt and answer together.
      chunk: most tokens that a sequence can draw before it is looked at.
    """
    self.slots: list[Sequence | None] = [None] * slots
    self.waiting: collections.deque[Sequence] = collections.deque()
    self.pages = pages_lib.Pages(pages)
    self._free = list(range(slots))  # a heap
    # Those in slots by prompt, in the order that they were let in.
    self._alike: dict[tuple[int, ...], dict[int, Sequence]] = (
      collections.defaultdict(dict)
    )
    self._legacies: dict[tuple[int, ...], _Legacy] = {}
    self._page_size = page_size
    self._context = context
    self._chunk = chunk

  @property
  def running(self) -> list[Sequence]:
    """Sequences in slots."""
    return [sequence for sequence in self.slots if sequence]

  def pages_for(self, tokens: int) -> int:
    """Pages that hold so many tokens."""
    return -(-tokens // self._page_size)

  def remaining(self, sequence: Sequence) -> int:
    """Tokens that it may still draw."""
    most = sequence.request.sampling.max_new_tokens - sequence.drawn
    return min(most, self._context - len(sequence.tokens))

  def cancel(self, number: int) -> None:
    """Forgets a request, wherever it is."""
    for sequence in [s for s in self.waiting if s.number == number]:
      self.waiting.remove(sequence)
    for sequence in self.running:
      if sequence.number == number:
        self.release(sequence)
    for prompt in [p for p in self._legacies if not self._wanted(p)]:
      self._give_up(prompt)

  def admit(self) -> Admitted:
    """Gives slots and pages to those who wait, in their order."""
    admitted = Admitted()
    # Whoever is let in brings pages for a chunk along.
    growth = sum(self._missing(s) for s in self.running)
    while self.waiting and self._free:
      sequence = self.waiting[0]
      twin, legacy = self._twin(sequence), self._legacy(sequence)
      whole = sequence.cached // self._page_size
      if legacy:
        own = legacy.pages
      else:
        own = twin.pages[:whole] if twin else []
      needed = self.pages_for(self._after_chunk(sequence)) - len(own)
      if not self._has_free(needed + growth, but=sequence.request.prompt):
        break
      self.waiting.popleft()
      if legacy:
        del self._legacies[sequence.request.prompt]
        sequence.prompt_experts = legacy.by.prompt_experts
      else:
        self.pages.share(own)
      sequence.pages = own + self.pages.take(needed)
      sequence.slot = heapq.heappop(self._free)
      self.slots[sequence.slot] = sequence
      self._alike[sequence.request.prompt][sequence.number] = sequence
      if legacy:
        continue
      if not twin:
        admitted.to_read.append(sequence)
        continue
      admitted.sharing.append((sequence, twin))
      if sequence.cached % self._page_size:
        admitted.copies.append((twin.pages[whole], sequence.pages[whole]))
    return admitted

  def _twin(self, sequence: Sequence) -> Sequence | None:
    """A sequence in a slot with the same prompt, to be shared."""
    if sequence.drawn or sequence.to_score:
      return None
    # The first of them: what it shares is read by now, or before any copy.
    alike = self._alike.get(sequence.request.prompt, {})
    return next(iter(alike.values()), None)

  def _legacy(self, sequence: Sequence) -> _Legacy | None:
    """Pages with the prompt of a sequence, to be its own."""
    if sequence.drawn or sequence.to_score:
      return None
    return self._legacies.get(sequence.request.prompt)

  def _wanted(self, prompt: tuple[int, ...]) -> bool:
    """Whether anybody waits who could use pages with a prompt."""
    return any(
      s.request.prompt == prompt and not (s.drawn or s.to_score)
      for s in self.waiting
    )

  def _give_up(self, prompt: tuple[int, ...]) -> None:
    self.pages.give_back(self._legacies.pop(prompt).pages)

  def _has_free(self, pages: int, but: tuple[int, ...] | None = None) -> bool:
    """Whether so many are free, if need be after giving up legacies."""
    for prompt in [p for p in self._legacies if p != but]:
      if pages <= self.pages.free:
        break
      self._give_up(prompt)
    return pages <= self.pages.free

  @property
  def left_behind(self) -> list[int]:
    """Pages that no sequence holds and one that waits will inherit."""
    return [page for left in self._legacies.values() for page in left.pages]

  def _after_chunk(self, sequence: Sequence) -> int:
    """Tokens that the cache may have to hold of it when a chunk is over."""
    return sequence.cached + min(self._chunk, self.remaining(sequence))

  def _missing(self, sequence: Sequence) -> int:
    """Pages that it needs for the next chunk, beyond those it has."""
    needed = self.pages_for(self._after_chunk(sequence))
    return max(needed - len(sequence.pages), 0)

  def release(self, sequence: Sequence, *, leaves: bool = True) -> None:
    """Takes a sequence out of its slot, and its pages back.

    Args:
      sequence: in a slot.
      leaves: whether it may leave those of its prompt to another.
    """
    assert sequence.slot is not None
    self.slots[sequence.slot] = None
    heapq.heappush(self._free, sequence.slot)
    alike = self._alike[sequence.request.prompt]
    del alike[sequence.number]
    if not alike:
      prompt = sequence.request.prompt
      del self._alike[prompt]
      n = self.pages_for(len(prompt) - 1)
      if leaves and n and self._wanted(prompt):
        pages, sequence.pages = sequence.pages[:n], sequence.pages[n:]
        self._legacies[prompt] = _Legacy(pages, sequence)
    self.pages.give_back(sequence.pages)
    sequence.pages, sequence.slot = [], None

  def make_room(self) -> None:
    """Gives every sequence pages for a chunk; the youngest may have to wait."""
    for sequence in sorted(self.running, key=lambda s: s.number):
      while sequence.slot is not None:
        missing = self._missing(sequence)
        if self._has_free(missing):
          sequence.pages += self.pages.take(missing)
          break
        youngest = max(self.running, key=lambda s: s.number)
        self.release(youngest, leaves=False)
        self.waiting.appendleft(youngest)
