"""Meeting of the processes of one run, through `jax.distributed`."""

import atexit
from collections.abc import Iterator
import contextlib
import itertools
import json
import os
import re
import secrets
import signal
import socket
import sys
import threading

import jax
from jax._src import distributed as jax_distributed

from dsx.parallel import cluster
from dsx.parallel import liveness
from dsx.parallel import relay as relay_lib

# JAX ends a process without a word when it has heard nothing of another one for
# so long. `liveness` is quicker and names it; this is for when it is not there.
_JAX_SECONDS = 300
# Where process 0 leaves word of how the others reach its watch.
_KEY = "dsx/liveness"
# A collective fails when a partner's connection breaks; the watch, which sees
# the same, is given so long to say whose it was.
_VERDICT_SECONDS = 5
# How errors of XLA and of its collectives begin, whatever class they come as.
_STATUS = re.compile(r"[A-Z_]+: ")
# Those that a machine's mishap has, which may not come again.
_PASSING = re.compile(r"(UNKNOWN|UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED): ")

# The longest that one process compiles while others have done so.
_COMPILE_SECONDS = 3600
_barriers = itertools.count()

_watch: liveness.Watch | None = None


def initialise(
  coordinator_address: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  *,
  detect: bool = False,
  timing: liveness.Timing | None = None,
) -> None:
  """Joins the other processes; does nothing for a run of one process.

  From then on a lost process ends all others, see `liveness`, and SIGTERM ends
  none, but asks all to stop, see `stop_agreed`: also before the first step, and
  when it comes late to one that is saving with the others.

  Args:
    coordinator_address: host:port of process 0, or None.
    num_processes: how many processes there are.
    process_id: which one this is, from 0.
    detect: find what is not given in the environment (TPU pods, SLURM, Open
      MPI).
    timing: how patient processes are with each other; None for `Timing()`.

  Raises:
    ValueError: if only some of the three are given, or the environment says
      too little.
  """
  asked = (coordinator_address, num_processes, process_id)
  meeting = cluster.detect(*asked) if detect else cluster.given(*asked)
  if meeting is None:
    return
  address, relay = meeting.coordinator_address, None
  if meeting.process_id > 0:
    relay = relay_lib.Relay(*meeting.coordinator)
    address = relay.address
  # XLA's own CPU collectives do not cross processes.
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  # It would take SIGTERM, and cannot be used: see `training.preemption`.
  jax.config.update("jax_enable_preemption_service", False)
  timing = timing or liveness.Timing()
  with _patience(meeting, relay, timing.meet_seconds):
    jax.distributed.initialize(
      coordinator_address=address,
      num_processes=meeting.num_processes,
      process_id=meeting.process_id,
      local_device_ids=meeting.local_device_ids,
      cluster_detection_method="deactivate",  # it would take one device
      initialization_timeout=int(timing.meet_seconds) + _VERDICT_SECONDS,
      heartbeat_timeout_seconds=_JAX_SECONDS,
    )
  if relay is not None:
    relay.joined()
  if meeting.num_processes > 1:
    _begin_watch(meeting, timing)


@contextlib.contextmanager
def _patience(
  meeting: cluster.Meeting, relay: relay_lib.Relay | None, seconds: float
) -> Iterator[None]:
  """Ends this process with a line if the others do not come in time.

  JAX would abort it, with a stack trace of C++.
  """

  def give_up():
    who = f"process {meeting.process_id} of {meeting.num_processes}"
    if relay is not None and not relay.reached:
      missing = "process 0 could not be reached"
    else:
      missing = "not all others came"
    liveness.end(
      f"{missing} at {meeting.coordinator_address} within {seconds:.0f} s; "
      f"{who} ends"
    )

  timer = threading.Timer(seconds, give_up)
  timer.daemon = True
  timer.start()
  try:
    yield
  finally:
    timer.cancel()


