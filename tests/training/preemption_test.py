"""A request to stop is noted; a second Ctrl-C is obeyed."""

import signal

from absl.testing import absltest
from absl.testing import parameterized

from dsx.training import preemption


class PreemptionTest(parameterized.TestCase):
  @parameterized.parameters(signal.SIGTERM, signal.SIGINT)
  def test_is_noted(self, number):
    with preemption.Preemption() as stop:
      self.assertFalse(stop.requested())
      self.assertIsNone(stop.signal)
      signal.raise_signal(number)
      self.assertTrue(stop.requested())
      self.assertTrue(stop.requested())
      self.assertIs(stop.signal, number)

  def test_second_interrupt_is_obeyed(self):
    with preemption.Preemption() as stop, self.assertRaises(KeyboardInterrupt):
      signal.raise_signal(signal.SIGINT)
      self.assertTrue(stop.requested())
      signal.raise_signal(signal.SIGINT)

  def test_second_sigterm_is_not(self):
    with preemption.Preemption() as stop:
      signal.raise_signal(signal.SIGTERM)
      signal.raise_signal(signal.SIGTERM)
      self.assertIs(stop.signal, signal.SIGTERM)

  def test_gives_the_handlers_back(self):
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    with self.assertRaises(ZeroDivisionError), preemption.Preemption():
      changed = [signal.getsignal(number) for number in numbers]
      signal.raise_signal(signal.SIGINT)
      raise ZeroDivisionError
    self.assertEqual([signal.getsignal(number) for number in numbers], before)
    self.assertNotEqual(changed, before)


if __name__ == "__main__":
  absltest.main()
