"""Orbax as dsx uses it: a folder with arrays and JSON metadata, nothing more.

Orbax shards, writes and commits; what it does not do is in `checkpoint.py`.
"""

from collections.abc import Mapping
import logging
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from dsx.training import leaves as leaves_lib

# The file that `write` puts the metadata into, relative to the folder.
METADATA = "metadata/metadata"
# Replicas write a slice each only of arrays larger than this: cutting slices
# compiles a program per slice, which small arrays do not repay.
_REPLICA_SLICE_BYTES = 2**24


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
    self._opened().save(
      path,
      args=ocp.args.Composite(
        arrays=ocp.args.PyTreeSave(leaves_lib.nested(arrays)),
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
      for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_RAISED_ANYWAY)
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
      registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
      registry.add("arrays", ocp.args.PyTreeSave, handler)
      registry.add("arrays", ocp.args.PyTreeRestore, handler)
      self._checkpointer = ocp.AsyncCheckpointer(
        ocp.CompositeCheckpointHandler(handler_registry=registry),
        async_options=ocp.AsyncOptions(timeout_secs=self._timeout),
      )
    return self._checkpointer
