"""Slots and pages: order, sharing, room, and nothing lost."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from dsx.inference import request as request_lib
from dsx.inference import sampling
from dsx.inference import scheduler as scheduler_lib


def _scheduler(**changes):
  fields = {"slots": 3, "pages": 12, "page_size": 4, "context": 40, "chunk": 8}
  return scheduler_lib.Scheduler(**(fields | changes))


def _sequence(number, length=5, new=20, prompt=None, **fields):
  prompt = tuple(prompt or [number] * length)
  request = request_lib.Request(
    prompt=prompt, sampling=sampling.Sampling(max_new_tokens=new), **fields
  )
  return scheduler_lib.Sequence(number, request, list(prompt))


class SchedulerTest(parameterized.TestCase):
  def test_first_come_first_served(self):
    scheduler = _scheduler()
    scheduler.waiting.extend(_sequence(n) for n in range(5))
    admitted = scheduler.admit()
    self.assertEqual([s.number for s in admitted.to_read], [0, 1, 2])
    self.assertEqual([s.number for s in scheduler.waiting], [3, 4])
    # 4 cached tokens and a chunk of 8: three pages each.
    self.assertEqual([len(s.pages) for s in scheduler.running], [3, 3, 3])
    scheduler.release(scheduler.running[1])
    self.assertEqual([s.slot for s in scheduler.admit().to_read], [1])

  def test_nobody_is_let_in_whom_the_next_chunk_would_put_out(self):
    scheduler = _scheduler(pages=5)
    scheduler.waiting.extend(_sequence(n) for n in range(2))
    self.assertLen(scheduler.admit().to_read, 1)
    self.assertLen(scheduler.waiting, 1)

  def test_equal_prompts_share_full_pages(self):
    scheduler = _scheduler()
    prompt = range(10)  # nine cached: two full pages and one token
    scheduler.waiting.extend(_sequence(n, prompt=prompt) for n in range(2))
    admitted = scheduler.admit()
    first, second = scheduler.running
    self.assertEqual([s.number for s in admitted.to_read], [0])
    self.assertEqual(first.pages[:2], second.pages[:2])
    self.assertEmpty(set(first.pages[2:]) & set(second.pages[2:]))
    self.assertEqual(admitted.copies, [(first.pages[2], second.pages[2])])
    scheduler.release(first)
    held = scheduler.pages.total - scheduler.pages.free
    self.assertEqual(held, len(second.pages))

  def test_a_prompt_that_fills_its_pages_needs_no_copy(self):
    scheduler = _scheduler()
    scheduler.waiting.extend(_sequence(n, prompt=range(9)) for n in range(2))
    self.assertEmpty(scheduler.admit().copies)

  def test_a_prompt_to_be_scored_is_read_itself(self):
    scheduler = _scheduler()
    scheduler.waiting.append(_sequence(0, prompt=range(9)))
    scheduler.waiting.append(_sequence(1, prompt=range(9), score_prompt=True))
    self.assertLen(scheduler.admit().to_read, 2)

  def test_the_last_with_a_prompt_leaves_its_pages_to_the_next(self):
    scheduler = _scheduler(slots=1)
    prompt = range(10)
    scheduler.waiting.extend(_sequence(n, prompt=prompt) for n in range(3))
    (first,) = scheduler.admit().to_read
    pages = list(first.pages)
    scheduler.release(first)
    self.assertEqual(scheduler.left_behind, pages[:3])
    admitted = scheduler.admit()
    self.assertEmpty(admitted.to_read + admitted.copies + admitted.sharing)
    (second,) = scheduler.running
    self.assertEqual(second.pages[:3], pages[:3])
    self.assertEmpty(scheduler.left_behind)
    scheduler.release(second)
    self.assertNotEmpty(scheduler.left_behind)
    scheduler.cancel(2)  # nobody wants them any more
    self.assertEqual(scheduler.pages.free, scheduler.pages.total)

  def test_whoever_needs_pages_comes_before_those_who_inherit(self):
    scheduler = _scheduler(slots=2, pages=6, chunk=4)
    scheduler.waiting.extend(
      [_sequence(0, 9, new=4), _sequence(1), _sequence(2), _sequence(3, 9)]
    )
    scheduler.waiting.append(_sequence(4, prompt=[0] * 9))
    scheduler.admit()
    self.assertEqual([s.number for s in scheduler.running], [0, 1])
    scheduler.release(scheduler.running[0])
    self.assertLen(scheduler.left_behind, 2)
    scheduler.admit()
    self.assertEqual([s.number for s in scheduler.running], [2, 1])
    for sequence in scheduler.running:
      sequence.tokens += [0] * 8
    scheduler.make_room()
    self.assertEmpty(scheduler.left_behind)
    self.assertLen(scheduler.running, 1)

  def test_the_youngest_makes_room(self):
    scheduler = _scheduler(pages=7)
    scheduler.waiting.extend(_sequence(n) for n in range(2))
    scheduler.admit()
    for sequence in scheduler.running:
      sequence.tokens += [0] * 8
    scheduler.make_room()
    self.assertEqual([s.number for s in scheduler.running], [0])
    self.assertEqual([s.number for s in scheduler.waiting], [1])
    self.assertEqual(scheduler.waiting[0].drawn, 8)
    self.assertLen(scheduler.running[0].pages, 5)

  def test_cancelled_wherever_it_is(self):
    scheduler = _scheduler(slots=1)
    scheduler.waiting.extend(_sequence(n) for n in range(3))
    scheduler.admit()
    for number in (0, 2, 7):
      scheduler.cancel(number)
    self.assertEmpty(scheduler.running)
    self.assertEqual([s.number for s in scheduler.waiting], [1])
    self.assertEqual(scheduler.pages.free, scheduler.pages.total)

  @parameterized.parameters(range(8))
  def test_whatever_happens(self, seed):
    """Every request ends; pages are held by sequences in slots, or left."""
    rng = np.random.default_rng(seed)
    scheduler = _scheduler(slots=4, pages=int(rng.integers(10, 24)))
    ended, number = set(), 0
    for _ in range(400):
      if number < 40 and rng.random() < 0.4:
        length = int(rng.integers(1, 14))
        prompt = rng.integers(0, 2, length).tolist()  # twins are common
        new = int(rng.integers(1, 25))
        scheduler.waiting.append(_sequence(number, prompt=prompt, new=new))
        number += 1
      scheduler.admit()
      scheduler.make_room()
      self._check(scheduler)
      for sequence in scheduler.running:
        drawn = min(int(rng.integers(1, 9)), scheduler.remaining(sequence))
        sequence.tokens += [0] * drawn
        if not scheduler.remaining(sequence):
          ended.add(sequence.number)
          scheduler.release(sequence)
    while scheduler.waiting or scheduler.running:
      self.fail(f"unfinished: {scheduler.waiting} {scheduler.running}")
    self.assertEqual(ended, set(range(number)))
    self.assertEqual(scheduler.pages.free, scheduler.pages.total)

  def _check(self, scheduler):
    held = set()
    for sequence in scheduler.running:
      self.assertIs(scheduler.slots[sequence.slot], sequence)
      self.assertLen(set(sequence.pages), len(sequence.pages))
      # Room for all that a chunk may draw, in pages of its own.
      after = sequence.cached + min(8, scheduler.remaining(sequence))
      self.assertGreaterEqual(4 * len(sequence.pages), after)
      writable = set(sequence.pages[sequence.cached // 4 :])
      for other in scheduler.running:
        if other is not sequence:
          self.assertEmpty(writable & set(other.pages))
      held |= set(sequence.pages)
    left = set(scheduler.left_behind)
    self.assertEmpty(left & held)
    held |= left
    self.assertEqual(len(held), scheduler.pages.total - scheduler.pages.free)


if __name__ == "__main__":
  absltest.main()
