"""What a model costs, from its config alone: no model is built or compiled.

Parameters, FLOPs of training, bytes of the cache, memory of the training
state, device-hours, and the published rates of the chips to divide them by.
The test of this file holds the numbers that are published for DeepSeek-V2,
V2-Lite and V3.

Letters: B batch, L length, D model, H heads, K qk head dim, U value head dim,
V vocabulary, C latent rank, F feed-forward, E experts.

How FLOPs are counted: a multiplication and an addition are two; backward costs
twice the forward; causal attention computes half of the L x L scores. Norms,
softmax, activations, the embedding's look-up and recomputation in backward are
left out: the FLOPs are those the model needs, not those a run happens to make.
DeepSeek, MaxText and Megatron print rates that divide to the same 250 GFLOP a
token for DeepSeek-V3 at a length of 4096.
"""

import dataclasses
import functools
import math
import time
from typing import NamedTuple

from dsx.models import dense_config

_MATMUL_SIZE = 2048  # large enough to reach the best rate of a CPU
_MATMUL_SECONDS = 0.4  # long enough to find a quiet moment on a busy machine


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parameters:
  """Parameters of the main model by part; router biases are in `router`.

  Attributes:
    embedding: the input embedding [V, D].
    attention: MLA of all layers, with the norms of its latents.
    dense_mlp: SwiGLU of the dense layers.
    experts: the routed experts of all MoE layers.
    shared_experts: the shared experts of all MoE layers.
    router: affinity vectors and selection biases of all MoE layers.
    norms: RMSNorm around attention and MLP, and the final one.
    lm_head: the output head [D, V].
  """

  embedding: int
  attention: int
  dense_mlp: int
  experts: int
  shared_experts: int
  router: int
  norms: int
  lm_head: int

  @property
  def total(self) -> int:
    """All of them."""
    return sum(dataclasses.astuple(self))


def parameters_by_part(config: dense_config.Config) -> Parameters:
  """The main model's parameters by part (without the MTP modules)."""
  c = config
  expert = 3 * c.hidden_size * c.moe_intermediate_size
  dense = 3 * c.hidden_size * c.intermediate_size
  table = c.vocab_size * c.hidden_size
  return Parameters(
    embedding=table,
    attention=c.num_hidden_layers * _attention(c),
    dense_mlp=c.first_k_dense_replace * dense,
    experts=c.num_moe_layers * c.n_routed_experts * expert,
    shared_experts=c.num_moe_layers * c.n_shared_experts * expert,
    router=c.num_moe_layers * _router(c),
    norms=(2 * c.num_hidden_layers + 1) * c.hidden_size,
    lm_head=0 if _is_tied(c) else table,
  )


def parameters(config: dense_config.Config) -> int:
  """Parameters of the main model, router biases included, without MTP.

  671,026,419,200 for DeepSeek-V3.
  """
  return parameters_by_part(config).total


def mtp_parameters(config: dense_config.Config) -> int:
  """Parameters of all MTP modules, without the embedding and head they share.

  A module has two norms, the projection of both inputs, one MoE layer and a
  norm before the shared head (section 2.2, eq. 21): 11,610,068,224 parameters
  in DeepSeek-V3, of which its README counts 11.5B.
  """
  c = config
  expert = 3 * c.hidden_size * c.moe_intermediate_size
  experts = (c.n_routed_experts + c.n_shared_experts) * expert
  layer = _attention(c) + _router(c) + experts + 2 * c.hidden_size
  module = 2 * c.hidden_size**2 + 3 * c.hidden_size + layer
  return c.num_nextn_predict_layers * module


def active_parameters(
  config: dense_config.Config, *, embedding: bool = True
) -> int:
  """Parameters that one token passes through in the main model.

  Args:
    config: the model.
    embedding: whether to count the whole input embedding, of which a token
      uses one row. 37.55B for DeepSeek-V3 with it, 36.63B without.
  """
  parts = parameters_by_part(config)
  idle = config.n_routed_experts - config.num_experts_per_tok
  unused = parts.experts // max(config.n_routed_experts, 1) * idle
  return parts.total - unused - (0 if embedding else parts.embedding)


def flops_per_token(
  config: dense_config.Config,
  sequence_length: int,
  mtp: bool = False,
  causal: bool = True,
) -> float:
  """FLOPs of training on one token, forward and backward.

  Args:
    config: the model.
    sequence_length: L, tokens that attend to each other.
    mtp: whether the MTP modules are trained too.
    causal: whether to count half of the scores, as training does; False gives
      the other accounting in use.

  Returns:
    250.45e9 for DeepSeek-V3 at 4096 tokens.
  """
  c = config
  expert = 3 * c.hidden_size * c.moe_intermediate_size
  dense = 3 * c.hidden_size * c.intermediate_size
  chosen = (c.num_experts_per_tok + c.n_shared_experts) * expert
  moe = chosen + c.hidden_size * c.n_routed_experts
  head = c.hidden_size * c.vocab_size
  heads = c.num_attention_heads * (c.qk_head_dim + c.v_head_dim)
  attention = _attention_matrices(c) + heads * sequence_length / (1 + causal)
  multiplications = (
    c.num_hidden_layers * attention
    + c.first_k_dense_replace * dense
    + c.num_moe_layers * moe
    + head
  )
  if mtp:
    module = 2 * c.hidden_size**2 + attention + moe + head
    multiplications += c.num_nextn_predict_layers * module
  return 6.0 * multiplications


