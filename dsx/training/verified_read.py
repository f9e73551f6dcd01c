"""Reading a step so that what comes back is what was saved, bit for bit.

Files are compared with the manifest before Orbax sees them, names, shapes and
dtypes before it reads, and values afterwards. Where a function returns a
problem, it is the same line in every process: all go on to the next step
together, or none.
"""

from collections.abc import Mapping
import json
import os
import pathlib
import re
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np

from dsx.training import checksum
from dsx.training import leaves as leaves_lib
from dsx.training import manifest as manifest_lib
from dsx.training import orbax_store


class CheckpointError(ValueError):
  """A checkpoint cannot be written or read; the message is one line."""


def manifest(path: pathlib.Path) -> manifest_lib.Manifest:
  """Reads the manifest of a step's folder.

  Raises:
    ManifestError: if it is not good, or of another step.
  """
  found = manifest_lib.read(path)
  if str(found.step) != path.name:
    raise manifest_lib.ManifestError(
      f"the folder is named {path.name}, its manifest says {found.step}"
    )
  return found


def metadata(
  path: pathlib.Path, found: manifest_lib.Manifest
) -> dict[str, Any]:
  """Reads a step's metadata, verifying their file alone.

  Raises:
    ManifestError: if it is not the file of the manifest.
  """
  name = orbax_store.METADATA
  files = manifest_lib.digest_files(path, {name: 0})
  if files[name] != found.files.get(name):
    raise manifest_lib.ManifestError(f"{name!r} is damaged")
  return json.loads((path / name).read_text())


def verify(
  path: pathlib.Path,
) -> tuple[str, manifest_lib.Manifest | None]:
  """Compares the files with the manifest, each process a part. Collective.

  Returns:
    The problem ('' if there is none) and the manifest.
  """
  found, problem = None, ""
  try:
    found = manifest(path)
    manifest_lib.verify_files(
      path, found, part=jax.process_index(), parts=jax.process_count()
    )
  except manifest_lib.ManifestError as error:
    problem = str(error)
  return next(filter(None, gather(problem)), ""), found


def check_target(
  path: pathlib.Path,
  found: manifest_lib.Manifest,
  wanted: Mapping[str, Any],
  *,
  partial: bool,
) -> None:
  """Refuses a target that is not what was saved; Orbax would cast dtypes.

  Args:
    path: the step's folder.
    found: its manifest.
    wanted: ShapeDtypeStructs by name.
    partial: whether the step may hold more.

  Raises:
    CheckpointError: naming the first array that differs, and how.
  """
  where = f"in checkpoint {path}"
  for name, leaf in wanted.items():
    if name not in found.leaves:
      raise CheckpointError(
        f"{name!r} is not {where}: that was saved by another config"
      )
    saved = found.leaves[name]
    for what, there, here in (
      ("shape", saved.shape, tuple(leaf.shape)),
      ("dtype", saved.dtype, leaves_lib.dtype_name(leaf)),
    ):
      if there != here:
        raise CheckpointError(
          f"{name!r} has {what} {there} {where}, but {here} is asked for: use"
          " the config it was saved with"
        )
  extra = sorted(found.leaves.keys() - wanted.keys())
  if extra and not partial:
    raise CheckpointError(
      f"{extra[0]!r} is {where} but not asked for ({len(extra)} such arrays):"
      " that was saved by another config, or give partial=True"
    )


def arrays(
  store: orbax_store.OrbaxStore,
  path: pathlib.Path,
  found: manifest_lib.Manifest,
  wanted: Mapping[str, Any],
) -> tuple[str, dict[str, jax.Array]]:
  """Reads arrays and compares their values with the checksums. Collective.

  Args:
    store: reads them.
    path: the step's folder.
    found: its manifest.
    wanted: ShapeDtypeStructs with shardings by name, passed by `check_target`.

  Returns:
    The problem ('' if there is none) and the arrays by name.
  """
  plain = {name: leaves_lib.plain(leaf) for name, leaf in wanted.items()}
  try:
    read = store.read(path, plain, partial=len(plain) < len(found.leaves))
  except Exception as error:
    return f"Orbax cannot read it: {one_line(error)}", {}
  sums = [
    checksum.of_pieces(checksum.pieces(read[name], ordinal=ordinal))
    for ordinal, name in enumerate(wanted)
  ]
  parts = [json.loads(text) for text in gather(json.dumps(sums))]
  for ordinal, name in enumerate(wanted):
    total = sum(part[ordinal] for part in parts) % 2**64
    if total != found.leaves[name].checksum:
      return f"the values of {name!r} are not those that were saved", {}
  return "", {
    name: leaves_lib.typed(read[name], found.leaves[name].dtype)
    for name in wanted
  }


def gather(text: str) -> list[str]:
  """Returns every process's text, in the order of processes. Collective."""
  if jax.process_count() == 1:
    return [text]
  data = np.frombuffer(text.encode(), np.uint8)
  sizes = multihost_utils.process_allgather(np.int32(data.size))
  padded = np.zeros(max(1, int(np.max(sizes))), np.uint8)
  padded[: data.size] = data
  rows = np.asarray(multihost_utils.process_allgather(padded))
  return [bytes(row).rstrip(b"\0").decode() for row in rows]


def one_line(error: Exception) -> str:
  """Says in one line what an error is about."""
  text = " ".join(str(error).split()) or type(error).__name__
  code = re.search(r"os_error_code='(\d+)'", text)
  if code:  # TensorStore's: several hundred letters of paths come before it.
    return os.strerror(int(code[1]))
  return text[:300]
