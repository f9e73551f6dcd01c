"""Dense models of toy size, in dsx's words and made by transformers."""

import os

# Before transformers is imported: tests must not reach for the network.
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers

_SIZES = {
  "vocab_size": 96,
  "hidden_size": 64,
  "intermediate_size": 80,
  "num_hidden_layers": 3,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "max_position_embeddings": 64,
  "rms_norm_eps": 1e-6,
}
_LLAMA3 = {
  "rope_type": "llama3",
  "rope_theta": 500.0,
  "factor": 8.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 32,
}
_YARN = {
  "rope_type": "yarn",
  "rope_theta": 1000.0,
  "factor": 4.0,
  "original_max_position_embeddings": 16,
}
_PLAIN = {"rope_type": "default", "rope_theta": 1000.0}
# (class of transformers, its config, what differs from `_SIZES`)
CASES = {
  "qwen2": ("Qwen2", {"rope_parameters": _PLAIN}),
  "qwen2_tied": (
    "Qwen2",
    {"rope_parameters": _PLAIN, "tie_word_embeddings": 1},
  ),
  "qwen2_yarn": ("Qwen2", {"rope_parameters": _YARN}),
  "qwen3": ("Qwen3", {"rope_parameters": _PLAIN, "head_dim": 24}),
  "llama": ("Llama", {"rope_parameters": _PLAIN, "num_key_value_heads": 4}),
  "llama3": ("Llama", {"rope_parameters": _LLAMA3, "head_dim": 32}),
}


def made(case: str):
  """A model of transformers, its weights random, its norms and biases too."""
  torch.manual_seed(0)
  name, more = CASES[case]
  fields = {**_SIZES, **more}
  fields["tie_word_embeddings"] = bool(fields.get("tie_word_embeddings"))
  config = getattr(transformers, f"{name}Config")(**fields)
  config._attn_implementation = "eager"
  model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
  generator = torch.Generator().manual_seed(1)
  with torch.no_grad():
    for parameter_name, parameter in model.named_parameters():
      noise = torch.randn(parameter.shape, generator=generator)
      if "norm" in parameter_name:
        parameter.copy_(1 + 0.3 * noise)
      else:
        parameter.copy_(0.2 * noise)
  return model
