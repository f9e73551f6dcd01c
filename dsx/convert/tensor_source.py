"""Where a conversion's tensors come from: one interface for all sources.

A folder in Hugging Face's layout is one source (`huggingface_source.py`), a
checkpoint of dsx's own training another. What is written never depends on
which it is: `conversion.py` asks for the list of tensors, plans and checks
everything, and then reads them one at a time.
"""

from collections.abc import Mapping
from typing import Any
from typing import NamedTuple
from typing import Protocol

import numpy as np

from dsx.models import language_model


class Entry(NamedTuple):
  """What is known of a tensor before it is read.

  Attributes:
    dtype: safetensors' name of its dtype, a key of `safetensors.DTYPES`.
    shape: its shape, as Hugging Face's layout has it: [out, in].
    place: the file or checkpoint that holds it, for messages.
  """

  dtype: str
  shape: tuple[int, ...]
  place: str


class TensorSource(Protocol):
  """Tensors under the names of Hugging Face's layout."""

  @property
  def place(self) -> str:
    """The folder, for messages."""
    ...

  @property
  def identity(self) -> Any:
    """JSON that differs when the content does.

    What an interrupted conversion is resumed with must be what it was begun
    with.
    """
    ...

  @property
  def config(self) -> language_model.Config:
    """The model; MTP modules are counted as `entries` lists them."""
    ...

  @property
  def fields(self) -> dict[str, Any]:
    """Content of config.json: the config's fields and any others.

    `quantization_config` and `torch_dtype` are those of the source.
    """
    ...

  @property
  def entries(self) -> Mapping[str, Entry]:
    """Every tensor by name.

    A matrix in FP8 (`F8_E4M3`) comes with `{name}_scale_inv`, its scales
    (`F32` or `F8_E8M0`). Copies that MTP layers hold of embedding and head
    are listed if they are to be written.
    """
    ...

  @property
  def companions(self) -> Mapping[str, bytes]:
    """Files that go with weights, by plain name: tokenizer.json and such."""
    ...

  def read(self, name: str) -> np.ndarray:
    """Reads one tensor whole, of the entry's dtype and shape.

    It need not be contiguous: the transpose of an array will do. Nobody but
    the caller may hold on to it, because memory is bounded by one tensor.
    """
    ...
