"""Runs that start from other weights, and remember from which."""

import contextlib
import dataclasses
import io
import json
import pathlib
import shutil
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import numpy as np

from dsx.convert import deepseek as convert
from dsx.training import checkpoint
from dsx.training import epochs
from dsx.training import loop
from dsx.training import start as start_lib
from dsx.training import starting
from dsx.training import workdir as workdir_lib
from tests.evals import workdirs


def _host(tree):
  return jax.tree.map(np.asarray, tree)


class StartingTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = pathlib.Path(tempfile.mkdtemp(dir=absltest.TEST_TMPDIR.value))
    cls.data = workdirs.data(cls.folder / "data")
    cls.base = workdirs.run(cls.data)
    cls.states = {
      step: workdirs.state_of(cls.base, seed=step) for step in (2, 4)
    }
    cls.workdir = cls.folder / "base"
    workdirs.save(cls.workdir, cls.base, cls.states)

  def started(self, start, **changes):
    run = dataclasses.replace(self.base, init=start, **changes)
    starting.check(start, run.config, run.data.vocabulary)
    return starting.load(
      start,
      run.config,
      run.dtypes,
      mesh=run.devices(),
      sharding=run.sharding,
    )

  def copy(self, name: str) -> pathlib.Path:
    target = self.folder / name
    shutil.copytree(self.workdir, target)
    return target

  @parameterized.parameters((None, 4), (2, 2))
  def test_a_run_s_checkpoint(self, step, expected):
    found = self.started(start_lib.Start(path=str(self.workdir), step=step))
    state = self.states[expected]
    chex.assert_trees_all_equal(
      _host(found.variables),
      _host({"params": state.params, "router_bias": state.router_bias}),
    )
    self.assertEqual(found.record["step"], expected)
    self.assertIn(f"from step {expected} of {self.workdir}", found.note)

  def test_the_average(self):
    start = start_lib.Start(path=str(self.workdir), average=True)
    found = self.started(start)
    half = workdirs.changed(self.states[4].params, 0.5)
    chex.assert_trees_all_equal(_host(found.variables["params"]), _host(half))
    plain = self.started(start_lib.Start(path=str(self.workdir)))
    self.assertNotEqual(found.record["digest"], plain.record["digest"])

  def test_a_damaged_checkpoint_is_passed_over(self):
    copy = self.copy("damaged")
    step = copy / workdir_lib.CHECKPOINTS / "4"
    file = max(step.rglob("*"), key=lambda p: p.stat().st_size * p.is_file())
    file.write_bytes(b"\0" + file.read_bytes()[1:])
    found = self.started(start_lib.Start(path=str(copy)))
    self.assertEqual(found.record["step"], 2)
    self.assertIn("step 4 is passed over", found.note)

  def test_the_digest_is_of_the_content(self):
    start = start_lib.Start(path=str(self.workdir))
    moved = self.started(start_lib.Start(path=str(self.copy("moved"))))
    self.assertEqual(
      moved.record["digest"], self.started(start).record["digest"]
    )
    older = self.started(dataclasses.replace(start, step=2))
    self.assertNotEqual(older.record["digest"], moved.record["digest"])

  def test_a_hugging_face_folder_without_its_mtp_module(self):
    state = self.states[4]
    variables = {"params": state.params, "router_bias": state.router_bias}
    folder = self.folder / "hf"
    convert.save(folder, self.base.config, _host(variables), dtype="float32")
    start = start_lib.Start(path=str(folder))
    whole = self.started(start)
    chex.assert_trees_all_equal(_host(whole.variables), _host(variables))
    config = dataclasses.replace(
      self.base.config, num_nextn_predict_layers=0, rope_theta=5e5
    )
    without = self.started(start, config=config)
    self.assertNotIn("mtp_0", without.variables["params"])
    self.assertEqual(without.record["digest"], whole.record["digest"])
    starting.check_same(start, whole.record)
    (folder / "config.json").write_text("{}")
    with self.assertRaisesRegex(ValueError, "was started from weights with"):
      starting.check_same(start, whole.record)

  @parameterized.named_parameters(
    (
      "nothing",
      {"path": "/nowhere"},
      {},
      "^init.path='/nowhere': found no model, expected the workdir of a run",
    ),
    (
      "model",
      {},
      {"v_head_dim": 4},
      "^config.v_head_dim=4: expected 8, as the model that init.path=",
    ),
    (
      "mtp",
      {},
      {"num_nextn_predict_layers": 2},
      "^config.num_nextn_predict_layers=2: expected at most 1, as many as",
    ),
    ("step", {"step": 3}, {}, "^no good step 3 in checkpoint directory"),
  )
  def test_refused(self, fields, config, message):
    start = start_lib.Start(**({"path": str(self.workdir)} | fields))
    config = dataclasses.replace(self.base.config, **config)
    with self.assertRaisesRegex(ValueError, message):
      self.started(start, config=config)

  def test_a_vocabulary_that_the_model_does_not_know(self):
    start = start_lib.Start(path=str(self.workdir))
    other = absltest.mock.Mock(size=1, special={}, piece=lambda token: b"a")
    load = starting.vocab_lib.load
    with (
      absltest.mock.patch.object(
        starting.vocab_lib,
        "load",
        lambda name: other if name == "other" else load(name),
      ),
      self.assertRaisesRegex(
        ValueError, "^data.vocabulary='other': expected 'byte', with which"
      ),
    ):
      starting.check(start, self.base.config, "other")

  @parameterized.parameters(
    ({"path": ""}, "path='': expected the workdir of a run"),
    ({"path": "a", "step": -1}, "step=-1: expected the number of a checkpoint"),
  )
  def test_no_start(self, fields, message):
    with self.assertRaisesRegex(ValueError, message):
      start_lib.Start(**fields)

  def test_a_run_that_starts_there_resumes_and_stays_its_own(self):
    base = self.copy("origin")
    run = dataclasses.replace(
      self.base,
      schedule=epochs.Epochs(
        count=1, sequence_length=workdirs.LENGTH, batch_size=8
      ),
      init=start_lib.Start(path=str(base)),
      ema_decay=None,
      sample_tokens=0,
    )
    workdir = self.folder / "tuned"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
      summary = loop.train(run, workdir)
    self.assertIn(f"from step 4 of {base}", printed.getvalue())
    with checkpoint.Checkpointer(workdir / workdir_lib.CHECKPOINTS) as found:
      metadata = found.metadata()
    self.assertEqual(metadata["start"]["step"], 4)
    self.assertEqual(metadata["run"], run.identity())
    identity = json.loads((workdir / workdir_lib.IDENTITY).read_text())
    self.assertEqual(identity["schedule"]["count"], 1)
    self.assertEqual(identity["init"]["path"], str(base))
    with contextlib.redirect_stdout(io.StringIO()) as printed:
      again = loop.train(run, workdir)
    self.assertIn(f"resumed at step {summary['steps']}", printed.getvalue())
    self.assertEqual(again["state_digest"], summary["state_digest"])
    other = dataclasses.replace(run, init=start_lib.Start(path="/elsewhere"))
    with self.assertRaisesRegex(
      workdir_lib.WorkdirError, "holds a run with init.path='.*/origin'"
    ):
      loop.train(other, workdir)
    shutil.rmtree(base)
    loop_again = contextlib.redirect_stdout(io.StringIO())
    with loop_again:  # what it was started from is not needed any more
      loop.train(run, workdir)
    workdirs.save(base, self.base, {4: self.states[2]})
    with self.assertRaisesRegex(
      workdir_lib.WorkdirError, "bring the old ones back, or give another"
    ):
      loop.train(run, workdir)


if __name__ == "__main__":
  absltest.main()
