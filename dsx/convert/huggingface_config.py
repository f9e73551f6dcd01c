"""`config.json` of a checkpoint, to and from a config.

Of Qwen's and Llama's, see `huggingface_dense`. Of DeepSeek's:

The field names are the same; what differs is where rotary settings are kept
(`rope_theta` and `rope_scaling` in DeepSeek's files, `rope_parameters` in
those of transformers 5), what an architecture implies (V3 files written by
transformers do not say `sigmoid`), and two conventions of DeepSeek's code:

- a YaRN entry without `mscale_all_dim` means 0 (no softmax temperature);
- DeepSeek-V2's router, if `norm_topk_prob` is set, normalises *instead of*
  multiplying by `routed_scaling_factor`. dsx, like V3, does both, so such a
  file is read with a factor of 1. (No released model has this setting, and
  transformers ignores `norm_topk_prob` in V2.)
"""

import dataclasses
import pathlib
from typing import Any

from absl import logging

from dsx.convert import config_fields
from dsx.convert import folder as folder_lib
from dsx.convert import huggingface_dense
from dsx.models import config as config_lib
from dsx.models import dense_config
from dsx.models import language_model

V2, V3 = "DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM"

_INTEGERS = (
  "vocab_size hidden_size intermediate_size moe_intermediate_size "
  "num_hidden_layers first_k_dense_replace num_attention_heads kv_lora_rank "
  "qk_nope_head_dim qk_rope_head_dim v_head_dim n_routed_experts "
  "num_experts_per_tok max_position_embeddings"
).split()
_FLOATS = ("routed_scaling_factor", "rms_norm_eps", "initializer_range")
# Null (or absence, but for q_lora_rank) means the value given here.
_OPTIONAL_INTEGERS = {
  "n_shared_experts": 0,
  "n_group": 1,
  "topk_group": 1,
  "num_nextn_predict_layers": 0,
}
# Settings of the architecture that dsx has in one form only.
_FIXED = {
  "attention_bias": False,
  "mlp_bias": False,
  "hidden_act": "silu",
  "tie_word_embeddings": False,
  "rope_interleave": True,
  "moe_layer_freq": 1,
}
_ROPE_FIELDS = tuple(
  field.name for field in dataclasses.fields(config_lib.RopeScaling)
)
_ROPE_DEFAULTS = {
  "beta_fast": 32.0,
  "beta_slow": 1.0,
  "mscale": 1.0,
  "mscale_all_dim": 0.0,
}


def read(folder: pathlib.Path) -> language_model.Config:
  """Reads `config.json`.

  Args:
    folder: the checkpoint folder.

  Returns:
    The config, of a DeepSeek or a dense model; MTP modules are counted as the
    file says, whether or not the checkpoint holds them.

  Raises:
    ValueError: if the architecture is another one, or a field is missing, of
      the wrong type or has a value that dsx does not implement.
  """
  path = folder / folder_lib.CONFIG
  fields = config_fields.Fields(
    path, folder_lib.read_json(folder, folder_lib.CONFIG)
  )
  if huggingface_dense.is_dense(fields):
    return huggingface_dense.read(fields)
  architecture = _architecture(fields)
  for field, value in _FIXED.items():
    fields.choice(field, (value,), default=value)
  heads = fields.raw.get("num_attention_heads")
  fields.choice("num_key_value_heads", (heads,), default=heads)
  values: dict[str, Any] = {f: fields.integer(f) for f in _INTEGERS}
  values |= {field: fields.number(field) for field in _FLOATS}
  for field, default in _OPTIONAL_INTEGERS.items():
    absent = fields.raw.get(field) is None
    values[field] = default if absent else fields.integer(field)
  values |= _routing(fields, architecture)
  values["q_lora_rank"] = _query_rank(fields)
  values["rope_theta"], values["rope_scaling"] = _rope(fields)
  values["mtp_hidden"] = fields.choice(
    "mtp_hidden", ("post_norm", "pre_norm"), default="post_norm"
  )
  try:
    return config_lib.DeepSeekConfig(**values)
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from error


def _architecture(fields: config_fields.Fields) -> str:
  names = fields.raw.get("architectures")
  if names not in ([V2], [V3]):
    known = " or ".join(f"[{n!r}]" for n in (V2, V3, *huggingface_dense.NAMES))
    fields.fail("architectures", known, "dsx loads no other model")
  return names[0]


def _query_rank(fields: config_fields.Fields) -> int | None:
  # No default: V2 has a rank, V2-Lite says null, and silence is ambiguous.
  if "q_lora_rank" in fields.raw and fields.raw["q_lora_rank"] is None:
    return None
  return fields.integer("q_lora_rank")


