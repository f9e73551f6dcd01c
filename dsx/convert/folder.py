"""A Hugging Face checkpoint folder: which file holds which tensor.

Either `model.safetensors.index.json` says so, or every `*.safetensors` of the
folder is read. Nothing outside the folder is ever opened, with one exception:
in the Hugging Face cache, files of `snapshots/<commit>` are links into
`blobs` beside it. Pickled weights (.bin, .pt) can run code when they are read
and are refused.
"""

from collections.abc import Iterable
import json
import os
import pathlib
from typing import NamedTuple

from dsx.convert import safetensors

INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


def resolve(path) -> pathlib.Path:
  """The folder at `path`, `~` expanded.

  Raises:
    ValueError: if there is none.
  """
  folder = pathlib.Path(path).expanduser()
  if not folder.exists():
    raise ValueError(
      f"{folder}: no such folder; give the folder that holds {CONFIG} and "
      "*.safetensors"
    )
  if not folder.is_dir():
    raise ValueError(
      f"{folder}: a file: expected the folder that holds {CONFIG} and "
      "*.safetensors"
    )
  return folder


def inside(folder: pathlib.Path, name: str) -> pathlib.Path:
  """The file `name` of `folder`.

  Raises:
    ValueError: if the name or a link leads out of the folder, or if there is
      no such file.
  """
  if pathlib.PurePath(name).name != name or name in ("", ".", ".."):
    raise ValueError(
      f"{folder}: file name {name!r} leads out of the folder: expected a "
      "plain name"
    )
  path = folder / name
  home = folder.resolve()
  allowed = [home]
  if home.parent.name == "snapshots":
    allowed.append(home.parent.parent / "blobs")
  if path.resolve().parent not in allowed:
    raise ValueError(
      f"{path}: a link to {path.resolve()}, outside the folder; copy the file "
      "into the folder"
    )
  if not path.is_file():
    raise ValueError(f"{path}: no such file; fetch the checkpoint again")
  return path


def read_json(folder: pathlib.Path, name: str) -> dict:
  """Parses the JSON object in file `name` of `folder`."""
  path = inside(folder, name)
  return safetensors.parse_json(path, path.read_bytes())


def tensors(folder: pathlib.Path) -> dict[str, safetensors.Tensor]:
  """All tensors of the folder, by name; no data is read.

  Raises:
    ValueError: if files are missing, are pickles, lie outside the folder or
      contradict the index or one another.
  """
  if (folder / INDEX).exists():
    return _indexed(folder)
  names = sorted(path.name for path in folder.glob("*.safetensors"))
  if not names:
    raise ValueError(_nothing(folder))
  found: dict[str, safetensors.Tensor] = {}
  for name in names:
    header = safetensors.header(inside(folder, name))
    twice = sorted(found.keys() & header.keys())
    if twice:
      raise ValueError(
        f"{folder}: tensor {twice[0]!r} is in both "
        f"{found[twice[0]].path.name} and {name}; remove one of the files"
      )
    found |= header
  return found


def _nothing(folder: pathlib.Path) -> str:
  pickles = sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLES)
  if pickles:
    return (
      f"{folder / pickles[0]}: a pickle, which can run code when it is read: "
      "expected *.safetensors; convert it with "
      "`save_pretrained(..., safe_serialization=True)`"
    )
  return f"{folder}: no *.safetensors; fetch the checkpoint again"


def _indexed(folder: pathlib.Path) -> dict[str, safetensors.Tensor]:
  table = read_json(folder, INDEX).get("weight_map")
  if not isinstance(table, dict) or not table:
    raise ValueError(f"{folder / INDEX}: no weight_map; fetch the file again")
  files: dict[str, list[str]] = {}
  for tensor, name in table.items():
    if not isinstance(name, str) or not name.endswith(".safetensors"):
      raise ValueError(
        f"{folder / INDEX}: tensor {tensor!r} is in file {name!r}: expected "
        "a *.safetensors file; pickles are not read"
      )
    files.setdefault(name, []).append(tensor)
  found: dict[str, safetensors.Tensor] = {}
  for name, expected in files.items():
    header = safetensors.header(inside(folder, name))
    different = sorted(header.keys() ^ set(expected))
    if different:
      holds = "holds" if different[0] in header else "lacks"
      raise ValueError(
        f"{folder / name}: {holds} tensor {different[0]!r}, unlike {INDEX} "
        f"says ({len(different)} such); fetch both again"
      )
    found |= header
  return found


