"""The exponential moving average of parameters, on the host.

Section 3.2.3 of the DeepSeek-V3 report: the average lives in CPU memory and is
updated asynchronously after the training step, so that it costs the device
neither memory nor time.

Each process averages the shards that it can address, each distinct one once, in
float32. The arithmetic is elementwise, one thread does it in the order of the
calls, and numpy rounds the same way everywhere: the average does not depend on
the mesh, and a run that is resumed has the average of one that never stopped.
"""

from collections.abc import Mapping
import queue
import threading
from typing import Any

import jax
import numpy as np

# Copies of the parameters that may wait for the worker; the next blocks.
_WAITING = 2

_Index = tuple[tuple[int, int], ...]


class Ema:
  """Averages parameters as `average += (1 - decay) * (params - average)`.

  A worker thread starts with the first update. What goes wrong in it is raised
  by the next call.
  """

  def __init__(self, params: Any, decay: float, every: int = 1):
    """Starts from a copy of `params`.

    Args:
      params: a tree of jax.Arrays on any mesh.
      decay: of one update, in [0, 1).
      every: an update is made at each step that this divides.

    Raises:
      ValueError: if `decay` or `every` is out of range.
    """
    if not 0 <= decay < 1:
      raise ValueError(f"Ema.decay={decay}: expected a number in [0, 1)")
    if every < 1:
      raise ValueError(f"Ema.every={every}: expected at least 1")
    self._weight = np.float32(1 - decay)
    self._every = every
    self._structure = jax.tree.structure(params)
    self._shapes = [leaf.shape for leaf in jax.tree.leaves(params)]
    self._shardings = [leaf.sharding for leaf in jax.tree.leaves(params)]
    self._average = self._on_host(self._fetch(params))
    self._calls = 0
    self._queue: queue.Queue = queue.Queue(_WAITING)
    self._worker: threading.Thread | None = None
    self._error: Exception | None = None

  def update(self, params: Any, step: int | None = None) -> None:
    """Takes the parameters after a step into the average, without waiting.

    The parameters may be donated as soon as this returns.

    Args:
      params: a tree with the shapes and shardings of the first.
      step: the number of steps taken; without it, the number of calls. A run
        that may be resumed has to give it, unless `every` is 1.

    Raises:
      RuntimeError: if an earlier update failed.
    """
    self._raise_error()
    self._calls += 1
    if (self._calls if step is None else step) % self._every:
      return
    if self._worker is None:
      self._worker = threading.Thread(
        target=self._work, name="ema", daemon=True
      )
      self._worker.start()
    self._queue.put(self._fetch(params))

  def wait(self) -> None:
    """Waits until every update is in the average.

    Raises:
      RuntimeError: if one failed.
    """
    self._queue.join()
    self._raise_error()

  def arrays(self, *, on_device: bool = False) -> Any:
    """Returns the average as float32 jax.Arrays in a tree like `params`.

    Later updates do not change them.

    Args:
      on_device: whether they are to be in device memory, as for an evaluation.
        Otherwise they are in the host's, where the platform lets JAX say so.
    """
    self.wait()
    made = [
      jax.make_array_from_callback(
        shape,
        sharding if on_device else on_host(sharding),
        lambda index, shape=shape, shards=shards: shards[_key(index, shape)],
      )
      for shape, sharding, shards in zip(
        self._shapes, self._shardings, self._average, strict=True
      )
    ]
    return jax.tree.unflatten(self._structure, made)

  def load(self, arrays: Any) -> None:
    """Goes on from an average that was saved.

    Args:
      arrays: what `arrays` returned, restored on any mesh.

    Raises:
      ValueError: if the trees or shapes differ.
    """
    self.wait()
    shapes = [leaf.shape for leaf in jax.tree.leaves(arrays)]
    if jax.tree.structure(arrays) != self._structure or shapes != self._shapes:
      raise ValueError("Ema.load: the arrays are not those of the parameters")
    placed = jax.device_put(
      jax.tree.leaves(arrays), [on_host(s) for s in self._shardings]
    )
    self._average = self._on_host(self._fetch(placed))

  def _fetch(self, tree: Any) -> list[dict[_Index, jax.Array]]:
    """Starts copying this process's distinct shards to the host's memory.

    The copies are new arrays: the runtime finishes reading the originals before
    it lets a donation overwrite them.
    """
    distinct = []
    for leaf in jax.tree.leaves(tree):
      shards: dict[_Index, jax.Array] = {}
      for shard in leaf.addressable_shards:
        shards.setdefault(_key(shard.index, leaf.shape), shard.data)
      distinct.append(shards)
    targets = jax.tree.map(lambda data: on_host(data.sharding), distinct)
    return jax.device_put(distinct, targets, may_alias=False)

  def _on_host(self, fetched) -> list[Mapping[_Index, np.ndarray]]:
    return [
      {key: np.asarray(data, np.float32) for key, data in shards.items()}
      for shards in fetched
    ]

  def _work(self) -> None:
    while True:
      fetched = self._queue.get()
      try:
        if self._error is None:
          self._add(fetched)
      except Exception as error:
        self._error = error
      finally:
        self._queue.task_done()

  def _add(self, fetched) -> None:
    new = []
    for shards, average in zip(
      self._on_host(fetched), self._average, strict=True
    ):
      # New arrays, not `+=`: JAX may use the old ones' memory for its own, and
      # a save may still read it.
      new.append(
        {
          key: average[key] + self._weight * (value - average[key])
          for key, value in shards.items()
        }
      )
    self._average = new

  def _raise_error(self) -> None:
    if self._error is not None:
      raise RuntimeError(
        f"the average of parameters failed: {self._error}"
      ) from self._error


def on_host(sharding: jax.sharding.Sharding) -> jax.sharding.Sharding:
  """Returns a sharding in the host's memory, where JAX knows it as such."""
  device = next(iter(sharding.addressable_devices))
  kinds = {memory.kind for memory in device.addressable_memories()}
  if "pinned_host" not in kinds:
    return sharding
  return sharding.with_memory_kind("pinned_host")


def _key(index: Any, shape: tuple[int, ...]) -> _Index:
  """Starts and stops of a shard; of slices there are several spellings."""
  return tuple(
    part.indices(size)[:2] for part, size in zip(index, shape, strict=True)
  )
