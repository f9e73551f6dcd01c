"""Models small enough for loops in numpy, with every part of DeepSeek-V3."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from dsx.models import config as config_lib
from dsx.models import deepseek
from dsx.parallel import sharding

VOCAB = 29

V2 = {
  "scoring_func": "softmax",
  "topk_method": "group_limited_greedy",
  "norm_topk_prob": False,
  "num_nextn_predict_layers": 0,
}

# Changes of `config` that between them reach every branch of the model.
VARIANTS = {
  "v3": {},
  "v3_no_query_rank": {"q_lora_rank": None, "n_shared_experts": 2},
  "v3_unnormalised": {"norm_topk_prob": False, "first_k_dense_replace": 0},
  "v3_yarn": {
    "rope_scaling": config_lib.RopeScaling(
      factor=8.0, original_max_position_embeddings=16, beta_fast=4.0, mscale=0.7
    )
  },
  "v3_no_shared_expert": {"n_shared_experts": 0, "topk_group": 4},
  "v3_dense": {"first_k_dense_replace": 3, "num_nextn_predict_layers": 0},
  "v2": V2,
  "v2_greedy": {**V2, "topk_method": "greedy", "routed_scaling_factor": 1.0},
}


def config(**changes) -> config_lib.DeepSeekConfig:
  """Three layers, one of them dense, and one MTP module."""
  fields = {
    "vocab_size": VOCAB,
    "hidden_size": 12,
    "intermediate_size": 20,
    "moe_intermediate_size": 8,
    "num_hidden_layers": 3,
    "first_k_dense_replace": 1,
    "num_nextn_predict_layers": 1,
    "num_attention_heads": 2,
    "q_lora_rank": 10,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 5,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "max_position_embeddings": 64,
    "rope_theta": 100.0,
  }
  return config_lib.DeepSeekConfig(**(fields | changes))


@functools.cache
def apply(config: config_lib.DeepSeekConfig, **kwargs):
  """`DeepSeek(config, **kwargs).apply`, compiled once for all tests."""
  return jax.jit(deepseek.DeepSeek(config, **kwargs).apply)


@functools.cache
def variables(config: config_lib.DeepSeekConfig):
  """Random float32 variables with which every part moves the output."""
  model = deepseek.DeepSeek(config)
  tokens = jax.ShapeDtypeStruct((1, 3), jnp.int32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)
  rng = np.random.default_rng(0)

  def leaf(path, shape):
    noise = rng.normal(size=shape.shape)
    name = path[-1].key
    if name == "scale":
      noise = 1 + 0.3 * noise
    elif name == "e_score_correction_bias":
      noise = 0.2 * noise
    elif name != "embedding":
      noise = 1.3 * noise / shape.shape[-2] ** 0.5
    return jnp.asarray(noise, jnp.float32)

  return jax.tree_util.tree_map_with_path(leaf, sharding.unbox(shapes))


def tokens(*shape: int, seed: int = 0):
  """Random tokens of the tiny vocabulary."""
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.integers(0, VOCAB, shape), jnp.int32)


def layer(tree, index: int):
  """The parameters of one layer of a stack."""
  return jax.tree.map(lambda x: x[index], tree)