def cache_bytes_per_token(
  config: dense_config.Config, bytes_per_value: int = 2
) -> int:
  """Bytes that generation keeps for one token: latent and rotary key.

  70,272 for DeepSeek-V3 in bfloat16 (section 2.1.1).
  """
  if isinstance(config, dense_config.DenseConfig):
    values = 2 * config.num_key_value_heads * config.head_dim
  else:
    values = config.kv_lora_rank + config.qk_rope_head_dim
  return config.num_hidden_layers * values * bytes_per_value


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
  """Bytes of the training state on one device, without activations.

  Attributes:
    parameters: master weights.
    gradients: accumulated gradients.
    moments: both moments of the optimizer.
  """

  parameters: int
  gradients: int
  moments: int

  @property
  def total(self) -> int:
    """All of them."""
    return self.parameters + self.gradients + self.moments


def memory(
  config: dense_config.Config,
  *,
  shards: int = 1,
  optimizer_shards: int | None = None,
  mtp: bool = True,
  parameter_bytes: int = 4,
  gradient_bytes: int = 4,
  moment_bytes: int = 2,
) -> Memory:
  """Bytes of the training state per device.

  The defaults are the report's precisions (section 3.3.3): float32 master
  weights and gradients, bfloat16 moments. An even split is assumed; the exact
  bytes of a mesh come from the shardings of the arrays themselves.

  Args:
    config: the model.
    shards: devices over which parameters and gradients are split.
    optimizer_shards: devices over which the moments are split; more than
      `shards` for ZeRO-1. None: `shards`.
    mtp: whether the MTP modules are trained too.
    parameter_bytes: bytes of a master weight.
    gradient_bytes: bytes of an accumulated gradient.
    moment_bytes: bytes of one value of one moment.

  Returns:
    Bytes, rounded up.
  """
  optimizer_shards = shards if optimizer_shards is None else optimizer_shards
  for field, value in (
    ("shards", shards),
    ("optimizer_shards", optimizer_shards),
  ):
    if value < 1:
      raise ValueError(f"{field}={value}: expected 1 or more; raise it")
  count = parameters(config) + (mtp_parameters(config) if mtp else 0)
  return Memory(
    parameters=-(-count * parameter_bytes // shards),
    gradients=-(-count * gradient_bytes // shards),
    moments=-(-2 * count * moment_bytes // optimizer_shards),
  )


def device_hours(flops: float, peak_flops: float, utilization: float) -> float:
  """Hours of one device for a number of FLOPs.

  Args:
    flops: work, for example `flops_per_token(...) * tokens`.
    peak_flops: FLOP/s of one device, for example `device_peak_flops(...)`.
    utilization: share of the peak that is reached (MFU), 0 to 1.
  """
  if not 0 < utilization <= 1:
    raise ValueError(
      f"utilization={utilization}: expected a share above 0 and at most 1; "
      "divide percents by 100"
    )
  return flops / (peak_flops * utilization) / 3600


class Chip(NamedTuple):
  """Published dense peaks of one chip, without sparsity.

  Attributes:
    bf16_tflops: 1e12 FLOP/s of bfloat16 products.
    fp8_tflops: the same of float8; the bfloat16 rate where a chip has none.
    memory: high-bandwidth memory, GB as NVIDIA and GiB as Google state it.
    bandwidth: of that memory, in 1e9 bytes a second.
    devices: JAX devices that one chip appears as.
    kinds: what JAX calls them (`jax.Device.device_kind`).
  """

  bf16_tflops: float
  fp8_tflops: float
  memory: int
  bandwidth: int
  devices: int
  kinds: tuple[str, ...]


CHIPS = {
  # NVIDIA data sheets of the SXM boards, half of the rates "with sparsity";
  # PCIe and NVL cards are slower and bear other names. The H800 is an H100
  # with slower NVLink (report section 3.1).
  "H100": Chip(989.4, 1978.9, 80, 3352, 1, ("NVIDIA H100 80GB HBM3",)),
  "H800": Chip(989.4, 1978.9, 80, 3352, 1, ("NVIDIA H800",)),
  "H200": Chip(989.4, 1978.9, 141, 4800, 1, ("NVIDIA H200",)),
  # NVIDIA HGX B200, 2.25 and 4.5 PFLOPS; on a GB200 board it has 2.5 and 5.
  "B200": Chip(2250, 4500, 180, 8000, 1, ("NVIDIA B200",)),
  # cloud.google.com/tpu/docs, pages v4, v5e, v5p, v6e and tpu7x. The two cores
  # of v4 and v5p work as one device, those of tpu7x are two.
  "v4": Chip(275, 275, 32, 1200, 1, ("TPU v4",)),
  "v5e": Chip(197, 197, 16, 819, 1, ("TPU v5 lite", "TPU v5e")),
  "v5p": Chip(459, 459, 95, 2765, 1, ("TPU v5", "TPU v5p")),
  "v6e": Chip(918, 918, 32, 1638, 1, ("TPU v6 lite", "TPU v6e")),
  "tpu7x": Chip(2307, 4614, 192, 7380, 2, ("TPU7x",)),
}


def chip(device_kind: str) -> Chip | None:
  """The chip that JAX's `device_kind` means, or None if it is not listed."""
  return next((c for c in CHIPS.values() if device_kind in c.kinds), None)


def device_peak_flops(device_kind: str, dtype: str) -> float | None:
  """Published FLOP/s of one JAX device, the denominator of MFU.

  Args:
    device_kind: `jax.Device.device_kind`.
    dtype: dtype in which matrices are multiplied. For float32 it is the rate
      of JAX's default precision: one bfloat16 pass on a TPU, TF32 (half of
      bfloat16) on a GPU.

  Returns:
    FLOP/s, or None where none is published: CPUs (`measure_peak_flops`) and
    chips that are not in `CHIPS`.
  """
  entry = chip(device_kind)
  if entry is None:
    return None
  if dtype.startswith("float8"):
    tflops = entry.fp8_tflops
  elif dtype == "float32" and device_kind.startswith("NVIDIA"):
    tflops = entry.bf16_tflops / 2
  elif dtype in ("bfloat16", "float16", "float32"):
    tflops = entry.bf16_tflops
  else:
    raise ValueError(
      f"dtype={dtype!r}: expected float32, bfloat16, float16 or a float8; "
      "give the dtype in which matrices are multiplied"
    )
  return tflops * 1e12 / entry.devices


@functools.cache
def measure_peak_flops() -> float:
  """Measures FLOP/s of float32 matrix products, for want of a published rate.

  The best of the products of two 2048 x 2048 matrices that JAX's first device
  makes in about half a second; measured once a process. Other work on the
  machine lowers it. An MFU over this number has to say that it is measured.
  """
  # Imported here because the rest of this file works without JAX.
  import jax
  import jax.numpy as jnp

  matrix = jnp.ones((_MATMUL_SIZE, _MATMUL_SIZE), jnp.float32)
  product = jax.jit(jnp.matmul).lower(matrix, matrix).compile()
  product(matrix, matrix).block_until_ready()
  best = math.inf
  end = time.perf_counter() + _MATMUL_SECONDS
  while (start := time.perf_counter()) < end:
    product(matrix, matrix).block_until_ready()
    best = min(best, time.perf_counter() - start)
  return 2.0 * _MATMUL_SIZE**3 / best


def _attention(config: dense_config.Config) -> int:
  """Parameters of one attention: its matrices, and norms and biases in it."""
  if isinstance(config, dense_config.DenseConfig):
    c = config
    width = (c.num_attention_heads + 2 * c.num_key_value_heads) * c.head_dim
    biases = width if c.attention_bias else 0
    norms = 2 * c.head_dim if c.qk_norm else 0
    return _attention_matrices(c) + biases + norms
  return (
    _attention_matrices(config)
    + (config.q_lora_rank or 0)
    + config.kv_lora_rank
  )


def _attention_matrices(config: dense_config.Config) -> int:
  """Entries of one attention's matrices, also its multiplications."""
  c = config
  if isinstance(c, dense_config.DenseConfig):
    heads = 2 * c.num_attention_heads + 2 * c.num_key_value_heads
    return c.hidden_size * heads * c.head_dim
  queries = c.num_attention_heads * c.qk_head_dim
  if c.q_lora_rank is None:
    query = c.hidden_size * queries
  else:
    query = c.q_lora_rank * (c.hidden_size + queries)
  compress = c.hidden_size * (c.kv_lora_rank + c.qk_rope_head_dim)
  expand = c.num_attention_heads * (c.qk_nope_head_dim + c.v_head_dim)
  output = c.num_attention_heads * c.v_head_dim * c.hidden_size
  return query + compress + c.kv_lora_rank * expand + output


def _is_tied(config: dense_config.Config) -> bool:
  """Whether the embedding is the output head, too."""
  dense = isinstance(config, dense_config.DenseConfig)
  return dense and config.tie_word_embeddings


def _router(config: dense_config.Config) -> int:
  """Affinity vectors and selection biases of one MoE layer."""
  biases = config.n_routed_experts if config.has_router_bias else 0
  return config.hidden_size * config.n_routed_experts + biases
