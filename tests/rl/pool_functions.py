"""What the tests of the pool call, well and badly behaved."""

import ctypes
import os
import time

from dsx.rl import sandbox


def double(x):
  """2 x."""
  return 2 * x


def process(_):
  """The process that this runs in."""
  return os.getpid()


def behave(how: str):
  """Does as it is told."""
  match how:
    case "well":
      return 1.0
    case "raise":
      raise ValueError("no\n such  thing")
    case "hang":
      while True:
        pass
    case "crash":
      ctypes.string_at(0)
    case "exit":
      os._exit(3)
    case "leave":
      raise SystemExit(4)
    case "eat":
      return len(bytearray(2**34))
  raise AssertionError(how)


def slowly(index: int):
  """The earlier, the slower."""
  time.sleep(0.2 / (index + 1))
  return index


def say_and_hang():
  """Says who it is, and is never heard of again."""
  print(os.getpid(), flush=True)
  time.sleep(1000)


def no_sandbox(*_):
  """What a program meets where it can't be run."""
  raise sandbox.Unavailable("no sandbox here: forbidden")
