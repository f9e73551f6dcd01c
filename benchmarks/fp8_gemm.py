"""FP8 products on one Hopper GPU: right, and how fast next to bfloat16.

  python -m benchmarks.fp8_gemm [--record]

First compares every kernel with the emulation on the GPU itself, at ragged and
at whole shapes, and stops with exit code 1 if one is wrong. Then times Fprop,
Dgrad and Wgrad of DeepSeek-V3's linear layers and of its experts: FP8 alone,
FP8 with the quantisation of all that is multiplied, and bfloat16 through XLA,
in turn and in the same run. Only jax and numpy are needed. With --record the
tables are appended to docs/benchmarks.md.

--tiny interprets the kernels at small shapes, so that a CPU can try the whole
way; its times mean nothing.
"""

import argparse
from collections.abc import Callable
import contextlib
import dataclasses
import functools
import pathlib
import statistics
import sys
import time
from typing import NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks import fp8_kernels
from benchmarks import report

# Of DeepGEMM for dense FP8 products on an H800, as its authors publish it.
_DEEPGEMM = 1550.0
# Inputs that take turns, so that none is found in the cache.
_SETS = 3
# Tensor cores cut sums of FP8 products to 14 bits (section 3.5.2), which in a
# model of them costs rows 6e-4 at most; a wrong tile costs them more than this.
_WRONG = 1e-2
_PRODUCTS = ("fprop", "dgrad", "wgrad", "all three")
_TINY_LAYERS = (("tiny", 256, 128),)
_HEADER = [
  "layer",
  "product",
  "m x n x k",
  "FP8, ms",
  "TFLOP/s",
  "of DeepGEMM's 1550",
  "quantised too, ms",
  "bfloat16, ms",
  "TFLOP/s ",
  "FP8 / bfloat16",
  "quantised too / bfloat16",
]


@dataclasses.dataclass(frozen=True)
class Timing:
  """Seconds of one call.

  Attributes:
    median: of all repeats.
    least: of all repeats.
  """

  median: float
  least: float

  def cell(self) -> str:
    """Milliseconds: median and, after it, the least."""
    return f"{1e3 * self.median:.3f} ({1e3 * self.least:.3f})"


@dataclasses.dataclass(frozen=True)
class Measured:
  """One product of one layer, three ways.

  Attributes:
    name: layer.
    product: of `_PRODUCTS`.
    sizes: m, n, k, of all experts together.
    alone: FP8, of what is quantised already.
    quantised: FP8 with quantisation.
    bfloat16: through XLA.
  """

  name: str
  product: str
  sizes: tuple[int, int, int]
  alone: Timing
  quantised: Timing
  bfloat16: Timing

  def cells(self) -> list[str]:
    """A row of the table."""
    m, n, k = self.sizes
    flops = 2e-12 * m * n * k * (3 if self.product == "all three" else 1)
    rate = flops / self.alone.median
    return [
      self.name,
      self.product,
      f"{m} x {n} x {k}",
      self.alone.cell(),
      f"{rate:,.0f}",
      f"{rate / _DEEPGEMM:.0%}",
      self.quantised.cell(),
      self.bfloat16.cell(),
      f"{flops / self.bfloat16.median:,.0f}",
      f"{self.bfloat16.median / self.alone.median:.2f}",
      f"{self.bfloat16.median / self.quantised.median:.2f}",
    ]


def timed(function: Callable, sets: list[tuple], flags) -> Timing:
  """Times a jitted function, called many times before it is waited for."""
  import jax

  compiled = jax.jit(function)
  if not flags.tiny:
    for args in sets:
      jax.block_until_ready(compiled(*args))
  seconds = []
  for _ in range(flags.repeats):
    began = time.perf_counter()
    for i in range(flags.calls):
      last = compiled(*sets[i % len(sets)])
    jax.block_until_ready(last)
    seconds.append((time.perf_counter() - began) / flags.calls)
  return Timing(statistics.median(seconds), min(seconds))


