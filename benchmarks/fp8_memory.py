"""What each of FP8's switches saves of a device's memory.

  python benchmarks/fp8_memory.py [--topology h100:1x1] [--record]

Compiles the training step of v3_small for machines that are not here and reads
from the compiled program what a device must hold: one switch at a time against
the same program without it, with no recomputation and with the report's. To
compile faster the model is its MoE layers alone, without the dense layer and
without MTP. Needs JAX's CUDA plugin (the extra `gpu`) and no GPU. A CPU's
compiler is of no use for it: it keeps much of what is bfloat16 as float32.

Every program is a line of memory.jsonl in --work and is not compiled again.
--record writes the table into docs/fp8.md.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import sys
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks import fp8_page
from benchmarks import report

_TARGET = "dsx.training.pretraining.Pretraining"
_CACHES = ("cache_inputs", "cache_attention_output", "cache_swiglu_inputs")
_OFF: dict[str, Any] = dict.fromkeys(_CACHES, "compute")
_REMATS = ("none", "paper")


@dataclasses.dataclass(frozen=True)
class Case:
  """One program.

  Attributes:
    name: in the table.
    against: the name of the case without the switch; empty for a beginning.
    recipe: fields of the FP8 recipe; None without FP8.
    dispatch: the dtype in which rows travel to experts on 8 devices; None for
      one device.
    moments: the dtype of the optimizer's moments.
    remats: what is recomputed, a program each.
  """

  name: str
  against: str = ""
  recipe: dict[str, Any] | None = dataclasses.field(
    default_factory=lambda: dict(_OFF)
  )
  dispatch: str | None = None
  moments: str = "bfloat16"
  remats: tuple[str, ...] = _REMATS


_FP8 = "FP8 products, caches in bfloat16"
_SPREAD = "the same, experts on 8 devices"
CASES = (
  Case(_FP8),
  Case("all three caches", _FP8, {}),
  Case("cache_inputs = float8", _FP8, _OFF | {"cache_inputs": "float8"}),
  Case(
    "cache_attention_output = e5m6",
    _FP8,
    _OFF | {"cache_attention_output": "e5m6"},
  ),
  Case(
    "cache_swiglu_inputs = float8",
    _FP8,
    _OFF | {"cache_swiglu_inputs": "float8"},
  ),
  Case("moments in float32", _FP8, moments="float32", remats=("none",)),
  Case(_SPREAD, dispatch="compute", remats=("none",)),
  Case("FP8 dispatch", _SPREAD, dispatch="float8", remats=("none",)),
)


def build(case: Case, remat: str, flags: argparse.Namespace):
  """The `Pretraining` of a case, of one micro-batch a device."""
  from dsx.ops import fp8_recipe
  from experiments import configuration

  files, batch = [f"gin_configs/runs/{flags.model}.gin"], flags.batch
  if case.dispatch is not None:
    files.append("gin_configs/parallel/gpu_8.gin")
    batch *= 8
  configuration.prepare(_TARGET, files)
  run = configuration.build(_TARGET)
  fp8 = None
  if case.recipe is not None:
    fp8 = fp8_recipe.Recipe(implementation=flags.implementation, **case.recipe)
  execution = dataclasses.replace(run.execution, remat=remat)
  if case.dispatch is not None:
    dispatch = dataclasses.replace(execution.dispatch, dtype=case.dispatch)
    execution = dataclasses.replace(execution, dispatch=dispatch)
  sizes = {"batch_size_start": batch, "batch_size": batch}
  return dataclasses.replace(
    run,
    config=dataclasses.replace(
      run.config, first_k_dense_replace=0, num_nextn_predict_layers=0
    ),
    dtypes=dataclasses.replace(run.dtypes, compute="bfloat16", fp8=fp8),
    execution=execution,
    optimizer=dataclasses.replace(run.optimizer, moment_dtype=case.moments),
    schedule=dataclasses.replace(run.schedule, **sizes),
    micro_batch_size=batch,
  )


def compile_case(case: Case, remat: str, flags: argparse.Namespace) -> dict:
  """Compiles a case.

  Returns:
    Bytes of its state, of its temporaries and of what a device sends to others
    by exchanges of rows, and seconds that it took.
  """
  from dsx.parallel import topology
  from dsx.training import ahead_of_time

  name = flags.topology
  if case.dispatch is not None:
    name = f"{name.partition(':')[0]}:1x8"
  run = build(case, remat, flags)
  step = ahead_of_time.compile_step(run, topology.find(name))
  exchanges = [c for c in step.collectives if c.op.endswith("all-to-all")]
  return {
    "state": step.memory.state,
    "temporaries": step.memory.temporaries,
    "sent": sum(c.total_wire_bytes for c in exchanges),
    "seconds": round(step.trace_seconds + step.compile_seconds, 1),
  }


def measure(flags: argparse.Namespace) -> list[dict]:
  """All cases, those compiled before included."""
  path = flags.work / "memory.jsonl"
  found = []
  if path.exists():
    lines = path.read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines]
  for remat in _REMATS:
    for case in CASES:
      if remat not in case.remats:
        continue
      key = {
        "case": case.name,
        "remat": remat,
        **_asked(flags),
      }
      if any(key.items() <= one.items() for one in found):
        continue
      one = key | compile_case(case, remat, flags)
      with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(one) + "\n")
      print(json.dumps(one), flush=True)
      found.append(one)
  return [one for one in found if _asked(flags).items() <= one.items()]


def _asked(flags: argparse.Namespace) -> dict:
  names = ("model", "batch", "topology", "implementation")
  return {name: getattr(flags, name) for name in names}


def table(found: list[dict]) -> str:
  """What every case holds, and what that saves against the one without it."""
  header = ["program"]
  for remat in _REMATS:
    header += [f"remat {remat}: state MiB", "temporary MiB", "saved MiB"]
  header.append("sent MiB")
  by_key = {(one["case"], one["remat"]): one for one in found}
  rows = []
  for case in CASES:
    cells = [case.name]
    for remat in _REMATS:
      own = by_key.get((case.name, remat))
      other = by_key.get((case.against, remat))
      if own is None:
        cells += ["", "", ""]
        continue
      cells += [_mib(own["state"]), _mib(own["temporaries"])]
      cells.append("" if other is None else _mib(_total(other) - _total(own)))
    sent = by_key.get((case.name, "none"), {}).get("sent")
    cells.append(_mib(sent) if sent else "")
    rows.append(cells)
  return report.table(header, rows)


def _total(one: dict) -> int:
  return one["state"] + one["temporaries"]


def _mib(size: int) -> str:
  return f"{size / 2**20:,.0f}"


def main():
  """Parses flags, compiles, prints and, with --record, keeps the table."""
  # Whatever this machine has, nothing is run on it.
  os.environ["JAX_PLATFORMS"] = "cpu"
  # Buffers are laid out before machine code is made, which takes longer.
  own = "--xla_backend_optimization_level=0"
  os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {own}"
  parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
  parser.add_argument("--topology", default="h100:1x1")
  parser.add_argument("--model", default="v3_small", help="a run's gin file")
  parser.add_argument("--batch", type=int, default=4, help="sequences a device")
  parser.add_argument("--implementation", default="auto", help="of the recipe")
  parser.add_argument("--work", type=pathlib.Path, default="runs/fp8_memory")
  parser.add_argument("--record", action="store_true", help="into docs/fp8.md")
  flags = parser.parse_args()
  flags.work.mkdir(parents=True, exist_ok=True)
  body = (
    f"{flags.model}, {flags.batch} sequences a device, compiled for "
    f"{flags.topology}.\n\n" + table(measure(flags))
  )
  print(body)
  if flags.record:
    fp8_page.write("memory", body)


if __name__ == "__main__":
  main()
