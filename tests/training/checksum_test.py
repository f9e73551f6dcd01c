from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from dsx.training import checksum

_MASK = 2**64 - 1


def _mix(x: int) -> int:
  """SplitMix64's output function, in Python's integers."""
  x = (x * 0x9E3779B97F4A7C15) & _MASK
  x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
  x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
  return (x ^ (x >> 31)) | 1


def _slow(words: np.ndarray) -> int:
  """The definition, one element at a time."""
  total = 0
  for index in np.ndindex(words.shape):
    weight = 1
    for axis, position in enumerate(index):
      weight = weight * _mix(position + (axis << 48) + 1) & _MASK
    total += int(words[index]) * weight
  return total & _MASK


def _whole(values: np.ndarray) -> int:
  return checksum.of_pieces([((0,) * values.ndim, values)])


def _mesh():
  return jax.make_mesh(
    (4, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2
  )


def _placed(values, *spec):
  spec = jax.sharding.PartitionSpec(*spec)
  return jax.device_put(values, jax.sharding.NamedSharding(_mesh(), spec))


class ChecksumTest(parameterized.TestCase):
  def test_follows_its_definition(self):
    words = np.arange(24, dtype=np.uint32).reshape(2, 3, 4) ** 5
    self.assertEqual(_whole(words), _slow(words))
    self.assertEqual(_whole(np.uint32(7)), 7)

  def test_eight_bytes_are_two_words(self):
    values = np.linspace(-1, 1, 6).reshape(2, 3)
    words = values.view(np.uint32).reshape(2, 3, 2)
    self.assertEqual(_whole(values), _slow(words))

  @parameterized.parameters(
    "float32", "bfloat16", "float8_e4m3fn", "int32", "uint8", "bool"
  )
  def test_is_the_same_however_sharded(self, dtype):
    values = jnp.asarray(
      np.random.default_rng(0).normal(size=(8, 4, 6)) * 9, dtype
    )
    expected = _whole(np.asarray(values))
    for spec in ((), ("a",), (None, "b"), ("b", "a"), (("a", "b"),)):
      array = _placed(values, *spec)
      for ordinal in range(9):
        pieces = checksum.pieces(array, ordinal=ordinal)
        self.assertEqual(checksum.of_pieces(pieces), expected, (spec, ordinal))

  def test_replicas_take_turns(self):
    sharding = _placed(np.arange(8.0), "b").sharding
    # Replicas that differ, which no computation makes, show who is in charge.
    shards = [
      jax.device_put(np.full(4, device.id), device)
      for device in sharding.addressable_devices_indices_map((8,))
    ]
    array = jax.make_array_from_single_device_arrays((8,), sharding, shards)
    owners = set()
    for ordinal in range(4):
      pieces = checksum.pieces(array, ordinal=ordinal)
      self.assertEqual([start for start, _ in pieces], [(0,), (4,)])
      owners.update(int(data[0]) for _, data in pieces)
    self.assertEqual(owners, set(range(8)))

  @parameterized.parameters("float64", "float32", "float16", "uint8")
  def test_every_flipped_bit_changes_it(self, dtype):
    values = np.arange(12).astype(dtype).reshape(3, 4)
    expected = _whole(values)
    data = values.view(np.uint8)
    for byte in np.ndindex(data.shape):
      for bit in range(8):
        data[byte] ^= 1 << bit
        self.assertNotEqual(_whole(values), expected)
        data[byte] ^= 1 << bit

  def test_top_bits_of_two_elements_do_not_cancel(self):
    values = np.ones(2, np.float64)
    self.assertNotEqual(_whole(values), _whole(-values))

  def test_order_matters(self):
    values = np.arange(12, dtype=np.int32).reshape(3, 4)
    sums = {
      _whole(values),
      _whole(values[::-1]),
      _whole(values[:, ::-1]),
      _whole(np.roll(values, 1)),
      _whole(values.reshape(4, 3)),
      _whole(values.reshape(12)),
    }
    self.assertLen(sums, 6)

  def test_pieces_hold_what_is_donated(self):
    array = jax.jit(lambda x: x + 0)(_placed(np.ones((8, 64), np.float32), "a"))
    pieces = checksum.pieces(array)
    expected = checksum.of_pieces(pieces)
    changed = jax.jit(lambda x: x * 0 - 7, donate_argnums=0)(array)
    jax.block_until_ready(changed)
    self.assertEqual(checksum.of_pieces(pieces), expected)


if __name__ == "__main__":
  absltest.main()
