"""Answers that wait come back as they were, or not at all."""

import dataclasses
import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from dsx.rl import pending
from dsx.rl import sample as sample_lib


def _rollout(number=3, experts=True) -> pending.Rollout:
  rng = np.random.default_rng(number)

  def sample(i):
    p, n = 2 + i % 3, 1 + i

    def floats():
      return rng.normal(size=n).astype(np.float32)

    return sample_lib.Sample(
      prompt_number=i // 2,
      number=i % 2,
      prompt=rng.integers(0, 9, p).astype(np.int32),
      tokens=rng.integers(0, 9, n).astype(np.int32),
      logprob=floats(),
      sampled_logprob=floats(),
      experts=rng.integers(0, 4, (p + n - 1, 2, 2)).astype(np.int32)
      if experts
      else None,
      version=np.full(n, 7, np.int32),
      truncated=i == 1,
    )

  samples = [sample(i) for i in range(4)]
  return pending.Rollout(
    number=number,
    samples=samples,
    advantages=rng.normal(size=4).astype(np.float32),
    counted=np.array([True, True, False, True]),
    logprobs={
      name: [rng.normal(size=len(s.tokens)).astype(np.float32) for s in samples]
      for name in ("old", "reference")
    },
    facts={"reward": 0.1, "length": 2.5},
  )


def _assert_equal(test, a: pending.Rollout, b: pending.Rollout):
  test.assertEqual((a.number, dict(a.facts)), (b.number, dict(b.facts)))
  np.testing.assert_array_equal(a.advantages, b.advantages)
  np.testing.assert_array_equal(a.counted, b.counted)
  for one, other in zip(a.samples, b.samples, strict=True):
    for field in dataclasses.fields(one):
      x, y = getattr(one, field.name), getattr(other, field.name)
      np.testing.assert_array_equal(x, y)
      test.assertEqual(
        getattr(x, "dtype", type(x)), getattr(y, "dtype", type(y)), field.name
      )
  test.assertEqual(set(a.logprobs), set(b.logprobs))
  for name, lists in a.logprobs.items():
    for x, y in zip(lists, b.logprobs[name], strict=True):
      np.testing.assert_array_equal(x, y)


class PendingTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  @parameterized.parameters(True, False)
  def test_comes_back(self, experts):
    rollout = _rollout(experts=experts)
    digest = pending.write(self.folder, rollout)
    _assert_equal(self, pending.read(self.folder, 3, digest), rollout)

  def test_the_same_is_written_the_same(self):
    self.assertEqual(pending.encode(_rollout()), pending.encode(_rollout()))

  def test_a_part_of_a_copy_is_the_part(self):
    rollout = _rollout()
    again = pending.decode(pending.encode(rollout))
    _assert_equal(self, again.part(1, 2), rollout.part(1, 2))
    self.assertLen(rollout.part(0, 4).samples, 1)

  def test_parts_divide(self):
    with self.assertRaisesRegex(ValueError, "parts=3: expected a divisor of 4"):
      _rollout().part(0, 3)

  def test_a_flipped_bit_is_seen(self):
    digest = pending.write(self.folder, _rollout())
    path = pending.path(self.folder, 3)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    with self.assertRaisesRegex(pending.PendingError, "damaged"):
      pending.read(self.folder, 3, digest)

  def test_a_missing_file_is_said(self):
    with self.assertRaisesRegex(pending.PendingError, "missing"):
      pending.read(self.folder, 3, "")

  def test_keeps_what_is_needed(self):
    for number in (1, 2, 3):
      pending.write(self.folder, _rollout(number))
    (self.folder / pending.FOLDER / "rollout_9.npz.partial").write_text("x")
    pending.keep_only(self.folder, [2])
    left = [p.name for p in (self.folder / pending.FOLDER).iterdir()]
    self.assertEqual(left, ["rollout_2.npz"])


if __name__ == "__main__":
  absltest.main()
