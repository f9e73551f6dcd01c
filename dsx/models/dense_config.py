"""What a dense model is: the students of DeepSeek-R1's distillation.

Qwen2 (with Qwen2.5), Qwen3 and Llama (3, 3.1, 3.3) differ in little more than
which projections have a bias, whether queries and keys are normalised, and how
RoPE is stretched. The fields bear the names of their published `config.json`
files; the defaults are Qwen2.5-Math-1.5B's, the smallest of R1's students.

The properties answer what is asked of any model, `config.DeepSeekConfig`
among them: a dense model has no experts and no MTP modules.

This module imports nothing but the standard library and `config`.
"""

import dataclasses

from dsx.models import config as config_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
  """RoPE of Llama 3.1: low frequencies divided, high ones kept.

  Attributes:
    factor: by which frequencies are divided that turn too seldom.
    low_freq_factor: fewer turns over the original context than this are too
      few.
    high_freq_factor: so many are enough; between both, a straight line.
    original_max_position_embeddings: context of pretraining, in tokens.
  """

  factor: float = 8.0
  low_freq_factor: float = 1.0
  high_freq_factor: float = 4.0
  original_max_position_embeddings: int = 8192

  def __post_init__(self):
    if self.factor < 1:
      raise ValueError(
        f"factor={self.factor!r}: expected at least 1; use rope_scaling=None"
      )
    if not 0 < self.low_freq_factor < self.high_freq_factor:
      raise ValueError(
        f"low_freq_factor={self.low_freq_factor!r}: expected more than 0 and "
        f"less than high_freq_factor={self.high_freq_factor!r}; change either"
      )
    if self.original_max_position_embeddings < 1:
      raise ValueError(
        "original_max_position_embeddings="
        f"{self.original_max_position_embeddings!r}: expected a positive "
        "number of tokens; give the context length of pretraining"
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenseConfig:
  """Shape of a dense decoder with grouped-query attention.

  Attributes:
    vocab_size: V, rows of the embedding and of the output head.
    hidden_size: D, width of the residual stream.
    intermediate_size: F.
    num_hidden_layers: layers.
    num_attention_heads: H, query heads.
    num_key_value_heads: heads of keys and values; each serves as many query
      heads as any other.
    head_dim: K, width of a head.
    attention_bias: whether queries, keys and values have a bias (Qwen2).
    qk_norm: whether queries and keys are normalised, head by head (Qwen3).
    tie_word_embeddings: whether the embedding is the output head, too.
    max_position_embeddings: longest context that the model is used at.
    rope_theta: base of the rotary frequencies.
    rope_scaling: Llama 3.1's, YaRN, or None for plain RoPE.
    rms_norm_eps: epsilon of every RMSNorm.
    initializer_range: standard deviation of the initial weights.
  """

  vocab_size: int = 151936
  hidden_size: int = 1536
  intermediate_size: int = 8960
  num_hidden_layers: int = 28
  num_attention_heads: int = 12
  num_key_value_heads: int = 2
  head_dim: int = 128
  attention_bias: bool = True
  qk_norm: bool = False
  tie_word_embeddings: bool = True
  max_position_embeddings: int = 4096
  rope_theta: float = 10000.0
  rope_scaling: Llama3Scaling | config_lib.RopeScaling | None = None
  rms_norm_eps: float = 1e-6
  initializer_range: float = 0.02

  def __post_init__(self):
    positive = (
      "vocab_size hidden_size intermediate_size num_hidden_layers "
      "num_attention_heads num_key_value_heads head_dim "
      "max_position_embeddings"
    )
    for field in positive.split():
      if getattr(self, field) <= 0:
        raise ValueError(
          f"{field}={getattr(self, field)!r}: expected a positive number; "
          "raise it"
        )
    if self.num_attention_heads % self.num_key_value_heads:
      raise ValueError(
        f"num_key_value_heads={self.num_key_value_heads}: expected a divisor "
        f"of num_attention_heads={self.num_attention_heads}; change either"
      )
    if self.head_dim % 2:
      raise ValueError(
        f"head_dim={self.head_dim}: expected an even number, because RoPE "
        "turns pairs; change it"
      )

  # What is asked of any model.

  @property
  def first_k_dense_replace(self) -> int:
    """Dense layers: all of them."""
    return self.num_hidden_layers

  @property
  def num_moe_layers(self) -> int:
    """Layers with experts: none."""
    return 0

  @property
  def n_routed_experts(self) -> int:
    """Routed experts: none."""
    return 0

  @property
  def n_shared_experts(self) -> int:
    """Shared experts: none."""
    return 0

  @property
  def num_experts_per_tok(self) -> int:
    """Experts that a token is sent to: none."""
    return 0

  @property
  def moe_intermediate_size(self) -> int:
    """F of an expert, of which there are none."""
    return 0

  @property
  def num_nextn_predict_layers(self) -> int:
    """MTP modules: none."""
    return 0

  @property
  def expert_layers(self) -> list[str]:
    """Names of layers with experts: none."""
    return []

  @property
  def has_router_bias(self) -> bool:
    """Whether there are routers with a bias."""
    return False

  @property
  def qk_head_dim(self) -> int:
    """K, the whole width of a query/key head."""
    return self.head_dim

  @property
  def v_head_dim(self) -> int:
    """U, the width of a value head."""
    return self.head_dim


# Of any language model.
Config = config_lib.DeepSeekConfig | DenseConfig


def only_deepseek(config: Config, place: object) -> config_lib.DeepSeekConfig:
  """`config`, for what can be done with DeepSeek's models alone.

  Args:
    config: of any model.
    place: where it is from, for the message.

  Raises:
    ValueError: it is of a dense one.
  """
  if isinstance(config, DenseConfig):
    raise ValueError(
      f"{place}: found a dense model, expected a DeepSeek model: dsx trains, "
      "evaluates and converts dense ones, and does not decode them with a "
      "cache; convert it with experiments.convert and serve it elsewhere"
    )
  return config
