"""Decoding says the same however it is spread over devices."""

import functools

from absl.testing import parameterized
import jax
import numpy as np

from dsx.inference import decoding as decoding_lib
from dsx.inference import engine as engine_lib
from dsx.inference import request as request_lib
from dsx.inference import sampling
from dsx.models import deepseek
from dsx.models import layout
from dsx.parallel import mesh as mesh_lib
from dsx.parallel import sharding as sharding_lib
from dsx.training import restore
from tests.models import tiny

_LENGTHS = (1, 2, 5, 9, 4, 20)


@functools.cache
def _config():
  return tiny.config(
    vocab_size=32,
    hidden_size=16,
    intermediate_size=24,
    num_attention_heads=4,
  )


def _answers(variables, *, temperature, mesh=None, sharding=None):
  engine = engine_lib.Engine(
    _config(),
    variables,
    decoding=decoding_lib.Decoding(slots=4, page_size=4, steps=4, drafts=1),
    mesh=mesh,
    sharding=sharding,
  )
  rng = np.random.default_rng(0)
  texts = {}
  for seed, n in enumerate(_LENGTHS):
    prompt = tuple(rng.integers(0, 32, n).tolist())
    how = sampling.Sampling(
      max_new_tokens=15, temperature=temperature, seed=seed
    )
    number = engine.submit(request_lib.Request(prompt=prompt, sampling=how))
    texts[number] = []
  while engine.busy:
    for update in engine.step():
      texts[update.request] += [drawn.token for drawn in update.drawn]
  return texts


class EngineTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ("tensor", {"tensor": 4}, "replicated", False),
    ("fully_sharded", {"local": 2}, "fully_sharded", True),
    (
      "everything",
      {"data": 2, "local": 2, "tensor": 2},
      "fully_sharded",
      True,
    ),
  )
  def test_meshes(self, shape, strategy, by_layers):
    config = _config()
    mesh = mesh_lib.make(
      mesh_lib.MeshShape(**shape),
      jax.devices()[: int(np.prod(list(shape.values())))],
    )
    sharding = sharding_lib.Sharding(strategy=strategy)
    target = restore.abstract(
      deepseek.DeepSeek(config), sharding.parameters, mesh
    )
    plain = tiny.variables(config)
    placed = jax.tree.map(
      lambda x, t: jax.device_put(x, t.sharding), plain, target
    )
    if by_layers:
      placed = layout.to_layers(config, placed)
    for temperature in (0.0, 1.0):
      self.assertEqual(
        _answers(placed, temperature=temperature, mesh=mesh, sharding=sharding),
        _answers(plain, temperature=temperature),
      )

  @parameterized.parameters(
    ({"data": 8}, "slots=4: expected a multiple of 8, into which"),
    ({"context": 2}, "mesh axis 'context' of 2 devices"),
    ({"pipe": 2}, "mesh axis 'pipe' of 2 devices"),
  )
  def test_meshes_that_cannot_decode(self, shape, message):
    mesh = mesh_lib.make(
      mesh_lib.MeshShape(**shape),
      jax.devices()[: int(np.prod(list(shape.values())))],
    )
    with self.assertRaisesRegex(ValueError, message):
      _answers(tiny.variables(_config()), temperature=0.0, mesh=mesh)
