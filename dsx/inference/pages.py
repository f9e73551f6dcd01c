"""Which pages of the cache are whose: counted on the host."""


class Pages:
  """The pages of one pool; several sequences may hold one page.

  A page that more than one sequence holds is never written: it is full, and a
  sequence writes behind its last full page only.
  """

  def __init__(self, total: int):
    self._holders = [0] * total
    self._free = list(range(total))[::-1]

  @property
  def total(self) -> int:
    """Pages of the pool."""
    return len(self._holders)

  @property
  def free(self) -> int:
    """Pages that nobody holds."""
    return len(self._free)

  def take(self, count: int) -> list[int]:
    """Takes pages that nobody holds; there have to be enough."""
    taken = [self._free.pop() for _ in range(count)]
    for page in taken:
      self._holders[page] = 1
    return taken

  def share(self, pages: list[int]) -> None:
    """Holds pages once more."""
    for page in pages:
      self._holders[page] += 1

  def give_back(self, pages: list[int]) -> None:
    """Lets pages go; those that nobody holds any more are free."""
    for page in pages:
      self._holders[page] -= 1
      if not self._holders[page]:
        self._free.append(page)
