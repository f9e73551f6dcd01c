"""DeepSeek-V3 from the report's equations: float64 numpy and loops.

Written to be compared with the report line by line, for one sequence and one
token at a time, and sharing nothing with `dsx` but the parameter tree. Rotary
pairs are complex numbers; experts are chosen by sorting.
"""

import math

import numpy as np


def rms_norm(x, scale, eps):
  """x [D] over its root mean square."""
  return x / math.sqrt(np.mean(x * x) + eps) * scale


def silu(x):
  return x / (1 + np.exp(-x))


def swiglu(p, x):
  """down(silu(gate x) * up x), x [D]."""
  gate, up = x @ p["gate_proj"]["kernel"], x @ p["up_proj"]["kernel"]
  return (silu(gate) * up) @ p["down_proj"]["kernel"]


def temperature(factor, mscale):
  return 0.1 * mscale * math.log(factor) + 1 if factor > 1 else 1.0


def rotary(c, x, position):
  """RoPE of x [R], whose even and odd elements are complex coordinates."""
  pairs = x[0::2] + 1j * x[1::2]
  width, yarn = c.qk_rope_head_dim, c.rope_scaling
  turned = []
  for i, pair in enumerate(pairs):
    angle = position * c.rope_theta ** (-2 * i / width)
    if yarn is not None:
      # Dimensions that turn beta_fast times or more within the original
      # context stay, those that turn beta_slow times or less are stretched.
      def index(turns):
        period = yarn.original_max_position_embeddings / turns
        return (width / 2) * math.log(period / (2 * math.pi), c.rope_theta)

      low = max(math.floor(index(yarn.beta_fast)), 0)
      high = min(math.ceil(index(yarn.beta_slow)), width - 1)
      stretched = min(max((i - low) / max(high - low, 0.001), 0), 1)
      angle *= (1 - stretched) + stretched / yarn.factor
      pair *= temperature(yarn.factor, yarn.mscale)
      pair /= temperature(yarn.factor, yarn.mscale_all_dim)
    turned.append(pair * np.exp(1j * angle))
  return np.array([f(z) for z in turned for f in (np.real, np.imag)])


def mla(c, p, h, segments=None):
  """Multi-head latent attention of h [L, D] (eq. 1 to 11)."""
  length, heads, nope = len(h), c.num_attention_heads, c.qk_nope_head_dim
  scale = 1 / math.sqrt(nope + c.qk_rope_head_dim)
  if c.rope_scaling is not None:
    yarn = c.rope_scaling
    scale *= temperature(yarn.factor, yarn.mscale_all_dim) ** 2
  queries, keys, values = [], [], []
  for t in range(length):
    if c.q_lora_rank is None:
      q = h[t] @ p["q_proj"]["kernel"]
    else:
      latent = h[t] @ p["q_a_proj"]["kernel"]  # eq. 6
      latent = rms_norm(latent, p["q_a_layernorm"]["scale"], 1e-6)
      q = latent @ p["q_b_proj"]["kernel"]  # eq. 7 and 8
    compressed = h[t] @ p["kv_a_proj_with_mqa"]["kernel"]  # eq. 1 and 3
    latent = compressed[: c.kv_lora_rank]
    k_rope = rotary(c, compressed[c.kv_lora_rank :], t)
    latent = rms_norm(latent, p["kv_a_layernorm"]["scale"], 1e-6)
    kv = latent @ p["kv_b_proj"]["kernel"]  # eq. 2 and 5
    for part, row in ((queries, q), (keys, kv), (values, kv)):
      part.append(row.reshape(heads, -1))
    queries[t] = np.stack(
      [np.append(q[:nope], rotary(c, q[nope:], t)) for q in queries[t]]
    )  # eq. 9
    keys[t] = np.stack([np.append(k[:nope], k_rope) for k in keys[t]])  # eq. 4
    values[t] = values[t][:, nope:]
  out = []
  for t in range(length):
    seen = [
      j for j in range(t + 1) if segments is None or segments[j] == segments[t]
    ]
    mixed = []
    for i in range(heads):
      scores = np.array([queries[t][i] @ keys[j][i] for j in seen]) * scale
      weights = np.exp(scores - scores.max())
      weights /= weights.sum()
      mixed.append(weights @ np.stack([values[j][i] for j in seen]))
    out.append(np.concatenate(mixed) @ p["o_proj"]["kernel"])  # eq. 10, 11
  return np.stack(out)