def drawn(seed: int, shape: tuple[int, ...], dtype="bfloat16"):
  """Normal numbers; rows and columns have magnitudes of their own."""
  import jax
  import jax.numpy as jnp

  keys = jax.random.split(jax.random.key(seed), 3)
  x = jax.random.normal(keys[0], shape)
  x *= jnp.exp(jax.random.normal(keys[1], (*shape[:-1], 1)))
  x *= jnp.exp(jax.random.normal(keys[2], (*(1 for _ in shape[1:]), shape[-1])))
  return x.astype(dtype)


def stored(x, **options):
  """x [R, K] in FP8 by 1 x 128, as a product's side is kept in memory."""
  from dsx.ops import fp8

  return fp8.quantise(x, fp8.ROW_TILE, **options)


class Ways(NamedTuple):
  """One product, three ways, and what draws the arguments.

  Attributes:
    sizes: m, n, k, of all experts together.
    alone: FP8, of what `in_fp8` returns.
    quantised: FP8 with quantisation, of what `sides` returns.
    bfloat16: through XLA, likewise.
    sides: draws bfloat16 arguments from a seed.
    in_fp8: quantises them, as they are kept in memory.
  """

  sizes: tuple[int, int, int]
  alone: Callable
  quantised: Callable
  bfloat16: Callable
  sides: Callable
  in_fp8: Callable


def measured(name: str, product: str, ways: Ways, flags) -> Measured:
  """Times a product in turn in all ways."""
  import jax

  sets = [ways.sides(3 * i) for i in range(1 if flags.tiny else _SETS)]
  in_fp8 = jax.jit(ways.in_fp8)
  return Measured(
    name,
    product,
    ways.sizes,
    timed(ways.alone, [in_fp8(*s) for s in sets], flags),
    timed(ways.quantised, sets, flags),
    timed(ways.bfloat16, sets, flags),
  )


def of_layer(product: str, tokens: int, d: int, f: int) -> Ways:
  """A product of a linear layer [D, F]."""
  make = {"wgrad": _wgrad, "all three": _all_three}.get(product)
  if make is not None:
    return make(tokens, d, f)
  return _of_rows(product, tokens, d, f)


def _of_rows(product: str, tokens: int, d: int, f: int) -> Ways:
  import jax.numpy as jnp

  from dsx.ops import fp8
  from dsx.ops import hopper_gemm
  from dsx.ops import hopper_quantise

  alone, _ = fp8_kernels.dense(product, tokens, d, f)
  is_forward = product == "fprop"
  k, n = (d, f) if is_forward else (f, d)

  def quantised(x, w):
    x = hopper_quantise.quantise(x, fp8.ROW_TILE)
    forward, backward = hopper_quantise.weight(w)
    w = forward if is_forward else backward.transposed
    return hopper_gemm.multiply(x, w, jnp.bfloat16)

  return Ways(
    (tokens, n, k),
    alone,
    quantised,
    lambda x, w: x @ (w if is_forward else w.T),
    lambda seed: (drawn(seed, (tokens, k)), drawn(seed + 1, (d, f))),
    lambda x, w: (
      stored(x),
      fp8.quantise(w.T if is_forward else w, fp8.BLOCK_TILE),
    ),
  )


def _wgrad(tokens: int, d: int, f: int) -> Ways:
  import jax.numpy as jnp

  from dsx.ops import fp8
  from dsx.ops import hopper_gemm
  from dsx.ops import hopper_quantise

  def quantised(x, dy):
    x, dy = (hopper_quantise.quantise(a, fp8.COLUMN_TILE) for a in (x, dy))
    return hopper_gemm.multiply(x.transposed, dy)

  return Ways(
    (d, f, tokens),
    fp8_kernels.dense("wgrad", tokens, d, f)[0],
    quantised,
    lambda x, dy: jnp.matmul(x.T, dy, preferred_element_type=jnp.float32),
    lambda seed: (drawn(seed, (tokens, d)), drawn(seed + 1, (tokens, f))),
    lambda x, dy: (stored(x.T), stored(dy.T)),
  )


