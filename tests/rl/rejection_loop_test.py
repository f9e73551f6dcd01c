"""A run of rejection sampling with a policy that says what it is told.

The policy's place is taken by texts; grading, selection, files and resuming are
the real ones.
"""

import dataclasses
import json
import pathlib
import types
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from dsx.data import arithmetic
from dsx.data import problems
from dsx.data import prompt_template
from dsx.data import sft
from dsx.data import source_files
from dsx.data import vocab
from dsx.models import config as config_lib
from dsx.ops import dtypes as dtypes_lib
from dsx.rl import curated_set
from dsx.rl import exercises
from dsx.rl import rejection
from dsx.rl import rejection_loop
from dsx.rl import rejection_sampler
from dsx.rl import rejection_sampling
from dsx.rl import rewards
from dsx.rl import sample
from dsx.training import start

_BYTES = vocab.ByteVocabulary()
_GENERATED = arithmetic.Generated(train=10, held_out=2)
# What is answered to every problem, by number.
_RIGHT, _WRONG, _LOOSE, _CUT = range(4)


class _Roller:
  """Answers sums; stands for `rollout.Roller`."""

  calls = 0
  dies_at = -1

  def __init__(self, *unused_arguments, **unused_settings):
    del unused_arguments, unused_settings

  def load(self, variables, version):
    del variables, version

  def sample(self, prompts, *, group_size, first_prompt, **unused):
    del unused
    _Roller.calls += 1
    if first_prompt == _Roller.dies_at:
      raise KeyboardInterrupt
    return [
      self._answer(prompt, index, number)
      for index, prompt in enumerate(prompts)
      for number in range(group_size)
    ]

  def _answer(self, prompt, index, number):
    return _said(prompt, index, number)


def _sum(prompt):
  a, b = _BYTES.decode(prompt).strip().rstrip("=").split("+")
  return int(a) + int(b)


def _said(prompt, index, number):
  """A right answer, a wrong one, one without form, and one cut off."""
  result = 0 if number == _WRONG else _sum(prompt)
  text = f"<think>of course</think><answer>{result}</answer>"
  text = str(result) if number == _LOOSE else text
  return _sample(prompt, index, number, text)


def _opened(roller, prompt, index, number):
  """A right answer to a prompt that ends with <think>."""
  del roller
  text = f"so</think><answer>{_sum(prompt)}</answer>"
  return _sample(prompt, index, number, text)


def _sample(prompt, index, number, text):
  ids = prompt_template.response_tokens(_BYTES, text)
  ids = ids if number == _CUT else [*ids, _BYTES.special["eos"]]
  logprob = np.full(len(ids), -0.5, np.float32)
  return sample.Sample(
    prompt_number=index,
    number=number,
    prompt=np.asarray(prompt, np.int32),
    tokens=np.asarray(ids, np.int32),
    logprob=logprob,
    sampled_logprob=logprob,
    experts=None,
    version=np.zeros(len(ids), np.int32),
    truncated=number == _CUT,
  )


def _settings(**changes):
  settings = {
    "problems": exercises.Exercises(generated=(_GENERATED,)),
    "policy": start.Start(path="policy"),
    "template": prompt_template.Template(kind="plain"),
    "answers": 4,
    "at_once": 4,
  }
  return rejection_sampling.RejectionSampling(**(settings | changes))


class RejectionLoopTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self._root = pathlib.Path(self.create_tempdir().full_path)
    self._digest = "d" * 64
    found = types.SimpleNamespace(
      config=config_lib.DeepSeekConfig(vocab_size=_BYTES.size),
      dtypes=dtypes_lib.Dtypes(),
      vocabulary=_BYTES,
    )

    def load(*unused_arguments, **unused_settings):
      del unused_arguments, unused_settings
      record = {"path": "policy", "step": 3, "digest": self._digest}
      return types.SimpleNamespace(record=record, note="there", variables={})

    module = rejection_sampler
    for owner, name, new in (
      (module.pretrained, "find", lambda *a, **k: found),
      (module.starting, "load", load),
      (module.rollout, "Roller", _Roller),
    ):
      self.enter_context(mock.patch.object(owner, name, new))
    _Roller.calls, _Roller.dies_at = 0, -1

  def _run(self, name, **changes):
    said = []
    summary = rejection_loop.run(
      _settings(**changes), self._root / name, say=said.append
    )
    return summary, said

  def test_what_it_leaves(self):
    summary, said = self._run("a")
    self.assertEqual(summary["samples"], 10)
    self.assertEqual(summary["share_kept"], 0.25)
    self.assertEqual(said[-1], "10 of 10 problems: 10 of 40 kept")
    folder = self._root / "a"
    files = source_files.matched([str(folder / curated_set.SAMPLES)])
    samples = [found for _, found in sft.read(files[0])]
    self.assertCountEqual(
      [s.messages[0][1] for s in samples],
      [p.prompt for p in _GENERATED.problems("train")],
    )
    provenance = json.loads((folder / curated_set.PROVENANCE).read_text())
    self.assertEqual(
      provenance["answers"],
      {
        "addition": {
          "kept": 10,
          "cut off": 10,
          "wrong form": 10,
          "wrong answer": 10,
        }
      },
    )
    self.assertEqual(provenance["policy"]["digest"], "d" * 64)
    self.assertEqual(
      provenance["settings"]["problems"],
      problems.digest(_GENERATED.problems("train")),
    )
    self.assertEqual(provenance["samples.jsonl"], summary["samples_digest"])
    refused = (folder / "refused.jsonl").read_text().splitlines()
    self.assertCountEqual(
      {json.loads(line)["reason"] for line in refused},
      {"cut off", "wrong form", "wrong answer"},
    )

  def test_going_on_is_the_same(self):
    whole, _ = self._run("whole")
    _Roller.dies_at = 8
    with self.assertRaises(KeyboardInterrupt):
      self._run("killed")
    _Roller.calls, _Roller.dies_at = 0, -1
    # A part that was not whole is made again.
    (self._root / "killed" / "parts" / "000000004.json").write_text("{")
    resumed, _ = self._run("killed")
    self.assertEqual(_Roller.calls, 2)
    self.assertEqual(resumed, whole)
    _Roller.calls = 0
    again, _ = self._run("killed")
    self.assertEqual((_Roller.calls, again), (0, whole))

  def test_another_run_is_refused(self):
    self._run("a")
    for changes, message in (
      ({"seed": 1}, "holds a run with seed=0, this one has 1"),
      ({"answers": 2}, "answers=4, this one has 2"),
    ):
      with self.assertRaisesRegex(ValueError, message):
        self._run("a", **changes)
    self._digest = "e" * 64
    with self.assertRaisesRegex(ValueError, "holds a run with policy='ddd"):
      self._run("a")

  def test_how_it_is_run_does_not_matter(self):
    decoding = dataclasses.replace(_settings().decoding, slots=3)
    first, _ = self._run("a")
    self.assertEqual(self._run("a", decoding=decoding)[0], first)

  def test_opened_thoughts_are_whole(self):
    """Where the prompt ends with <think>, samples still have it."""
    template = prompt_template.Template(kind="chat")
    with mock.patch.object(_Roller, "_answer", _opened):
      summary, _ = self._run("a", template=template, answers=1)
    self.assertEqual(summary["samples"], 10)
    line = (self._root / "a" / "samples.jsonl").read_text().splitlines()[0]
    response = json.loads(line)["response"]
    self.assertStartsWith(response, "<think>\nso</think><answer>")

  def test_nothing_good(self):
    """Every chain of thought is in the wrong language."""
    asked = _chinese(self._root)
    with self.assertRaisesRegex(ValueError, "none was good enough"):
      self._run("a", answers=1, problems=asked)

  def test_open_problems_need_a_judge(self):
    path = self._root / "open.jsonl"
    problems.write(path, [problems.Problem("o", "1+1=", "x", "open", None)])
    asked = exercises.Exercises(files=(str(path),))
    with self.assertRaisesRegex(ValueError, "rewards.preference=0: .* 'o'"):
      self._run("a", problems=asked)

    class Judge:
      def scores(self, prompts, groups):
        del prompts
        return [np.asarray([1.0, 3.0, 2.0, 0.0][: len(g)]) for g in groups]

    settings = _settings(
      problems=asked,
      rewards=rewards.Rewards(preference=1.0, reward_model="judge"),
      filters=rejection.Filters(keep=0, least_score=2.0),
    )
    summary = rejection_loop.run(
      settings, self._root / "a", judge=Judge(), say=lambda line: None
    )
    self.assertEqual(summary["samples"], 1)
    line = json.loads((self._root / "a" / "samples.jsonl").read_text())
    self.assertEqual((line["answer"], line["score"]), (_WRONG, 3.0))


def _chinese(folder):
  path = folder / "zh.jsonl"
  asked = [
    dataclasses.replace(p, language="zh") for p in _GENERATED.problems("train")
  ]
  problems.write(path, asked)
  return exercises.Exercises(files=(str(path),))


class SettingsTest(parameterized.TestCase):
  @parameterized.parameters(
    ({"answers": 0}, "answers=0: expected at least 1"),
    ({"at_once": 0}, "at_once=0: expected at least 1"),
    ({"ratio": 0}, "ratio=0: expected more than 0"),
    ({"general": "g"}, r"general='g': expected a tuple of globs"),
  )
  def test_refused(self, changes, message):
    with self.assertRaisesRegex(ValueError, message):
      _settings(**changes)

  def test_greedy_answers_are_all_the_same(self):
    sampling = dataclasses.replace(_settings().sampling, temperature=0.0)
    with self.assertRaisesRegex(ValueError, "temperature=0.0: expected more"):
      _settings(sampling=sampling)
    _settings(sampling=sampling, answers=1)


if __name__ == "__main__":
  absltest.main()