def _begin_watch(meeting: cluster.Meeting, timing: liveness.Timing) -> None:
  global _watch
  store = jax_distributed.global_state.client
  assert store is not None
  watch = liveness.Watch(
    meeting.process_id,
    meeting.num_processes,
    timing=timing,
    on_loss=liveness.end,
  )
  host, _ = meeting.coordinator
  if meeting.process_id == 0:
    listener = _listen(host)
    port, token = listener.getsockname()[1], secrets.token_hex(16)
    word = {"port": port, "token": token, "host": liveness.place()}
    store.key_value_set(_KEY, json.dumps(word))
    watch.serve(listener, token)
  else:
    limit = int(1000 * timing.join_seconds)
    word = json.loads(store.blocking_key_value_get(_KEY, limit))
    stream = socket.create_connection(
      (host, word["port"]), timeout=timing.join_seconds
    )
    watch.join(stream, word["token"], word["host"])
  watch.joined.wait(timing.join_seconds)
  _watch = watch
  signal.signal(
    signal.SIGTERM, lambda number, frame: watch.ask_to_stop("SIGTERM")
  )
  # Runs before what JAX has registered for the end.
  atexit.register(_leave)


def _listen(host: str) -> socket.socket:
  """A socket for the watch, open to other machines only if there are any."""
  if host in ("localhost", "127.0.0.1", "::1"):
    family = socket.AF_INET6 if host == "::1" else socket.AF_INET
    return socket.create_server((host, 0), family=family)
  if socket.has_dualstack_ipv6():
    return socket.create_server(
      ("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096
    )
  return socket.create_server(("", 0), backlog=4096)


def arrived(where: str) -> None:
  """Notes that this process has come to a place where it needs the others.

  Who stays behind for long is lost, see `liveness.Timing.hang_seconds`.
  """
  if _watch is not None:
    _watch.arrived(where)


def ask_to_stop(why: str) -> None:
  """Asks all processes to stop at one place; fit for a signal's handler."""
  if _watch is not None:
    _watch.ask_to_stop(why)


def stop_agreed() -> str | None:
  """Whether all processes stop here; to be called at the same places in all.

  Returns:
    Why: what was given to `ask_to_stop` in one of them, or "SIGTERM"; None to
    go on.

  Raises:
    ValueError: there are several processes and `initialise` has not made them
      meet.
  """
  if _watch is not None:
    return _watch.agreement.passed()
  if jax.process_count() > 1:
    raise ValueError(
      f"{jax.process_count()} processes that cannot agree on where to stop: "
      "expected them to have met through distributed.initialise; call that "
      "instead of jax.distributed.initialize"
    )
  return None


def compiled(function, *arguments):
  """A jitted function, ready in all processes before it runs in any.

  Gloo gives a process half a minute to come to its first collective with the
  others; compiling may take one longer than another. With one process nothing
  changes.

  Args:
    function: jitted; every process calls this with the same ones, in order.
    *arguments: as it will be called with, or of the same kinds.

  Returns:
    A function of such arguments.
  """
  store = jax_distributed.global_state.client
  if store is None or jax.process_count() == 1:
    return function
  ready = function.lower(*arguments).compile()
  name = f"dsx/compiled/{next(_barriers)}"
  store.wait_at_barrier(name, 1000 * _COMPILE_SECONDS)
  return ready


@contextlib.contextmanager
def together() -> Iterator[None]:
  """Ends this process without waiting if what is inside fails in it.

  The others are told. Where it failed because another one was lost, or the
  network, it ends as they do, with `liveness.LOST`. With one process nothing
  changes.
  """
  try:
    yield
  except BaseException as error:
    if _watch is not None and not _good(error):
      if _STATUS.match(str(error)):
        _watch.wait_for_loss(_VERDICT_SECONDS)
      _watch.failed(_in_a_line(error))
      code = liveness.LOST if _PASSING.match(str(error)) else 1
      code = 130 if isinstance(error, KeyboardInterrupt) else code
      # Runs before what JAX has registered, which meets the other processes.
      atexit.register(_exit, code)
    raise


def _good(error: BaseException) -> bool:
  return isinstance(error, SystemExit) and not error.code


def _in_a_line(error: BaseException) -> str:
  text = " ".join(str(error).split())
  return f"{type(error).__name__}: {text[:500]}" if text else repr(error)


def _leave() -> None:
  """Waits for the others at the end of a good run, still watching them."""
  jax.distributed.shutdown()
  if _watch is not None:
    _watch.leave()


def _exit(code: int) -> None:
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)
