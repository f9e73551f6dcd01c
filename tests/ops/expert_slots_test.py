from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from dsx.ops import expert_slots


class ExpertSlotsTest(parameterized.TestCase):
  @parameterized.product(capacity=(8, 9), tile=(1, 4), experts=(1, 3))
  def test_every_copy_is_in_one_place(self, capacity, tile, experts):
    rng = np.random.default_rng(capacity)
    index = jnp.asarray(rng.integers(-1, experts + 1, (40, 1)), jnp.int32)
    slots = expert_slots.assign(index, experts, capacity, 8, tile=tile)
    filled, copies, places = (
      np.asarray(a) for a in (slots.filled, slots.copy, slots.slot)
    )
    seen: dict[int, list[int]] = {e: [] for e in range(experts)}
    for e in range(experts):
      for c in range(capacity):
        if filled[e, c]:
          copy = int(copies[e, c])
          self.assertEqual(places.reshape(-1)[copy], e * capacity + c)
          seen[e].append(copy)
    in_slots = {e: len(own) for e, own in seen.items()}
    for i in range(int(slots.blocks.count)):
      e, copy, there = (np.asarray(a) for a in slots.overflow(i))
      seen[int(e)] += copy[there].tolist()
    for e in range(experts):
      expected = np.nonzero(np.asarray(index[:, 0]) == e)[0].tolist()
      self.assertEqual(seen[e], expected)
      if in_slots[e] < len(expected):  # what overflows begins with a tile
        self.assertEqual(in_slots[e] % tile, 0)
    self.assertEqual(
      int((slots.slot < experts * capacity).sum()), sum(in_slots.values())
    )

  def test_what_fits_stays(self):
    index = jnp.zeros((11, 1), jnp.int32)
    slots = expert_slots.assign(index, 1, 11, 4, tile=4)
    self.assertEqual(int(slots.blocks.count), 0)
    slots = jax.jit(
      lambda i: expert_slots.assign(i, 1, 10, 4, tile=4).filled.sum()
    )(index)
    self.assertEqual(int(slots), 8)


if __name__ == "__main__":
  absltest.main()
