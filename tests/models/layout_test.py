"""Both layouts hold the same arrays."""

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax

from dsx.models import decoder
from dsx.models import layout
from tests.models import tiny


class LayoutTest(parameterized.TestCase):
  @parameterized.named_parameters(tiny.VARIANTS.items())
  def test_there_and_back(self, changes):
    config = tiny.config(**changes)
    stacked = tiny.variables(config)
    layers = layout.to_layers(config, stacked)
    self.assertTrue(layout.is_stacked(stacked))
    self.assertFalse(layout.is_stacked(layers))
    chex.assert_trees_all_equal(layout.to_stacked(config, layers), stacked)
    self.assertIs(layout.to_layers(config, layers), layers)
    self.assertIs(layout.to_stacked(config, stacked), stacked)

  @parameterized.named_parameters(tiny.VARIANTS.items())
  def test_layers_are_what_the_decoder_declares(self, changes):
    config = tiny.config(**changes)
    layers = layout.to_layers(config, tiny.variables(config))
    model = decoder.Decoder(config, n_mtp=config.num_nextn_predict_layers)
    tokens = jax.ShapeDtypeStruct((1, 3), "int32")
    valid = jax.ShapeDtypeStruct((1, 3), bool)

    def everything(key, tokens, valid):
      return model.init(key, tokens, tokens, valid, method=_everything)

    declared = jax.eval_shape(everything, jax.random.key(0), tokens, valid)
    declared = jax.tree.map(
      lambda x: x.shape, tiny.sharding.unbox(declared), is_leaf=_is_shape
    )
    found = jax.tree.map(lambda x: x.shape, layers)
    self.assertEqual(found, declared)


def _everything(model, tokens, following, valid):
  return model.logits(model.prefill(tokens, following, valid)[0])


def _is_shape(x):
  return isinstance(x, jax.ShapeDtypeStruct)


if __name__ == "__main__":
  absltest.main()
