"""Bad inputs for convert, generate and serve: what is spoiled, and how.

Each function here makes a case, which gets a `Place` and returns how the
program ended there. `use` says which program: `converts`, `generates` or
`serves`.
"""

from collections.abc import Callable
import os
import shutil
import socket

import numpy as np

from benchmarks import bad_input_cases as cases
from benchmarks import bad_input_models as models
from benchmarks import bad_input_place

MATRIX = "model.layers.0.mlp.up_proj.weight"
SCALES = MATRIX + "_scale_inv"
COPY = "model.layers.2.shared_head.head.weight"

Place = bad_input_place.Place
Case = Callable[[Place], cases.Outcome]


def convert(model: str, *arguments: str) -> Case:
  """Flags of convert alone."""
  return lambda place: place.convert(model, *arguments)


def generate(*arguments: str, model="bf16", prompt="def ") -> Case:
  """Flags of generate alone."""
  return lambda place: place.generate(model, *arguments, prompt=prompt)


def serve(*arguments: str, model="bf16", **environment: str) -> Case:
  """Flags of serve alone."""
  return lambda place: place.serve(model, *arguments, **environment)


def tensors(model: str, change, *arguments: str) -> Case:
  """A model of which some tensors are not right."""

  def case(place: Place) -> cases.Outcome:
    models.change_tensors(place.copy(model), change)
    return place.convert(model, *arguments)

  return case


def number(name: str, value: float):
  """A change of one number of a tensor."""

  def change(made):
    made[name] = made[name].copy()
    made[name].flat[0] = value

  return change


def fields(model: str, **fields) -> Case:
  """A model of which some fields of config.json are not right."""

  def case(place: Place) -> cases.Outcome:
    models.change_fields(place.copy(model), **fields)
    return place.convert(model)

  return case


def file(name: str, content: bytes) -> Case:
  """A model with a file of another content."""

  def case(place: Place) -> cases.Outcome:
    (place.copy("bf16") / name).write_bytes(content)
    return place.convert("bf16")

  return case


def indexed(name: str) -> Case:
  """A model whose index says that file `name` holds everything."""

  def case(place: Place) -> cases.Outcome:
    source = place.copy("bf16")
    (place.folder / models.WEIGHTS).write_bytes(
      (source / models.WEIGHTS).read_bytes()
    )
    models.index(source, name)
    return place.convert("bf16")

  return case


def without(use, *, only_pickle: bool = False) -> Case:
  """A model without its weights, or with a pickle in their place."""

  def case(place: Place) -> cases.Outcome:
    weights = place.copy("bf16") / models.WEIGHTS
    if only_pickle:
      weights.rename(weights.with_name("pytorch_model.bin"))
    else:
      weights.unlink()
    return use(place)("bf16")

  return case


def link(place: Place) -> cases.Outcome:
  """Weights that are a link out of the folder."""
  weights = place.copy("bf16") / models.WEIGHTS
  weights.rename(place.folder / "elsewhere.safetensors")
  weights.symlink_to(place.folder / "elsewhere.safetensors")
  return place.convert("bf16")


def truncated(use, *arguments) -> Case:
  """Half the weights."""

  def case(place: Place) -> cases.Outcome:
    weights = place.copy("bf16") / models.WEIGHTS
    os.truncate(weights, weights.stat().st_size // 2)
    return use(place)("bf16", *arguments)

  return case


def damaged(use, *arguments) -> Case:
  """A workdir with a flipped bit in its checkpoint."""

  def case(place: Place) -> cases.Outcome:
    cases.damage(place.copy("run") / "checkpoints")
    return use(place)("run", *arguments)

  return case


def nan(use, *arguments) -> Case:
  """A folder with a NaN among its weights."""

  def case(place: Place) -> cases.Outcome:
    models.change_tensors(place.copy("bf16"), number(MATRIX, np.nan))
    return use(place)("bf16", *arguments)

  return case


def nowhere(use, *arguments) -> Case:
  """A model that is not there."""
  return lambda place: use(place)(place.folder / "nowhere", *arguments)


def nothing(use, *arguments) -> Case:
  """An empty folder for a model."""

  def case(place: Place) -> cases.Outcome:
    (place.folder / "empty").mkdir()
    return use(place)(place.folder / "empty", *arguments)

  return case


def onto(model: str, inside: str, *arguments: str) -> Case:
  """The source itself, or a folder in it, as target."""

  def case(place: Place) -> cases.Outcome:
    target = place.copy(model) / inside
    return place.convert(model, *arguments, target=target)

  return case


def of_another(*arguments: str) -> Case:
  """A target into which another source was converted."""

  def case(place: Place) -> cases.Outcome:
    first = place.convert("bf16", *arguments)
    if first.code:
      raise RuntimeError("\n".join(first.lines))
    source = place.copy("bf16")
    models.change_tensors(source, number("lm_head.weight", 1.0))
    models.change_tensors(source, lambda made: made.pop(COPY))
    return place.convert("bf16", *arguments)

  return case


def other_options(place: Place) -> cases.Outcome:
  """A target into which something was converted otherwise."""
  shutil.copytree(place.copy("fp8"), place.target)
  return place.convert("bf16")


def not_empty(*arguments: str) -> Case:
  """A target with somebody's file in it."""

  def case(place: Place) -> cases.Outcome:
    place.target.mkdir()
    (place.target / "notes.txt").write_text("mine")
    return place.convert("bf16", *arguments)

  return case


def below_a_file(*arguments: str) -> Case:
  """A target below a file."""

  def case(place: Place) -> cases.Outcome:
    place.target.write_text("")
    return place.convert("bf16", *arguments, target=place.target / "below")

  return case


def is_a_file(*arguments: str) -> Case:
  """A target that is a file."""

  def case(place: Place) -> cases.Outcome:
    place.target.write_text("")
    return place.convert("bf16", *arguments)

  return case


def disk(size: str, *arguments: str, options="", read_only=False) -> Case:
  """A target on a disk that cannot hold it."""

  def case(place: Place) -> cases.Outcome:
    with cases.tmpfs(place.folder / "small", size, options) as small:
      if read_only:
        cases.make_read_only(small)
      return place.convert("bf16", *arguments, target=small / "target")

  return case


def prompts(content: str | bytes, name: str = "prompts.txt") -> Case:
  """A file of prompts."""

  def case(place: Place) -> cases.Outcome:
    path = place.folder / name
    raw = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(raw)
    words = f"--prompts_file={path}", place.output
    return place.generate("bf16", *words, prompt=None)

  return case


def output_on_full_disk(place: Place) -> cases.Outcome:
  """No room for answers."""
  with cases.tmpfs(place.folder / "small", "1m") as small:
    cases.fill(small)
    place.answers = small / "answers.jsonl"
    words = f"--output={place.answers}", "--max_new_tokens=2"
    return place.generate("bf16", *words)


def output_is_a_folder(place: Place) -> cases.Outcome:
  """A folder where the answers should go."""
  place.answers.mkdir()
  return place.generate("bf16", place.output)


def port_in_use(place: Place) -> cases.Outcome:
  """A port on which another program listens."""
  with socket.socket() as other:
    other.bind(("127.0.0.1", 0))
    other.listen()
    port = other.getsockname()[1]
    outcome = place.serve("bf16", f"--port={port}")
  said = [line.replace(str(port), "PORT") for line in outcome.lines]
  return cases.Outcome(outcome.code, said, outcome.output, outcome.seconds)


def converts(place: Place):
  """Runs convert."""
  return place.convert


def generates(place: Place):
  """Runs generate."""
  return place.generate


def serves(place: Place):
  """Runs serve."""
  return place.serve
