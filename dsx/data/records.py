"""The bytes of one stored record: a checksum, its number, its features.

ArrayRecord has checksums of its own, but they do not cover the index of a file,
so that a damaged index can answer with another, intact record. Each record here
says which record of its split it is and carries a CRC-32 over that number and
all features: what is read is what was written, at that place.
"""

from collections.abc import Iterable
from collections.abc import Sequence
import zlib

import numpy as np

_CRC_BYTES = 4


class Layout:
  """How the features of a record are laid out, as little-endian bytes."""

  def __init__(
    self, sequence_length: int, vocab_size: int, features: Iterable[str]
  ):
    """Describes records of L + 1 tokens.

    Args:
      sequence_length: L, in tokens.
      vocab_size: up to 65536, tokens take two bytes instead of four.
      features: 'tokens', and perhaps 'segment_ids' and 'loss_mask'.
    """
    kinds = {
      "tokens": "<u2" if vocab_size <= 1 << 16 else "<i4",
      "segment_ids": "<i4",
      "loss_mask": "u1",
    }
    self.features = tuple(features)
    self._dtype = np.dtype(
      [("crc", "<u4"), ("number", "<u8")]
      + [(f, kinds[f], (sequence_length + 1,)) for f in self.features]
    )

  def encode(self, number: int, record: dict[str, np.ndarray]) -> bytes:
    """Returns the bytes of record `number` of a split."""
    values = np.zeros((), self._dtype)
    values["number"] = number
    for feature in self.features:
      values[feature] = record[feature]
    raw = bytearray(values.tobytes())
    crc = zlib.crc32(memoryview(raw)[_CRC_BYTES:])
    raw[:_CRC_BYTES] = crc.to_bytes(_CRC_BYTES, "little")
    return bytes(raw)

  def damage(self, number: int, raw: bytes) -> str | None:
    """Says what is wrong with the bytes of record `number`, or None."""
    if len(raw) != self._dtype.itemsize:
      return f"{len(raw)} bytes instead of {self._dtype.itemsize}"
    crc = int.from_bytes(raw[:_CRC_BYTES], "little")
    if zlib.crc32(memoryview(raw)[_CRC_BYTES:]) != crc:
      return "its checksum does not match"
    found = int.from_bytes(raw[_CRC_BYTES : _CRC_BYTES + 8], "little")
    if found != number:
      return f"record {found} of the split stands in its place"
    return None

  def decode(self, raws: Sequence[bytes]) -> dict[str, np.ndarray]:
    """Returns the features of n records, each int32 [n, L + 1]."""
    values = np.frombuffer(b"".join(raws), self._dtype)
    return {f: values[f].astype(np.int32) for f in self.features}