def _all_three(tokens: int, d: int, f: int) -> Ways:
  """y, dx and dw, each input read once to quantise it."""
  import jax.numpy as jnp

  from dsx.ops import fp8
  from dsx.ops import hopper_quantise

  fprop, dgrad, wgrad = (
    fp8_kernels.dense(product, tokens, d, f)[0] for product in _PRODUCTS[:3]
  )

  def alone(x, w, dy, turned_x, turned_w, turned_dy):
    return fprop(x, turned_w), dgrad(dy, w), wgrad(turned_x, turned_dy)

  def quantised(x, w, dy):
    x, x_columns = hopper_quantise.both(x)
    forward, backward = hopper_quantise.weight(w)
    dy, dy_columns = hopper_quantise.both(dy)
    turned = (q.transposed for q in (x_columns, forward, dy_columns))
    return alone(x, backward, dy, *turned)

  def wide(x, w, dy):
    dw = jnp.matmul(x.T, dy, preferred_element_type=jnp.float32)
    return x @ w, dy @ w.T, dw

  def sides(seed):
    shapes = (tokens, d), (d, f), (tokens, f)
    return tuple(drawn(seed + i, shape) for i, shape in enumerate(shapes))

  def in_fp8(x, w, dy):
    w, turned_w = (fp8.quantise(a, fp8.BLOCK_TILE) for a in (w, w.T))
    return stored(x), w, stored(dy), stored(x.T), turned_w, stored(dy.T)

  return Ways((tokens, f, d), alone, quantised, wide, sides, in_fp8)


def of_experts(product: str, rows: int, n: int, d: int, f: int) -> Ways:
  """A product of n experts [D, F], each with as many rows as the others."""
  import jax.numpy as jnp
  import numpy as np

  from dsx.ops import fp8
  from dsx.ops import grouped_matmul

  blocks = rows // fp8.TILE
  of_block = np.arange(blocks) * n // blocks
  sizes = jnp.asarray(np.bincount(of_block, minlength=n) * fp8.TILE, jnp.int32)
  group = jnp.asarray(of_block, jnp.int32)
  kernel, _ = fp8_kernels.grouped(product, rows, n, d, f)

  def alone(a, b):
    return kernel(a, b, group)

  def wide(x, w):
    return grouped_matmul.grouped_matmul(x, w, sizes)

  if product == "wgrad":
    return _experts_wgrad(alone, wide, group, (rows, n, d, f))
  return _experts_of_rows(product, alone, wide, group, (rows, n, d, f))


def _experts_of_rows(product, alone, forward, group, shape) -> Ways:
  import jax.numpy as jnp

  from dsx.ops import fp8
  from dsx.ops import hopper_grouped
  from dsx.ops import hopper_quantise

  rows, n, d, f = shape
  is_forward = product == "fprop"
  k, columns = (d, f) if is_forward else (f, d)

  def quantised(x, w):
    x = hopper_quantise.quantise(x, fp8.ROW_TILE)
    first, second = hopper_quantise.weight(w)
    w = first if is_forward else second.transposed
    return hopper_grouped.multiply(x, w, group, jnp.bfloat16)

  return Ways(
    (rows, columns, k),
    alone,
    quantised,
    lambda x, w: forward(x, w if is_forward else w.swapaxes(1, 2)),
    lambda seed: (drawn(seed, (rows, k)), drawn(seed + 1, (n, d, f))),
    lambda x, w: (
      stored(x),
      fp8.quantise(w.swapaxes(1, 2) if is_forward else w, fp8.BLOCK_TILE),
    ),
  )


