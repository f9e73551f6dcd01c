"""How much room the cache gets."""

from absl.testing import absltest
from absl.testing import parameterized

from dsx.inference import decoding as decoding_lib
from dsx.models import config as config_lib
from tests.models import tiny


class DecodingTest(parameterized.TestCase):
  def _room(self, config, context, **options):
    return decoding_lib.cache_tokens(
      decoding_lib.Decoding(**options),
      config,
      context=context,
      bytes_per_value=2,
    )

  def test_all_slots_if_they_fit(self):
    self.assertEqual(self._room(tiny.config(), 64, slots=5), 320)

  def test_v3_stays_within_8_gib_or_one_context(self):
    v3 = config_lib.DeepSeekConfig()
    short = self._room(v3, 32_768, slots=8)
    self.assertEqual(short, 8 * 2**30 // 70_272)
    self.assertEqual(self._room(v3, 163_840, slots=8), 163_840)
    with_mtp = self._room(v3, 32_768, slots=8, drafts=1)
    self.assertEqual(with_mtp, 8 * 2**30 // (62 * 576 * 2))

  def test_what_is_said_holds(self):
    room = self._room(tiny.config(), 64, slots=5, cache_tokens=99)
    self.assertEqual(room, 99)


if __name__ == "__main__":
  absltest.main()
