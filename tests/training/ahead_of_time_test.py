"""The step that would run elsewhere, compiled here for eight CPU devices.

They stand in for a torus: the compilers of TPUs and GPUs are extras that tests
do without. What those make of the step is in docs/scale.md.
"""

import dataclasses
import math
import re
import types

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from dsx import cost
from dsx.data import pipeline
from dsx.models import config as config_lib
from dsx.parallel import links
from dsx.parallel import mesh as mesh_lib
from dsx.parallel import sharding
from dsx.parallel import topology as topology_lib
from dsx.training import ahead_of_time
from dsx.training import compiled_report
from dsx.training import dry_run
from dsx.training import pretraining
from dsx.training import roofline
from dsx.training import schedules
from tests.training import tiny


def _run(**changes):
  fields = {
    "config": tiny.model_config(),
    "data": pipeline.Data(sequence_length=16),
    "schedule": schedules.constant(
      steps=4, learning_rate=1e-3, batch_size=32, sequence_length=16
    ),
    "mesh": mesh_lib.MeshShape(data=2, node=2, local=2),
    "micro_batch_size": 8,
    "execution": config_lib.Execution(remat="full"),
    "sharding": sharding.Sharding(strategy="fully_sharded"),
  }
  return pretraining.Pretraining(**(fields | changes))


def _topology():
  """This machine's devices, by a name whose rates are published."""
  devices = tuple(jax.devices())
  return topology_lib.Topology("v5p:2x2x2", "v5p", "cpu", (2, 2, 2), devices)


def _on_a_torus(step):
  """`step` with a mesh whose devices say where they are."""
  shape = step.mesh.devices.shape
  devices = np.empty(shape, object)
  for place in np.ndindex(shape):
    devices[place] = types.SimpleNamespace(coords=place[1:4], id=0)
  mesh = types.SimpleNamespace(
    devices=devices, axis_names=step.mesh.axis_names, shape=step.mesh.shape
  )
  return dataclasses.replace(step, mesh=mesh)


class AheadOfTimeTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.step = _on_a_torus(ahead_of_time.compile_step(_run(), _topology()))

  def test_state_is_what_the_dry_run_says(self):
    text = dry_run.describe(_run())
    kib = dict(re.findall(r"^(parameters|optimizer) +([\d.]+) KiB", text, re.M))
    expected = sum(map(float, kib.values()))
    self.assertAlmostEqual(
      self.step.memory.state / 1024 / expected, 1, delta=0.02
    )
    self.assertGreater(self.step.memory.temporaries, 0)
    self.assertTrue(self.step.memory.fits)

  def test_experts_work_once_for_each_micro_batch(self):
    """Two MoE layers: one is scanned, one is MTP's."""
    exchanges = [
      one
      for one in self.step.collectives
      if one.op == "all-to-all" and "experts" in one.source
    ]
    self.assertNotEmpty(exchanges)
    self.assertEqual({one.times for one in exchanges}, {4})
    axes = {one.axes for one in exchanges}
    self.assertEqual(axes, {("node",), ("local",)})

  def test_nothing_but_small_arrays_is_summed_over_everything(self):
    """Least of all the gradient of the embedding."""
    largest = max(
      one.buffer_bytes
      for one in self.step.collectives
      if one.op == "all-reduce" and len(one.axes) == 3
    )
    config = self.step.run.config
    self.assertLess(largest, config.vocab_size * config.hidden_size * 4)

  def test_report(self):
    text = compiled_report.describe(self.step)
    rows = dict(re.findall(r"^([\w, -]+?) {2,}(.+)$", text, re.M))
    self.assertEqual(rows["fits"], "yes")
    self.assertIn("4 micro-batches", rows["batch"])
    self.assertEqual(rows["mesh"], "data=2 x node=2 x local=2")
    found = re.findall(r"^all-to-all +node +\d+ +([\d.]+)", text, re.M)
    self.assertLen(found, 1)

  def test_estimate(self):
    estimate = roofline.estimate(self.step)
    run = self.step.run
    tokens = run.schedule.batch_size * 16 / 8
    flops = cost.flops_per_token(run.config, 16, mtp=True) * tokens
    self.assertAlmostEqual(estimate.model, flops / 459e12)
    self.assertAlmostEqual(estimate.products, estimate.model * 4 / 3)
    self.assertIsNone(estimate.compiler)  # a CPU's compiler says nothing
    travel = sum(
      roofline.seconds(self.step, one) for one in self.step.collectives
    )
    self.assertAlmostEqual(estimate.hidden + estimate.exposed, travel)
    self.assertAlmostEqual(
      estimate.mfu
      * (max(estimate.products, estimate.hidden) + estimate.exposed),
      estimate.model,
    )

  def test_kernels_of_attention_take_time(self):
    """Of 2 x 3 heads, and 2 x 3 heads again, of 16 tokens."""

    def kernel(name):
      return (
        f"  %splash_mha_{name}.1 = (bf16[2,3,16,8]{{3,2,1,0}}) custom-call(%x),"
        ' custom_call_target="tpu_custom_call", operand_layout_constraints='
        "{s8[1,4,4]{2,1,0}, bf16[2,3,12,16]{3,2,1,0}, bf16[2,3,8,16]{3,2,1,0}},"
        ' frontend_attributes={kernel_metadata={\n"a":"{}"\n}}, a={}\n'
      )

    names = "fwd_residuals", "dkv_segmented_no_residuals", "dq_no_residuals"
    text = "ENTRY %main (x: f32[]) -> f32[] {\n  %x = f32[] parameter(0)\n"
    text += "".join(map(kernel, names)) + "}\n"
    step = dataclasses.replace(self.step, text=text)
    config = step.run.config
    k, u = config.qk_head_dim, config.v_head_dim
    flops = 6 * 16**2 * ((k + u) / 0.48 + (2 * k + 2 * u) / 0.64)
    flops += 6 * 16**2 * (2 * k + u) / 0.63
    self.assertAlmostEqual(roofline.attention_flops(step) / flops, 1)
    self.assertAlmostEqual(roofline.estimate(step).attention, flops / 459e12)
    self.assertEqual(roofline.attention_flops(self.step), 0)

  def test_a_mesh_of_another_size(self):
    run = _run(mesh=mesh_lib.MeshShape(data=4, node=2, local=2))
    with self.assertRaisesRegex(ValueError, "does not match 8 devices"):
      ahead_of_time.lowered(run, _topology())

  @parameterized.parameters(("v5p", 95 * 2**30), ("h800", 80 * 10**9))
  def test_memory_of_a_device(self, kind, expected):
    self.assertEqual(ahead_of_time.device_memory(kind), expected)

  def test_every_chip_has_links(self):
    for kind in topology_lib.KINDS:
      self.assertGreater(ahead_of_time.device_memory(kind), 0)
      place = links.Place((links.Ring(4, True),), 1, 4)
      if kind.startswith("h"):
        place = links.Place((), 2, 2)
      one = dataclasses.replace(
        self.step.collectives[0], op="all-gather", group=4, wire_bytes=3e9
      )
      self.assertTrue(0 < links.seconds(one, place, kind) < math.inf)


if __name__ == "__main__":
  absltest.main()
