"""Checkpoints that survive kill -9, a full disk and a flipped bit.

Orbax writes the arrays (sharded, asynchronous, committed by a rename); on top,
the manifest (`manifest.py`) says what was written. Each step is a folder:

  <directory>/<step>/arrays/        Orbax: zarr chunks in an OCDBT store
  <directory>/<step>/metadata/      JSON: configs, token count, data position
  <directory>/<step>/manifest.json  written last: with it the step counts

The directory has to be on a POSIX file system that all processes share. `save`,
`wait`, `close` and `restore` are collective: every process calls them, in the
same order.

A save blocks for the copy to the host and for Orbax's planning; writing,
hashing, the manifest and the removal of old steps go on in threads. What goes
wrong there is raised by the next `save`, `wait` or `close`.
"""

from collections.abc import Mapping
import dataclasses
import json
import operator
import os
import threading
from typing import Any

from absl import logging
import jax

from dsx.training import checksum
from dsx.training import commit
from dsx.training import leaves as leaves_lib
from dsx.training import manifest as manifest_lib
from dsx.training import orbax_store
from dsx.training import step_directory
from dsx.training import verified_read

CheckpointError = verified_read.CheckpointError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Restored:
  """What `Checkpointer.restore` found.

  Attributes:
    step: the step that was restored.
    arrays: the tree that was asked for.
    metadata: what was given to `save`, as JSON returns it.
    notes: one line for each newer step that was passed over, and why.
  """

  step: int
  arrays: Any
  metadata: dict[str, Any]
  notes: list[str]


