"""In which dtype each tensor of a checkpoint is written, and its making.

Three cases. Weights that are not quantised, or no longer, are rounded once to
one dtype. Weights that are to be quantised: every linear layer becomes FP8
with scales, the rest is rounded. Weights that are FP8 already and stay so are
copied bit for bit, all tensors of them; only the dtype of scales can change,
and only if they keep their values.

Everything is made a few rows at a time from one tensor of the source.
"""

from collections.abc import Iterator
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from dsx.convert import inventory
from dsx.convert import name_map
from dsx.convert import quantization
from dsx.convert import row_chunks
from dsx.convert import safetensors
from dsx.convert import tensor_source
from dsx.ops import block_scaled

DTYPES = ("bfloat16", "float32", "float16")
_FP8 = safetensors.DTYPES[inventory.FP8]
_quantise = jax.jit(block_scaled.quantise, static_argnames="scale_format")
_dequantise = jax.jit(
  block_scaled.BlockScaled.dequantise, static_argnames="dtype"
)


@dataclasses.dataclass(frozen=True)
class Encoding:
  """How the tensors of one source are written.

  Attributes:
    source: where they come from.
    fp8: whether linear layers are written in FP8.
    dtype: of the other weights; None leaves each as it is.
    scale_format: of `quantization`, of scales; None leaves them as they are.
    keeps_fp8: whether FP8 is copied, not made.
  """

  source: tensor_source.TensorSource
  fp8: bool
  dtype: str | None
  scale_format: str | None
  keeps_fp8: bool

  def fields(self) -> dict[str, Any]:
    """Content of config.json: the source's, with what changes."""
    fields = dict(self.source.fields)
    found = fields.pop(quantization.FIELD, None)
    if self.fp8 and not self.keeps_fp8:
      found = quantization.made(self.scale_format or quantization.FLOAT32)
    elif self.fp8 and self.scale_format in quantization.POWERS_OF_TWO:
      found = {**(found or {}), "scale_fmt": quantization.UE8M0}
    if self.fp8:
      fields[quantization.FIELD] = found
    if self.dtype or "torch_dtype" not in fields:
      # transformers 5 has another name for it, and reads both.
      name = "dtype" if "dtype" in fields else "torch_dtype"
      fields[name] = self.dtype or "bfloat16"
      if name == "dtype":
        fields.pop("torch_dtype", None)
    return fields

  def dtype_of(self, name: str) -> np.dtype:
    """In which dtype a tensor of the source is written, scales aside."""
    entry = self.source.entries[name]
    if self.keeps_fp8 and (self.dtype is None or entry.dtype == inventory.FP8):
      return safetensors.DTYPES[entry.dtype]
    if self.fp8 and not self.keeps_fp8 and name in self._linear:
      return _FP8
    # float32, because a bias of 0.5 swallows steps of 0.001 in bfloat16.
    is_bias = name.endswith("e_score_correction_bias")
    return jnp.dtype("float32" if is_bias else self.dtype)

  def planned(self) -> list[safetensors.Planned]:
    """Every tensor to be written, scales after their matrices."""
    tensors = []
    for name in sorted(self.source.entries, key=name_map.natural):
      if not self._is_scales(name):
        tensors += self._with_scales(name)
    return tensors

  @property
  def _linear(self) -> frozenset[str]:
    return name_map.linear(self.source.config)

  def _is_scales(self, name: str) -> bool:
    return name.endswith(name_map.SCALES)

  def _with_scales(self, name: str) -> list[safetensors.Planned]:
    dtype, shape = self.dtype_of(name), self.source.entries[name].shape
    was_fp8 = inventory.is_fp8(self.source.entries, name)
    if dtype != _FP8:
      make = self._dequantised if was_fp8 else self._rounded
      return [_plan(name, shape, dtype, lambda: make(name, dtype))]
    scales, stored = name + name_map.SCALES, self._scales_dtype(name)
    if was_fp8:
      values_parts = functools.partial(self._rounded, name, dtype)
      scales_parts = functools.partial(self._rounded, scales, stored)
    else:
      pair = _Quantised(self.source, name, self.scale_format, stored)
      values_parts, scales_parts = pair.values, pair.scales
    return [
      _plan(name, shape, dtype, values_parts),
      _plan(scales, block_scaled.scales_shape(shape), stored, scales_parts),
    ]

  def _scales_dtype(self, name: str) -> np.dtype:
    stored = self.source.entries.get(name + name_map.SCALES)
    if self.scale_format is None and stored is not None:
      return safetensors.DTYPES[stored.dtype]
    is_byte = self.scale_format == quantization.E8M0
    return np.dtype(ml_dtypes.float8_e8m0fnu if is_byte else np.float32)

  def _rounded(self, name: str, dtype: np.dtype) -> Iterator[np.ndarray]:
    whole = self.source.read(name)
    if whole.ndim == 0:
      yield whole.astype(dtype)
      return
    for rows in row_chunks.row_chunks(whole.shape):
      yield whole[rows].astype(dtype, copy=False)

  def _dequantised(self, name: str, dtype: np.dtype) -> Iterator[np.ndarray]:
    yield from dequantised(self.source, name, dtype)


