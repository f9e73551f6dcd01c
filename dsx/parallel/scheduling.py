"""What the compiler has to be told before it lets tokens travel unattended.

DeepSeek-V3 sections 3.2.1 and 3.4.1 hide dispatch and combine behind another
micro-batch's computation. With `Execution.overlap` the program has such
computation to offer; whether a compiler starts a collective early and finishes
it late is its own choice, and by default a TPU's runs each all-to-all alone.

`experiments.compile_topology` prints what a compiled program does
(docs/parallelism.md has an example).
"""

# Options of libtpu 0.0.42 and 0.0.50 and of XLA's GPU backend.
_ASYNCHRONOUS = {
  "tpu": {
    "xla_tpu_enable_async_all_to_all": True,
    "xla_tpu_enable_async_ragged_all_to_all": True,
  },
  "gpu": {"xla_gpu_enable_latency_hiding_scheduler": True},
  "cpu": {},
}


def options(overlap: str, platform: str) -> dict[str, bool]:
  """Compiler options of a step.

  Args:
    overlap: `config.Execution.overlap`.
    platform: of `ops.platforms.target`.
  """
  return {} if overlap == "none" else dict(_ASYNCHRONOUS[platform])
