"""AdamW as DeepSeek-V3 runs it: bfloat16 moments under float32 weights.

Report section 4.2 gives the hyper-parameters, section 3.3.3 the precisions:
both moments are stored in bfloat16, master weights and gradients in float32.
`AdamW.transformation()` yields the *direction* of a step; the training step
multiplies it by the learning rate, which is a scalar that the host computes:

  g  = gradient, scaled so that the global norm is at most clip_norm
  m  = round(b1 m + (1 - b1) g)      v  = round(b2 v + (1 - b2) g^2)
  direction = m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) + decay * weight
  weight    = weight - learning_rate * direction

Why bfloat16 moments are sound here and not everywhere: a bfloat16 number moves
only when it changes by about 1/256 of itself. A step changes a moment by up to
1 - b of itself, which is 1/10 and 1/20 with the report's betas; with the usual
b2 = 0.999 the second moment would hardly ever fall, so that is refused.

The moments have the parameters' tree and shapes, hence their shardings.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import optax

# Names of parameters that are not matrices: scales of RMSNorm, and biases
# where an encoder has them. The rank does not tell, because layers are stacked:
# a scale of n layers is [n, D].
_UNDECAYED = frozenset({"scale", "bias"})


def global_norm(tree) -> jax.Array:
  """Euclidean norm of all leaves together, in float32.

  Args:
    tree: arrays of any floating dtype.

  Returns:
    A float32 scalar; NaN or infinity if any leaf holds one.
  """
  squares = [
    jnp.sum(jnp.square(leaf.astype(jnp.float32)))
    for leaf in jax.tree.leaves(tree)
  ]
  return jnp.sqrt(sum(squares, start=jnp.zeros((), jnp.float32)))


def all_finite(loss: jax.Array, grad_norm: jax.Array) -> jax.Array:
  """Whether a step may be taken: neither scalar is NaN or infinite.

  The norm over all gradients is not finite as soon as one of them is not, so
  that looking at two scalars covers every gradient.
  """
  return jnp.isfinite(loss) & jnp.isfinite(grad_norm)


def decays(path: tuple) -> bool:
  """Whether the parameter at a tree path is subject to weight decay.

  Matrices decay, embedding, router and output head among them; scales of
  norms and biases do not.

  NOTE(paper): the report gives the factor alone. This is the usual choice:
  decay pulls towards 0, which is a neutral value for a matrix and not for a
  scale.

  Args:
    path: keys as `jax.tree_util.tree_flatten_with_path` gives them.
  """
  names = {str(getattr(key, "key", getattr(key, "name", key))) for key in path}
  return not names & _UNDECAYED


def decay_mask(params):
  """The tree of `params` with a bool a leaf, True where it decays."""
  return jax.tree_util.tree_map_with_path(lambda path, _: decays(path), params)


def clip_by_global_norm(
  max_norm: float,
) -> optax.GradientTransformationExtraArgs:
  """Scales gradients so that their global norm is at most `max_norm`.

  Unlike optax's, the norm is taken in float32 whatever the gradients are, the
  result is float32, and a norm that is already at hand can be passed to
  `update` as `grad_norm`.
  """

  def update(updates, state, params=None, *, grad_norm=None, **unused):
    del params, unused
    norm = global_norm(updates) if grad_norm is None else grad_norm
    # A norm of 0 gives infinity here and so a factor of 1.
    factor = jnp.minimum(1.0, max_norm / norm)
    return jax.tree.map(
      lambda g: g.astype(jnp.float32) * factor, updates
    ), state

  return optax.GradientTransformationExtraArgs(
    lambda params: optax.EmptyState(), update
  )


def scale_by_adam(
  b1: float, b2: float, eps: float, moment_dtype: str
) -> optax.GradientTransformationExtraArgs:
  """Adam's direction, with both moments stored in `moment_dtype`.

  optax's own stores only the first moment in another dtype. The arithmetic is
  float32; the direction is that of the moments as they are stored.

  Args:
    b1: decay of the first moment.
    b2: decay of the second moment.
    eps: added to the root of the second moment.
    moment_dtype: dtype of both.

  Returns:
    A transformation whose `update` takes a boolean scalar `take` besides
    optax's arguments: False leaves the whole state as it was.
  """

  def init(params):
    def zeros():
      return jax.tree.map(lambda p: jnp.zeros_like(p, moment_dtype), params)

    return optax.ScaleByAdamState(
      count=jnp.zeros((), jnp.int32), mu=zeros(), nu=zeros()
    )

  def update(updates, state, params=None, *, take=True, **unused):
    del params, unused
    count = jnp.where(take, optax.safe_increment(state.count), state.count)
    steps = jnp.maximum(count, 1).astype(jnp.float32)
    mu_correction = 1 / (1 - b1**steps)
    nu_correction = 1 / (1 - b2**steps)

    def leaf(g, old_mu, old_nu):
      g = g.astype(jnp.float32)
      mu = b1 * old_mu.astype(jnp.float32) + (1 - b1) * g
      nu = b2 * old_nu.astype(jnp.float32) + (1 - b2) * jnp.square(g)
      mu = jnp.where(take, mu.astype(moment_dtype), old_mu)
      nu = jnp.where(take, nu.astype(moment_dtype), old_nu)
      # Without the barrier XLA computes the moments a second time for the
      # direction, out of the old ones, which it must copy to update in place:
      # 2.5 times slower on a CPU, and as much memory again.
      mu, nu = jax.lax.optimization_barrier((mu, nu))
      root = jnp.sqrt(nu.astype(jnp.float32) * nu_correction)
      return mu.astype(jnp.float32) * mu_correction / (root + eps), mu, nu

    triples = jax.tree.map(leaf, updates, state.mu, state.nu)
    direction, mu, nu = jax.tree.transpose(
      jax.tree.structure(updates), jax.tree.structure((0, 0, 0)), triples
    )
    return direction, optax.ScaleByAdamState(count=count, mu=mu, nu=nu)

  return optax.GradientTransformationExtraArgs(init, update)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamW:
  """The optimizer of section 4.2; without arguments, the report's.

  Attributes:
    b1: decay of the first moment.
    b2: decay of the second moment.
    eps: added to the root of the second moment. NOTE(paper): not in the
      report; Adam's usual value.
    weight_decay: factor of the weights in the direction, on matrices only
      (`decays`).
    clip_norm: largest global norm of the gradients; a large number is no
      clipping.
    moment_dtype: dtype in which both moments are stored.
  """

  b1: float = 0.9
  b2: float = 0.95
  eps: float = 1e-8
  weight_decay: float = 0.1
  clip_norm: float = 1.0
  moment_dtype: str = "bfloat16"

  def __post_init__(self):
    for field, least, below in (
      ("b1", 0.0, 1.0),
      ("b2", 0.0, 1.0),
      ("eps", 1e-30, 1.0),
      ("weight_decay", 0.0, math.inf),
    ):
      _check_range(field, getattr(self, field), least, below)
    _check_range("clip_norm", self.clip_norm, 1e-30, math.inf)
    if self.moment_dtype not in ("bfloat16", "float32"):
      raise ValueError(
        f"moment_dtype={self.moment_dtype!r}: expected 'bfloat16' or "
        "'float32'; float16 would underflow in the second moment"
      )
    if self.moment_dtype == "bfloat16":
      for field in ("b1", "b2"):
        _check_bfloat16(field, getattr(self, field))

  def transformation(self) -> optax.GradientTransformationExtraArgs:
    """Gradients to direction; subtract it times the learning rate.

    `update(gradients, state, params, grad_norm=..., take=...)` returns a
    float32 direction and the new state. `params` are needed for the decay.
    `grad_norm` (from `global_norm`) spares computing it again. `take` is for
    a step whose gradients are not finite: where it is False the state stays
    bit for bit what it was and the direction is finite, so that the step need
    only set its learning rate to 0. That is several times cheaper than
    choosing between the old and the new state afterwards, which keeps both.
    """
    return optax.chain(
      clip_by_global_norm(self.clip_norm),
      scale_by_adam(self.b1, self.b2, self.eps, self.moment_dtype),
      optax.add_decayed_weights(self.weight_decay, mask=decay_mask),
    )


def _check_range(field: str, value: float, least: float, below: float) -> None:
  if isinstance(value, bool) or not isinstance(value, int | float):
    raise ValueError(f"{field}={value!r}: expected a number; write it as one")
  if not least <= value < below:
    raise ValueError(
      f"{field}={value!r}: expected at least {least} and below {below}; "
      "change it"
    )


def _check_bfloat16(field: str, beta: float) -> None:
  if 1 - beta < float(jnp.finfo(jnp.bfloat16).eps):
    raise ValueError(
      f"{field}={beta!r}: expected at most 0.992 with bfloat16 moments, which "
      "could not hold smaller changes; set moment_dtype='float32'"
    )
