"""The checkpoint of a run as a source of tensors, see `convert.tensor_source`.

A tensor of Hugging Face's layout is a slice of a stack. Only that slice is
read: neither `restore` nor JAX's arrays take part, and no stack is ever whole
in memory.
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import functools
import math
import os
import pathlib
from typing import Any
from typing import NamedTuple

import numpy as np
import tensorstore as ts

from dsx.convert import huggingface_config
from dsx.convert import inventory
from dsx.convert import name_map
from dsx.convert import safetensors
from dsx.convert import tensor_source
from dsx.models import dense_config
from dsx.training import array_database
from dsx.training import carried_files
from dsx.training import checksum
from dsx.training import import_plan
from dsx.training import manifest as manifest_lib
from dsx.training import restore
from dsx.training import verified_read
from dsx.training import workdir as workdir_lib

Progress = Callable[[int, int, str], None]
_STATE, _AVERAGE = "state/", "ema/"
# Chunks that are kept decoded: those of the three stacks of experts, whose
# tensors follow one another in a file, and one more.
_KEPT_CHUNKS = 4


class _Place(NamedTuple):
  """Where a tensor lies: in which array, at which index, turned or not."""

  array: str
  index: tuple[int, ...]
  transposed: bool


@dataclasses.dataclass(frozen=True)
class CheckpointSource:
  """One step of a workdir.

  Attributes:
    workdir: of the run.
    path: folder of the step.
    manifest: of the step.
    metadata: of the step.
    average: whether parameters are those of the moving average.
    companions: files that go with the weights, by name.
  """

  workdir: pathlib.Path
  path: pathlib.Path
  manifest: manifest_lib.Manifest
  metadata: Mapping[str, Any]
  average: bool
  companions: Mapping[str, bytes]

  @property
  def place(self) -> str:
    """The step's folder."""
    return str(self.path)

  @property
  def identity(self) -> Any:
    """What the step's files were when they were written."""
    return {
      "manifest": manifest_lib.digest(dataclasses.asdict(self.manifest)),
      "average": self.average,
    }

  @property
  def config(self) -> dense_config.Config:
    """The model; a checkpoint holds all of its MTP modules."""
    return restore.any_config_of(self.metadata["run"])

  @property
  def fields(self) -> dict[str, Any]:
    """Content of config.json: that of the import, or one made of the run."""
    imported = self.metadata.get("imported")
    if imported:
      return dict(imported["fields"])
    dtypes = restore.dtypes_of(self.metadata["run"])
    made = huggingface_config.to_json(self.config, dtypes.param)
    return made | carried_files.token_ids(self.companions)

  @property
  def entries(self) -> Mapping[str, tensor_source.Entry]:
    """Every tensor by name."""
    return self._entries

  @functools.cached_property
  def _entries(self) -> Mapping[str, tensor_source.Entry]:
    imported = self.metadata.get("imported", {"dtypes": {}})
    found = {}
    for name, place in self._places.items():
      leaf = self.manifest.leaves.get(place.array)
      if leaf is None:
        raise verified_read.CheckpointError(
          f"{self.path}: {place.array!r} is not in it: expected the arrays of "
          "the config that it was saved with; convert another step"
        )
      shape = leaf.shape[len(place.index) :]
      dtype = safetensors.NAMES[array_database.dtype(leaf.dtype)]
      found[name] = tensor_source.Entry(
        imported["dtypes"].get(name, dtype),
        shape[::-1] if place.transposed else shape,
        self.place,
      )
    return found

  def read(self, name: str) -> np.ndarray:
    """Reads one tensor."""
    place = self._places[name]
    found = array_database.read(self._stores[place.array], place.index)
    dtype = safetensors.DTYPES[self.entries[name].dtype]
    found = found.astype(dtype, copy=False)
    return found.T if place.transposed else found

  def verify(self, progress: Progress | None = None) -> None:
    """Compares all files and all numbers with what was saved.

    Args:
      progress: called with bytes done, bytes in all and a name.

    Raises:
      CheckpointError: if anything differs.
    """
    try:
      manifest_lib.verify_files(self.path, self.manifest)
      self._verify_numbers(progress or (lambda done, total, name: None))
    except manifest_lib.ManifestError as error:
      raise _damaged(self.path, error) from error

  def _verify_numbers(self, progress: Progress) -> None:
    """A sum over chunks, one of them in memory at a time."""
    leaves = {name: self.manifest.leaves[name] for name in self._stores}
    sizes = {
      name: math.prod(leaf.shape) * array_database.dtype(leaf.dtype).itemsize
      for name, leaf in leaves.items()
    }
    done = 0
    for name, store in self._stores.items():
      total = 0
      for box in array_database.chunks(store):
        data = np.asarray(store[box].read().result())
        total += checksum.of_pieces([(tuple(s.start for s in box), data)])
        done += data.nbytes
        progress(done, sum(sizes.values()), f"verifying {name}")
      if total % 2**64 != leaves[name].checksum:
        raise manifest_lib.ManifestError(
          f"the values of {name!r} are not those that were saved"
        )

  @functools.cached_property
  def _places(self) -> Mapping[str, _Place]:
    found: dict[str, _Place] = {}
    for leaf in name_map.leaves(self.config):
      array, turned = self._array(leaf), leaf.transform == name_map.TRANSPOSE
      is_fp8 = array + import_plan.VALUES in self.manifest.leaves
      for index, name in leaf.pieces():
        if not is_fp8:
          found[name] = _Place(array, index, turned)
          continue
        found[name] = _Place(array + import_plan.VALUES, index, turned)
        scales = name + name_map.SCALES
        found[scales] = _Place(array + import_plan.SCALES, index, turned)
    copies = name_map.copies(self.config)
    # A run's files are as complete as DeepSeek's own.
    kept = self.metadata.get("imported", {"copies": copies})["copies"]
    return found | {name: found[copies[name]] for name in kept}

  def _array(self, leaf: name_map.Leaf) -> str:
    if self.average and leaf.path[0] == "params":
      return _AVERAGE + "/".join(leaf.path[1:])
    return import_plan.leaf_name(leaf)

  @functools.cached_property
  def _stores(self) -> dict[str, ts.TensorStore]:
    """Every array that a tensor lies in, opened."""
    names = sorted({place.array for place in self._places.values()})
    database = array_database.ArrayDatabase(self.path / "arrays")
    stores = {name: database.open(name) for name in names}
    largest = max(map(array_database.chunk_bytes, stores.values()))
    kept = array_database.ArrayDatabase(
      self.path / "arrays", cache_bytes=_KEPT_CHUNKS * largest
    )
    return {name: kept.open(name) for name in names}


