"""A server's engine says the same with experts in other places."""

from absl.testing import absltest
import numpy as np

from dsx.inference import request as request_lib
from dsx.parallel import placement_file
from dsx.serving import served_model
from dsx.serving import settings
from dsx.training import pretrained
from tests.experiments import trained_run


class ServedModelTest(absltest.TestCase):
  def test_placed_experts(self):
    serving = settings.Serving(slots=2, drafts=1)
    found = pretrained.find(trained_run.make())
    experts = found.config.n_routed_experts
    order = np.random.default_rng(0).permutation(experts)
    placement = placement_file.Placement(
      strategy="hierarchical",
      experts=experts,
      groups=found.config.n_group,
      nodes=1,
      local=1,
      redundant=0,
      layers={name: order for name in found.config.expert_layers},
    )
    placement.check(found.config, None)
    texts = []
    for where in (None, placement):
      build = served_model.builder(
        found,
        served_model.decoding(found, serving),
        None,
        serving.sharding,
        where,
      )
      for _ in range(2 if where else 1):  # engines are made anew after a fault
        engine = build()
        engine.submit(request_lib.Request(prompt=(5, 7, 9)))
        drawn = []
        while engine.busy:
          for update in engine.step():
            drawn += [drawn.token for drawn in update.drawn]
        texts.append(drawn)
    self.assertLen(texts[0], found.window - 3)
    self.assertEqual(texts[1], texts[0])
    self.assertEqual(texts[2], texts[0])

  def test_stacked_layers_have_no_place(self):
    found = pretrained.find(trained_run.make())
    with self.assertRaisesRegex(ValueError, "expected 'layers' with a placem"):
      found.read(layout="stacked", placement=object())


if __name__ == "__main__":
  absltest.main()
