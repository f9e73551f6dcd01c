"""The vocabulary of dimensions: letters for people, names for sharding.

Letters, the same in docstrings, einsum and einops throughout dsx:

  B batch        L query length   S key length    D model
  H heads        K qk head dim    U value head dim
  V vocabulary   C latent rank    F feed-forward
  E experts      G expert groups  T tokens        N nodes

Logical names annotate parameters and activations. `sharding.py` maps them to
mesh axes; only `dsx/parallel` and gin files name mesh axes.
"""

# Mesh axes, from the slowest network to the fastest.
PIPE = "pipe"
DATA = "data"
NODE = "node"
LOCAL = "local"
CONTEXT = "context"
TENSOR = "tensor"
MESH_AXES = (PIPE, DATA, NODE, LOCAL, CONTEXT, TENSOR)
BATCH_MESH_AXES = (DATA, NODE, LOCAL)
EXPERT_MESH_AXES = (NODE, LOCAL)

# Logical axes of parameters.
LAYERS = "layers"
VOCAB = "vocab"
EMBED = "embed"
LATENT = "latent"  # what a down-projection writes
LATENT_IN = "latent_in"  # what an up-projection reads
HEADS = "heads"
MLP = "mlp"
EXPERTS = "experts"
EXPERT_MLP = "expert_mlp"
EXPERT_EMBED = "expert_embed"  # the model width of the experts' matrices
ROUTER = "router"
NORM = "norm"

# Logical axes of activations.
BATCH = "batch"
LOOKUP_BATCH = "lookup_batch"  # of embedded tokens, while EMBED divides them
LENGTH = "length"
ACT_EMBED = "act_embed"
ACT_HEADS = "act_heads"
ACT_MLP = "act_mlp"
ACT_VOCAB = "act_vocab"
