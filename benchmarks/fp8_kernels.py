"""What Hopper's FP8 kernels take of a multiprocessor, compiled without a GPU.

  python -m benchmarks.fp8_kernels [--record] [--only=wgrad]

Compiles every kernel for an H100 at DeepSeek-V3's shapes and prints registers a
thread, shared memory of a block and what is spilled, as ptxas reports them, and
how many wgmma instructions a step of the kernel has. No GPU is needed, only
JAX's CUDA plugin: pip install 'dsx[gpu]'. The exit code is 1 where a kernel
does not compile, spills more than a few bytes, or its wgmma wait for each
other. With --record the table is appended to docs/benchmarks.md.
"""

import argparse
import dataclasses
import functools
import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks import report

# Bytes a thread. One store and one load in a step of some hundred instructions
# cost nothing that could be measured; an accumulator in local memory would.
SPILLED_AT_MOST = 32
_TOKENS = 4096
# (name, in, out) of DeepSeek-V3's linear layers.
LAYERS = (
  ("q_a_proj", 7168, 1536),
  ("q_b_proj", 1536, 128 * 192),
  ("kv_a_proj", 7168, 512 + 64),
  ("kv_b_proj", 512, 128 * 256),
  ("o_proj", 128 * 128, 7168),
  ("dense gate, up", 7168, 18432),
  ("dense down", 18432, 7168),
  ("expert gate, up", 7168, 2048),
  ("expert down", 2048, 7168),
)
_EXPERTS = 8
_EXPERT_ROWS = 8192
_HEADER = [
  "kernel",
  "shape",
  "registers",
  "shared memory, KiB",
  "spilled, bytes",
  "wgmma",
  "",
]


@dataclasses.dataclass(frozen=True)
class Case:
  """A kernel at a shape.

  Attributes:
    kernel: its name.
    shape: in words.
    function: what is compiled.
    args: shapes of its arguments.
  """

  kernel: str
  shape: str
  function: Any
  args: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Resources:
  """What a compiled kernel takes.

  Attributes:
    registers: of a thread.
    shared: bytes of a block.
    spilled: bytes of a thread that do not fit into registers.
    wgmma: instructions in the program.
    serialised: whether these wait for each other.
  """

  registers: int
  shared: int
  spilled: int
  wgmma: int
  serialised: bool

  @property
  def verdict(self) -> str:
    """What is wrong with it, or `ok`."""
    if self.serialised:
      return "FAILED: wgmma serialised"
    if self.spilled > SPILLED_AT_MOST:
      return f"FAILED: spills more than {SPILLED_AT_MOST} bytes"
    return "ok"


def cases() -> list[Case]:
  """All kernels at DeepSeek-V3's shapes."""
  import jax.numpy as jnp

  from dsx.ops import hopper_quantise

  found = []
  for layer, d, f in LAYERS:
    for product in ("fprop", "dgrad", "wgrad"):
      shape = f"{layer} {_TOKENS} x {d} x {f}"
      found.append(Case(product, shape, *dense(product, _TOKENS, d, f)))
  for layer, d, f in LAYERS[-2:]:
    for product in ("fprop", "dgrad", "wgrad"):
      shape = f"{_EXPERTS} {layer}s {_EXPERT_ROWS} x {d} x {f}"
      arguments = grouped(product, _EXPERT_ROWS, _EXPERTS, d, f)
      found.append(Case(f"grouped {product}", shape, *arguments))
  for rows, columns in ((_TOKENS, 7168), (_EXPERT_ROWS, 2048)):
    x = (_array((rows, columns), jnp.bfloat16),)
    shape = f"{rows} x {columns} bfloat16"
    for scales in ("float32", "ue8m0"):
      both = functools.partial(hopper_quantise.both, scale_format=scales)
      found.append(Case(f"quantise both, {scales}", shape, both, x))
    rows_only = functools.partial(hopper_quantise.quantise, tile=(1, 128))
    found.append(Case("quantise 1x128", shape, rows_only, x))
    columns_only = functools.partial(hopper_quantise.quantise, tile=(128, 1))
    found.append(Case("quantise 128x1", shape, columns_only, x))
  for shape in ((7168, 2048), (_EXPERTS, 7168, 2048)):
    w = (_array(shape, jnp.float32),)
    named = " x ".join(map(str, shape)) + " float32"
    found.append(Case("quantise weight", named, hopper_quantise.weight, w))
  return found


