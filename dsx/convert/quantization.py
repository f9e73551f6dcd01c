"""`quantization_config` of config.json: how a checkpoint's FP8 is scaled.

DeepSeek has one form of it, blocks of 128 x 128 of e4m3 with scales to
multiply by. V3.1 adds `scale_fmt: ue8m0`: its scales are powers of two.
Which tensors are FP8 is not read here but from the files, tensor by tensor.
"""

from typing import Any

from dsx.ops import block_scaled

FIELD = "quantization_config"
FLOAT32, UE8M0, E8M0 = "float32", "ue8m0", "e8m0"
# How scales are made and stored: any float32; powers of two in float32, as
# V3.1 has them; powers of two in the one byte of an exponent (F8_E8M0).
SCALE_FORMATS = (FLOAT32, UE8M0, E8M0)
POWERS_OF_TWO = (UE8M0, E8M0)

_FIXED = {
  "quant_method": "fp8",
  "fmt": "e4m3",
  "weight_block_size": [block_scaled.BLOCK, block_scaled.BLOCK],
}
_REMEDY = "dsx reads DeepSeek's FP8 only; fetch the checkpoint in bfloat16"


def read(place, fields: dict) -> dict | None:
  """The `quantization_config` of a checkpoint, checked.

  Args:
    place: the file, for messages.
    fields: content of config.json.

  Returns:
    It, or None if weights are not quantised.

  Raises:
    ValueError: if it says anything but DeepSeek's form.
  """
  found = fields.get(FIELD)
  if found is None:
    return None
  if not isinstance(found, dict):
    raise ValueError(f"{place}: {FIELD}={found!r}: expected an object or null")
  for field, expected in _FIXED.items():
    value = found.get(field, "e4m3" if field == "fmt" else None)
    if value != expected:
      raise ValueError(
        f"{place}: {FIELD}: {field}={value!r}: expected {expected!r}; {_REMEDY}"
      )
  scale_fmt = found.get("scale_fmt")
  if scale_fmt not in (None, "float32", UE8M0):
    raise ValueError(
      f"{place}: {FIELD}: scale_fmt={scale_fmt!r}: expected {UE8M0!r} or none; "
      f"{_REMEDY}"
    )
  return found


def made(scale_format: str) -> dict[str, Any]:
  """The `quantization_config` of weights quantised with this format.

  >>> made("float32")["weight_block_size"]
  [128, 128]
  """
  check_scale_format(scale_format)
  found = {"activation_scheme": "dynamic", **_FIXED}
  return found if scale_format == FLOAT32 else {**found, "scale_fmt": UE8M0}


def check_scale_format(scale_format: str) -> None:
  """Refuses what is no scale format."""
  if scale_format not in SCALE_FORMATS:
    raise ValueError(
      f"scale_format={scale_format!r}: expected {', '.join(SCALE_FORMATS)}"
    )
