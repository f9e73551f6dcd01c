"""Answers into rows and back: everything once, in its place, in few shapes."""

import dataclasses

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from dsx.rl import rows as rows_lib
from dsx.rl import sample


def _sample(number, prompt, tokens, experts=True):
  p, n = len(prompt), len(tokens)
  return sample.Sample(
    prompt_number=0,
    number=number,
    prompt=np.array(prompt, np.int32),
    tokens=np.array(tokens, np.int32),
    logprob=-np.array(tokens, np.float32),
    sampled_logprob=-2 * np.array(tokens, np.float32),
    experts=np.arange((p + n - 1) * 6, dtype=np.int32).reshape(-1, 3, 2)
    if experts
    else None,
    version=np.zeros(n, np.int32),
    truncated=False,
  )


def _random(n, longest=60, seed=0):
  rng = np.random.default_rng(seed)
  return [
    _sample(
      i,
      rng.integers(1, 99, rng.integers(1, longest // 2)),
      rng.integers(1, 99, rng.integers(1, longest // 2)),
      experts=bool(i % 3),
    )
    for i in range(n)
  ]


class RowsTest(parameterized.TestCase):
  def test_literal(self):
    packed = rows_lib.pack(
      [_sample(0, [7, 8], [9]), _sample(1, [1], [2, 3, 4], experts=False)],
      length=6,
      micro_batch=1,
    )
    rows = packed.rows
    for name, expected in {
      "inputs": [1, 2, 3, 7, 8, 0],
      "targets": [2, 3, 4, 8, 9, 0],
      "segments": [1, 1, 1, 2, 2, 0],
      "positions": [0, 1, 2, 0, 1, 0],
      "mask": [1, 1, 1, 0, 1, 0],
      "sequence": [1, 1, 1, 0, 0, 0],
      "logprob": [-2, -3, -4, 0, -9, 0],
      "sampled_logprob": [-4, -6, -8, 0, -18, 0],
    }.items():
      np.testing.assert_array_equal(getattr(rows, name), [[expected]], name)
    assert rows.experts is not None
    np.testing.assert_array_equal(
      rows.experts[0, 0, :, 0, 0], [-1, -1, -1, 0, 6, -1]
    )
    self.assertEqual(packed.micro_batches, 1)
    self.assertEqual(packed.filled, 5 / 6)

  @parameterized.parameters((64, 1, 1), (64, 4, 1), (128, 8, 1), (64, 3, 3))
  def test_everything_once_and_back(self, length, micro_batch, multiple):
    samples = _random(50)
    packed = rows_lib.pack(
      samples, length=length, micro_batch=micro_batch, multiple=multiple
    )
    rows = packed.rows
    for values, field in (
      (rows.targets, "tokens"),
      (rows.logprob, "logprob"),
      (rows.sampled_logprob, "sampled_logprob"),
    ):
      for own, s in zip(packed.unpacked(values), samples, strict=True):
        np.testing.assert_array_equal(own, getattr(s, field))
    laid = packed.laid([s.logprob for s in samples])
    np.testing.assert_array_equal(laid, rows.logprob)
    flat = rows_lib.Rows(
      *(x.reshape(-1, length, *x.shape[3:]) for x in rows if x is not None)
    )
    used = flat.segments > 0
    self.assertEqual(used.sum(), sum(map(_columns, samples)))
    for number, s in enumerate(samples):
      row = packed.row[number]
      own = (flat.sequence[row] == number) & used[row]
      both = np.concatenate([s.prompt, s.tokens])
      np.testing.assert_array_equal(flat.inputs[row][own], both[:-1])
      np.testing.assert_array_equal(
        flat.positions[row][own], np.arange(len(both) - 1)
      )
      self.assertLen(set(flat.segments[row][own].tolist()), 1)
      assert flat.experts is not None
      expected = -1 if s.experts is None else s.experts
      np.testing.assert_array_equal(
        flat.experts[row][own],
        np.broadcast_to(expected, (len(both) - 1, 3, 2)),
      )
    for row in flat.segments:  # from 1, in order, padding at the end alone
      seen = row[row > 0]
      np.testing.assert_array_equal(row[: len(seen)], seen)
      self.assertTrue((np.diff(seen) >= 0).all())
      self.assertEqual(
        set(seen.tolist()), set(range(1, seen.max(initial=0) + 1))
      )
    empty = rows.segments[packed.micro_batches :]
    self.assertEqual(empty.max(initial=0), 0)

  def test_fills_rows(self):
    """Best fit, the longest first, wastes little where lengths differ."""
    packed = rows_lib.pack(_random(400), length=256, micro_batch=1)
    self.assertGreater(packed.filled, 0.95)

  def test_few_shapes(self):
    shapes = {
      rows_lib.pack(
        _random(n, seed=n), length=64, micro_batch=8, multiple=2
      ).rows.inputs.shape
      for n in range(1, 120)
    }
    self.assertEqual(
      shapes,
      {(1, 2, 64), (1, 4, 64), (1, 8, 64), (2, 8, 64), (4, 8, 64), (8, 8, 64)},
    )

  def test_no_experts(self):
    packed = rows_lib.pack([_sample(0, [1], [2], False)], micro_batch=1)
    self.assertIsNone(packed.rows.experts)
    self.assertEqual(packed.rows.inputs.shape, (1, 1, 64))

  @parameterized.parameters((1, 64), (64, 64), (65, 128), (1000, 1024))
  def test_row_length(self, longest, expected):
    self.assertEqual(rows_lib.row_length(longest), expected)

  def test_says_what_is_wrong(self):
    good = _sample(1, [1, 2], [3, 4, 5])
    for changes, message in (
      ({"prompt": good.prompt[:0]}, "prompt has no token: expected at least"),
      ({"tokens": good.tokens[:0]}, "tokens has no token: expected at least"),
      ({"logprob": good.logprob[1:]}, "logprob has 2 numbers: expected 3"),
      (
        {"experts": np.zeros((5, 3, 2))},
        r"experts has shape \(5, 3, 2\): expected \(4, 3, 2\)",
      ),
    ):
      bad = dataclasses.replace(good, **changes)
      with self.assertRaisesRegex(
        ValueError, f"answer 1 to prompt 0: {message}"
      ):
        rows_lib.pack([bad], micro_batch=1)
    with self.assertRaisesRegex(
      ValueError, "row_length=3: expected at least 4, the columns of answer 1"
    ):
      rows_lib.pack([good], length=3, micro_batch=1)
    with self.assertRaisesRegex(ValueError, r"samples=\(\): expected at least"):
      rows_lib.pack([], micro_batch=1)


def _columns(s):
  return len(s.prompt) + len(s.tokens) - 1


if __name__ == "__main__":
  absltest.main()