def find(
  workdir: str | os.PathLike[str],
  *,
  step: int | None = None,
  average: bool = False,
  vocabulary: str | None = None,
) -> CheckpointSource:
  """The checkpoint of a run, as far as its manifest and metadata go.

  Args:
    workdir: of the run.
    step: which; by default the newest complete one.
    average: the moving average of parameters in place of parameters.
    vocabulary: of a run, if it is not where it was.

  Raises:
    ValueError: in one line: there is no such checkpoint, it is damaged, or is
      not of the model that it says it is.
  """
  workdir = pathlib.Path(workdir).expanduser()
  with restore.checkpoints(workdir) as checkpointer:
    steps = checkpointer.steps()
    if step is None and steps:
      step = steps[-1]
    if step not in steps:
      checkpointer.metadata(step)  # says why
  path = workdir / workdir_lib.CHECKPOINTS / str(step)
  try:
    manifest = verified_read.manifest(path)
    metadata = verified_read.metadata(path, manifest)
  except manifest_lib.ManifestError as error:
    raise _damaged(path, error) from error
  if average and metadata["run"]["ema_decay"] is None:
    raise ValueError(
      f"{workdir}: the run keeps no average of its parameters; leave it out, "
      "or train with Pretraining.ema_decay"
    )
  if "imported" in metadata:
    companions = carried_files.of_import(workdir)
  else:
    data = metadata["run"]["data"]
    name = workdir_lib.vocabulary(workdir, data["vocabulary"])
    companions = carried_files.of_run(
      vocabulary or name, data["sequence_length"]
    )
  source = CheckpointSource(
    workdir, path, manifest, metadata, average, companions
  )
  inventory.check(source.place, source.config, source.fields, source.entries)
  return source


def _damaged(path: pathlib.Path, error: Exception) -> ValueError:
  return verified_read.CheckpointError(
    f"{path} is damaged: {error}; convert another step of the run"
  )
