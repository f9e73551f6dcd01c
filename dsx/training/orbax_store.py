"""Orbax as dsx uses it: a folder with arrays and JSON metadata, nothing more.

Orbax shards, writes and commits; what it does not do is in `checkpoint.py`.
"""

from collections.abc import Iterable
from collections.abc import Mapping
import logging
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import future

from dsx.training import leaves as leaves_lib

# The file that `write` puts the metadata into, relative to the folder.
METADATA = "metadata/metadata"
# The store that a lone process writes, in the folder of arrays; Orbax joins the
# stores of all processes by reference.
OWN_PART = "ocdbt.process_0"
# Replicas write a slice each only of arrays larger than this: cutting slices
# compiles a program per slice, which small arrays do not repay.
_REPLICA_SLICE_BYTES = 2**24
# Larger arrays are written in several chunks, which are read one by one.
_CHUNK_BYTES = 2**26


_ORBAX = str(pathlib.Path(ocp.__file__).parent)
# In the name of what is not committed; a lost future's error bears no other.
_UNFINISHED = ".orbax-checkpoint-tmp"


class _RaisedAnyway(logging.Filter):
  """Drops Orbax's and its event loops' reports of errors that are also raised.

  A full disk gives some 400 lines of tracebacks from five threads, in which the
  one line that says so drowns.
  """

  def filter(self, record: logging.LogRecord) -> bool:
    if record.levelno < logging.ERROR:
      return True
    said = record.pathname + record.getMessage()
    return _ORBAX not in said and _UNFINISHED not in said


_RAISED_ANYWAY = _RaisedAnyway()


def _quieten() -> None:
  for name in ("absl", "asyncio"):
    logging.getLogger(name).addFilter(_RAISED_ANYWAY)


class OrbaxStore:
  """Writes one folder at a time, asynchronously."""

  def __init__(self, timeout_seconds: int):
    """Starts nothing yet.

    Args:
      timeout_seconds: how long processes wait for each other at the end.
    """
    self._timeout = timeout_seconds
    self._checkpointer: ocp.AsyncCheckpointer | None = None

  def write(
    self,
    path: pathlib.Path,
    arrays: Mapping[str, jax.Array],
    metadata: Mapping[str, Any],
  ) -> None:
    """Starts writing; the arrays may be donated as soon as this returns."""
    how = {name: _chunks(array) for name, array in arrays.items()}
    self._opened().save(
      path,
      args=ocp.args.Composite(
        arrays=ocp.args.PyTreeSave(
          leaves_lib.nested(arrays), save_args=leaves_lib.nested(how)
        ),
        metadata=ocp.args.JsonSave(metadata),
      ),
    )

  def adopt(
    self,
    path: pathlib.Path,
    names: Iterable[str],
    database: pathlib.Path,
    metadata: Mapping[str, Any],
  ) -> None:
    """Makes a folder like that of `write` around arrays that are on the disk.

    Args:
      path: the folder.
      names: of all arrays of the database.
      database: an `ArrayDatabase`'s folder on the same file system; it is
        moved to `path`/arrays/ocdbt.process_0.
      metadata: as for `write`.
    """
    _quieten()
    registry = ocp.type_handlers.create_type_handler_registry(
      (_OnDisk, _OnDiskHandler(database))
    )
    registry.add(  # which is what will read them
      jax.Array,
      ocp.type_handlers.ArrayHandler(),
      override=True,
      ignore_warnings=True,
    )
    handler = ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
    with ocp.Checkpointer(_composite(handler)) as checkpointer:
      checkpointer.save(
        path,
        args=ocp.args.Composite(
          arrays=ocp.args.PyTreeSave(
            leaves_lib.nested({name: _OnDisk() for name in names})
          ),
          metadata=ocp.args.JsonSave(metadata),
        ),
      )

  def wait(self) -> None:
    """Waits until the folder has its name, in every process."""
    self._opened().wait_until_finished()

  def read(
    self,
    path: pathlib.Path,
    targets: Mapping[str, jax.ShapeDtypeStruct],
    *,
    partial: bool,
  ) -> dict[str, jax.Array]:
    """Reads arrays by name into the targets' shardings.

    Args:
      path: the folder.
      targets: shapes, dtypes and shardings by name. Another dtype than the
        stored one would be cast to, silently.
      partial: whether the folder holds other arrays as well.
    """
    arguments = {
      name: ocp.ArrayRestoreArgs(
        sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype
      )
      for name, leaf in targets.items()
    }
    wanted = ocp.args.PyTreeRestore(
      leaves_lib.nested(targets),
      restore_args=leaves_lib.nested(arguments),
      partial_restore=partial,
    )
    restored = self._opened().restore(
      path, args=ocp.args.Composite(arrays=wanted)
    )
    return leaves_lib.named(restored.arrays)

  def close(self) -> None:
    """Waits and ends the threads; a later call starts them anew."""
    if self._checkpointer is not None:
      self._checkpointer.close()
      self._checkpointer = None

  def _opened(self) -> ocp.AsyncCheckpointer:
    if self._checkpointer is None:
      _quieten()
      handler = ocp.PyTreeCheckpointHandler(
        type_handler_registry=ocp.type_handlers.create_type_handler_registry(
          (
            jax.Array,
            ocp.type_handlers.ArrayHandler(
              min_slice_bytes_for_replica_parallel=_REPLICA_SLICE_BYTES
            ),
          )
        ),
        # Checksums read the same copies on the host: one transfer for both.
        enable_pinned_host_transfer=False,
      )
      self._checkpointer = ocp.AsyncCheckpointer(
        _composite(handler),
        async_options=ocp.AsyncOptions(timeout_secs=self._timeout),
      )
    return self._checkpointer


def _chunks(array: jax.Array) -> ocp.SaveArgs:
  """A large stack is cut into its layers, so that one can be read alone."""
  if array.nbytes <= _CHUNK_BYTES:
    return ocp.SaveArgs()
  axes = (0,) if array.ndim > 2 else ()
  return ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES, shard_axes=axes)


def _composite(handler) -> ocp.CompositeCheckpointHandler:
  """Arrays by this handler, and metadata."""
  registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
  registry.add("arrays", ocp.args.PyTreeSave, handler)
  registry.add("arrays", ocp.args.PyTreeRestore, handler)
  return ocp.CompositeCheckpointHandler(handler_registry=registry)


class _OnDisk:
  """A leaf that has been written already."""


class _OnDiskHandler(ocp.type_handlers.TypeHandler):
  """Has Orbax describe, join and check arrays that it need not write."""

  def __init__(self, database: pathlib.Path):
    self._database = database

  def typestr(self) -> str:
    return "jax.Array"

  async def serialize(self, values, infos, args=None):
    async def move():
      await infos[0].await_path_creation()
      self._database.rename(pathlib.Path(infos[0].parent_dir) / OWN_PART)

    # Begins when Orbax has made the folder.
    return [future.CommitFutureAwaitingContractedSignals(move(), name="move")]

  async def metadata(self, infos):
    raise TypeError("arrays on the disk are read as jax.Array")

  async def deserialize(self, infos, args=None):
    raise TypeError("arrays on the disk are read as jax.Array")
