"""Multi-token prediction: equations, shifts, and the causal chain.

Against transformers' own modules (post-norm): `golden_test.py`.
"""

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from dsx.models import deepseek
from tests.models import oracle
from tests.models import tiny

_LENGTH = 9


def _model(mtp_hidden="post_norm", n=2, **changes):
  """(config, variables, function of tokens) with `n` MTP modules."""
  c = tiny.config(
    num_nextn_predict_layers=n,
    mtp_hidden=mtp_hidden,
    num_hidden_layers=2,
    **changes,
  )
  variables = tiny.variables(c)
  return c, variables, lambda tokens: tiny.apply(c)(variables, tokens)


class MtpTest(parameterized.TestCase):
  @parameterized.product(mtp_hidden=("post_norm", "pre_norm"), dense=(0, 1, 2))
  def test_equals_the_equations(self, mtp_hidden, dense):
    c, variables, apply = _model(mtp_hidden, first_k_dense_replace=dense)
    tokens = tiny.tokens(2, _LENGTH)
    logits, aux = apply(tokens)
    load = np.zeros(aux["load"].shape)
    for row in range(2):
      theirs, loads = oracle.model(c, variables, np.asarray(tokens[row]))
      load += np.stack(loads)
      ours = [logits, *aux["mtp_logits"]]
      for k, expected in enumerate(theirs):
        self.assertGreater(expected.std(), 0.3)
        chex.assert_trees_all_close(
          ours[k][row, : _LENGTH - k], expected.astype(np.float32), atol=2e-4
        )
    # Positions without a token i+k are not counted.
    chex.assert_trees_all_equal(aux["load"], load.astype(np.float32))

  def test_the_two_hidden_states_differ(self):
    tokens = tiny.tokens(2, _LENGTH)
    first, second = (
      _model(hidden)[2](tokens) for hidden in ("post_norm", "pre_norm")
    )
    chex.assert_trees_all_close(first[0], second[0], atol=1e-5)
    moved = first[1]["mtp_logits"][0] - second[1]["mtp_logits"][0]
    self.assertGreater(float(jnp.abs(moved).max()), 1e-2)

  @parameterized.parameters("post_norm", "pre_norm")
  def test_sees_exactly_k_tokens_ahead(self, mtp_hidden):
    """A token moves depth k from k positions before it on, never earlier."""
    _, _, apply = _model(mtp_hidden)
    tokens = tiny.tokens(2, _LENGTH)

    def outputs(tokens):
      logits, aux = apply(tokens)
      return [np.asarray(x) for x in (logits, *aux["mtp_logits"])]

    before = outputs(tokens)
    for j in range(_LENGTH):
      after = outputs(tokens.at[:, j].set((tokens[:, j] + 1) % tiny.VOCAB))
      for k in range(3):
        moved = np.abs(after[k] - before[k]).max(axis=(0, 2))
        first = max(j - k, 0)
        # Experts may round a row by what lies beside it.
        self.assertLess(moved[:first].max(initial=0.0), 1e-5)
        # Every position that has a token i+k, from the first one on.
        self.assertGreater(moved[first : _LENGTH - k].min(initial=1.0), 1e-3)

  def test_main_model_does_not_know_of_its_modules(self):
    _, variables, apply = _model()
    tokens = tiny.tokens(2, _LENGTH)
    c = tiny.config(num_nextn_predict_layers=0, num_hidden_layers=2)
    params = dict(variables["params"])
    del params["mtp_0"], params["mtp_1"]
    bias = {"moe_layers": variables["router_bias"]["moe_layers"]}
    logits, aux = tiny.apply(c)({"params": params, "router_bias": bias}, tokens)
    whole = apply(tokens)
    chex.assert_trees_all_close(logits, whole[0], atol=1e-5)
    chex.assert_trees_all_equal(aux["load"], whole[1]["load"][:1])
    self.assertEqual(aux["mtp_logits"], ())

  def test_shares_embedding_and_head(self):
    """No module has its own; a module's loss trains the model's."""
    c, variables, _ = _model(n=1)
    self.assertEqual(
      set(variables["params"]["mtp_0"]),
      {"enorm", "hnorm", "eh_proj", "block", "norm"},
    )
    tokens = tiny.tokens(1, 6)

    def loss(params):
      _, aux = deepseek.DeepSeek(c).apply(
        {**variables, "params": params}, tokens
      )
      return (aux["mtp_logits"][0][:, 0] ** 2).sum()

    grads = jax.jit(jax.grad(loss))(variables["params"])
    # Position 0 of depth 1 has read tokens 0 and 1.
    moved = np.abs(grads["embed_tokens"]["embedding"]).sum(-1) > 0
    self.assertCountEqual(
      np.flatnonzero(moved), set(np.asarray(tokens[0, :2]).tolist())
    )
    self.assertGreater(float(jnp.abs(grads["lm_head"]["kernel"]).max()), 0.0)

  def test_the_embedding_comes_first(self):
    """`eh_proj` multiplies [enorm(embedding), hnorm(hidden)]."""
    c, variables, _ = _model(n=1)
    tokens = tiny.tokens(1, 5)
    kernel = variables["params"]["mtp_0"]["eh_proj"]["kernel"]

    def moved_by_last_token(kernel):
      params = dict(variables["params"])
      params["mtp_0"] = {**params["mtp_0"], "eh_proj": {"kernel": kernel}}
      # Token 4 reaches position 3 of depth 1 through its embedding alone.
      outs = [
        tiny.apply(c)({**variables, "params": params}, t)[1]["mtp_logits"][0]
        for t in (tokens, tokens.at[0, 4].add(1) % tiny.VOCAB)
      ]
      return float(jnp.abs(outs[0] - outs[1])[0, 3].max())

    self.assertEqual(moved_by_last_token(kernel.at[:12].set(0.0)), 0.0)
    self.assertGreater(moved_by_last_token(kernel.at[12:].set(0.0)), 1e-2)


if __name__ == "__main__":
  absltest.main()
