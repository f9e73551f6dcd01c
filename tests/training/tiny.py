"""A model of a few thousand parameters with every part of DeepSeek-V3."""

import numpy as np

from dsx.models import config


def model_config(**changes) -> config.DeepSeekConfig:
  """MLA with compressed queries, grouped sigmoid routing, one MTP module."""
  fields = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 2,
    "first_k_dense_replace": 1,
    "num_nextn_predict_layers": 1,
    "num_attention_heads": 2,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "n_routed_experts": 8,
    "n_group": 4,
    "topk_group": 2,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.05,
  }
  return config.DeepSeekConfig(**(fields | changes))


def tokens(*shape: int, seed: int = 0) -> np.ndarray:
  """Random tokens of the tiny vocabulary."""
  rng = np.random.default_rng(seed)
  return rng.integers(0, 64, shape).astype(np.int32)


def scalars(**changes) -> dict:
  """The numbers of one step."""
  values = {
    "learning_rate": np.float32(1e-3),
    "bias_update_speed": np.float32(0.001),
    "balance_weight": np.float32(1e-2),
    "mtp_weight": np.float32(0.3),
    "micro_batches": np.int32(1),
  }
  return values | changes