def _experts_wgrad(alone, forward, group, shape) -> Ways:
  import jax
  import jax.numpy as jnp

  from dsx.ops import fp8
  from dsx.ops import hopper_grouped
  from dsx.ops import hopper_quantise

  rows, n, d, f = shape

  def quantised(x, dy):
    x, dy = (hopper_quantise.quantise(a, fp8.COLUMN_TILE) for a in (x, dy))
    return hopper_grouped.outer(x, dy, group, n)

  def wide(x, dy):
    zero = jnp.zeros((n, d, f), x.dtype)
    return jax.vjp(functools.partial(forward, x), zero)[1](dy)

  return Ways(
    # Experts together do the work of one product of all rows.
    (d, f, rows),
    alone,
    quantised,
    wide,
    lambda seed: (drawn(seed, (rows, d)), drawn(seed + 1, (rows, f))),
    lambda x, dy: (stored(x.T), stored(dy.T)),
  )


def _error(found, expected) -> float:
  """The worst of all rows' ||found - expected|| / ||expected||.

  Infinite where something is not finite, or not zero where it should be.
  """
  import numpy as np

  found, expected = (np.asarray(x, np.float64) for x in (found, expected))
  wrong = np.linalg.norm(found - expected, axis=-1)
  size = np.linalg.norm(expected, axis=-1)
  with np.errstate(divide="ignore", invalid="ignore"):
    error = np.where(wrong == 0, 0, wrong / size).max()
  return float(error) if np.isfinite(error) else float("inf")


def checked(tiny: bool) -> list[list[str]]:
  """Compares kernels with the emulation; rows of (what, error, verdict)."""
  import jax
  import jax.numpy as jnp
  import numpy as np

  from dsx.ops import fp8
  from dsx.ops import fp8_product
  from dsx.ops import hopper_gemm
  from dsx.ops import hopper_grouped
  from dsx.ops import hopper_quantise

  rows: list[list[str]] = []

  def note(what: str, error: float, limit: float):
    verdict = "ok" if error <= limit else "WRONG"
    rows.append([what, f"{error:.2e}", verdict])

  emulated = jax.jit(lambda a, b: fp8_product.multiply(a, b))
  ragged = (130, 200, 300)
  shapes = [ragged] if tiny else [ragged, (4096, 2048, 7168)]
  tiles = (fp8.COLUMN_TILE,) if tiny else (fp8.COLUMN_TILE, fp8.BLOCK_TILE)
  for m, n, k in shapes:
    x, w = drawn(0, (m, k)), drawn(1, (k, n))
    for tile in tiles:
      a, b = fp8.quantise(x, fp8.ROW_TILE), fp8.quantise(w, tile)
      # A function of its own: JAX keeps traces by function.
      found = jax.jit(lambda a, b: hopper_gemm.multiply(a, b))(a, b)
      note(f"{m} x {n} x {k}, b {tile}", _error(found, emulated(a, b)), _WRONG)
  groups, d, f = (3, 128, 128) if tiny else (8, 7168, 2048)
  group = jnp.array([0, 0, 2, 5], jnp.int32)  # 5 is past all: not in use
  x, dy = (drawn(i, (4 * fp8.TILE, size)) for i, size in enumerate((d, f)))
  w = fp8.quantise(drawn(2, (groups, d, f)), fp8.BLOCK_TILE)
  count = jnp.int32(3)
  by_row = fp8.quantise(x, fp8.ROW_TILE)
  found = jax.jit(
    lambda x, w: hopper_grouped.multiply(x, w, group, count=count)
  )(by_row, w)
  matrices = jax.tree.map(lambda a: a[group[:3]], w)
  blocks = jax.tree.map(lambda a: a[: 3 * fp8.TILE].reshape(3, 128, -1), by_row)
  expected = emulated(blocks, matrices).reshape(3 * fp8.TILE, f)
  expected = jnp.pad(expected, ((0, fp8.TILE), (0, 0)))
  note(f"grouped, {groups} x {d} x {f}", _error(found, expected), _WRONG)
  x, dy = (fp8.quantise(a, fp8.COLUMN_TILE) for a in (x, dy))
  found = jax.jit(
    lambda x, dy: hopper_grouped.outer(x, dy, group, groups, count=count)
  )(x, dy)
  expected = np.zeros((groups, d, f), np.float32)
  for e, first, last in ((0, 0, 2), (2, 2, 3)):
    left, right = (
      fp8.Quantised(
        a.values[first * 128 : last * 128], a.scales[first:last], a.tile
      )
      for a in (x, dy)
    )
    expected[e] = emulated(left.transposed, right)
  note(f"grouped outer, {groups} x {d} x {f}", _error(found, expected), _WRONG)
  for shape in [(300, 520)] + [(4096, 7168)] * (not tiny):
    x = drawn(3, shape)
    both = jax.jit(lambda x: hopper_quantise.both(x))(x)
    for found in both:
      # By numpy: XLA's division on GPUs is not rounded as others are.
      wanted = fp8.quantise(np.asarray(x), found.tile)
      pairs = ((found.values, wanted.values), (found.scales, wanted.scales))
      differ = sum(
        float(np.mean(np.asarray(a).astype(np.float32) != b.astype(np.float32)))
        for a, b in pairs
      )
      note(f"quantised {shape[0]} x {shape[1]}, {found.tile}", differ, 0.0)
  return rows


