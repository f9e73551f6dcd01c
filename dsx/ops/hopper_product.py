"""The matrix product of FP8 with scales for every 128 terms, on Hopper.

DeepSeek-V3 section 3.3.2, figure 7 (b): a warpgroup's tensor cores add 128
products (four wgmma of 32 terms each) to a sum that began at zero; the sum is
multiplied by the scales of both tiles and added in float32 registers. Three
warpgroups make a block: one does nothing but order copies of the next tiles
into shared memory, the other two own 64 of 128 rows each, so that one promotes
while the other multiplies. Blocks are persistent: each goes from tile to tile
of the result, and copies for the next tile begin before the last is stored.

One kernel serves dense, batched and grouped products, forward and backward: a
`Plan` says for every 128 rows of the result which rows of `a`, which matrix of
`b` and which terms it is made of.

Legend (parallel/axes.py): M rows, N columns, S slices of 128 terms; G matrices,
P blocks of 128 rows of the result.
"""

import functools
from typing import NamedTuple

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
import jax.numpy as jnp

from dsx.ops import fp8
from dsx.ops import hopper_target

TILE = fp8.TILE
# What tensor cores take in one instruction has 64 rows, for a warpgroup.
_HALF = TILE // 2
_CONSUMERS = 2
# Tiles that are on their way or in use. With what waits to be stored they fill
# the 227 KiB that a block may have: 64 KiB for float32, 32 KiB for bfloat16.
_STAGES = {4: 4, 2: 5}
# Blocks that run at once share 8 rows of tiles, and so `a`, in the L2 cache.
_BAND = 8
_PRODUCER_REGISTERS = 40
_CONSUMER_REGISTERS = 232


class Plan(NamedTuple):
  """What each block of 128 rows of the result is made of; int32 [P] all.

  Attributes:
    rows: which block of 128 rows of `a`.
    matrix: which matrix of `b`.
    begin: the first slice of 128 terms.
    end: one past the last; `begin` leaves a block of zeros.
  """

  rows: jax.Array
  matrix: jax.Array
  begin: jax.Array
  end: jax.Array


class Operand(NamedTuple):
  """One side of a product, as tensor cores want it: terms side by side.

  Attributes:
    values: float8 [M, K], or of the right side [G, N, K]; multiples of 128.
    scales: float32 [S, M], or [G, S, N]; of the right side also
      [G, S, N / 128], if 128 columns share them.
  """

  values: jax.Array
  scales: jax.Array


