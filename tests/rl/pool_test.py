"""Calls that end, and calls that are ended."""

from absl.testing import absltest
from absl.testing import parameterized

from dsx.rl import pool
from tests.rl import pool_functions


class PoolTest(parameterized.TestCase):
  def test_in_order(self):
    with pool.Pool(2, seconds=30) as workers:
      got = workers.map(pool_functions.slowly, [(i,) for i in range(6)])
      self.assertEqual([o.value for o in got], list(range(6)))
      self.assertEqual([o.error for o in got], [""] * 6)
      got = workers.map(pool_functions.process, [(i,) for i in range(8)])
      self.assertLessEqual(len({o.value for o in got}), 2)
      self.assertEqual(workers.map(pool_functions.double, []), [])

  def test_a_time_of_its_own(self):
    with pool.Pool(1, seconds=0.2) as workers:
      workers.map(pool_functions.double, [(1,)])
      call = [(0,)]
      got = workers.map(pool_functions.slowly, call, seconds=30)
      self.assertEqual(got[0], pool.Outcome(0))
      got = workers.map(pool_functions.behave, [("hang",)])
      self.assertEqual(got[0].error, "took more than 0.2 s")

  def test_whatever_happens_there_is_an_outcome(self):
    how = ["well", "raise", "hang", "crash", "exit", "leave", "eat", "well"]
    with pool.Pool(2, seconds=1.0, memory_bytes=2**32) as workers:
      got = workers.map(pool_functions.behave, [(h,) for h in how])
      again = workers.map(pool_functions.double, [(2,), (3,)])
    errors = [
      "",
      "ValueError: no such thing",
      "took more than 1 s",
      "its process ended with signal 11",
      "its process ended with exit code 3",
      "its process ended with exit code 4",
      "MemoryError",
      "",
    ]
    self.assertEqual([o.error for o in got], errors)
    self.assertEqual([got[0].value, got[-1].value], [1.0, 1.0])
    self.assertEqual([o.value for o in again], [4, 6])

  @parameterized.parameters({"processes": 0}, {"seconds": 0})
  def test_refused(self, **changes):
    ((name, _),) = changes.items()
    with self.assertRaisesRegex(ValueError, f"{name}=0: expected more than 0"):
      pool.Pool(**{"processes": 1, "seconds": 1, **changes})


if __name__ == "__main__":
  absltest.main()
