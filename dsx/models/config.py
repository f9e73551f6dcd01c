"""What a DeepSeek model is, in DeepSeek's own words.

The fields of `DeepSeekConfig` bear the names of the published `config.json`
files, so that a reader can hold both side by side; the defaults are
DeepSeek-V3's (report section 4.2). `Execution` says how a model is run and
never what it is: two executions of one config agree to rounding.

This module imports nothing but the standard library.
"""

import dataclasses
from typing import Literal


def _refuse(field: str, got: object, expected: str, remedy: str) -> None:
  raise ValueError(f"{field}={got!r}: expected {expected}; {remedy}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling:
  """YaRN (Peng et al. 2023), as DeepSeek configures it (section 4.3).

  Attributes:
    factor: ratio s of the extended to the original context.
    original_max_position_embeddings: context of pretraining, in tokens.
    beta_fast: rotations over the original context above which a dimension
      keeps its frequency.
    beta_slow: rotations below which its frequency is divided by `factor`.
    mscale: numerator temperature, multiplied into cos and sin.
    mscale_all_dim: denominator temperature of cos and sin; its square
      multiplies the softmax scale.
  """

  factor: float = 40.0
  original_max_position_embeddings: int = 4096
  beta_fast: float = 32.0
  beta_slow: float = 1.0
  mscale: float = 1.0
  mscale_all_dim: float = 1.0

  def __post_init__(self):
    if self.factor < 1:
      _refuse("factor", self.factor, "at least 1", "use rope_scaling=None")
    if self.original_max_position_embeddings <= 0:
      _refuse(
        "original_max_position_embeddings",
        self.original_max_position_embeddings,
        "a positive number of tokens",
        "give the context length of pretraining",
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeepSeekConfig:
  """Shape and routing of DeepSeek-V2, V2-Lite, V3, V3.1 and R1.

  Attributes:
    vocab_size: V, rows of the embedding and of the output head.
    hidden_size: D, width of the residual stream.
    intermediate_size: F of the dense layers.
    moe_intermediate_size: F of one expert.
    num_hidden_layers: main layers, without the MTP modules.
    first_k_dense_replace: how many of the first layers are dense.
    num_nextn_predict_layers: MTP modules (the report's D, section 2.2).
    num_attention_heads: H.
    q_lora_rank: rank of the compressed query, or None for a full projection.
    kv_lora_rank: C, rank of the compressed keys and values.
    qk_nope_head_dim: part of a query/key head without position.
    qk_rope_head_dim: part of a query/key head that carries RoPE.
    v_head_dim: U, width of a value head.
    n_routed_experts: E.
    n_shared_experts: experts that see every token (fused into one).
    num_experts_per_tok: routed experts a token is sent to (the report's K_r).
    n_group: expert groups; one group lives on one node.
    topk_group: groups a token may reach (the report's M).
    scoring_func: affinity of token and expert, V3 sigmoid, V2 softmax.
    topk_method: `noaux_tc` (V3: bias for selection, group score = sum of the
      top two), `group_limited_greedy` (V2: group score = max) or `greedy`
      (V2-Lite: no groups).
    norm_topk_prob: whether the chosen affinities are normalised to sum 1.
    routed_scaling_factor: multiplies the routed experts' weights.
    max_position_embeddings: longest context that the model is used at.
    rope_theta: base of the rotary frequencies.
    rope_scaling: YaRN, or None for plain RoPE.
    rms_norm_eps: epsilon of every RMSNorm.
    initializer_range: standard deviation of the initial weights (4.2: 0.006).
    mtp_hidden: which hidden state of the main model enters the first MTP
      module, after (`post_norm`) or before (`pre_norm`) the final RMSNorm. The
      report does not say; drafts of both are accepted alike
      (docs/decoding.md), and other systems run the released weights with the
      former.
  """

  vocab_size: int = 129280
  hidden_size: int = 7168
  intermediate_size: int = 18432
  moe_intermediate_size: int = 2048
  num_hidden_layers: int = 61
  first_k_dense_replace: int = 3
  num_nextn_predict_layers: int = 1
  num_attention_heads: int = 128
  q_lora_rank: int | None = 1536
  kv_lora_rank: int = 512
  qk_nope_head_dim: int = 128
  qk_rope_head_dim: int = 64
  v_head_dim: int = 128
  n_routed_experts: int = 256
  n_shared_experts: int = 1
  num_experts_per_tok: int = 8
  n_group: int = 8
  topk_group: int = 4
  scoring_func: Literal["sigmoid", "softmax"] = "sigmoid"
  topk_method: Literal["noaux_tc", "group_limited_greedy", "greedy"] = (
    "noaux_tc"
  )
  norm_topk_prob: bool = True
  routed_scaling_factor: float = 2.5
  max_position_embeddings: int = 163840
  rope_theta: float = 10000.0
  rope_scaling: RopeScaling | None = None
  rms_norm_eps: float = 1e-6
  initializer_range: float = 0.006
  mtp_hidden: Literal["pre_norm", "post_norm"] = "post_norm"

  def __post_init__(self):
    positive = (
      "vocab_size hidden_size intermediate_size moe_intermediate_size "
      "num_hidden_layers num_attention_heads kv_lora_rank qk_nope_head_dim "
      "qk_rope_head_dim v_head_dim n_routed_experts num_experts_per_tok "
      "n_group topk_group max_position_embeddings"
    )
    for field in positive.split():
      if getattr(self, field) <= 0:
        _refuse(field, getattr(self, field), "a positive number", "raise it")
    self._check_routing()
    if self.qk_rope_head_dim % 2:
      _refuse(
        "qk_rope_head_dim", self.qk_rope_head_dim, "an even number", "add one"
      )
    if not 0 <= self.first_k_dense_replace <= self.num_hidden_layers:
      _refuse(
        "first_k_dense_replace",
        self.first_k_dense_replace,
        f"0 to num_hidden_layers={self.num_hidden_layers}",
        "lower it or add layers",
      )

  def _check_routing(self) -> None:
    if self.scoring_func not in ("sigmoid", "softmax"):
      _refuse("scoring_func", self.scoring_func, "sigmoid or softmax", "fix it")
    methods = ("noaux_tc", "group_limited_greedy", "greedy")
    if self.topk_method not in methods:
      _refuse("topk_method", self.topk_method, " or ".join(methods), "fix it")
    if self.mtp_hidden not in ("pre_norm", "post_norm"):
      _refuse("mtp_hidden", self.mtp_hidden, "pre_norm or post_norm", "fix it")
    if self.n_routed_experts % self.n_group:
      _refuse(
        "n_group",
        self.n_group,
        f"a divisor of n_routed_experts={self.n_routed_experts}",
        "change either",
      )
    if self.topk_group > self.n_group:
      _refuse(
        "topk_group",
        self.topk_group,
        f"at most n_group={self.n_group}",
        "lower it",
      )
    reachable = self.n_routed_experts // self.n_group * self.topk_group
    if self.num_experts_per_tok > reachable:
      _refuse(
        "num_experts_per_tok",
        self.num_experts_per_tok,
        f"at most the {reachable} experts of {self.topk_group} groups",
        "raise topk_group or lower it",
      )

  @property
  def num_moe_layers(self) -> int:
    """Main layers with experts."""
    return self.num_hidden_layers - self.first_k_dense_replace

  @property
  def expert_layers(self) -> list[str]:
    """Names of the layers with experts, MTP modules last: `3`, ..., `mtp_0`."""
    main = range(self.first_k_dense_replace, self.num_hidden_layers)
    modules = range(self.num_nextn_predict_layers)
    return [*map(str, main), *(f"mtp_{k}" for k in modules)]

  @property
  def qk_head_dim(self) -> int:
    """K, the whole width of a query/key head."""
    return self.qk_nope_head_dim + self.qk_rope_head_dim

  @property
  def has_router_bias(self) -> bool:
    """Whether routing is balanced by a bias (V3) and not by losses alone."""
    return self.topk_method == "noaux_tc"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dispatch:
  """How tokens travel to experts that are spread over `node` x `local`.

  Attributes:
    transport: `two_hop` sends each token once to every node it needs, to the
      device of its own place there, which fans it out (section 3.2.2); `flat`
      sends it to every device it needs, whatever the node; `auto` is `two_hop`
      where both axes are larger than 1.
    wire: `padded` sends whole buffers, `ragged` only the rows in use
      (`ragged_all_to_all`, which a CPU does not have); `auto` is `ragged` on
      TPU and GPU.
    capacity_factor: room in the buffers, as a multiple of what perfectly
      balanced experts need; None gives them room for the worst case.
    overflow: what happens to copies without room: they travel in further
      `rounds`, so that nothing is dropped, or they `drop`, and are counted.
    dtype: in which activations travel to the experts, and gradients back
      through the sum over them: `compute`, or `float8` with one power of two
      per 128 values (section 3.3.3). Results travel in the compute dtype.
  """

  transport: Literal["auto", "two_hop", "flat"] = "auto"
  wire: Literal["auto", "padded", "ragged"] = "auto"
  capacity_factor: float | None = None
  overflow: Literal["rounds", "drop"] = "rounds"
  dtype: Literal["compute", "float8"] = "compute"

  def __post_init__(self):
    for field, allowed in (
      ("transport", ("auto", "two_hop", "flat")),
      ("wire", ("auto", "padded", "ragged")),
      ("overflow", ("rounds", "drop")),
      ("dtype", ("compute", "float8")),
    ):
      if getattr(self, field) not in allowed:
        _refuse(field, getattr(self, field), " or ".join(allowed), "fix it")
    factor = self.capacity_factor
    if factor is not None and not factor > 0:
      _refuse(
        "capacity_factor",
        factor,
        "a positive multiple of the mean, or None",
        "1.5 is usual",
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Execution:
  """How a model is run.

  Attributes:
    remat: what backward recomputes. `none` keeps every activation, `paper`
      recomputes RMSNorm, SwiGLU and the MLA up-projections (section 3.2.3),
      `full` keeps only the layers' inputs.
    unroll_layers: whether the layer loop is unrolled (faster steps on a CPU,
      longer compilation). Parameters are stacked either way.
    attention: implementation of `ops.attention`.
    experts: implementation of `ops.expert_mlp`.
    dispatch: how tokens travel to experts on other devices.
    overlap: `two_batches` halves every device's batch, so that one half's
      attention and experts can run while the other's tokens travel (sections
      3.2.1 and 3.4.1).
  """

  remat: Literal["none", "paper", "full"] = "none"
  unroll_layers: bool = False
  attention: str = "auto"
  experts: str = "auto"
  dispatch: Dispatch = Dispatch()
  overlap: Literal["none", "two_batches"] = "none"

  def __post_init__(self):
    if self.remat not in ("none", "paper", "full"):
      _refuse("remat", self.remat, "none, paper or full", "fix it")
    if self.overlap not in ("none", "two_batches"):
      _refuse("overlap", self.overlap, "none or two_batches", "fix it")