def product(a: Operand, b: Operand, plan: Plan, dtype) -> jax.Array:
  """a @ b^T, by plan.

  Args:
    a: the left side.
    b: the right side.
    plan: for P blocks.
    dtype: of the result, float32 or bfloat16.

  Returns:
    [P * 128, N].
  """
  columns = b.values.shape[1]
  blocks = plan.rows.shape[0] * (columns // TILE)
  grid = min(blocks, hopper_target.multiprocessors())
  shared = b.scales.shape[2] != columns
  interpretation = hopper_target.interpretation()
  stages = _STAGES[jnp.dtype(dtype).itemsize]
  kernel = plgpu.kernel(
    functools.partial(
      _kernel,
      grid=grid,
      shared=shared,
      interpreted=interpretation is not None,
    ),
    out_type=jax.ShapeDtypeStruct((plan.rows.shape[0] * TILE, columns), dtype),
    grid=(grid,),
    grid_names=("block",),
    num_threads=_CONSUMERS + 1,
    thread_name="warpgroup",
    scratch_types=_scratch(a.values.dtype, dtype, stages, shared),
    compiler_params=plgpu.CompilerParams(
      lowering_semantics=plgpu.LoweringSemantics.Warpgroup
    ),
    interpret=False if interpretation is None else interpretation.mosaic,
  )
  return kernel(a.values, a.scales, b.values, b.scales, jnp.stack(plan))


def shared_memory(dtype, *, shared: bool) -> int:
  """Bytes of shared memory that a block's buffers take, without barriers."""
  stages = _STAGES[jnp.dtype(dtype).itemsize]
  of_stage = 2 * TILE * TILE + (1 if shared else 2) * TILE * 4
  return stages * of_stage + TILE * TILE * jnp.dtype(dtype).itemsize


def _scratch(float8, dtype, stages: int, shared: bool):
  """Shared memory: tiles on their way, and what waits to be stored."""

  def tiled(shape, dtype):
    # 128 bytes side by side, swizzled so that neither copies nor tensor cores
    # meet in one bank.
    wide = 128 // jnp.dtype(dtype).itemsize
    return plgpu.SMEM(
      shape,
      dtype,
      transforms=(
        plgpu.TilingTransform((8, wide)),
        plgpu.SwizzleTransform(128),
      ),
    )

  scratch = {
    "a_tiles": tiled((stages, TILE, TILE), float8),
    "b_tiles": tiled((stages, TILE, TILE), float8),
    "a_tile_scales": plgpu.SMEM((stages, TILE), jnp.float32),
    "stored": tiled((_CONSUMERS, _HALF, TILE), dtype),
    "full": plgpu.Barrier(num_arrivals=3 if shared else 4, num_barriers=stages),
    "empty": plgpu.Barrier(num_arrivals=_CONSUMERS, num_barriers=stages),
  }
  if not shared:
    scratch["b_tile_scales"] = plgpu.SMEM((stages, TILE), jnp.float32)
  return scratch


class _Tile(NamedTuple):
  """One tile of the result."""

  row: jax.Array
  column: jax.Array
  a_row: jax.Array
  matrix: jax.Array
  begin: jax.Array
  end: jax.Array


def _kernel(
  a,
  a_scales,
  b,
  b_scales,
  plan,
  out,
  *,
  a_tiles,
  b_tiles,
  a_tile_scales,
  b_tile_scales=None,
  full,
  empty,
  stored,
  grid,
  shared,
  interpreted,
):
  row_blocks, columns = plan.shape[1], b.shape[1] // TILE
  tiles = row_blocks * columns
  block = lax.axis_index("block")
  warpgroup = lax.axis_index("warpgroup")
  stages = a_tiles.shape[0]
  mine = lax.div(tiles - block + grid - 1, grid)

  def tile(i) -> _Tile:
    row, column = _place(block + i * grid, row_blocks, columns)
    of_row = (plan[part, row] for part in range(4))
    return _Tile(row, column, *of_row)

  def emptied(step, _):
    """Waits until what was copied in a step is used."""
    plgpu.barrier_wait(empty.at[lax.rem(step, stages)])

  def ordered(i, step):
    """Orders copies of all slices of a tile."""
    t = tile(i)
    rows = pl.ds(t.a_row * TILE, TILE)
    columns = pl.ds(t.column * TILE, TILE)

    def order(s, step):
      slot = lax.rem(step, stages)

      @pl.when(step >= stages)
      def _():
        emptied(step, None)

      terms = pl.ds(s * TILE, TILE)
      copies = [
        (a.at[rows, terms], a_tiles),
        (b.at[t.matrix, columns, terms], b_tiles),
        (a_scales.at[s, rows], a_tile_scales),
      ]
      if not shared:
        copies.append((b_scales.at[t.matrix, s, columns], b_tile_scales))
      for source, target in copies:
        plgpu.copy_gmem_to_smem(source, target.at[slot], full.at[slot])
      return step + 1

    return lax.fori_loop(t.begin, t.end, order, step)

  def multiplied(i, step):
    """Adds up all slices of a tile and stores it."""
    t = tile(i)
    half = pl.ds(warpgroup * _HALF, _HALF)

    def promoted(s, carry):
      step, total = carry
      slot = lax.rem(step, stages)
      # On its way from global memory while tensor cores are busy.
      of_block = b_scales[t.matrix, s, t.column] if shared else None
      plgpu.barrier_wait(full.at[slot])

      def scaled():
        of_rows = a_tile_scales[slot, half]
        of_columns = of_block
        if b_tile_scales is not None:
          of_columns = b_tile_scales[slot]
        # Copies may overwrite what was read only when they know of it.
        plgpu.commit_smem()
        return of_rows, of_columns

      left, right = a_tiles.at[slot, half], b_tiles.at[slot]
      partial, scales = _partial(left, right, scaled, interpreted)
      plgpu.barrier_arrive(empty.at[slot])
      return step + 1, total + _promoted(partial, *scales)

    zero = jnp.zeros((_HALF, TILE), jnp.float32)
    step, total = lax.fori_loop(t.begin, t.end, promoted, (step, zero))
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
    stored[warpgroup] = total.astype(out.dtype)
    plgpu.commit_smem()
    rows = pl.ds(t.row * TILE + warpgroup * _HALF, _HALF)
    target = out.at[rows, pl.ds(t.column * TILE, TILE)]
    plgpu.copy_smem_to_gmem(stored.at[warpgroup], target)
    return step

  @pl.when(warpgroup == _CONSUMERS)
  def _():
    plgpu.set_max_registers(_PRODUCER_REGISTERS, action="decrease")
    steps = lax.fori_loop(0, mine, ordered, jnp.int32(0))
    # Nobody leaves before the last tiles are used.
    lax.fori_loop(jnp.maximum(steps - stages, 0), steps, emptied, None)

  @pl.when(warpgroup < _CONSUMERS)
  def _():
    plgpu.set_max_registers(_CONSUMER_REGISTERS, action="increase")
    lax.fori_loop(0, mine, multiplied, jnp.int32(0))
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)


def _place(tile, row_blocks: int, columns: int):
  """Row and column of a tile: bands of rows, column by column.

  What divides is known to the compiler: a division that is not becomes a call,
  and with a call in a kernel its wgmma wait for each other.
  """
  whole = row_blocks // _BAND * _BAND
  rest = max(row_blocks - whole, 1)
  band, within = _divided(tile, _BAND * columns)
  column, row = _divided(within, _BAND)
  last_column, last_row = _divided(tile - whole * columns, rest)
  in_last = tile >= whole * columns
  return (
    jnp.where(in_last, whole + last_row, band * _BAND + row),
    jnp.where(in_last, last_column, column),
  )


def _divided(x, divisor: int):
  return lax.div(x, divisor), lax.rem(x, divisor)


def _partial(left, right, meanwhile, interpreted: bool):
  """left [64, 128] @ right [128, 128]^T, float32, by tensor cores.

  Args:
    left: reference to shared memory.
    right: likewise.
    meanwhile: what to do while tensor cores are busy.
    interpreted: whether this is interpreted.

  Returns:
    (the product, what `meanwhile` returned).
  """
  if interpreted:
    # Older interpreters know no transposed references.
    terms = (((1,), (1,)), ((), ()))
    wide = (x[...].astype(jnp.float32) for x in (left, right))
    return lax.dot_general(*wide, terms), meanwhile()

  def multiply(total):
    plgpu.wgmma(total, left, plgpu.transpose_ref(right, (1, 0)))
    done = meanwhile()
    return total[...], done

  return pl.run_scoped(multiply, plgpu.ACC((_HALF, TILE), jnp.float32))


def _promoted(partial, of_rows, of_columns):
  """The partial sum [64, 128] times the scales of both sides."""
  if of_columns.ndim == 0:
    return partial * _along(of_rows * of_columns, 0)
  return partial * _along(of_rows, 0) * _along(of_columns, 1)


def _along(scales, axis: int):
  return lax.broadcast_in_dim(scales, (_HALF, TILE), (axis,))