def _plan(name, shape, dtype, parts) -> safetensors.Planned:
  return safetensors.Planned(name, tuple(shape), np.dtype(dtype), parts)


def dequantised(
  source: tensor_source.TensorSource, name: str, dtype
) -> Iterator[np.ndarray]:
  """An FP8 matrix of `source` in another dtype, a few rows at a time."""
  values = source.read(name)
  scales = source.read(name + name_map.SCALES).astype(np.float32)
  for rows in row_chunks.row_chunks(values.shape):
    blocks = slice(
      rows.start // block_scaled.BLOCK, -(-rows.stop // block_scaled.BLOCK)
    )
    part = block_scaled.BlockScaled(values[rows], scales[blocks])
    with _on_host():
      yield np.asarray(_dequantise(part, dtype=jnp.dtype(dtype).name))


class _Quantised:
  """Values and scales of one matrix, made together and written in turn."""

  def __init__(self, source, name: str, scale_format: str | None, stored):
    self._source = source
    self._name = name
    # Powers of two are made one way, however they are stored.
    is_power = scale_format in quantization.POWERS_OF_TWO
    self._format = quantization.UE8M0 if is_power else quantization.FLOAT32
    self._stored = stored
    self._scales: list[np.ndarray] = []

  def values(self) -> Iterator[np.ndarray]:
    """The values, a few rows of whole blocks at a time."""
    self._scales = []
    whole = self._source.read(self._name)
    for rows in row_chunks.row_chunks(whole.shape):
      with _on_host():
        part = _quantise(whole[rows], scale_format=self._format)
      self._scales.append(np.asarray(part.scales).astype(self._stored))
      yield np.asarray(part.values)

  def scales(self) -> Iterator[np.ndarray]:
    """The scales, made again if a resumed run did not write the values."""
    if not self._scales:
      for _ in self.values():
        pass
    made, self._scales = self._scales, []
    yield from made


def _on_host():
  """Makes JAX's CPU do it, which rounds as numpy does, ten times as fast."""
  return jax.default_device(jax.local_devices(backend="cpu")[0])


def choose(
  source: tensor_source.TensorSource,
  *,
  fp8: bool,
  dtype: str | None = None,
  scale_format: str | None = None,
) -> Encoding:
  """How the tensors of `source` are to be written.

  Args:
    source: what is to be written.
    fp8: whether linear layers shall be FP8.
    dtype: of the other weights, by default bfloat16; weights that are FP8
      already have their companions left as they are by default.
    scale_format: of scales; by default those of the source, or float32.

  Raises:
    ValueError: if these do not go together.
  """
  if dtype is not None and dtype not in DTYPES:
    raise ValueError(
      f"dtype={dtype!r}: expected {', '.join(DTYPES)}; router biases are "
      "float32 whatever it is"
    )
  if scale_format is not None:
    quantization.check_scale_format(scale_format)
    if not fp8:
      raise ValueError(
        f"scale_format={scale_format!r}: only FP8 has scales; leave it out, or "
        "write FP8"
      )
  keeps_fp8 = fp8 and inventory.has_fp8(source.entries)
  if not keeps_fp8:
    dtype = dtype or "bfloat16"
  return Encoding(source, fp8, dtype, scale_format, keeps_fp8)
