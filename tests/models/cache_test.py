"""The paged cache against a dictionary of (sequence, position)."""

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax.numpy as jnp
import numpy as np

from dsx.models import cache
from dsx.models import config as config_lib
from tests.models import tiny

SIZE, PAGES, LAYERS = 4, 9, 3


def _pool():
  config = tiny.config(num_hidden_layers=2)
  pages = cache.empty_pages(
    config, n_pages=PAGES, page_size=SIZE, dtype="float32", mtp=1
  )
  return pages, cache.width(config)


def _entries(rng, b, n, w):
  return tuple(
    jnp.asarray(rng.normal(size=(b, n, w)), jnp.float32) for _ in range(LAYERS)
  )


class CacheTest(parameterized.TestCase):
  def test_v3_caches_576_numbers_a_token_and_layer(self):
    self.assertEqual(cache.width(config_lib.DeepSeekConfig()), 576)

  def test_whole_pages_and_single_tokens(self):
    rng, (pages, w) = np.random.default_rng(0), _pool()
    table = jnp.array([[5, 2, 7], [0, 8, 3]], jnp.int32)
    whole = _entries(rng, 2, 2 * SIZE, w)
    # The second sequence has one page only; the number past the pool drops.
    numbers = jnp.array([[5, 2], [0, PAGES]], jnp.int32)
    pages = cache.write_pages(pages, numbers, whole)
    single = _entries(rng, 2, 3, w)
    positions = jnp.array([[6, 7, 8], [4, 5, 6]], jnp.int32)
    valid = jnp.array([[True, True, True], [True, False, True]])
    pages = cache.append(pages, table, positions, valid, single)
    found = cache.gather(pages, table)
    self.assertLen(found, LAYERS)
    for layer in range(LAYERS):
      expected = np.zeros((2, 3 * SIZE, w), np.float32)
      expected[0, : 2 * SIZE] = whole[layer][0]
      expected[1, :SIZE] = whole[layer][1, :SIZE]
      for b in range(2):
        for i in range(3):
          if valid[b, i]:
            expected[b, positions[b, i]] = single[layer][b, i]
      chex.assert_trees_all_equal(found[layer], jnp.asarray(expected))

  def test_a_copied_page_is_a_page_of_its_own(self):
    rng, (pages, w) = np.random.default_rng(1), _pool()
    numbers = jnp.array([[1]], jnp.int32)
    first = _entries(rng, 1, SIZE, w)
    pages = cache.write_pages(pages, numbers, first)
    pages = cache.copy_pages(pages, jnp.array([1, 0]), jnp.array([6, 99]))
    pages = cache.write_pages(pages, numbers, _entries(rng, 1, SIZE, w))
    found = cache.gather(pages, jnp.array([[6]], jnp.int32))
    chex.assert_trees_all_equal(found, first)

  def test_memory_appends_at_its_place(self):
    memory = cache.LayerMemory(
      None, None, jnp.zeros((1, 6, 2)), None, jnp.int32(3)
    )
    found = memory.appended(jnp.ones((1, 2, 2))).tail
    self.assertEqual(found[0, :, 0].tolist(), [0, 0, 0, 1, 1, 0])


if __name__ == "__main__":
  absltest.main()
