"""Whether a list of tensors is exactly the model that config.json describes.

Names, shapes, dtypes and scales, from headers alone: nothing that is wrong
here costs the reading of a tensor, and nothing is left over that somebody
believed to be in use.
"""

from collections.abc import Mapping

from dsx.convert import name_map
from dsx.convert import quantization
from dsx.convert import tensor_source
from dsx.models import language_model
from dsx.ops import block_scaled

READABLE = ("F32", "BF16", "F16")
FP8 = "F8_E4M3"
SCALES = ("F32", "F8_E8M0")


def is_fp8(entries: Mapping[str, tensor_source.Entry], name: str) -> bool:
  """Whether a matrix is stored in FP8."""
  return entries[name].dtype == FP8


def has_fp8(entries: Mapping[str, tensor_source.Entry]) -> bool:
  """Whether any matrix is."""
  return any(is_fp8(entries, name) for name in entries)


def check(
  place: str,
  config: language_model.Config,
  fields: dict,
  entries: Mapping[str, tensor_source.Entry],
) -> None:
  """Refuses missing, unexpected and misshapen tensors, and other dtypes.

  Args:
    place: the folder, for messages.
    config: the model.
    fields: content of config.json.
    entries: the tensors.

  Raises:
    ValueError: in one line, what is wrong with which tensor.
  """
  leaves = name_map.leaves(config)
  quantised = quantization.read(f"{place}/config.json", fields) is not None
  wanted: set[str] = set()
  for leaf in leaves:
    for _, name in leaf.pieces():
      if name not in entries:
        raise ValueError(_missing(place, config, leaves, name, entries))
      _check_tensor(name, leaf, entries, quantised)
      wanted.add(name)
      if is_fp8(entries, name):
        wanted.add(name + name_map.SCALES)
  by_name = {leaf.pattern: leaf for leaf in leaves if not leaf.stacked}
  for name, original in name_map.accepted_copies(config).items():
    if name in entries:
      _check_tensor(name, by_name[original], entries, quantised)
      wanted.add(name)
  extra = sorted(entries.keys() - wanted)
  if extra:
    raise ValueError(_unexplained(place, extra))


def _missing(place, config, leaves, name: str, entries) -> str:
  expected = sum(leaf.n_pieces for leaf in leaves)
  others = name_map.accepted_copies(config).keys()
  held = sum(
    not found.endswith(name_map.SCALES) for found in entries.keys() - others
  )
  return (
    f"{place}: tensor {name!r} is missing: config.json asks for {expected} "
    f"tensors beside copies and scales, the files hold {held}; fetch all "
    "files, or correct config.json"
  )


def _unexplained(place, extra: list[str]) -> str:
  name = extra[0]
  if name.endswith(name_map.SCALES):
    return (
      f"{place}: tensor {name!r} are scales of a tensor that is not {FP8} "
      f"({len(extra)} such); fetch all files again"
    )
  return (
    f"{place}: {len(extra)} tensor(s) that config.json does not explain, the "
    f"first {name!r}; correct config.json"
  )


def _check_tensor(name: str, leaf: name_map.Leaf, entries, quantised) -> None:
  """Refuses a tensor that is not the piece of `leaf` it should be."""
  entry = entries[name]
  if entry.dtype == FP8:
    _check_fp8(name, leaf, entries, quantised)
  elif entry.dtype not in READABLE:
    raise ValueError(
      f"{entry.place}: tensor {name!r} is {entry.dtype}: expected "
      f"{', '.join(READABLE)}, or {FP8} with scales; convert it first"
    )
  if tuple(entry.shape) != leaf.piece_shape:
    raise ValueError(
      f"{entry.place}: tensor {name!r} has shape {list(entry.shape)}: "
      f"config.json says {list(leaf.piece_shape)}; correct config.json"
    )


def _check_fp8(name: str, leaf: name_map.Leaf, entries, quantised) -> None:
  """Refuses FP8 where none belongs, and scales that do not fit it."""
  place = entries[name].place
  if not leaf.is_linear:
    raise ValueError(
      f"{place}: tensor {name!r} is {FP8}: expected {', '.join(READABLE)}, "
      "because only linear layers are FP8; convert it first"
    )
  if not quantised:
    raise ValueError(
      f"{place}: tensor {name!r} is {FP8}, and config.json has no "
      f"{quantization.FIELD}; fetch config.json again"
    )
  scales = entries.get(name + name_map.SCALES)
  if scales is None:
    raise ValueError(
      f"{place}: tensor {name!r} is {FP8}, and its scales "
      f"{name + name_map.SCALES!r} are missing; fetch all files"
    )
  if scales.dtype not in SCALES:
    raise ValueError(
      f"{scales.place}: tensor {name + name_map.SCALES!r} is {scales.dtype}: "
      f"expected {' or '.join(SCALES)}; fetch it again"
    )
  expected = block_scaled.scales_shape(leaf.piece_shape)
  if tuple(scales.shape) != expected:
    raise ValueError(
      f"{scales.place}: tensor {name + name_map.SCALES!r} has shape "
      f"{list(scales.shape)}: expected {list(expected)}, one for every "
      f"{block_scaled.BLOCK} x {block_scaled.BLOCK} of "
      f"{list(leaf.piece_shape)}; fetch it again"
    )
