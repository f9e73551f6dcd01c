"""The names of a model's parts, as recipes of FP8 call them.

A rule whose pattern has a misspelt name would leave a layer in another
precision than its author thinks, and no loss would show it; so a run's rules
are held against the names that its model has.
"""

from dsx.models import dense_config
from dsx.ops import dtypes as dtypes_lib

_SWIGLU = ("gate_proj", "up_proj", "down_proj")


def check(config: dense_config.Config, dtypes: dtypes_lib.Dtypes) -> None:
  """Refuses rules that decide for no part of the model.

  Raises:
    ValueError: says which.
  """
  if dtypes.fp8 is not None:
    dtypes.fp8.check_names(names(config))


def names(config: dense_config.Config) -> tuple[str, ...]:
  """Of everything that a recipe decides for."""
  c = config
  found = ["embed_tokens", "norm", "lm_head"]
  if c.first_k_dense_replace:
    found += _block(c, "dense_layers", dense=True)
  if c.num_moe_layers:
    found += _block(c, "moe_layers", dense=False)
  for k in range(c.num_nextn_predict_layers):
    module = f"mtp_{k}"
    own = ("enorm", "hnorm", "eh_proj", "norm")
    found += [f"{module}/{name}" for name in own]
    found += _block(c, f"{module}/block", dense=False)
  return tuple(found)


def _block(config, place: str, *, dense: bool) -> list[str]:
  queries = ("q_proj",)
  if isinstance(config, dense_config.DenseConfig):
    keys = ("k_proj", "v_proj")
    keys += ("q_norm", "k_norm") if config.qk_norm else ()
  else:
    if config.q_lora_rank is not None:
      queries = ("q_a_proj", "q_a_layernorm", "q_b_proj")
    keys = ("kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj")
  attention = (*queries, *keys, "attention_core", "o_proj")
  if dense:
    feed_forward = _SWIGLU
  else:
    feed_forward = ("gate", "experts")
    if config.n_shared_experts:
      feed_forward += tuple(f"shared_experts/{name}" for name in _SWIGLU)
  return [
    f"{place}/{name}"
    for name in (
      "input_layernorm",
      *(f"self_attn/{name}" for name in attention),
      "post_attention_layernorm",
      *(f"mlp/{name}" for name in feed_forward),
    )
  ]
