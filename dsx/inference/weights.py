"""A model's variables as decoding reads them, replaced while it lives.

Whatever comes, decoding finds arrays of the same shapes, types and places, so
that no program is compiled for new weights.
"""

import functools

import jax
import jax.numpy as jnp

from dsx.models import decoder
from dsx.models import layout
from dsx.parallel import sharding as sharding_lib


class Weights:
  """Variables in the layout `layers`, with what `decoder.absorbed` adds.

  Arrays that need no other layout are those that were given, not copies. Who
  donates them to an update loads others before anything else is decoded.

  Attributes:
    arrays: the variables.
  """

  def __init__(
    self,
    model: decoder.Decoder,
    variables,
    mesh: jax.sharding.Mesh | None = None,
  ):
    """Lays out the first variables, which say what all others have to be.

    Args:
      model: the model.
      variables: of the model, in either layout.
      mesh: where they are; what is nowhere in particular (a table of experts'
        places, say) goes to all its devices.
    """
    self._model = model
    self._types = _Types(_shapes(variables, model))
    self._seen = {_signature(variables)}
    arrays = _laid_out(variables, model, self._types)
    self._places = jax.tree.map(
      lambda x: (
        x.sharding
        if mesh is None or x.committed
        else sharding_lib.replicated(mesh)
      ),
      arrays,
    )
    self.arrays = jax.device_put(arrays, self._places)

  def load(self, variables) -> None:
    """Replaces them.

    Args:
      variables: in either layout; floating-point numbers of another type are
        rounded to that of the first ones.

    Raises:
      ValueError: names or shapes are not those of the first ones.
    """
    signature = _signature(variables)
    if signature not in self._seen:
      self._check(variables)
      self._seen.add(signature)
    self.arrays = None  # memory for both is more than many have
    arrays = _laid_out(variables, self._model, self._types)
    self.arrays = jax.device_put(arrays, self._places)

  @property
  def deleted(self) -> bool:
    """Whether any array was donated to somebody."""
    return any(x.is_deleted() for x in jax.tree.leaves(self.arrays))

  def _check(self, variables) -> None:
    expected = _by_name(self._types.tree)
    found = _by_name(_shapes(variables, self._model))
    for name in sorted(expected.keys() ^ found.keys()):
      which = "missing" if name in expected else "unknown"
      raise ValueError(
        f"variables{name}: {which}, expected the names that the engine was "
        "made with; give variables of the same model"
      )
    for name, x in found.items():
      wanted = expected[name]
      floats = all(jnp.issubdtype(a.dtype, jnp.floating) for a in (x, wanted))
      if x.shape != wanted.shape or not (floats or x.dtype == wanted.dtype):
        raise ValueError(
          f"variables{name}: {x.dtype}{list(x.shape)}, expected "
          f"{wanted.dtype}{list(wanted.shape)} as the engine was made with; "
          "give variables of the same model or make another engine"
        )


class _Types:
  """A tree of types, compared by what it is."""

  def __init__(self, tree):
    self.tree = tree
    self._key = _signature(tree)

  def __hash__(self):
    return hash(self._key)

  def __eq__(self, other):
    return self._key == other._key


def _signature(tree):
  leaves, structure = jax.tree.flatten(tree)
  return structure, tuple((x.shape, jnp.dtype(x.dtype)) for x in leaves)


def _by_name(tree) -> dict:
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def _laid_out(variables, model: decoder.Decoder, types: _Types):
  """What decoding reads, and of that only what is new as new arrays."""
  made = _make(variables, model, types)
  arrays = {**made}
  for collection, tree in variables.items():
    kept = {n: x for n, x in tree.items() if n not in layout.STACKS}
    expected = {n: types.tree[collection][n] for n in kept}
    kept = jax.tree.map(_rounded, kept, expected)
    arrays[collection] = kept | made.get(collection, {})
  return arrays


@functools.partial(jax.jit, static_argnames=("model", "types"))
def _make(variables, model: decoder.Decoder, types: _Types):
  """The layers of stacks, and what is absorbed."""
  arrays = jax.tree.map(_rounded, _lay_out(variables, model), types.tree)
  made = {
    collection: {
      name: x
      for name, x in tree.items()
      if name not in variables.get(collection, {})
    }
    for collection, tree in arrays.items()
  }
  return {collection: tree for collection, tree in made.items() if tree}


def _lay_out(variables, model: decoder.Decoder):
  variables = layout.to_layers(model.config, variables)
  return decoder.absorbed(model, variables)


def _shapes(variables, model: decoder.Decoder):
  """Shapes and types of what decoding reads."""
  lay_out = functools.partial(_lay_out, model=model)
  return jax.eval_shape(lay_out, variables)


def _rounded(x, like):
  """x in the type of `like`; an array of JAX as it is, if it has that."""
  x = jnp.asarray(x)
  return x if x.dtype == like.dtype else x.astype(like.dtype)
