"""A server on a model of a few thousand parameters, in a process of its own."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import urllib.request

from dsx.parallel import mesh as mesh_lib
from tests.evals import workdirs

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONTEXT = 128
_LIMIT_SECONDS = 600


def checkpoint(folder: pathlib.Path) -> pathlib.Path:
  """Writes the workdir of a random model that has preferences."""
  data = workdirs.data(folder / "data")
  config = workdirs.model_config(
    max_position_embeddings=CONTEXT, initializer_range=0.3
  )
  run = workdirs.run(data, config=config, mesh=mesh_lib.MeshShape(data=8))
  workdirs.save(folder / "toy", run, {4: workdirs.state_of(run, seed=0)})
  return folder / "toy"


def command(workdir: pathlib.Path, *arguments: str) -> list[str]:
  """How a person calls it, on a free port."""
  return [
    sys.executable,
    "-m",
    "experiments.serve",
    f"--checkpoint={workdir}",
    f"--window={CONTEXT}",
    "--port=0",
    *arguments,
  ]


class Server:
  """A process that serves until it is stopped.

  Attributes:
    line: the first one of its standard output.
    address: such as http://127.0.0.1:40000.
  """

  def __init__(self, workdir: pathlib.Path, *arguments: str):
    """Starts it; returns when it listens."""
    self._outcome: tuple[int, str, str] | None = None
    self._errors = tempfile.TemporaryFile("w+")
    self._process = subprocess.Popen(
      command(workdir, *arguments),
      cwd=ROOT,
      env={**os.environ, "XLA_FLAGS": ""},
      stdin=subprocess.DEVNULL,
      stdout=subprocess.PIPE,
      stderr=self._errors,
      text=True,
    )
    # Whatever happens to the tests, it does not outlive them by much.
    self._end = threading.Timer(_LIMIT_SECONDS, self._process.kill)
    self._end.start()
    self.line = self._process.stdout.readline()
    if not self.line:
      raise AssertionError(self.stop()[2])
    self.address = self.line.split()[2].removesuffix(",").removesuffix("/v1")

  def stop(self, number: int = signal.SIGTERM) -> tuple[int, str, str]:
    """Exit code, the rest of standard output, and standard error."""
    if self._outcome is None:
      self.signal(number)
      output, _ = self._process.communicate()
      self._end.cancel()
      with self._errors:
        self._errors.seek(0)
        self._outcome = self._process.returncode, output, self._errors.read()
    return self._outcome

  def signal(self, number: int) -> None:
    """Sends a signal, if it still runs."""
    if self._process.poll() is None:
      self._process.send_signal(number)

  def get(self, path: str) -> str:
    """The text of a page."""
    with urllib.request.urlopen(f"{self.address}{path}", timeout=60) as page:
      return page.read().decode()

  def post(self, path: str, **body):
    """The JSON that a JSON body is answered with."""
    request = urllib.request.Request(
      f"{self.address}{path}",
      json.dumps(body).encode(),
      {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
      return json.load(answer)

  def metrics(self) -> dict[str, float]:
    """The samples of /metrics."""
    lines = self.get("/metrics").splitlines()
    samples = [line.rsplit(" ", 1) for line in lines if line[0] != "#"]
    return {name: float(value) for name, value in samples}