class Checkpointer:
  """Saves and restores the steps of one training run."""

  def __init__(
    self,
    directory: str | os.PathLike[str],
    *,
    max_to_keep: int = 3,
    keep_every: int | None = None,
    async_save: bool = True,
    timeout_seconds: int = 1200,
  ):
    """Opens a directory of checkpoints, which need not exist yet.

    Args:
      directory: where the steps are.
      max_to_keep: how many of the newest steps to keep.
      keep_every: if given, steps that it divides are kept for good.
      async_save: whether `save` returns before the step is on disk.
      timeout_seconds: how long processes wait for each other at the end of a
        save before they give it up.

    Raises:
      ValueError: if a number is not positive.
    """
    for name, value in (
      ("max_to_keep", max_to_keep),
      ("keep_every", 1 if keep_every is None else keep_every),
      ("timeout_seconds", timeout_seconds),
    ):
      if value < 1:
        raise ValueError(f"Checkpointer.{name}={value}: expected at least 1")
    self._directory = step_directory.StepDirectory(directory)
    self._store = orbax_store.OrbaxStore(timeout_seconds)
    self._max_to_keep = max_to_keep
    self._keep_every = keep_every
    self._async = async_save
    self._timeout = timeout_seconds
    self._damaged: set[int] = set()
    self._saves = 0
    self._finishing: threading.Thread | None = None
    self._error: CheckpointError | None = None

  def __enter__(self):
    return self

  def __exit__(self, *unused):
    self.close()

  def steps(self) -> list[int]:
    """Lists the complete steps, oldest first; their files are not verified."""
    return self._directory.complete()

  def save(self, step: int, arrays: Any, metadata: Mapping[str, Any]) -> None:
    """Starts saving a step; waits for the save before it, if that still runs.

    The arrays may be donated as soon as this returns.

    Args:
      step: newer than every good step of the directory.
      arrays: a tree of jax.Arrays, typed keys included. In a run of several
        processes each array has to span the devices of all.
      metadata: what JSON can hold.

    Raises:
      CheckpointError: if this save or the one before it failed; the steps that
        were complete before stay as they are.
      ValueError: if an argument is not as described.
    """
    self.wait()
    step = operator.index(step)
    self._check_newer(step)
    leaves = leaves_lib.named(arrays)
    leaves_lib.check_savable(leaves)
    try:
      metadata = json.loads(manifest_lib.canonical(metadata))
    except (TypeError, ValueError) as error:
      raise ValueError(f"metadata is not JSON: {error}") from error
    self._saves += 1
    pending = commit.Pending(
      step=step, serial=self._saves, leaves=commit.describe(leaves), sums={}
    )
    try:
      pieces = self._start(step, leaves, metadata)
    except Exception as error:
      raise self._given_up(step, error) from error
    self._finishing = threading.Thread(
      target=self._finish, args=(pending, pieces), name="checkpoint"
    )
    self._finishing.start()
    if not self._async:
      self.wait()

  def wait(self) -> None:
    """Waits until the step being saved, if any, is complete.

    Raises:
      CheckpointError: if that save failed.
    """
    if self._finishing is not None:
      self._finishing.join()
      self._finishing = None
    error, self._error = self._error, None
    if error is not None:
      raise error

  def close(self) -> None:
    """Waits, and ends Orbax's threads. The object can be used again.

    Raises:
      CheckpointError: if the last save failed.
    """
    try:
      self.wait()
    finally:
      self._store.close()

  def metadata(self, step: int | None = None) -> dict[str, Any]:
    """Reads the metadata of a step, by default of the newest good one.

    Of the files only the metadata's own is verified. Not collective.

    Raises:
      CheckpointError: if there is no such step, or none is good.
    """
    problems = []
    for candidate in self._candidates(step):
      path = self._directory.path(candidate)
      try:
        return verified_read.metadata(path, verified_read.manifest(path))
      except manifest_lib.ManifestError as error:
        problems.append(f"step {candidate}: {error}")
    raise self._nothing(step, problems)

  def restore(
    self, abstract: Any, *, step: int | None = None, partial: bool = False
  ) -> Restored:
    """Restores the newest step whose every bit is as it was saved.

    Args:
      abstract: a tree of ShapeDtypeStructs with shardings (or of arrays).
        Names, shapes and dtypes have to be the saved ones; mesh, sharding and
        number of processes may be others.
      step: this step or none. By default the newest, and if that is damaged,
        with a warning, the one before it.
      partial: whether the checkpoint may hold arrays that `abstract` lacks.

    Returns:
      The step, its arrays and metadata.

    Raises:
      CheckpointError: if there is no good step, or if its arrays are not those
        of `abstract`.
    """
    self.wait()
    wanted = leaves_lib.named(abstract)
    for name, leaf in wanted.items():
      if getattr(leaf, "sharding", None) is None:
        raise ValueError(f"target {name!r} has no sharding: give it one")
    # Process 0's list, lest one process sees a step that another does not.
    listed = verified_read.gather(json.dumps(self._candidates(step)))[0]
    notes: list[str] = []
    for candidate in json.loads(listed):
      path = self._directory.path(candidate)
      problem, found = verified_read.verify(path)
      arrays: dict[str, jax.Array] = {}
      if found is not None and not problem:
        verified_read.check_target(path, found, wanted, partial=partial)
        problem, arrays = verified_read.arrays(self._store, path, found, wanted)
      if found is not None and not problem:
        for note in notes:
          logging.warning("Restoring step %d: %s", candidate, note)
        return Restored(
          step=candidate,
          arrays=leaves_lib.like(abstract, arrays),
          metadata=verified_read.metadata(path, found),
          notes=notes,
        )
      if candidate in self.steps():
        self._damaged.add(candidate)
      notes.append(f"step {candidate} is passed over: {problem}")
    raise self._nothing(step, notes)

  def _check_newer(self, step: int) -> None:
    """A restore takes the newest step: an older one would never be found."""
    if step < 0:
      raise ValueError(f"step {step}: expected a number of steps")
    newest = max(self._good(), default=-1)
    if step <= newest:
      raise CheckpointError(
        f"checkpoint directory {self._directory.root} already holds step"
        f" {newest}, step {step} is not newer: resume from step {newest}, or"
        " use another workdir"
      )

  def _start(self, step, leaves, metadata) -> dict[str, list[checksum.Piece]]:
    """Copies the arrays to the host and lets Orbax begin."""
    if jax.process_index() == 0:
      self._directory.root.mkdir(parents=True, exist_ok=True)
      if step in self._damaged:
        self._directory.set_aside(step)
      self._directory.remove_unfinished(only=step)
    self._damaged.discard(step)
    plain = {name: leaves_lib.plain(leaf) for name, leaf in leaves.items()}
    pieces = {
      name: checksum.pieces(leaf, ordinal=ordinal)
      for ordinal, (name, leaf) in enumerate(plain.items())
    }
    self._store.write(self._directory.path(step), plain, metadata)
    return pieces

  def _finish(self, pending: commit.Pending, pieces) -> None:
    """Waits for Orbax, then makes the step count. Runs in a thread."""
    try:
      for name, some in pieces.items():
        pending.sums[name] = checksum.of_pieces(some)
      pieces.clear()
      self._store.wait()
      commit.commit(self._directory, pending, timeout_seconds=self._timeout)
      if jax.process_index() == 0:
        self._retain(pending.step)
    except Exception as error:
      self._error = self._given_up(pending.step, error)

  def _retain(self, step: int) -> None:
    """Removes steps past their time and what broken saves have left.

    Orbax does not do this: it would count a step as soon as it has committed
    it, and could remove the last good one before the manifest is there.
    """
    good = self._good()
    keep = {step, *good[-self._max_to_keep :]}
    if self._keep_every is not None:
      keep |= {old for old in good if old % self._keep_every == 0}
    for old in good:
      if old not in keep:
        self._directory.remove(old)
    self._directory.remove_unfinished()

  def _given_up(self, step: int, error: Exception) -> CheckpointError:
    """Says what happened; makes room, for want of it may be what happened."""
    if jax.process_index() == 0:
      self._directory.remove_unfinished(only=step)
    return CheckpointError(
      f"step {step} was not saved to {self._directory.root}:"
      f" {verified_read.one_line(error)} (complete steps: {self.steps()})"
    )

  def _good(self) -> list[int]:
    return [step for step in self.steps() if step not in self._damaged]

  def _candidates(self, step: int | None) -> list[int]:
    """Steps to try, newest first; unfinished ones too, to be spoken of."""
    return self._directory.present()[::-1] if step is None else [step]

  def _nothing(self, step, problems) -> CheckpointError:
    wanted = "step" if step is None else f"step {step}"
    reasons = "; ".join(problems) or "there is none"
    return CheckpointError(
      f"no good {wanted} in checkpoint directory {self._directory.root}:"
      f" {reasons}"
    )


def config_digest(config: Mapping[str, Any]) -> str:
  """Digests a config, given as a JSON value, for a checkpoint's metadata."""
  return manifest_lib.digest(config)


def check_config(
  metadata: Mapping[str, Any], digest: str, *, where: str
) -> None:
  """Refuses a checkpoint whose metadata tell of another config.

  Args:
    metadata: of the checkpoint; its `config_digest` is compared.
    digest: `config_digest(config)` of this run.
    where: names the checkpoint in the message.

  Raises:
    CheckpointError: if the digests differ or the checkpoint has none.
  """
  saved = metadata.get("config_digest")
  if saved != digest:
    raise CheckpointError(
      f"{where} is of another config (config_digest {str(saved)[:12]}, this run"
      f" has {digest[:12]}): use the config it was saved with, or another"
      " workdir"
    )
