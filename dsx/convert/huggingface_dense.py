"""`config.json` of Qwen2, Qwen3 and Llama, to and from `DenseConfig`.

Which of the three it is follows from two settings and back: Qwen2 has biases
on queries, keys and values, Qwen3 normalises queries and keys, Llama has
neither. Sliding windows, which some Qwen models announce and none of R1's
students uses, are refused, as are biases elsewhere.
"""

import dataclasses
from typing import Any

from dsx.convert import config_fields
from dsx.models import config as config_lib
from dsx.models import dense_config

QWEN2, QWEN3 = "Qwen2ForCausalLM", "Qwen3ForCausalLM"
LLAMA = "LlamaForCausalLM"
NAMES = (QWEN2, QWEN3, LLAMA)

_TYPES = {QWEN2: "qwen2", QWEN3: "qwen3", LLAMA: "llama"}
_INTEGERS = (
  "vocab_size hidden_size intermediate_size num_hidden_layers "
  "num_attention_heads max_position_embeddings"
).split()
_FLOATS = ("rms_norm_eps", "initializer_range")
_FIXED = {
  "attention_bias": False,
  "mlp_bias": False,
  "hidden_act": "silu",
  "use_sliding_window": False,
}
_YARN = ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow")
_LLAMA3 = tuple(
  field.name for field in dataclasses.fields(dense_config.Llama3Scaling)
)
_KINDS = ("type", "rope_type", "rope_theta")


def is_dense(fields: config_fields.Fields) -> bool:
  """Whether the architecture is one of `NAMES`."""
  return fields.raw.get("architectures") in [[name] for name in NAMES]


def read(fields: config_fields.Fields) -> dense_config.DenseConfig:
  """The config of a file for which `is_dense`.

  Raises:
    ValueError: a field is missing, of the wrong type or has a value that dsx
      does not implement.
  """
  (architecture,) = fields.raw["architectures"]
  for field, value in _FIXED.items():
    fields.choice(field, (value,), default=value)
  kinds = fields.raw.get("layer_types") or ()
  if any(kind != "full_attention" for kind in kinds):
    fields.fail("layer_types", "'full_attention' alone", "dsx has no other")
  values: dict[str, Any] = {name: fields.integer(name) for name in _INTEGERS}
  values |= {name: fields.number(name) for name in _FLOATS}
  heads = values["num_attention_heads"]
  shared = fields.raw.get("num_key_value_heads") is None
  values["num_key_value_heads"] = (
    heads if shared else fields.integer("num_key_value_heads")
  )
  values["head_dim"] = _head_dim(fields, values)
  values["attention_bias"] = architecture == QWEN2
  values["qk_norm"] = architecture == QWEN3
  values["tie_word_embeddings"] = fields.choice(
    "tie_word_embeddings", (True, False), default=False
  )
  values["rope_theta"], values["rope_scaling"] = _rope(fields)
  try:
    return dense_config.DenseConfig(**values)
  except ValueError as error:
    raise ValueError(f"{fields.path}: {error}") from error


def _head_dim(fields: config_fields.Fields, values: dict) -> int:
  if fields.raw.get("head_dim") is not None:
    return fields.integer("head_dim")
  width, heads = values["hidden_size"], values["num_attention_heads"]
  if heads < 1 or width % heads:
    fields.fail(
      "num_attention_heads",
      f"a divisor of hidden_size={width}, without head_dim",
      "give the checkpoint's own config.json",
    )
  return width // heads


def _rope(fields: config_fields.Fields):
  """(theta, scaling), from `rope_parameters` or the two older fields."""
  new = fields.raw.get("rope_parameters")
  if new is None:
    return fields.number("rope_theta"), _scaling(fields, "rope_scaling")
  scaling = _scaling(fields, "rope_parameters")
  nested = config_fields.Fields(fields.path / "rope_parameters", new)
  return nested.number("rope_theta"), scaling


def _scaling(fields: config_fields.Fields, field: str):
  raw = fields.raw.get(field)
  if raw is None:
    return None
  if not isinstance(raw, dict):
    fields.fail(field, "an object or null", "fix it")
  nested = config_fields.Fields(fields.path / field, raw)
  kinds = {raw[key] for key in ("type", "rope_type") if key in raw}
  if kinds == {"default"}:
    return None
  if kinds == {"llama3"}:
    known = _LLAMA3
  elif kinds == {"yarn"}:
    known = _YARN
  else:
    fields.fail(field, "type 'llama3', 'yarn' or 'default'", "dsx has no other")
  unknown = [
    k for k in raw if k not in (*known, *_KINDS) and raw[k] is not None
  ]
  if unknown:
    nested.fail(unknown[0], f"only {', '.join(known)}", "remove it")
  context = "original_max_position_embeddings"
  given: dict[str, Any] = {
    name: nested.integer(name) if name == context else nested.number(name)
    for name in known
    if name in ("factor", context) or raw.get(name) is not None
  }
  if known is _LLAMA3:
    return dense_config.Llama3Scaling(**given)
  # Cosines and sines take YaRN's whole temperature here, the softmax none.
  return config_lib.RopeScaling(**given, mscale=1.0, mscale_all_dim=0.0)


def to_json(config: dense_config.DenseConfig, dtype: str) -> dict:
  """`config.json` of a config, as its makers write it.

  Args:
    config: the model.
    dtype: dtype of the weights, for readers that ask.

  Raises:
    ValueError: if no architecture can express the config.
  """
  c = config
  if c.attention_bias and c.qk_norm:
    raise ValueError(
      f"attention_bias=True, qk_norm=True: expected {QWEN2}'s biases, "
      f"{QWEN3}'s norms or neither ({LLAMA}); change the config or keep the "
      "model in dsx's own checkpoints"
    )
  architecture = QWEN2 if c.attention_bias else QWEN3 if c.qk_norm else LLAMA
  if architecture == QWEN2 and c.head_dim * c.num_attention_heads != (
    c.hidden_size
  ):
    raise ValueError(
      f"head_dim={c.head_dim}: expected hidden_size / num_attention_heads = "
      f"{c.hidden_size / c.num_attention_heads:g}, because {QWEN2} has no "
      "field for it; change the config or keep the model in dsx's own "
      "checkpoints"
    )
  names = (*_INTEGERS, *_FLOATS, "num_key_value_heads", "head_dim")
  fixed = dict(_FIXED)
  if architecture == LLAMA:
    del fixed["use_sliding_window"]
  else:
    del fixed["mlp_bias"]
  if architecture == QWEN2:
    del fixed["attention_bias"]
  return {
    "architectures": [architecture],
    "model_type": _TYPES[architecture],
    **{name: getattr(c, name) for name in names},
    **fixed,
    "tie_word_embeddings": c.tie_word_embeddings,
    "rope_theta": c.rope_theta,
    "rope_scaling": _scaling_json(c.rope_scaling),
    "torch_dtype": dtype,
  }


def _scaling_json(scaling) -> dict | None:
  if scaling is None:
    return None
  if isinstance(scaling, dense_config.Llama3Scaling):
    return {"rope_type": "llama3", **dataclasses.asdict(scaling)}
  if (scaling.mscale, scaling.mscale_all_dim) != (1.0, 0.0):
    raise ValueError(
      f"mscale={scaling.mscale}, mscale_all_dim={scaling.mscale_all_dim}: "
      "expected 1 and 0, as dense models have YaRN; change the config"
    )
  return {
    "rope_type": "yarn",
    **{name: getattr(scaling, name) for name in _YARN},
  }
