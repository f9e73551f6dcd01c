"""Processes that are anywhere, and words that take any time, stop together."""

import collections
import random
import threading

from absl.testing import absltest
from absl.testing import parameterized

from dsx.parallel import agreement


class Run:
  """Processes whose steps and words take turns by chance."""

  def __init__(self, count, seed, *, places=10**9):
    self.rng = random.Random(seed)
    self.places = places
    self.all = [agreement.Agreement(i, count) for i in range(count)]
    self.passed = [0] * count
    self.stopped: list[str | None] = [None] * count
    self.words = collections.defaultdict(collections.deque)

  def speak(self, process) -> None:
    """Whatever it has to say is on its way; it may be the same again."""
    word = self.all[process].word()
    others = range(1, len(self.all)) if process == 0 else [0]
    for other in others if word else []:
      self.words[process, other].append(word)

  def hear(self, source, to) -> None:
    """The oldest word under way arrives, if there is one."""
    if words := self.words[source, to]:
      self.all[to].heed(source, words.popleft())

  def walk(self, process) -> None:
    """It goes past a place, unless it is held, or done."""
    done = self.stopped[process] or self.passed[process] == self.places
    if not done and not self.all[process].held:
      self.passed[process] += 1
      self.stopped[process] = self.all[process].passed()

  def go(self, turns) -> None:
    for _ in range(turns):
      process = self.rng.randrange(len(self.all))
      other = self.rng.randrange(len(self.all))
      how = self.rng.choice((self.walk, self.speak, self.hear))
      if how == self.hear:
        self.hear(process, other)
      else:
        how(process)

  def settle(self) -> None:
    """All words arrive, and all go on until they stop."""
    everybody = range(len(self.all))
    for _ in range(sum(self.passed) + 10):
      for process in everybody:
        self.speak(process)
      for (source, to), words in list(self.words.items()):
        while words:
          self.hear(source, to)
      for process in everybody:
        self.walk(process)


class AgreementTest(parameterized.TestCase):
  @parameterized.product(
    count=[2, 3, 8], asked=[(0,), (1,), (0, 1), "all"], seed=list(range(8))
  )
  def test_all_stop_at_one_place(self, count, asked, seed):
    run = Run(count, seed)
    run.go(run.rng.randrange(200))
    before = list(run.passed)
    for process in range(count) if asked == "all" else asked:
      run.all[process].ask(f"of {process}")
      run.go(run.rng.randrange(10))
    run.go(run.rng.randrange(50 * count))
    run.settle()
    self.assertLen(set(run.passed), 1)
    self.assertGreater(run.passed[0], max(before))
    # What was asked first to reach process 0 is what all have heard.
    (why,) = set(run.stopped)
    self.assertStartsWith(why, "of ")

  @parameterized.product(count=[2, 5], at=[7, 8, 9, 10], seed=list(range(8)))
  def test_near_the_end_all_stop_or_none(self, count, at, seed):
    run = Run(count, seed, places=10)
    while min(run.passed) < at:
      run.walk(run.rng.randrange(count))
    run.all[-1].ask("late")
    run.go(run.rng.randrange(50 * count))
    run.settle()
    self.assertLen(set(run.passed), 1)
    self.assertLen(set(run.stopped), 1)
    self.assertFalse(any(one.held for one in run.all))

  def test_before_the_first_place(self):
    run = Run(3, 0)
    run.all[2].ask("early")
    for source, to in ((2, 0), (0, 1), (0, 2), (1, 0), (2, 0), (0, 1), (0, 2)):
      run.speak(source)
      for _ in range(5):
        run.hear(source, to)
    for one in run.all:
      self.assertEqual(one.passed(), "early")
      self.assertEqual(one.passed(), "early")  # and ever after

  def test_nobody_asks(self):
    run = Run(4, 0)
    run.go(1000)
    self.assertFalse(any(run.words.values()))
    self.assertEqual(set(run.stopped), {None})

  def test_who_is_held_waits_until_all_agree(self):
    zero, one = (agreement.Agreement(i, 2) for i in range(2))
    self.assertIsNone(one.passed())
    zero.ask("why")
    self.assertEqual(zero.word(), {"hold": "why"})
    one.heed(0, {"hold": "why"})
    said = []
    waiting = threading.Thread(
      target=lambda: said.append(one.passed()), daemon=True
    )
    waiting.start()
    # A place it waits at is not one that it has passed.
    self.assertEqual(one.word(), {"passed": 1})
    zero.heed(1, {"passed": 1})
    self.assertEqual(zero.word(), {"place": 2, "why": "why"})
    self.assertEmpty(said)
    one.heed(0, {"place": 2, "why": "why"})
    waiting.join(30)
    self.assertEqual(said, ["why"])
    self.assertEqual([zero.passed(), zero.passed()], [None, "why"])


if __name__ == "__main__":
  absltest.main()
