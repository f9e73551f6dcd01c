from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np

from dsx.ops import row_blocks


class PaddedTest(parameterized.TestCase):
  @parameterized.parameters(
    ((3, 0, 2), 5), ((0, 0, 9), 9), ((4, 4), 8), ((1, 1, 1), 3), ((0, 0), 4)
  )
  def test_every_group_has_whole_blocks(self, sizes, n_rows):
    blocks = row_blocks.pad(jnp.array(sizes, jnp.int32), n_rows, 4)
    expected = [g for g, size in enumerate(sizes) for _ in range(-(-size // 4))]
    self.assertEqual(blocks.count, len(expected))
    self.assertGreaterEqual(blocks.group.size, len(expected))
    self.assertEqual(blocks.group[: len(expected)].tolist(), expected)
    for g, size in enumerate(sizes):
      if size:
        self.assertEqual(blocks.first[g], 4 * expected.index(g))

  def test_there_is_room_for_the_worst_case(self):
    """One row past whole blocks for as many groups as there can be."""
    for n_rows in range(1, 20):
      sizes = np.zeros(3, np.int32)
      for i in range(n_rows):
        sizes[i % 3 if i < 3 else 0] += 1
      blocks = row_blocks.pad(jnp.array(sizes), n_rows, 4)
      self.assertLessEqual(blocks.count, blocks.group.size)

  def test_room_for_all_at_every_group(self):
    blocks = row_blocks.spare(3, 5, 4)
    self.assertEqual(blocks.group.tolist(), [0, 0, 1, 1, 2, 2])
    self.assertEqual(blocks.first.tolist(), [0, 8, 16])
    self.assertEqual(blocks.count, 6)


if __name__ == "__main__":
  absltest.main()
