"""Reward models: they learn preferences, resume exactly, and score alike."""

import contextlib
import functools
import io
import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from dsx.convert import deepseek as convert
from dsx.data import byte_tokenizer
from dsx.data import prompt_template
from dsx.data import vocab
from dsx.parallel import mesh as mesh_lib
from dsx.parallel import sharding
from dsx.rl import preferences
from dsx.rl import reward_batches
from dsx.rl import reward_loop
from dsx.rl import reward_model
from dsx.rl import reward_scorer
from dsx.rl import reward_training
from dsx.rl import reward_update
from dsx.training import optimizer
from dsx.training import state as state_lib
from tests.models import tiny

# One layer, with experts: what is deeper is tested with the models.
_SMALL = {
  "vocab_size": 320,
  "num_hidden_layers": 1,
  "first_k_dense_replace": 0,
  "num_nextn_predict_layers": 0,
}
_TEMPLATE = prompt_template.Template(kind="plain")


def _pairs(n: int) -> list[preferences.Preference]:
  """An answer with the number that was asked for, against another one."""
  rng = np.random.default_rng(0)
  found: list[preferences.Preference] = []
  for i in range(n):
    good, bad = rng.permutation(4)[:2]
    thought = f"<think>{rng.integers(9)}</think>"
    found.append(
      preferences.Pair(
        prompt=f"{i} say a",
        chosen=f"{thought}<answer>{'ab'[good % 2]}a</answer>",
        rejected=f"{thought}<answer>{'ab'[bad % 2]}z</answer>",
      )
    )
  return found


class RewardModelTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    kept = tempfile.TemporaryDirectory()
    cls.addClassCleanup(kept.cleanup)
    cls.root = pathlib.Path(kept.name)
    # One device: what is divided over several is tested with the models.
    make = functools.partial(mesh_lib.make, devices=jax.devices()[:1])
    patched = mock.patch.object(
      mesh_lib, "make", lambda shape, _=None: make(shape)
    )
    patched.start()
    cls.addClassCleanup(patched.stop)
    config = tiny.config(**_SMALL)
    cls.policy = cls.root / "policy"
    convert.save(cls.policy, config, tiny.variables(config))
    for name, text in byte_tokenizer.files(64).items():
      (cls.policy / name).write_text(text)

  def run_of(self, found, **changes) -> reward_training.RewardTraining:
    path = pathlib.Path(self.create_tempfile("preferences.jsonl").full_path)
    preferences.write(path, found)
    fields = {
      "init": str(self.policy),
      "preferences": str(path),
      "template": _TEMPLATE,
      "batch_size": 16,
      "micro_batch_size": 8,
      "epochs": 4,
      "learning_rate": 0.01,
      "longest": 64,
      "held_out": 0.2,
      "optimizer": optimizer.AdamW(weight_decay=0.0),
      "checkpoint_every": 5,
      "evaluate_every": 5,
    }
    return reward_training.RewardTraining(**{**fields, **changes})

  def train(self, run, name: str) -> dict:
    with contextlib.redirect_stdout(io.StringIO()):
      return reward_loop.train(run, self.folder(name))

  def folder(self, name: str) -> pathlib.Path:
    return pathlib.Path(self.create_tempdir().full_path) / name

  def test_it_learns_resumes_and_scores(self):
    pairs = _pairs(96)
    run = self.run_of(pairs)
    whole = self.folder("whole")
    with contextlib.redirect_stdout(io.StringIO()):
      summary = reward_loop.train(run, whole)
    self.assertGreater(summary["held_out"], 0.9)
    self.assertTrue((whole / "report" / "reward_model.png").is_file())
    # From the checkpoint before the last, to the same end.
    newest = max((whole / "checkpoints").iterdir(), key=lambda p: int(p.name))
    for path in sorted(newest.rglob("*"), reverse=True):
      path.unlink() if path.is_file() else path.rmdir()
    newest.rmdir()
    with contextlib.redirect_stdout(io.StringIO()) as said:
      again = reward_loop.train(run, whole)
    self.assertIn("resumed at step", said.getvalue())
    self.assertEqual(again["state_digest"], summary["state_digest"])
    # The scorer prefers what was preferred, of prompts that it has not seen.
    scorer = reward_scorer.RewardScorer(whole)
    good, bad = "<think>1</think><answer>ba</answer>", "<answer>bz</answer>"
    scores = scorer.scores(["500 say a", "501 say a"], [[good, bad], [bad]])
    self.assertGreater(scores[0][0], scores[0][1])
    self.assertLen(scores[1], 1)
    # The chain of thought is not judged.
    (other,) = scorer.scores(["500 say a"], [["<think>zzz</think> ba", good]])
    np.testing.assert_allclose(other[0], other[1], rtol=1e-5)
    (long,) = scorer.scores(["x" * 99], [[good]])
    self.assertTrue(np.isnan(long).all())
    with self.assertRaisesRegex(ValueError, "holds a run with batch_size=16"):
      self.assertIsNone(
        reward_loop.train(self.run_of(pairs, batch_size=8), whole)
      )

  def test_labels(self):
    found = [
      preferences.Label(
        prompt=f"{i}", response=f"{'ok' if i % 3 else 'no'}{i}", good=i % 3 > 0
      )
      for i in range(80)
    ]
    run = self.run_of(found, part="whole", epochs=5, micro_batch_size=None)
    summary = self.train(run, "labels")
    self.assertGreater(summary["held_out"], 0.9)

  def test_micro_batches_change_nothing(self):
    config = tiny.config(**_SMALL)
    model = reward_model.RewardModel(config)
    adam = optimizer.AdamW().transformation()
    losses = functools.partial(reward_update.losses, model, True)
    step = jax.jit(functools.partial(reward_update.step, losses, adam))
    boxed = state_lib.abstract(model, adam)
    mesh = mesh_lib.make(mesh_lib.MeshShape(), jax.devices()[:1])
    placement = state_lib.shardings(boxed, sharding.Sharding(), mesh)
    state = state_lib.initialise(model, adam, placement, 0)
    # Not at zero, where nothing but the score has a gradient.
    score = {"kernel": jnp.full((config.hidden_size,), 0.3), "bias": 0.1}
    state = state.replace(params={**state.params, "score": score})
    encoder = reward_batches.Encoder(
      vocab.ByteVocabulary(), _TEMPLATE, "summary"
    )
    found = [encoder.preference(pair) for pair in _pairs(8)]
    seen, moments = [], []
    for parts in (1, 2):
      rows = tuple(reward_batches.batch(found, parts))
      after, numbers = step(state, rows, np.float32(0.0))
      seen.append(numbers)
      moments.append(jax.tree.map(np.float32, after.opt_state))
    chex.assert_trees_all_close(*seen, rtol=1e-4)
    # bfloat16 moments: a rounding apart at most.
    chex.assert_trees_all_close(*moments, rtol=0.01, atol=1e-5)

  def test_losses_by_hand(self):
    rewards = jnp.asarray([2.0, 0.0, 1.0, 0.5])  # chosen 2, 0; rejected 1, 0.5
    loss, right = reward_model.pair_losses(rewards)
    expected = [np.log1p(np.exp(-1.0)), np.log1p(np.exp(0.5))]
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_array_equal(right, [True, False])
    loss, right = reward_model.label_losses(
      jnp.asarray([2.0, 2.0]), jnp.asarray([True, False])
    )
    np.testing.assert_allclose(
      loss, [np.log1p(np.exp(-2.0)), np.log1p(np.exp(2.0))], rtol=1e-6
    )
    np.testing.assert_array_equal(right, [True, False])

  def test_padding_does_not_reach_the_score(self):
    config = tiny.config(**_SMALL)
    model = reward_model.RewardModel(config)
    tokens = jax.random.randint(jax.random.key(0), (2, 9), 1, tiny.VOCAB)
    variables = jax.tree.map(
      lambda x: x + np.random.default_rng(x.size).normal(0, 0.1, x.shape),
      jax.jit(model.init)(jax.random.key(1), tokens),
    )
    length = np.asarray([5, 9])
    places = np.arange(9)[None, :] < length[:, None]
    apply = jax.jit(model.apply)
    padded, _ = apply(variables, tokens, valid=places)
    alone, _ = apply(variables, tokens[:1, :5])
    found = reward_model.last(padded, length)
    np.testing.assert_allclose(found[0], alone[0, 4], rtol=1e-4, atol=1e-5)


class PreferencesTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ("not_json", "{", "preferences.jsonl:1: .*: expected a JSON object"),
    ("a_list", "[]", r"preferences.jsonl:1: \[\]: expected a JSON object"),
    (
      "missing",
      '{"prompt": "a", "chosen": "b"}',
      "preferences.jsonl:1: rejected=None: expected text; a line has prompt",
    ),
    (
      "label",
      '{"prompt": "a", "response": "b", "good": 1}',
      "preferences.jsonl:1: good=1: expected true or false",
    ),
    (
      "mixed",
      '{"prompt": "a", "chosen": "b", "rejected": "c"}\n'
      '{"prompt": "a", "response": "b", "good": true}',
      "preferences.jsonl:2: another kind",
    ),
    ("empty", "\n", "preferences.jsonl: no preference"),
  )
  def test_refused(self, text, message):
    path = self.create_tempdir().create_file("preferences.jsonl", text)
    with self.assertRaisesRegex(ValueError, message):
      self.assertIsNone(preferences.read(path.full_path))

  def test_written_and_read(self):
    pairs = _pairs(3)
    path = self.create_tempfile("p.jsonl").full_path
    preferences.write(path, pairs)
    self.assertEqual(preferences.read(path), pairs)

  def test_no_prompt_is_on_both_sides(self):
    found = [
      preferences.Pair(prompt=str(i % 50), chosen="a", rejected=str(i))
      for i in range(200)
    ]
    training, held_out = preferences.split(found, 0.3)
    self.assertLen([*training, *held_out], 200)
    self.assertGreater(len(held_out), 20)
    self.assertEmpty(
      {p.prompt for p in training} & {p.prompt for p in held_out}
    )

  def test_an_epoch_reads_every_preference_once(self):
    order = reward_batches.order(10, 4, 2, seed=3)
    self.assertEqual(order.shape, (5, 4))
    counts = np.bincount(order.ravel(), minlength=10)
    np.testing.assert_array_equal(counts, 2)
    self.assertFalse((order == reward_batches.order(10, 4, 2, seed=4)).all())


if __name__ == "__main__":
  absltest.main()