def _array(shape, dtype):
  import jax

  return jax.ShapeDtypeStruct(shape, dtype)


def _quantised(shape, tile):
  import jax.numpy as jnp

  from dsx.ops import fp8

  return fp8.Quantised(
    _array(shape, jnp.float8_e4m3fn),
    _array(fp8.scales_shape(shape, tile), jnp.float32),
    tile,
  )


def dense(product: str, tokens: int, d: int, f: int):
  """(function, arguments) of a linear layer's product, as kept in memory."""
  import jax.numpy as jnp

  from dsx.ops import fp8
  from dsx.ops import hopper_gemm

  if product == "wgrad":
    x, dy = (_quantised((n, tokens), fp8.ROW_TILE) for n in (d, f))
    return lambda x, dy: hopper_gemm.multiply(x, dy.transposed), (x, dy)
  # Fprop's copy of the weights is kept transposed, Dgrad's is not.
  k, n = (d, f) if product == "fprop" else (f, d)
  x = _quantised((tokens, k), fp8.ROW_TILE)
  w = _quantised((n, k), fp8.BLOCK_TILE)
  return (
    lambda x, w: hopper_gemm.multiply(x, w.transposed, jnp.bfloat16),
    (x, w),
  )


def grouped(product: str, rows: int, n_groups: int, d: int, f: int):
  """Likewise, of experts."""
  import jax.numpy as jnp

  from dsx.ops import fp8
  from dsx.ops import hopper_grouped

  group = _array((rows // fp8.TILE,), jnp.int32)
  if product == "wgrad":
    x, dy = (_quantised((n, rows), fp8.ROW_TILE) for n in (d, f))
    return (
      lambda x, dy, group: hopper_grouped.outer(
        x.transposed, dy.transposed, group, n_groups
      ),
      (x, dy, group),
    )
  k, n = (d, f) if product == "fprop" else (f, d)
  x = _quantised((rows, k), fp8.ROW_TILE)
  w = _quantised((n_groups, n, k), fp8.BLOCK_TILE)
  return (
    lambda x, w, group: hopper_grouped.multiply(
      x, w.transposed, group, jnp.bfloat16
    ),
    (x, w, group),
  )


def compiled(case: Case, folder: pathlib.Path) -> Resources:
  """Compiles a kernel for one H100.

  Args:
    case: the kernel.
    folder: where compilers put their reports; emptied.

  Raises:
    ValueError: there is no report, as when the same product was compiled
      before.
  """
  import jax
  import numpy as np

  from dsx.ops import platforms
  from dsx.parallel import topology

  device = topology.find("h100:1x1").devices[0]
  mesh = jax.sharding.Mesh(
    np.array([device]), ("x",), axis_types=(jax.sharding.AxisType.Auto,)
  )
  here = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  args = jax.tree.map(
    lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=here), case.args
  )
  shutil.rmtree(folder, ignore_errors=True)
  folder.mkdir()
  # Without the second, newer versions write no assembly.
  dump: dict[str, str | bool] = {
    "xla_dump_to": str(folder),
    "xla_dump_emitter_re": ".*",
  }
  with jax.set_mesh(mesh), platforms.compiling_for("gpu"):
    lowered = (
      jax.jit(case.function).trace(*args).lower(lowering_platforms=("cuda",))
    )
    try:
      program = lowered.compile(dump)
    except (jax.errors.JaxRuntimeError, ValueError) as error:
      if "xla_dump_emitter_re" not in str(error):
        raise
      program = lowered.compile({"xla_dump_to": str(folder)})
  if "__gpu$xla.gpu.triton" in (program.as_text() or ""):
    return of_dump(folder)
  reports = sorted(folder.glob("*.ptxas"))
  if not reports:
    raise ValueError("ptxas: expected its report, found none")
  return of_report(
    _text(reports[0]),
    _text(reports[0].with_suffix(".ptx")),
    _text(reports[0].with_suffix(".mlir-passes.log")),
  )


def _text(path: pathlib.Path) -> str:
  return path.read_text(encoding="utf-8", errors="replace")


def of_report(ptxas: str, ptx: str, passes: str) -> Resources:
  """Reads what Mosaic's compiler wrote down.

  Args:
    ptxas: the report of ptxas.
    ptx: the program.
    passes: the program before, where shared memory is asked for.
  """
  name = re.search(r"dynamic_shared_memory_size (%\w+)", passes)
  shared = name and re.search(
    re.escape(name[1]) + r" = arith\.constant (\d+) : i32", passes
  )
  if shared is None:
    raise ValueError("dynamic_shared_memory_size: expected a constant; none")
  return _resources(ptxas, ptx, int(shared[1]))


def of_dump(folder: pathlib.Path) -> Resources:
  """Reads what XLA's compiler wrote down of a Triton kernel.

  Args:
    folder: it was told to dump to.
  """
  ptx = max(folder.glob("*.ptx"), key=lambda path: path.stat().st_size)
  thunks = _text(next(folder.glob("*.thunk_sequence.txt")))
  report = subprocess.run(
    [_ptxas(), "-v", "-arch=sm_90a", str(ptx), "-o", os.devnull],
    capture_output=True,
    text=True,
    check=True,
  ).stderr
  shared = re.findall(r"shared_memory: (\d+) bytes", thunks)
  return _resources(report, _text(ptx), max(map(int, shared)))


def _ptxas() -> str:
  """The assembler that comes with JAX's CUDA plugin."""
  found = importlib.util.find_spec("nvidia")
  for folder in (found and found.submodule_search_locations) or ():
    for path in sorted(pathlib.Path(folder).glob("*/bin/ptxas")):
      return str(path)
  path = shutil.which("ptxas")
  if path is None:
    raise ValueError(
      "ptxas: not found; install dsx[gpu], which brings CUDA's assembler"
    )
  return path


def _resources(ptxas: str, ptx: str, shared: int) -> Resources:
  registers = re.search(r"Used (\d+) registers", ptxas)
  spilled = re.findall(r"(\d+) bytes spill (?:stores|loads)", ptxas)
  if registers is None or not spilled:
    raise ValueError(
      f"ptxas: expected its report of registers and spills; got {ptxas!r}"
    )
  return Resources(
    registers=int(registers[1]),
    shared=shared,
    spilled=max(map(int, spilled)),
    wgmma=len(re.findall(r"wgmma\.mma_async", ptx)),
    serialised="are serialized" in ptxas,
  )


def run(only: str) -> tuple[str, bool]:
  """Compiles; returns the table and whether all is well."""
  import jax

  folder = pathlib.Path(os.environ["MOSAIC_GPU_DUMP_TO"])
  rows, well = [], True
  known: dict[str, Resources] = {}
  for case in cases():
    if only not in case.kernel:
      continue
    of = str([(a.shape, a.dtype) for a in jax.tree.leaves(case.args)])
    try:
      if of not in known or "quantise" in case.kernel:
        known[of] = compiled(case, folder)
      found = known[of]
    except Exception as error:  # compilers raise several kinds
      line = str(error).splitlines()[0] if str(error) else ""
      verdict = f"FAILED: {type(error).__name__}: {line[:80]}"
      rows.append([case.kernel, case.shape, "", "", "", "", verdict])
      well = False
      continue
    well &= found.verdict == "ok"
    rows.append(
      [
        case.kernel,
        case.shape,
        str(found.registers),
        f"{found.shared / 2**10:.1f}",
        str(found.spilled),
        str(found.wgmma or ""),
        found.verdict,
      ]
    )
    print(*rows[-1], sep=", ", file=sys.stderr, flush=True)
  said = (
    f"For one H100 (compute capability 9.0a), jax {jax.__version__}; nothing "
    "was run. A thread may have 255 registers, a block 227 KiB.\n\n"
  )
  return said + report.table(_HEADER, rows), well


def main() -> int:
  """Parses flags, compiles, prints and, with --record, keeps it."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
  parser.add_argument("--only", default="", help="kernels with this in a name")
  parser.add_argument("--record", action="store_true")
  flags = parser.parse_args()
  os.environ["JAX_PLATFORMS"] = "cpu"  # nothing is run on a GPU that is here
  with tempfile.TemporaryDirectory() as folder:
    os.environ["MOSAIC_GPU_DUMP_TO"] = folder
    body, well = run(flags.only)
  print(body)
  if flags.record:
    report.record("What FP8 kernels take of an H100's multiprocessor", body)
  return 0 if well else 1


if __name__ == "__main__":
  sys.exit(main())