def new(path) -> pathlib.Path:
  """The folder at `path`, `~` expanded, created if need be.

  Raises:
    ValueError: if it is a file or holds a checkpoint already.
  """
  folder = pathlib.Path(path).expanduser()
  if folder.exists() and not folder.is_dir():
    raise ValueError(f"{folder}: a file: expected a new or an empty folder")
  folder.mkdir(parents=True, exist_ok=True)
  present = sorted([*folder.glob("*.safetensors"), *folder.glob(CONFIG)])
  if present:
    raise ValueError(
      f"{folder}: holds {present[0].name} already; give an empty folder"
    )
  return folder


class Shard(NamedTuple):
  """One file of a checkpoint.

  Attributes:
    name: of the file.
    tensors: what it holds, in order.
  """

  name: str
  tensors: tuple[safetensors.Planned, ...]

  @property
  def n_bytes(self) -> int:
    """Bytes of its tensors."""
    return sum(tensor.n_bytes for tensor in self.tensors)


def shards(
  planned: Iterable[safetensors.Planned], shard_bytes: int
) -> list[Shard]:
  """Cuts a checkpoint into files.

  Args:
    planned: the tensors, in order.
    shard_bytes: bytes of tensors after which a new file is begun.
  """
  groups: list[list[safetensors.Planned]] = [[]]
  filled = 0
  for tensor in planned:
    if groups[-1] and filled + tensor.n_bytes > shard_bytes:
      groups.append([])
      filled = 0
    groups[-1].append(tensor)
    filled += tensor.n_bytes
  if len(groups) == 1:
    return [Shard("model.safetensors", tuple(groups[0]))]
  return [
    Shard(f"model-{i:05d}-of-{len(groups):05d}.safetensors", tuple(group))
    for i, group in enumerate(groups, start=1)
  ]


def write_json(path: pathlib.Path, content: dict) -> None:
  """Writes a JSON file, which is there whole or not at all."""
  write_file(path, (json.dumps(content, indent=2) + "\n").encode())


def write_file(path: pathlib.Path, content: bytes) -> None:
  """Writes a file, which is there whole or not at all."""
  unfinished = path.with_name(path.name + safetensors.UNFINISHED)
  with unfinished.open("wb") as file:
    file.write(content)
    file.flush()
    os.fsync(file.fileno())
  unfinished.replace(path)


def finish(
  folder: pathlib.Path, config: dict, written: Iterable[Shard]
) -> None:
  """Writes what makes files a checkpoint: the index, and config.json last.

  Args:
    folder: where the shards are.
    config: content of `config.json`.
    written: the shards.
  """
  written = list(written)
  if len(written) > 1:
    table = {t.name: shard.name for shard in written for t in shard.tensors}
    total = sum(shard.n_bytes for shard in written)
    index = {"metadata": {"total_size": total}, "weight_map": table}
    write_json(folder / INDEX, index)
  write_json(folder / CONFIG, config)


def write(
  folder: pathlib.Path,
  config: dict,
  planned: Iterable[safetensors.Planned],
  shard_bytes: int,
) -> None:
  """Writes a checkpoint folder: shards, their index and the config.

  Args:
    folder: from `new`.
    config: content of `config.json`, which is written last.
    planned: the tensors, in order.
    shard_bytes: bytes of tensors after which a new file is begun.
  """
  parts = shards(planned, shard_bytes)
  for shard in parts:
    safetensors.write(folder / shard.name, shard.tensors)
  finish(folder, config, parts)
