"""The last act of a save: the manifest, once every process has done its part.

Every process digests a part of the files; process 0 joins what they found. The
parts travel through files on the shared disk and the processes meet at barriers
of the coordination service, because this runs beside the training step: a
collective of the devices would get in between the step's own.
"""

from collections.abc import Mapping
import dataclasses
import json
from typing import Any

import jax
import orbax.checkpoint as ocp

from dsx.training import leaves as leaves_lib
from dsx.training import manifest as manifest_lib
from dsx.training import step_directory


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pending:
  """A step that Orbax is writing.

  Attributes:
    step: its number.
    serial: the number of this save in this process's life, the same in all
      processes; a step saved again must not find an old barrier open.
    leaves: shape and dtype of every array by name.
    sums: this process's part of every array's checksum, filled in later.
  """

  step: int
  serial: int
  leaves: Mapping[str, tuple[tuple[int, ...], str]]
  sums: dict[str, int]


def describe(
  leaves: Mapping[str, jax.Array],
) -> dict[str, tuple[tuple[int, ...], str]]:
  """Shapes and dtypes by name: what is left once the arrays are donated."""
  return {
    name: (tuple(leaf.shape), leaves_lib.dtype_name(leaf))
    for name, leaf in leaves.items()
  }


def commit(
  directory: step_directory.StepDirectory,
  pending: Pending,
  *,
  timeout_seconds: int,
) -> None:
  """Makes a step count that lies on the disk. Collective, for any thread.

  Args:
    directory: where the step is.
    pending: the step, with its sums.
    timeout_seconds: how long to wait for the other processes.

  Raises:
    ManifestError: if a file cannot be read back.
    OSError: if the manifest cannot be written.
    RuntimeError: if another process does not come.
  """
  rank, count = jax.process_index(), jax.process_count()
  path = directory.path(pending.step)
  files = manifest_lib.digest_files(
    path, manifest_lib.list_files(path), part=rank, parts=count, flush=True
  )
  shares: list[dict[str, Any]] = [
    {
      "sums": pending.sums,
      "files": {name: dataclasses.asdict(f) for name, f in files.items()},
    }
  ]
  if count == 1:
    manifest_lib.write(path, _join(pending, shares))
    return
  meet = ocp.multihost.get_barrier_sync_fn()
  deadline = 1000 * timeout_seconds
  manifest_lib.write_atomically(
    directory.share(pending.step, rank), json.dumps(shares[0]).encode()
  )
  meet(key=f"dsx_shares_{pending.serial}", timeout_ms=deadline)
  if rank == 0:
    paths = [directory.share(pending.step, other) for other in range(count)]
    shares = [json.loads(share.read_bytes()) for share in paths]
    manifest_lib.write(path, _join(pending, shares))
    for share in paths:
      share.unlink()
  meet(key=f"dsx_manifest_{pending.serial}", timeout_ms=deadline)


def _join(pending: Pending, shares) -> manifest_lib.Manifest:
  return manifest_lib.Manifest(
    step=pending.step,
    leaves={
      name: manifest_lib.Leaf(
        shape=shape,
        dtype=dtype,
        checksum=sum(share["sums"][name] for share in shares) % 2**64,
      )
      for name, (shape, dtype) in pending.leaves.items()
    },
    files={
      name: manifest_lib.File(**file)
      for share in shares
      for name, file in share["files"].items()
    },
  )
