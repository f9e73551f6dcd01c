"""What decoding remembers: one latent and one rotary key per token and layer.

DeepSeek-V3 section 2.1.1: of all that attention computes for a token, only the
compressed latent (eq. 1) and the rotary key (eq. 3) have to be kept, 576
numbers a layer in V3 where keys and values of 128 heads would be 40,960.

Entries live in pages of a fixed number of tokens; a table says which pages
hold a sequence, in order. Sequences of unequal length so share one pool, and
several samples of one prompt share its pages.

  pages  [P, N, page, W]   a page has the entries of all N layers
  table  int32 [B, n]      pages of each sequence; unused places hold any page

While a chunk of tokens is decoded, attention reads two arrays per layer: the
`context`, which is gathered from the pages once per chunk and only read, and
the `tail`, to which each step of all sequences appends at the same place. So
that nothing in the loop scatters, and the pages are written once per chunk.

Legend (parallel/axes.py): B batch, L query length, S key length; P pages, N
layers (MTP modules last), W width of an entry, T length of the tail.
"""

from typing import Any
from typing import NamedTuple

from jax import lax
import jax.numpy as jnp

from dsx.models import config as config_lib


def width(config: config_lib.DeepSeekConfig) -> int:
  """W: `kv_lora_rank` + `qk_rope_head_dim`."""
  return config.kv_lora_rank + config.qk_rope_head_dim


def n_layers(config: config_lib.DeepSeekConfig, mtp: int = 0) -> int:
  """N: the main layers and the first `mtp` MTP modules."""
  return config.num_hidden_layers + mtp


def empty_pages(
  config: config_lib.DeepSeekConfig,
  *,
  n_pages: int,
  page_size: int,
  dtype,
  mtp: int = 0,
):
  """A pool of pages [P, N, page, W] without anything in them."""
  shape = (n_pages, n_layers(config, mtp), page_size, width(config))
  return jnp.zeros(shape, dtype)


class LayerMemory(NamedTuple):
  """What one layer attends to, besides the tokens at hand.

  Attributes:
    context: [B, S, W], entries from before the chunk.
    context_seen: bool [B, S], which of them there are.
    tail: [B, T, W], entries of this chunk.
    tail_seen: bool [B, L, T], which of them each query sees, itself included.
    offset: int32 [], where in the tail the tokens at hand go.
  """

  context: Any
  context_seen: Any
  tail: Any
  tail_seen: Any
  offset: Any

  def appended(self, entries):
    """The memory with `entries` [B, L, W] in their place in the tail."""
    start = (0, self.offset, 0)
    entries = entries.astype(self.tail.dtype)
    return self._replace(
      tail=lax.dynamic_update_slice(self.tail, entries, start)
    )

  def parts(self):
    """Pairs of entries and what is seen of them, for `latent_attention`."""
    return (
      (self.context, self.context_seen[:, None, :]),
      (self.tail, self.tail_seen),
    )


class Memory(NamedTuple):
  """What all layers attend to; the masks and the place are common to them.

  Attributes:
    contexts: N arrays [B, S, W].
    context_seen: bool [B, S].
    tails: N arrays [B, T, W].
    tail_seen: bool [B, L, T].
    offset: int32 [].
  """

  contexts: tuple
  context_seen: Any
  tails: tuple
  tail_seen: Any
  offset: Any

  def layer(self, number: int) -> LayerMemory:
    """Of one layer."""
    return LayerMemory(
      self.contexts[number],
      self.context_seen,
      self.tails[number],
      self.tail_seen,
      self.offset,
    )

  def updated(self, number: int, memory: LayerMemory) -> "Memory":
    """With what one layer has added to its tail."""
    tails = (*self.tails[:number], memory.tail, *self.tails[number + 1 :])
    return self._replace(tails=tails)


def gather(pages, table):
  """The context of each layer: a tuple of N arrays [B, n * page, W]."""
  b, n = table.shape
  _, layers, size, w = pages.shape
  found = pages[table]  # [B, n, N, page, W]
  found = found.transpose(2, 0, 1, 3, 4).reshape(layers, b, n * size, w)
  return tuple(found[layer] for layer in range(layers))


def write_pages(pages, numbers, entries):
  """Fills whole pages, as the beginning of a sequence does.

  Args:
    pages: [P, N, page, W].
    numbers: int32 [B, n], pages to fill; those past P are dropped.
    entries: N arrays [B, n * page, W].

  Returns:
    The pages. What lies behind the end of a sequence in its last page is
    never seen, and overwritten as the sequence grows.
  """
  b, n = numbers.shape
  _, layers, size, w = pages.shape
  stacked = jnp.stack(entries).astype(pages.dtype)
  stacked = stacked.reshape(layers, b, n, size, w).transpose(1, 2, 0, 3, 4)
  return pages.at[numbers].set(stacked, mode="drop")


def append(pages, table, positions, valid, entries):
  """Writes single tokens to where they belong.

  Args:
    pages: [P, N, page, W].
    table: int32 [B, n].
    positions: int32 [B, T], of each token in its sequence.
    valid: bool [B, T]; others are dropped.
    entries: N arrays [B, T, W].

  Returns:
    The pages.
  """
  n_pages, _, size, _ = pages.shape
  place = jnp.minimum(positions // size, table.shape[1] - 1)
  page = jnp.take_along_axis(table, place, axis=1)
  page = jnp.where(valid, page, n_pages)
  stacked = jnp.stack(entries).astype(pages.dtype).transpose(1, 2, 0, 3)
  return pages.at[page, :, positions % size].set(stacked, mode="drop")


def copy_pages(pages, sources, targets):
  """Pages copied, for further samples of one prompt.

  Args:
    pages: [P, N, page, W].
    sources: int32 [n].
    targets: int32 [n], none of them a source; those past P are dropped.

  Returns:
    The pages.
  """
  return pages.at[targets].set(pages[sources], mode="drop")
