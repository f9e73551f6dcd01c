"""The one thread that owns the engine.

Whoever serves a request opens a mailbox on the event loop, submits to it and
takes updates from it; the thread steps the engine while there is work. An
exception in the engine fails the requests in flight, and no more than those:
the thread makes a new engine and goes on.
"""

from collections.abc import Callable
import dataclasses
import logging
import threading
import time
from typing import Any

from dsx.inference import request as request_lib
from dsx.inference import sampling as sampling_lib
from dsx.serving import mailbox as mailbox_lib
from dsx.serving import refusal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Health:
  """How the worker is.

  Attributes:
    alive: it takes requests.
    engine: whether there is an engine; without one the next request makes one.
    failures: exceptions of the engine so far.
    last_failure: the newest of them in one line, or None.
    step_seconds: for how long the present step has been running.
    queued: requests that the engine has not seen yet.
    stats: the engine's own, after its last step; None without an engine.
  """

  alive: bool
  engine: bool
  failures: int
  last_failure: str | None
  step_seconds: float
  queued: int
  stats: Any

  @property
  def running(self) -> int:
    """Sequences being decoded."""
    return self.stats.running if self.stats else 0

  @property
  def waiting(self) -> int:
    """Sequences that wait for a slot."""
    return self.queued + (self.stats.waiting if self.stats else 0)


