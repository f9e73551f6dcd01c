"""Where a server listens and what it takes on."""

from absl.testing import absltest
from absl.testing import parameterized

from dsx.serving import settings


class ServingTest(parameterized.TestCase):
  @parameterized.parameters(
    ({"port": -1}, "port=-1: expected 0 to 65535"),
    ({"port": 65536}, "port=65536"),
    ({"host": ""}, "host=''"),
    ({"slots": 0}, "slots=0: expected at least 1"),
    ({"drafts": -1}, "drafts=-1"),
    ({"window": 0}, "window=0"),
    ({"max_requests": 0}, "max_requests=0"),
    ({"request_seconds": 0.0}, "request_seconds=0.0"),
    ({"grace_seconds": float("nan")}, "grace_seconds=nan"),
    ({"body_seconds": float("inf")}, "body_seconds=inf"),
  )
  def test_refused(self, fields, message):
    with self.assertRaisesRegex(ValueError, message):
      settings.Serving(**fields)

  def test_names(self):
    # Only this machine, and only under its own names.
    serving = settings.Serving()
    self.assertTrue(serving.is_loopback)
    self.assertEqual(serving.hosts, {"127.0.0.1", "localhost", "::1"})
    self.assertTrue(settings.Serving(host="::1").is_loopback)
    self.assertTrue(settings.Serving(host="localhost").is_loopback)
    everybody = settings.Serving(host="0.0.0.0")
    self.assertFalse(everybody.is_loopback)
    self.assertEmpty(everybody.hosts)
    named = settings.Serving(allowed_hosts=("Example.org",))
    self.assertEqual(named.hosts, {"example.org"})


if __name__ == "__main__":
  absltest.main()
