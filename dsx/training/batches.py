"""Global batches on their devices, read ahead of the step that needs them.

A batch is named by the sequences that it holds, so every host count sees the
same one; each process reads only the rows of its own devices. Reading and
copying to devices happen in a thread, and the time that training waits for it
is measured.

Legend (parallel/axes.py): B batch, L length; M micro-batches.
"""

from collections.abc import Iterator
import queue
import threading
import time

import jax
import numpy as np

from dsx.parallel import sharding as sharding_lib
from dsx.training import schedules


class _Failure:
  """An error on its way from the reading thread to the training one."""

  def __init__(self, error: BaseException):
    self.error = error


def layout(rows: np.ndarray, micro_batch: int, micro_batches: int):
  """Sequence indices [M, B] of a batch, -1 where there is none.

  Args:
    rows: sequence indices of the batch, in order.
    micro_batch: B, sequences of one micro-batch.
    micro_batches: M.
  """
  indices = np.full(micro_batch * micro_batches, -1, np.int64)
  indices[: len(rows)] = rows
  return indices.reshape(micro_batches, micro_batch)


def place(source, indices: np.ndarray, mesh: jax.sharding.Mesh):
  """Reads [M, B] sequences and spreads them over the mesh's batch axes.

  Args:
    source: a `data.pipeline.Source`.
    indices: int64 [M, B]; -1 gives zeros.
    mesh: the device mesh.

  Returns:
    A dict of global arrays [M, B, L+1].
  """
  placement = sharding_lib.batch_sharding(mesh, leading=1)
  owned = placement.addressable_devices_indices_map(indices.shape)
  parts = {str(index): index for index in owned.values()}
  needed = np.unique(
    np.concatenate([indices[i].ravel() for i in parts.values()])
  )
  # A process that has nothing but padding reads one row for its shape.
  needed = needed[needed >= 0] if (needed >= 0).any() else np.zeros(1, int)
  rows = source.rows(needed)

  def assemble(name):
    table = rows[name]
    shape = (*indices.shape, table.shape[1])

    def part(index):
      wanted = indices[index[:2]]
      found = np.searchsorted(needed, np.maximum(wanted, needed[0]))
      return np.where((wanted >= 0)[..., None], table[found], 0)

    return jax.make_array_from_callback(shape, placement, part)

  return {name: assemble(name) for name in rows}


class Batches:
  """An iterator of (position, batch), read in a thread of its own.

  Attributes:
    wait_seconds: how long its reader has waited for data so far.
  """

  def __init__(
    self,
    source,
    plan: Iterator[schedules.Position],
    mesh: jax.sharding.Mesh,
    *,
    micro_batch: int,
    micro_batches: int,
    ahead: int = 2,
  ):
    """Starts reading.

    Args:
      source: a `data.pipeline.Source`.
      plan: positions to read, in order.
      mesh: the device mesh.
      micro_batch: B, sequences of one micro-batch.
      micro_batches: M, micro-batches of the largest batch.
      ahead: how many batches are kept ready.
    """
    self.wait_seconds = 0.0
    self._queue: queue.Queue = queue.Queue(maxsize=ahead)
    self._stopped = threading.Event()
    self._thread = threading.Thread(
      target=self._read,
      args=(source, plan, mesh, micro_batch, micro_batches),
      name="batches",
      daemon=True,
    )
    self._thread.start()

  def _read(self, source, plan, mesh, micro_batch, micro_batches) -> None:
    try:
      for position in plan:
        rows = position.sequence + np.arange(position.batch_size)
        indices = layout(rows, micro_batch, micro_batches)
        if not self._offer((position, place(source, indices, mesh))):
          return
      self._offer(None)
    except BaseException as error:  # it is raised again in the reader
      self._offer(_Failure(error))

  def _offer(self, item) -> bool:
    while not self._stopped.is_set():
      try:
        self._queue.put(item, timeout=0.1)
        return True
      except queue.Full:
        continue
    return False

  def __iter__(self):
    return self

  def __next__(self):
    """The next (position, batch); raises what reading raised."""
    start = time.monotonic()
    item = self._queue.get()
    self.wait_seconds += time.monotonic() - start
    if isinstance(item, _Failure):
      raise item.error
    if item is None:
      raise StopIteration
    return item

  def close(self) -> None:
    """Ends the thread."""
    self._stopped.set()
    self._thread.join()
