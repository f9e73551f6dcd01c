"""Every problem once an epoch, in an order that a place alone decides."""

from absl.testing import absltest

from dsx.rl import curriculum


class CurriculumTest(absltest.TestCase):
  def test_each_problem_comes_once_an_epoch(self):
    order = curriculum.Curriculum(list("abcdefg"), seed=1)
    first, second = order.take(0, 7), order.take(7, 7)
    self.assertCountEqual(first, "abcdefg")
    self.assertCountEqual(second, "abcdefg")
    self.assertNotEqual(first, second)

  def test_a_place_decides(self):
    order = curriculum.Curriculum(range(10), seed=1)
    whole = order.take(0, 45)
    again = curriculum.Curriculum(range(10), seed=1)
    self.assertEqual(again.take(13, 20), whole[13:33])

  def test_seeds_differ(self):
    orders = [curriculum.Curriculum(range(50), s).take(0, 50) for s in (0, 1)]
    self.assertNotEqual(*orders)

  def test_counts_epochs(self):
    self.assertEqual(curriculum.Curriculum(range(4), 0).epoch(6), 1.5)

  def test_refuses_nothing(self):
    with self.assertRaisesRegex(ValueError, "expected at least one problem"):
      curriculum.Curriculum([], 0)


if __name__ == "__main__":
  absltest.main()
