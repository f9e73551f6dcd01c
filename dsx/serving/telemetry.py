"""What /metrics tells Prometheus.

Counts of requests and tokens and their times are noted as they happen; how the
engine is doing is asked when the page is read.
"""

from collections.abc import Callable
from collections.abc import Iterator

import prometheus_client
from prometheus_client import core
from prometheus_client import registry as registry_lib

from dsx.serving import generation as generation_lib
from dsx.serving import worker as worker_lib

CONTENT_TYPE = prometheus_client.CONTENT_TYPE_LATEST
_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)
_PER_TOKEN = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1)

# Name, what it is, whether it only grows, and the engine's own name of it.
_ENGINE = (
  ("dsx_running", "Sequences being decoded.", False, "running"),
  ("dsx_cache_tokens", "Tokens in the cache.", False, "cached_tokens"),
  ("dsx_cache_capacity_tokens", "Tokens it holds.", False, "pool_tokens"),
  ("dsx_engine_steps", "Steps of the engine.", True, "steps"),
  ("dsx_drafted_tokens", "Tokens that MTP drafted.", True, "drafted"),
  ("dsx_accepted_tokens", "Drafts that were kept.", True, "accepted"),
)


class Telemetry:
  """Counters of one server."""

  def __init__(self, health: Callable[[], worker_lib.Health]):
    """Starts at zero.

    Args:
      health: tells how the worker is.
    """
    self._registry = prometheus_client.CollectorRegistry()
    self._registry.register(_EngineCollector(health))

    def counter(name, text, labels=()):
      return prometheus_client.Counter(
        name, text, labels, registry=self._registry
      )

    def histogram(name, text, buckets, labels=()):
      return prometheus_client.Histogram(
        name, text, labels, registry=self._registry, buckets=buckets
      )

    self._requests = counter(
      "dsx_requests", "Answered requests.", ("route", "status")
    )
    self._gone = counter("dsx_disconnected", "Clients who left early.")
    self._prompt = counter("dsx_prompt_tokens", "Tokens of prompts.")
    self._drawn = counter("dsx_generated_tokens", "Tokens drawn.")
    self._time = histogram(
      "dsx_request_seconds", "From head to end.", _SECONDS, ("route",)
    )
    self._first = histogram(
      "dsx_first_token_seconds", "From request to first token.", _SECONDS
    )
    self._between = histogram(
      "dsx_token_seconds", "Per token after the first update.", _PER_TOKEN
    )

  def answered(self, route: str, status: int, seconds: float) -> None:
    """Notes a request that was answered, whatever the answer."""
    self._requests.labels(route, str(status)).inc()
    self._time.labels(route).observe(seconds)

  def gone(self) -> None:
    """Notes a client who closed the connection before the end."""
    self._gone.inc()

  def generated(self, generation: generation_lib.Generation) -> None:
    """Notes a generation that has ended, finished or not."""
    self._prompt.inc(generation.prompt_tokens)
    self._drawn.inc(generation.drawn_tokens)
    first = generation.first_token_seconds
    if first is not None:
      self._first.observe(first)
      if generation.later_tokens:
        self._between.observe(
          (generation.seconds - first) / generation.later_tokens
        )

  def page(self) -> bytes:
    """The text that Prometheus reads."""
    return prometheus_client.generate_latest(self._registry)


class _EngineCollector(registry_lib.Collector):
  """Reads the worker's health whenever the page is asked for."""

  def __init__(self, health: Callable[[], worker_lib.Health]):
    self._health = health

  def describe(self):
    return []  # names need not be known before there is an engine

  def collect(self) -> Iterator[core.Metric]:
    health = self._health()
    yield _gauge("dsx_up", "Whether there is an engine.", int(health.engine))
    yield _gauge("dsx_waiting", "Sequences that wait.", health.waiting)
    yield core.CounterMetricFamily(
      "dsx_engine_failures", "Exceptions of the engine.", health.failures
    )
    stats = health.stats
    for name, text, grows, field in _ENGINE:
      value = getattr(stats, field) if stats else 0
      family = core.CounterMetricFamily if grows else core.GaugeMetricFamily
      yield family(name, text, value)
    if stats and stats.drafted:
      share = stats.accepted / stats.drafted
      yield _gauge("dsx_acceptance_rate", "Share of drafts kept.", share)


def _gauge(name: str, text: str, value: float) -> core.Metric:
  return core.GaugeMetricFamily(name, text, value)
