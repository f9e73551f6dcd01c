"""What a run would be, down to the 671B one, without a device of it."""

import json
import math
import re

from absl.testing import absltest
from absl.testing import parameterized
import jax

from dsx import cost
from dsx.data import pipeline
from dsx.ops import dtypes
from dsx.parallel import mesh as mesh_lib
from dsx.parallel import sharding
from dsx.training import dry_run
from dsx.training import optimizer
from dsx.training import pretraining
from dsx.training import schedules
from experiments import configuration
from tests.training import tiny

_TARGET = "dsx.training.pretraining.Pretraining"


def _rows(text: str, heading: str) -> dict[str, list[str]]:
  """The table below a heading, by its first column."""
  block = next(b for b in text.split("\n\n") if b.startswith(heading))
  lines = [re.split(r" {2,}", line) for line in block.splitlines()[1:]]
  return {line[0]: line[1:] for line in lines}


class PublishedRunTest(parameterized.TestCase):
  """`gin_configs/runs/v3_pretrain.gin`, with the numbers of the report."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    configuration.prepare(_TARGET, ["gin_configs/runs/v3_pretrain.gin"])
    cls.run_ = configuration.build(_TARGET)
    cls.text = dry_run.describe(cls.run_)

  def test_quantities(self):
    found = _rows(self.text, "quantity")
    expected = {
      "parameters": "671,026,419,200",
      "FLOPs per token, 4096 causal": "250.450 G",
      "cache per token (bfloat16)": "70,272 bytes",
      "tokens": "14.80T",
      "batch": "3,072 to 15,360 x 4096",
      "strategy": "fully_sharded",
    }
    for name, value in expected.items():
      self.assertEqual(found[name], [value], name)
    self.assertIn("(2,048 devices)", found["mesh"][0])
    active = int(found["active parameters"][0].replace(",", ""))
    self.assertBetween(active / 1e9, 36.5, 37.6)  # "37B activated"
    # 14.8T tokens at 250 to 261 GF.
    flops = float(found["training FLOPs"][0])
    self.assertBetween(flops, 14.8e12 * 250e9, 14.8e12 * 262e9)
    self.assertEqual(
      int(found["steps"][0].replace(",", "")),
      schedules.Schedule(batch_multiple=1024).total_steps(),
    )

  def test_parameter_table_adds_up(self):
    rows = _rows(self.text, "parameter ")
    main = sum(
      int(count.replace(",", ""))
      for name, (_, _, count, _) in rows.items()
      if not name.startswith("mtp_")
    )
    self.assertEqual(main, 671_026_419_200)
    shape, _, count, dtype = rows["moe_layers/mlp/experts/gate_proj"]
    self.assertEqual(shape, "58x256x7168x2048")
    self.assertEqual(int(count.replace(",", "")), 58 * 256 * 7168 * 2048)
    self.assertEqual(dtype, "float32")
    bias = rows["moe_layers/mlp/gate/e_score_correction_bias"]
    self.assertEqual((bias[0], bias[3]), ("58x256", "float32"))
    self.assertTrue(any(name.startswith("mtp_0/") for name in rows))

  def test_memory_of_a_device(self):
    memory = _rows(self.text, "per device")
    gib = {
      name: float(size[0].removesuffix(" GiB"))
      for name, size in memory.items()
      if size[0].endswith("GiB")
    }
    # Two bfloat16 moments take what one float32 master weight does.
    self.assertAlmostEqual(gib["parameters"], gib["optimizer"], delta=0.2)
    self.assertAlmostEqual(
      gib["total"],
      gib["parameters"] + gib["optimizer"] + gib["gradients (float32)"],
      delta=0.2,
    )
    self.assertLess(gib["total"], 80)  # an H800's memory

  def test_allocates_nothing(self):
    live = sum(array.nbytes for array in jax.live_arrays())
    self.assertLess(live, 2**30)

  def test_identity_is_json(self):
    self.assertEqual(
      json.loads(json.dumps(self.run_.identity())), self.run_.identity()
    )


class SmallRunTest(parameterized.TestCase):
  def _run(self, mesh, strategy):
    return pretraining.Pretraining(
      config=tiny.model_config(),
      data=pipeline.Data(sequence_length=8),
      schedule=schedules.constant(
        steps=4, learning_rate=1e-3, batch_size=16, sequence_length=8
      ),
      mesh=mesh,
      sharding=sharding.Sharding(strategy=strategy),
      dtypes=dtypes.Dtypes(),
      optimizer=optimizer.AdamW(moment_dtype="float32"),
    )

  @parameterized.named_parameters(
    ("replicated", "replicated", (1, 1), 1),
    ("zero1", "zero1", (1, 4), 4),
    ("fully_sharded", "fully_sharded", (4, 4), 4),
  )
  def test_memory_by_strategy(self, strategy, parameter_shares, moment_share):
    """Of 4 devices; a few small arrays are on every one of them.

    Parameters are split into so many shares: those of the experts into the
    second number.
    """
    run = self._run(mesh_lib.MeshShape(data=1, local=4), strategy)
    memory = _rows(dry_run.describe(run), "per device")
    whole = cost.parameters(run.config) + cost.mtp_parameters(run.config)
    kib = {
      name: float(size[0].split()[0])
      for name, size in memory.items()
      if size[0].endswith("KiB")
    }
    c = run.config
    experts = c.num_moe_layers + c.num_nextn_predict_layers
    experts *= 3 * c.n_routed_experts * c.hidden_size * c.moe_intermediate_size
    expected = 4 * whole / 1024
    other_share, expert_share = parameter_shares
    here = (whole - experts) / other_share + experts / expert_share
    self.assertAlmostEqual(kib["parameters"] / (4 * here / 1024), 1, delta=0.1)
    self.assertAlmostEqual(
      kib["optimizer"] * moment_share / (2 * expected), 1, delta=0.1
    )

  def test_an_open_axis_takes_this_machine(self):
    mesh = dry_run.abstract_mesh(self._run(mesh_lib.MeshShape(), "replicated"))
    self.assertEqual(math.prod(mesh.shape.values()), jax.device_count())

  def test_a_mesh_larger_than_the_machine(self):
    run = self._run(mesh_lib.MeshShape(data=4, node=2, local=2), "zero1")
    self.assertIn("(16 devices)", dry_run.describe(run))

  def test_refuses_a_batch_that_does_not_divide(self):
    with self.assertRaisesRegex(
      ValueError, "micro_batch_size=16: expected a multiple of the 3 parts"
    ):
      dry_run.describe(self._run(mesh_lib.MeshShape(data=3), "zero1"))


if __name__ == "__main__":
  absltest.main()
