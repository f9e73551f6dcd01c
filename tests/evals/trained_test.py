"""A workdir is scored as its parameters are, raw and averaged."""

import dataclasses
import json
import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized

from dsx.data import pipeline
from dsx.evals import text
from dsx.evals import trained
from dsx.models import deepseek
from dsx.parallel import mesh as mesh_lib
from dsx.parallel import sharding as sharding_lib
from dsx.training import checkpoint
from dsx.training import workdir as workdir_lib
from tests.evals import workdirs
from tests.training import tiny


class TrainedTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    folder = pathlib.Path(tempfile.mkdtemp(dir=absltest.TEST_TMPDIR.value))
    cls.folder, cls.workdir = folder, folder / "run"
    cls.data = workdirs.data(folder / "data")
    cls.run_ = workdirs.run(cls.data)
    state = workdirs.state_of(cls.run_, seed=0)
    later = dataclasses.replace(
      state, params=workdirs.changed(state.params, 3.0)
    )
    cls.states = {4: state, 8: later}
    workdirs.save(cls.workdir, cls.run_, cls.states)

  def score(self, params, router_bias, data=None, run=None):
    """Scores arrays that were never saved."""
    run, data = run or self.run_, data or self.data
    mesh = mesh_lib.make(run.mesh)
    evaluator = text.Evaluator(
      deepseek.DeepSeek(run.config),
      pipeline.open_split(data, "validation", shuffle=False),
      mesh,
      batch_size=8,
      records=run.final_evaluation_records,
    )
    with sharding_lib.use(mesh, run.sharding):
      return evaluator.score(params, router_bias)

  @parameterized.parameters((None, 8), (4, 4))
  def test_raw_and_average(self, step, expected):
    found = trained.evaluate(self.run_, self.workdir, step=step)
    state = self.states[expected]
    average = workdirs.changed(state.params, 0.5)
    raw = self.score(state.params, state.router_bias)
    averaged = self.score(average, state.router_bias)
    self.assertEqual(found.scores, {"raw": raw, "average": averaged})
    self.assertNotEqual(raw, averaged)
    self.assertEqual(found.step, expected)
    self.assertEqual(found.records, 11)
    self.assertEqual(found.trained_tokens, expected * 8 * workdirs.LENGTH)
    self.assertEmpty(found.notes)

  def test_without_an_average(self):
    run = workdirs.run(self.data, ema_decay=None)
    states = {4: self.states[4]}
    workdirs.save(self.folder / "no_average", run, states)
    found = trained.evaluate(run, self.folder / "no_average")
    self.assertEqual(list(found.scores), ["raw"])

  def test_another_corpus(self):
    texts = {"train": "x" * 99, "validation": "import antigravity\n" * 30}
    data = workdirs.data(self.folder / "other", texts)
    run = workdirs.run(data)
    found = trained.evaluate(run, self.workdir)
    state = self.states[8]
    expected = self.score(state.params, state.router_bias, data)
    self.assertEqual(found.scores["raw"], expected)

  def test_the_batch_must_divide_over_the_mesh(self):
    run = workdirs.run(self.data, micro_batch_size=4)
    with self.assertRaisesRegex(ValueError, "multiple of the 8 parts"):
      trained.evaluate(run, self.workdir)

  def test_on_another_mesh(self):
    mesh = mesh_lib.MeshShape(data=2, node=2, local=2)
    found = trained.evaluate(workdirs.run(self.data, mesh=mesh), self.workdir)
    state = self.states[8]
    expected = self.score(state.params, state.router_bias)
    self.assertAlmostEqual(found.scores["raw"].loss, expected.loss, places=5)

  def test_what_differs_from_training_is_said(self):
    config = workdirs.model_config(num_experts_per_tok=1)
    run = workdirs.run(self.data, config=config)
    found = trained.evaluate(run, self.workdir)
    note = "config.num_experts_per_tok is 1 here, and was 2 in training"
    self.assertEqual(found.notes, (note,))
    self.assertIn(note, found.table())

  def test_another_shape_is_refused(self):
    config = workdirs.model_config(hidden_size=48)
    run = workdirs.run(self.data, config=config)
    with self.assertRaisesRegex(checkpoint.CheckpointError, "has shape"):
      trained.evaluate(run, self.workdir)

  def test_a_vocabulary_that_is_too_large_is_refused(self):
    run = workdirs.run(self.data, config=tiny.model_config())
    with self.assertRaisesRegex(ValueError, "has 320 ids, the model 64"):
      trained.evaluate(run, self.workdir)

  def test_no_checkpoint(self):
    with self.assertRaisesRegex(workdir_lib.WorkdirError, "no checkpoint"):
      trained.evaluate(self.run_, self.folder / "nothing")

  def test_table_and_json(self):
    found = trained.evaluate(self.run_, self.workdir)
    lines = found.table().splitlines()
    self.assertIn("step 8, trained on 1,024 tokens", lines)
    raw = next(line.split() for line in lines if " raw " in line)
    score = found.scores["raw"]
    numbers = (score.bits_per_byte, score.loss, *score.mtp_loss)
    self.assertEqual(raw[1:], [f"{number:.4f}" for number in numbers])
    self.assertIn("2.5000", lines[-1])
    decoded = json.loads(found.to_json())
    self.assertEqual(decoded["scores"]["raw"]["loss"], score.loss)
    self.assertEqual(decoded["data"]["prepared"], self.data.prepared)

  def test_plan_reads_no_arrays(self):
    plan = trained.plan(self.run_, self.workdir)
    self.assertStartsWith(plan, f"step 8 of {self.workdir}: ")
    self.assertIn("and their average", plan)
    self.assertIn("11 sequences of 16 tokens", plan)
    self.assertIn(f"prepared in {self.data.prepared}", plan)


if __name__ == "__main__":
  absltest.main()