class Worker:
  """A thread, its engine, and the requests in it."""

  def __init__(self, build: Callable[[], Any]):
    """Starts nothing.

    Args:
      build: makes an `inference.engine.Engine`; called in the thread, and again
        after a failure.
    """
    self._build = build
    self._engine: Any = None
    self._changed = threading.Condition()
    self._orders: list[mailbox_lib.Order] = []
    self._ready = threading.Event()
    self._refused: Exception | None = None
    self._stopping = False
    self._failures = 0
    self._last_failure: str | None = None
    self._step_began: float | None = None
    self._stats: Any = None
    # The engine's numbers of requests, both ways.
    self._owners: dict[int, tuple[mailbox_lib.Mailbox, int]] = {}
    self._numbers: dict[tuple[mailbox_lib.Mailbox, int], int] = {}
    self._thread = threading.Thread(
      target=self._run, name="engine", daemon=True
    )

  def start(self) -> None:
    """Makes the engine, has it draw a token, and begins to serve.

    Raises:
      Exception: whatever that raised.
    """
    self._thread.start()
    self._ready.wait()
    if self._refused is not None:
      raise self._refused

  def stop(self, seconds: float) -> bool:
    """Ends the thread after its present step; whether it did in time."""
    with self._changed:
      self._stopping = True
      self._changed.notify()
    if self._thread.ident is not None:
      self._thread.join(seconds)
    return not self._thread.is_alive()

  @property
  def context(self) -> int:
    """Longest prompt and answer, in tokens."""
    return self._context

  @property
  def health(self) -> Health:
    """How it is at this moment."""
    began = self._step_began
    with self._changed:
      queued = sum(order.what == "submit" for order in self._orders)
    return Health(
      alive=self._thread.is_alive() and not self._stopping,
      engine=self._engine is not None,
      failures=self._failures,
      last_failure=self._last_failure,
      step_seconds=0.0 if began is None else time.monotonic() - began,
      queued=queued,
      stats=self._stats,
    )

  def open(self) -> mailbox_lib.Mailbox:
    """A mailbox for the running event loop."""
    return mailbox_lib.Mailbox(self._order)

  def _order(self, order: mailbox_lib.Order) -> None:
    """Leaves an order for the thread."""
    with self._changed:
      self._orders.append(order)
      self._changed.notify()

  def _run(self) -> None:
    try:
      self._engine = self._build()
      self._context = self._engine.context
      self._warm_up()
      self._stats = self._engine.stats
    except Exception as error:  # whatever it is, `start` raises it
      self._refused = error
      return
    finally:
      self._ready.set()
    while not self._stopping:
      failures = self._failures
      try:
        self._round()
      except Exception as error:  # the thread outlives anything in an engine
        self._fail(error)
      # Only now has the exception, and with it the old engine, been let go.
      if self._failures > failures and self._engine is None:
        self._rebuild()

  def _warm_up(self) -> None:
    """Draws a token, so that much is compiled, and known to work."""
    once = sampling_lib.Sampling(max_new_tokens=1, temperature=0.0)
    self._engine.submit(request_lib.Request(prompt=(0,), sampling=once))
    while self._engine.busy:
      self._engine.step()

  def _round(self) -> None:
    """Waits for work, then takes orders and one step."""
    with self._changed:
      self._changed.wait_for(self._has_work)
      orders, self._orders = self._orders, []
    if not self._stopping:
      self._obey(orders)
      self._advance()

  def _has_work(self) -> bool:
    return bool(
      self._stopping
      or self._orders
      or (self._engine is not None and self._engine.busy)
    )

  def _obey(self, orders: list[mailbox_lib.Order]) -> None:
    for i, order in enumerate(orders):
      try:
        if order.what == "submit":
          self._submit(order)
        else:
          number = self._numbers.pop((order.mailbox, order.key), None)
          if number is not None:
            del self._owners[number]
            self._engine.cancel(number)
      except Exception:
        # The orders behind it are not lost, and go to the next engine.
        with self._changed:
          self._orders[:0] = orders[i + 1 :]
        raise

  def _submit(self, order: mailbox_lib.Order) -> None:
    mailbox, key = order.mailbox, order.key
    if self._engine is None:
      self._rebuild()
    if self._engine is None:
      unavailable = refusal.Refusal(
        f"there is no engine ({self._last_failure}); try again later",
        status=503,
        retry_after=10,
        code="engine_failed",
      )
      mailbox.deliver([(key, unavailable)])
      return
    try:
      number = self._engine.submit(order.request)
    except ValueError as error:
      mailbox.deliver([(key, refusal.Refusal(str(error)))])
      return
    except Exception:
      # So that it is failed with the others.
      self._owners[-1] = (mailbox, key)
      raise
    self._owners[number] = (mailbox, key)
    self._numbers[mailbox, key] = number

  def _advance(self) -> None:
    """One step of the engine, and what came of it to whom it belongs."""
    if self._engine is None:
      return
    updates = []
    if self._engine.busy:
      self._step_began = time.monotonic()
      try:
        updates = self._engine.step()
      finally:
        self._step_began = None
    # Before anybody hears of it: who has the last of an answer may ask for the
    # health at once, and its sequence is not running any more.
    self._stats = self._engine.stats
    self._hand_out(updates)

  def _hand_out(self, updates) -> None:
    posts: dict[mailbox_lib.Mailbox, list] = {}
    for update in updates:
      owner = self._owners.get(update.request)
      if owner is None:
        continue
      mailbox, key = owner
      posts.setdefault(mailbox, []).append((key, update))
      if update.finish is not None:
        del self._owners[update.request]
        del self._numbers[owner]
    for mailbox, news in posts.items():
      mailbox.deliver(news)

  def _fail(self, error: Exception) -> None:
    """Tells all in flight, and drops the engine."""
    self._note(error)
    told = refusal.Refusal(
      f"the engine failed ({self._last_failure}); the request may be sent "
      "again",
      status=500,
      code="engine_failed",
    )
    owners = list(self._owners.values())
    self._owners.clear()
    self._numbers.clear()
    self._engine = self._stats = None
    for mailbox, key in owners:
      mailbox.deliver([(key, told)])

  def _rebuild(self) -> None:
    """Tries to make an engine where there is none."""
    try:
      self._engine = self._build()
      self._stats = self._engine.stats
    except Exception as error:  # the next request tries again
      self._note(error)
      self._engine = None

  def _note(self, error: Exception) -> None:
    self._failures += 1
    first = str(error).strip().partition("\n")[0]
    self._last_failure = f"{type(error).__name__}: {first}"[:300]
    logging.error("the engine failed", exc_info=error)
