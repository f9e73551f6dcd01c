"""How much is worked on at once."""

from absl.testing import absltest

from dsx.serving import admission
from dsx.serving import refusal


class AdmissionTest(absltest.TestCase):
  def refused(self, room, answers, status):
    with self.assertRaises(refusal.Refusal) as caught:
      room.enter(answers)
    self.assertEqual(caught.exception.status, status)
    return caught.exception

  def test_calls(self):
    room = admission.Admission(max_calls=2, max_answers=100)
    first, _second = room.enter(1), room.enter(1)
    self.assertEqual(self.refused(room, 1, 429).headers, {"Retry-After": "1"})
    first.close()
    first.close()  # once is enough
    _third = room.enter(1)
    self.refused(room, 1, 429)

  def test_answers(self):
    room = admission.Admission(max_calls=100, max_answers=4)
    self.assertIn("5 answers", str(self.refused(room, 5, 400)))
    first = room.enter(3)
    self.refused(room, 2, 429)
    _second = room.enter(1)
    first.close()
    _third = room.enter(3)
    self.refused(room, 1, 429)

  def test_the_end(self):
    room = admission.Admission(max_calls=2, max_answers=4)
    inside = room.enter(1)
    room.draining = True
    self.refused(room, 1, 503)
    inside.close()


if __name__ == "__main__":
  absltest.main()