def run(flags: argparse.Namespace) -> tuple[str, bool]:
  """Checks, then times; returns what to print and whether all is right."""
  import jax

  device = jax.devices()[0]
  command = " ".join(["python -m benchmarks.fp8_gemm", *sys.argv[1:]])
  said = f"`{command}`: {device.device_kind}, jax {jax.__version__}.\n\n"
  checks = checked(flags.tiny)
  said += (
    "Relative error of the worst row to the emulation; of quantisation the "
    "share of numbers with other bits.\n\n"
    + report.table(["kernel", "error", ""], checks)
  )
  print(said, flush=True)
  if any(row[-1] != "ok" for row in checks):
    return said, False
  tokens = 128 if flags.tiny else flags.tokens
  layers = _TINY_LAYERS if flags.tiny else fp8_kernels.LAYERS
  products = ("wgrad",) if flags.tiny else _PRODUCTS
  rows: list[list[str]] = []

  def keep(measured: Measured):
    rows.append(measured.cells())
    print(*rows[-1], sep=", ", file=sys.stderr, flush=True)

  for name, d, f in layers:
    for product in products:
      keep(measured(name, product, of_layer(product, tokens, d, f), flags))
  if not flags.tiny:
    for name, d, f in layers[-2:]:
      for product in products[:3]:
        ways = of_experts(product, 8192, 8, d, f)
        keep(measured(f"8 {name}s", product, ways, flags))
  said += (
    f"\n\nMilliseconds are the median of {flags.repeats} repeats of "
    f"{flags.calls} calls, in brackets the least; {_SETS} sets of inputs take "
    "turns.\n\n" + report.table(_HEADER, rows)
  )
  return said, True


def main(argv: list[str] | None = None) -> int:
  """Parses flags, runs, prints and, with --record, keeps it."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
  parser.add_argument("--tokens", type=int, default=4096)
  parser.add_argument("--repeats", type=int, default=20)
  parser.add_argument("--calls", type=int, default=20, help="in a repeat")
  parser.add_argument("--tiny", action="store_true", help="for a CPU")
  parser.add_argument("--record", action="store_true")
  flags = parser.parse_args(argv)
  if flags.tiny:
    flags.repeats = flags.calls = 1
  from dsx.ops import hopper_target

  way = hopper_target.interpreted() if flags.tiny else contextlib.nullcontext()
  try:
    with way:
      body, right = run(flags)
  except ValueError as error:
    if "compute_capability" in str(error) or "platform=" in str(error):
      print(error, file=sys.stderr)
      return 1
    raise
  print(body)
  if flags.record:
    report.record("FP8 products on one GPU", body)
  return 0 if right else 1


if __name__ == "__main__":
  sys.exit(main())
