"""Matrices on which FP8 may go wrong, for hypothesis."""

from hypothesis import strategies as st
import ml_dtypes
import numpy as np

# Zeros, denormals and the smallest normal float32, what is not finite, and
# numbers near the end of float32.
SPECIAL = (
  0.0,
  -0.0,
  1e-40,
  -1e-40,
  2.0**-126,
  -(2.0**-149),
  np.nan,
  np.inf,
  -np.inf,
  3e38,
  -3e38,
  448.0,
  65025.0,
)


# Few, because JAX compiles for each: less than a tile, ragged, several tiles.
SHAPES = ((1, 1), (3, 129), (130, 5), (2, 300), (129, 130))


def any_shape(rows: int = 140, columns: int = 300):
  """Shapes of at most so many rows and columns."""
  return st.tuples(st.integers(1, rows), st.integers(1, columns))


@st.composite
def matrices(draw, shapes=SHAPES, extreme: bool = True):
  """Float32 or bfloat16 [R, C], rows of different sizes, some numbers special.

  Args:
    draw: hypothesis'.
    shapes: a strategy of shapes, or the shapes themselves.
    extreme: whether sizes and special numbers reach the ends of float32.
  """
  if isinstance(shapes, tuple):
    shapes = st.sampled_from(shapes)
  shape = draw(shapes)
  rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
  reach = 120 if extreme else 20
  x = rng.normal(size=shape) * 2.0 ** draw(st.integers(-reach, reach))
  x *= np.exp(draw(st.integers(0, 3)) * rng.normal(size=(shape[0], 1)))
  x = np.clip(x, -3e38, 3e38).astype(np.float32)
  for special in draw(st.lists(st.sampled_from(SPECIAL), max_size=4)):
    if extreme or not np.isfinite(special) or abs(special) < 1:
      x.flat[rng.integers(x.size)] = special
  if draw(st.booleans()):
    x[rng.integers(shape[0]) :, : rng.integers(shape[1] + 1)] = 0
  dtype = draw(st.sampled_from([np.float32, ml_dtypes.bfloat16]))
  return x.astype(dtype)