def _routing(fields: config_fields.Fields, architecture: str) -> dict:
  normalised = fields.choice("norm_topk_prob", (True, False))
  if architecture == V3:
    return {
      "scoring_func": fields.choice("scoring_func", ("sigmoid",), "sigmoid"),
      "topk_method": fields.choice("topk_method", ("noaux_tc",), "noaux_tc"),
      "norm_topk_prob": normalised,
    }
  values = {
    "scoring_func": fields.choice("scoring_func", ("softmax",), "softmax"),
    "topk_method": fields.choice(
      "topk_method", ("greedy", "group_limited_greedy")
    ),
    "norm_topk_prob": normalised,
  }
  factor = fields.number("routed_scaling_factor")
  if normalised and factor != 1:
    logging.warning(
      "%s: DeepSeek-V2 with norm_topk_prob ignores routed_scaling_factor=%g",
      fields.path,
      factor,
    )
    values["routed_scaling_factor"] = 1.0
  return values


def _rope(
  fields: config_fields.Fields,
) -> tuple[float, config_lib.RopeScaling | None]:
  """(theta, scaling), from `rope_parameters` or the two older fields."""
  new = fields.raw.get("rope_parameters")
  if new is None:
    return fields.number("rope_theta"), _scaling(fields, "rope_scaling")
  scaling = _scaling(fields, "rope_parameters")
  old = fields.raw.get("rope_scaling")
  if old is not None and _scaling(fields, "rope_scaling") != scaling:
    fields.fail(
      "rope_scaling", "the same as rope_parameters", "remove one of them"
    )
  nested = config_fields.Fields(fields.path / "rope_parameters", new)
  return nested.number("rope_theta"), scaling


def _scaling(
  fields: config_fields.Fields, field: str
) -> config_lib.RopeScaling | None:
  raw = fields.raw.get(field)
  if raw is None:
    return None
  if not isinstance(raw, dict):
    fields.fail(field, "an object or null", "fix it")
  nested = config_fields.Fields(fields.path / field, raw)
  kinds = [raw[key] for key in ("type", "rope_type") if key in raw]
  if kinds and all(kind == "default" for kind in kinds):
    return None
  if not kinds or any(kind != "yarn" for kind in kinds):
    fields.fail(field, "type 'yarn' or 'default'", "dsx has no other scaling")
  known = (*_ROPE_FIELDS, "type", "rope_type", "rope_theta")
  unknown = [k for k in raw if k not in known and raw[k] is not None]
  if unknown:
    nested.fail(unknown[0], "only DeepSeek's fields", "remove it")
  values: dict[str, Any] = {
    name: default if raw.get(name) is None else nested.number(name)
    for name, default in _ROPE_DEFAULTS.items()
  }
  context = "original_max_position_embeddings"
  return config_lib.RopeScaling(
    factor=nested.number("factor"),
    **{context: nested.integer(context)},
    **values,
  )


def to_json(config: language_model.Config, dtype: str) -> dict:
  """`config.json` of a config, as its model's makers write it.

  Args:
    config: the model.
    dtype: dtype of the weights, for readers that ask.

  Returns:
    The file's content; `read` gives the same config again.

  Raises:
    ValueError: if neither architecture can express the config.
  """
  if isinstance(config, dense_config.DenseConfig):
    return huggingface_dense.to_json(config, dtype)
  architecture = _architecture_of(config)
  values = dataclasses.asdict(config)
  scaling = values.pop("rope_scaling")
  if scaling is not None:
    scaling = {"type": "yarn", **scaling}
  if values["mtp_hidden"] == "post_norm":
    del values["mtp_hidden"]  # the default, and no field of DeepSeek's
  model_type = "deepseek_v3" if architecture == V3 else "deepseek_v2"
  return {
    "architectures": [architecture],
    "model_type": model_type,
    **values,
    **_FIXED,
    "num_key_value_heads": config.num_attention_heads,
    "rope_scaling": scaling,
    "torch_dtype": dtype,
  }


def _architecture_of(config: config_lib.DeepSeekConfig) -> str:
  kind = (config.scoring_func, config.topk_method)
  if kind == ("sigmoid", "noaux_tc"):
    return V3
  remedy = "change the config or keep the model in dsx's own checkpoints"
  if config.scoring_func != "softmax" or config.topk_method == "noaux_tc":
    raise ValueError(
      f"scoring_func={kind[0]!r}, topk_method={kind[1]!r}: {V3} is sigmoid "
      f"with noaux_tc, {V2} softmax without; {remedy}"
    )
  if config.num_nextn_predict_layers:
    raise ValueError(
      f"num_nextn_predict_layers={config.num_nextn_predict_layers}: {V2} has "
      f"no MTP modules; {remedy}"
    )
  if config.norm_topk_prob and config.routed_scaling_factor != 1:
    raise ValueError(
      f"routed_scaling_factor={config.routed_scaling_factor}: {V2} ignores it "
      f"with norm_topk_prob; {remedy}"
    )
  return V2