def choose(c, scores, bias):
  """The experts of one token, from affinities [E] and biases [E]."""
  steered = scores + bias  # eq. 16
  size = c.n_routed_experts // c.n_group
  groups = [list(range(g * size, (g + 1) * size)) for g in range(c.n_group)]

  def value(group):
    best = sorted((steered[e] for e in group), reverse=True)
    return sum(best[:2]) if c.topk_method == "noaux_tc" else best[0]

  if c.topk_method != "greedy":
    groups = sorted(groups, key=value, reverse=True)[: c.topk_group]
  allowed = [e for group in groups for e in group]
  allowed.sort(key=lambda e: steered[e], reverse=True)
  return allowed[: c.num_experts_per_tok]


def affinities(c, p, x):
  logits = x @ p["gate"]["kernel"]
  if c.scoring_func == "sigmoid":
    return 1 / (1 + np.exp(-logits))  # eq. 15
  return np.exp(logits) / np.exp(logits).sum()


def moe(c, p, bias, u):
  """(eq. 12 of u [L, D], the load [E])."""
  out, load = [], np.zeros(c.n_routed_experts)
  for x in u:
    scores = affinities(c, p, x)
    experts = choose(c, scores, np.zeros_like(scores) if bias is None else bias)
    gates = scores[experts]
    if c.norm_topk_prob:
      gates = gates / gates.sum()  # eq. 13
    y = np.zeros_like(x)
    for expert, gate in zip(experts, gates, strict=True):
      own = {k: {"kernel": v[expert]} for k, v in p["experts"].items()}
      y += gate * c.routed_scaling_factor * swiglu(own, x)
      load[expert] += 1
    if c.n_shared_experts:
      y += swiglu(p["shared_experts"], x)
    out.append(y)
  return np.stack(out), load


def _normed(p, x, eps):
  return np.stack([rms_norm(row, p["scale"], eps) for row in x])


def block(c, p, bias, x, segments=None):
  """(one layer of x [L, D], its load or None)."""
  eps = c.rms_norm_eps
  x = x + mla(
    c, p["self_attn"], _normed(p["input_layernorm"], x, eps), segments
  )
  u = _normed(p["post_attention_layernorm"], x, eps)
  if "experts" in p["mlp"]:
    y, load = moe(c, p["mlp"], bias, u)
    return x + y, load
  return x + np.stack([swiglu(p["mlp"], row) for row in u]), None


def _layers(tree, n):
  return [_slice(tree, i) for i in range(n)]


def _slice(tree, i):
  if isinstance(tree, dict):
    return {k: _slice(v, i) for k, v in tree.items()}
  return tree[i]


def float64(tree):
  """A tree of plain float64 arrays."""
  if isinstance(tree, dict):
    return {k: float64(v) for k, v in tree.items()}
  return np.asarray(tree, np.float64)


def model(c, variables, tokens, segments=None):
  """The whole model on one sequence, with its MTP modules.

  Args:
    c: the config.
    variables: `params` and `router_bias`.
    tokens: [L].
    segments: optional [L].

  Returns:
    (logits, loads): logits [L, V] of the main model, then [L - k, V] of MTP
    module k; loads [E] of every expert layer, MTP modules last.
  """
  variables = float64(variables)
  p, biases = variables["params"], variables.get("router_bias", {})
  table, head = p["embed_tokens"]["embedding"], p["lm_head"]["kernel"]
  x, loads = table[tokens], []
  n = c.first_k_dense_replace
  for q in _layers(p["dense_layers"], n) if n else []:
    x, _ = block(c, q, None, x, segments)
  for i in range(c.num_moe_layers):
    bias = _bias(biases.get("moe_layers"))
    bias = None if bias is None else bias[i]
    x, load = block(c, _slice(p["moe_layers"], i), bias, x, segments)
    loads.append(load)
  eps = c.rms_norm_eps
  normed = _normed(p["norm"], x, eps)
  logits = [normed @ head]
  h = normed if c.mtp_hidden == "post_norm" else x
  for k in range(1, c.num_nextn_predict_layers + 1):
    q = p[f"mtp_{k - 1}"]
    h = h[: len(tokens) - k]
    joined = np.concatenate(
      [
        _normed(q["enorm"], table[tokens[k:]], eps),
        _normed(q["hnorm"], h, eps),
      ],
      axis=-1,
    )  # eq. 21, in the order of the released weights
    bias = _bias(biases.get(f"mtp_{k - 1}", {}).get("block"))
    x, load = block(
      c, q["block"], bias, joined @ q["eh_proj"]["kernel"], segments
    )  # eq. 22
    normed = _normed(q["norm"], x, eps)
    logits.append(normed @ head)  # eq. 23
    loads.append(load)
    h = normed if c.mtp_hidden == "post_norm" else x
  return logits, loads


def _bias(tree):
  if not tree:
    return None
  return tree["mlp"]["gate"]["e_score_correction_bias"]
