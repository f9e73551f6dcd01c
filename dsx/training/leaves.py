"""Trees as arrays by name, the form in which checkpoints hold them.

A name is the path in the tree, its parts joined with `/`. On the disk the tree
is nested dicts, whatever classes it is made of in memory, so that any version
of those classes, and any other program, can read it. Typed random keys are
stored as the integers that they are made of.
"""

from collections.abc import Mapping
import re
from typing import Any

import jax
import numpy as np


def named(tree: Any) -> dict[str, Any]:
  """Returns the leaves by name, in the order of the tree.

  Raises:
    ValueError: if two names are the same, or the tree is one leaf or none.
  """
  found = jax.tree_util.tree_flatten_with_path(tree)[0]
  by_name = {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in found
  }
  # Orbax joins the parts with dots.
  if len({name.replace("/", ".") for name in by_name}) < len(found):
    raise ValueError("two leaves of the tree have the same name: rename one")
  if not by_name or "" in by_name:
    raise ValueError(f"expected a tree with named leaves, got {type(tree)}")
  return by_name


def nested(by_name: Mapping[str, Any]) -> dict[str, Any]:
  """Returns nested dicts by the parts of the names."""
  tree: dict[str, Any] = {}
  for name, leaf in by_name.items():
    *parents, last = name.split("/")
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = leaf
  return tree


def like(tree: Any, by_name: Mapping[str, Any]) -> Any:
  """Returns a tree built as `tree` is, with other leaves."""
  leaves = [by_name[name] for name in named(tree)]
  return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def check_savable(by_name: Mapping[str, Any]) -> None:
  """Refuses leaves that a checkpoint cannot hold.

  Raises:
    ValueError: naming the leaf.
  """
  for name, leaf in by_name.items():
    if not isinstance(leaf, jax.Array) or isinstance(leaf, jax.core.Tracer):
      raise ValueError(
        f"{name!r} is {type(leaf).__name__}, expected a jax.Array: put it into"
        " metadata"
      )
    if leaf.size == 0:
      raise ValueError(f"{name!r} has shape {leaf.shape}: it holds nothing")
    if jax.process_count() > 1 and leaf.is_fully_addressable:
      raise ValueError(
        f"{name!r} lives on this process alone: replicate it over the mesh"
      )


def dtype_name(leaf: Any) -> str:
  """Names a dtype: `float32`, ..., or `key<threefry2x32>` for typed keys."""
  if not _is_key(leaf):
    return np.dtype(leaf.dtype).name
  names: list[str] = []
  jax.eval_shape(
    lambda key: names.append(str(jax.random.key_impl(key))),
    jax.ShapeDtypeStruct(leaf.shape, leaf.dtype),
  )
  return f"key<{names[0]}>"


def plain(leaf: Any) -> Any:
  """Returns typed keys as uint32 with one more axis, all else as it is.

  Args:
    leaf: an array, or a ShapeDtypeStruct with its sharding.
  """
  if not _is_key(leaf):
    return leaf
  if isinstance(leaf, jax.Array):
    return jax.random.key_data(leaf)
  data = jax.eval_shape(
    jax.random.key_data, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
  )
  return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=leaf.sharding)


def typed(array: jax.Array, name: str) -> jax.Array:
  """Undoes `plain`, given the dtype's name."""
  match = re.fullmatch(r"key<(.*)>", name)
  return jax.random.wrap_key_data(array, impl=match[1]) if match else array


def _is_key(leaf: Any) -> bool:
  return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
