"""GPUs as XLA's compiler wants them described, for compiling without one.

Numbers of NVIDIA's data sheets and of the CUDA programming guide (compute
capability 9.0): what a thread block, a multiprocessor and the memory hold.
"""

_HOPPER = """
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth}
  device_memory_size: {memory}
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  cuda_compute_capability {{ major: 9 minor: 0 }}
}}
platform_name: "CUDA"
runtime_version {{ major: 13 minor: 0 patch: 0 }}
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{name}"
"""


def _hopper(name: str, memory: int, bandwidth: int) -> str:
  return _HOPPER.format(name=name, memory=memory, bandwidth=bandwidth)


TARGETS = {
  "h100": _hopper("NVIDIA H100 80GB HBM3", 84929347584, 3352320000000),
  "h800": _hopper("NVIDIA H800", 84929347584, 3352320000000),
  "h200": _hopper("NVIDIA H200", 150754820096, 4800000000000),
}
