"""Pages are nobody's until they are taken, and again when all let go."""

from absl.testing import absltest

from dsx.inference import pages


class PagesTest(absltest.TestCase):
  def test_taken_shared_and_given_back(self):
    pool = pages.Pages(3)
    self.assertEqual((pool.total, pool.free), (3, 3))
    first = pool.take(2)
    self.assertLen(set(first), 2)
    pool.share(first[:1])
    self.assertEqual(pool.free, 1)
    pool.give_back(first)
    self.assertEqual(pool.free, 2)  # one of them has another holder
    pool.give_back(first[:1])
    self.assertEqual(pool.free, 3)
    self.assertCountEqual(pool.take(3), range(3))


if __name__ == "__main__":
  absltest.main()
