"""Gives convert, generate and serve every bad input and notes what they say.

  python -m benchmarks.bad_inputs_inference [--record] [--only=REGEX]

Each case is a real command line on a copy of a tiny model. It passes if the
process ends with an exit code that is not 0, prints nothing but one line that
says why (beside lines that say how far it was), and leaves sources as they
were and nothing that could be taken for a model or for finished answers. Small
disks are tmpfs mounts, which takes root on Linux; without it these cases are
left out. --record writes a section of docs/bad_inputs.md.
"""

from collections.abc import Callable
import os
import pathlib
import re
import shutil
import socket
import tempfile

from absl import app
from absl import flags
from absl import logging
import numpy as np

from benchmarks import bad_input_cases as cases
from benchmarks import bad_input_models as models
from benchmarks import bad_input_place
from benchmarks import report

_RECORD = flags.DEFINE_bool("record", False, "Write docs/bad_inputs.md.")
_ONLY = flags.DEFINE_string("only", ".", "Cases whose name matches this.")

_TITLE = "Converting, generating and serving"
_WORDS = """\
Tried on `experiments.convert`, `generate` and `serve` with the model of
`benchmarks/bad_input_models.py`. Lines that say what was read, how far it is
and how many tokens were drawn are left out. Sources stay as they were, and what
is left in a target looks neither like a model nor like finished answers."""

_MATRIX = "model.layers.0.mlp.up_proj.weight"
_SCALES = _MATRIX + "_scale_inv"
_COPY = "model.layers.2.shared_head.head.weight"
_DEVICES = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}

Place = bad_input_place.Place
Case = Callable[[Place], cases.Outcome]


def _convert(model: str, *arguments: str) -> Case:
  """Flags of convert alone."""
  return lambda place: place.convert(model, *arguments)


def _generate(*arguments: str, model="bf16", prompt="def ") -> Case:
  """Flags of generate alone."""
  return lambda place: place.generate(model, *arguments, prompt=prompt)


def _serve(*arguments: str, model="bf16", **environment: str) -> Case:
  """Flags of serve alone."""
  return lambda place: place.serve(model, *arguments, **environment)


def _tensors(model: str, change, *arguments: str) -> Case:
  """A model of which some tensors are not right."""

  def case(place: Place) -> cases.Outcome:
    models.change_tensors(place.copy(model), change)
    return place.convert(model, *arguments)

  return case


def _number(name: str, number: float):
  """A change of one number of a tensor."""

  def change(made):
    made[name] = made[name].copy()
    made[name].flat[0] = number

  return change


def _fields(model: str, **fields) -> Case:
  """A model of which some fields of config.json are not right."""

  def case(place: Place) -> cases.Outcome:
    models.change_fields(place.copy(model), **fields)
    return place.convert(model)

  return case


def _file(name: str, content: bytes) -> Case:
  """A model with a file of another content."""

  def case(place: Place) -> cases.Outcome:
    (place.copy("bf16") / name).write_bytes(content)
    return place.convert("bf16")

  return case


def _indexed(name: str) -> Case:
  """A model whose index says that file `name` holds everything."""

  def case(place: Place) -> cases.Outcome:
    source = place.copy("bf16")
    (place.folder / models.WEIGHTS).write_bytes(
      (source / models.WEIGHTS).read_bytes()
    )
    models.index(source, name)
    return place.convert("bf16")

  return case


def _without(use, *, only_pickle: bool = False) -> Case:
  """A model without its weights, or with a pickle in their place."""

  def case(place: Place) -> cases.Outcome:
    weights = place.copy("bf16") / models.WEIGHTS
    if only_pickle:
      weights.rename(weights.with_name("pytorch_model.bin"))
    else:
      weights.unlink()
    return use(place)("bf16")

  return case


def _link(place: Place) -> cases.Outcome:
  """Weights that are a link out of the folder."""
  weights = place.copy("bf16") / models.WEIGHTS
  weights.rename(place.folder / "elsewhere.safetensors")
  weights.symlink_to(place.folder / "elsewhere.safetensors")
  return place.convert("bf16")


def _truncated(use, *arguments) -> Case:
  """Half the weights."""

  def case(place: Place) -> cases.Outcome:
    weights = place.copy("bf16") / models.WEIGHTS
    os.truncate(weights, weights.stat().st_size // 2)
    return use(place)("bf16", *arguments)

  return case


def _damaged(use, *arguments) -> Case:
  """A workdir with a flipped bit in its checkpoint."""

  def case(place: Place) -> cases.Outcome:
    cases.damage(place.copy("run") / "checkpoints")
    return use(place)("run", *arguments)

  return case


def _nan(use, *arguments) -> Case:
  """A folder with a NaN among its weights."""

  def case(place: Place) -> cases.Outcome:
    models.change_tensors(place.copy("bf16"), _number(_MATRIX, np.nan))
    return use(place)("bf16", *arguments)

  return case


def _nowhere(use, *arguments) -> Case:
  """A model that is not there."""
  return lambda place: use(place)(place.folder / "nowhere", *arguments)


def _nothing(use, *arguments) -> Case:
  """An empty folder for a model."""

  def case(place: Place) -> cases.Outcome:
    (place.folder / "empty").mkdir()
    return use(place)(place.folder / "empty", *arguments)

  return case


def _onto(model: str, inside: str, *arguments: str) -> Case:
  """The source itself, or a folder in it, as target."""

  def case(place: Place) -> cases.Outcome:
    target = place.copy(model) / inside
    return place.convert(model, *arguments, target=target)

  return case


def _of_another(*arguments: str) -> Case:
  """A target into which another source was converted."""

  def case(place: Place) -> cases.Outcome:
    first = place.convert("bf16", *arguments)
    if first.code:
      raise RuntimeError("\n".join(first.lines))
    source = place.copy("bf16")
    models.change_tensors(source, _number("lm_head.weight", 1.0))
    models.change_tensors(source, lambda made: made.pop(_COPY))
    return place.convert("bf16", *arguments)

  return case


def _other_options(place: Place) -> cases.Outcome:
  """A target into which something was converted otherwise."""
  shutil.copytree(place.copy("fp8"), place.target)
  return place.convert("bf16")


def _not_empty(*arguments: str) -> Case:
  """A target with somebody's file in it."""

  def case(place: Place) -> cases.Outcome:
    place.target.mkdir()
    (place.target / "notes.txt").write_text("mine")
    return place.convert("bf16", *arguments)

  return case


def _below_a_file(*arguments: str) -> Case:
  """A target below a file."""

  def case(place: Place) -> cases.Outcome:
    place.target.write_text("")
    return place.convert("bf16", *arguments, target=place.target / "below")

  return case


def _is_a_file(*arguments: str) -> Case:
  """A target that is a file."""

  def case(place: Place) -> cases.Outcome:
    place.target.write_text("")
    return place.convert("bf16", *arguments)

  return case


def _disk(size: str, *arguments: str, options="", read_only=False) -> Case:
  """A target on a disk that cannot hold it."""

  def case(place: Place) -> cases.Outcome:
    with cases.tmpfs(place.folder / "small", size, options) as small:
      if read_only:
        cases.make_read_only(small)
      return place.convert("bf16", *arguments, target=small / "target")

  return case


def _prompts(content: str | bytes, name: str = "prompts.txt") -> Case:
  """A file of prompts."""

  def case(place: Place) -> cases.Outcome:
    path = place.folder / name
    raw = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(raw)
    words = f"--prompts_file={path}", place.output
    return place.generate("bf16", *words, prompt=None)

  return case


def _output_on_full_disk(place: Place) -> cases.Outcome:
  """No room for answers."""
  with cases.tmpfs(place.folder / "small", "1m") as small:
    cases.fill(small)
    place.answers = small / "answers.jsonl"
    words = f"--output={place.answers}", "--max_new_tokens=2"
    return place.generate("bf16", *words)


def _output_is_a_folder(place: Place) -> cases.Outcome:
  """A folder where the answers should go."""
  place.answers.mkdir()
  return place.generate("bf16", place.output)


def _port_in_use(place: Place) -> cases.Outcome:
  """A port on which another program listens."""
  with socket.socket() as other:
    other.bind(("127.0.0.1", 0))
    other.listen()
    port = other.getsockname()[1]
    outcome = place.serve("bf16", f"--port={port}")
  said = [line.replace(str(port), "PORT") for line in outcome.lines]
  return cases.Outcome(outcome.code, said, outcome.output, outcome.seconds)


def _converts(place: Place):
  return place.convert


def _generates(place: Place):
  return place.generate


def _serves(place: Place):
  return place.serve


_ORBAX = "--target_format=orbax"
_CONVERT: dict[str, Case] = {
  "missing source": _nowhere(_converts),
  "empty source": _nothing(_converts),
  "weights missing": _without(_converts),
  "pickles only": _without(_converts, only_pickle=True),
  "config.json is not JSON": _file("config.json", b"{"),
  "config.json of another model": _fields(
    "bf16", architectures=["LlamaForCausalLM"]
  ),
  "config.json of another size": _fields("bf16", hidden_size=192),
  "sizes that make no model": _fields("bf16", hidden_size=10**30),
  "missing tensor": _tensors("bf16", lambda made: made.pop(_MATRIX)),
  "extra tensor": _tensors(
    "bf16", lambda made: made.update(lora=np.zeros(2, np.float32))
  ),
  "misshapen tensor": _tensors(
    "bf16", lambda made: made.update({_MATRIX: made[_MATRIX].T})
  ),
  "tensor of integers": _tensors(
    "bf16", lambda made: made.update({_MATRIX: made[_MATRIX].astype("int32")})
  ),
  "NaN in a tensor": _nan(_converts),
  "NaN in a tensor, into a workdir": _nan(_converts, _ORBAX),
  "number beyond float16": _tensors(
    "bf16", _number(_MATRIX, 1e6), "--dtype=float16"
  ),
  "MTP module with an embedding of its own, into a workdir": _tensors(
    "bf16", _number("model.layers.2.embed_tokens.weight", 1.0), _ORBAX
  ),
  "truncated weights": _truncated(_converts),
  "weights that are none": _file(models.WEIGHTS, b"<html>not found</html>"),
  "index that leads out": _indexed("../" + models.WEIGHTS),
  "index with an absolute path": _indexed("/etc/x.safetensors"),
  "index that names a pickle": _indexed("pytorch_model.bin"),
  "index of a missing file": _indexed("model-00001-of-00002.safetensors"),
  "link that leads out": _link,
  "FP8 without scales": _tensors("fp8", lambda made: made.pop(_SCALES)),
  "scale of zero": _tensors("fp8", _number(_SCALES, 0.0)),
  "negative scale": _tensors("fp8", _number(_SCALES, -1.0)),
  "scale of NaN": _tensors("fp8", _number(_SCALES, np.nan)),
  "scale of NaN, into a workdir": _tensors(
    "fp8", _number(_SCALES, np.nan), _ORBAX
  ),
  "misshapen scales": _tensors(
    "fp8", lambda made: made.update({_SCALES: made[_SCALES][:1]})
  ),
  "scales of no matrix": _tensors(
    "bf16",
    lambda made: made.update({_SCALES: np.ones((3, 2), np.float32)}),
  ),
  "scales that are no powers of two": _convert(
    "fp8", "--target_format=hf_fp8", "--scale_format=e8m0"
  ),
  "another quant_method": _fields(
    "fp8", quantization_config={"quant_method": "gptq"}
  ),
  "another block size": _fields(
    "fp8", quantization_config={"weight_block_size": [64, 64]}
  ),
  "FP8 that config.json does not announce": _fields(
    "fp8", quantization_config=None
  ),
  "target is the source": _onto("bf16", ""),
  "target in the source": _onto("bf16", "converted"),
  "target is the source, into a workdir": _onto("bf16", "", _ORBAX),
  "target in the source, into a workdir": _onto("bf16", "converted", _ORBAX),
  "target is the workdir": _onto("run", ""),
  "target in the checkpoint": _onto("run", "checkpoints/0/converted"),
  "target among the checkpoints": _onto("run", "checkpoints/converted"),
  "target of other options": _other_options,
  "target of another source": _of_another(),
  "target of another source, into a workdir": _of_another(_ORBAX),
  "target is not empty": _not_empty(),
  "target is not empty, into a workdir": _not_empty(_ORBAX),
  "target is a file": _is_a_file(),
  "target is a file, into a workdir": _is_a_file(_ORBAX),
  "target below a file": _below_a_file(),
  "target below a file, into a workdir": _below_a_file(_ORBAX),
  "target on a read-only disk": _disk("16m", read_only=True),
  "target on a read-only disk, into a workdir": _disk(
    "16m", _ORBAX, read_only=True
  ),
  "target on a full disk": _disk("1m"),
  "target on a full disk, into a workdir": _disk("1m", _ORBAX),
  "disk that takes no more files": _disk("16m", options="nr_inodes=4"),
  "disk that takes no more files, into a workdir": _disk(
    "16m", _ORBAX, options="nr_inodes=9"
  ),
  "damaged checkpoint": _damaged(_converts),
  "step that is not there": _convert("run", "--step=7"),
  "average that was not kept": _convert("run", "--average"),
  "--step of a Hugging Face folder": _convert("bf16", "--step=0"),
  "workdir into a workdir": _convert("run", _ORBAX),
  "unknown format": _convert("bf16", "--target_format=gguf"),
  "unknown dtype": _convert("bf16", "--dtype=int4"),
  "scales without FP8": _convert("bf16", "--scale_format=e8m0"),
  "files of no bytes": _convert("bf16", "--shard_bytes=0"),
  "misspelt flag": _convert("bf16", "--target_fromat=hf"),
}
_GENERATE: dict[str, Case] = {
  "no checkpoint": _nothing(_generates),
  "missing checkpoint": _nowhere(_generates),
  "damaged checkpoint": _damaged(_generates),
  "step that is not there": _generate("--step=7", model="run"),
  "--step of a Hugging Face folder": _generate("--step=0"),
  "average that was not kept": _generate("--average", model="run"),
  "weights missing": _without(_generates),
  "pickles only": _without(_generates, only_pickle=True),
  "truncated weights": _truncated(_generates),
  "NaN in a tensor": _nan(_generates),
  "tokenizer missing": _generate("--vocabulary="),
  "unknown vocabulary": _generate("--vocabulary=/no/tokenizer.json"),
  "FP8 of a folder without": _generate("--dtype=fp8"),
  "FP8 of a workdir without": _generate("--dtype=fp8", model="run"),
  "unknown dtype": _generate("--dtype=int4"),
  "no prompt": _generate(prompt=None),
  "two sources of prompts": _generate("--chat"),
  "empty prompt": _generate(prompt=""),
  "prompt that is no UTF-8": _generate(prompt="caf\udce9"),
  "prompt too long": _generate(prompt="x" * 64),
  "missing file of prompts": _generate("--prompts_file=/no/file", prompt=None),
  "folder of prompts": _generate("--prompts_file=/", prompt=None),
  "empty file of prompts": _prompts("\n\n"),
  "prompts that are no UTF-8": _prompts(b"good\ncaf\xe9\n"),
  "bad JSON line": _prompts('{"prompt": "good"}\n{"prompt": bad}\n', "p.jsonl"),
  "JSON line without a prompt": _prompts('{"text": "good"}\n', "p.jsonl"),
  "empty prompt in a JSON line": _prompts('{"prompt": ""}\n', "p.jsonl"),
  "lone surrogate in a JSON line": _prompts(
    '{"prompt": "\\ud800"}\n', "p.jsonl"
  ),
  "one of the prompts too long": _prompts(f"good\n{'x' * 64}\n"),
  "negative temperature": _generate("--temperature=-1"),
  "temperature of NaN": _generate("--temperature=nan"),
  "temperature that is no number": _generate("--temperature=hot"),
  "top_p of 0": _generate("--top_p=0"),
  "negative top_k": _generate("--top_k=-1"),
  "min_p above 1": _generate("--min_p=2"),
  "empty stop": _generate("--stop="),
  "no tokens": _generate("--max_new_tokens=0"),
  "no samples": _generate("--samples=0"),
  "no slots": _generate("--slots=0"),
  "negative seed": _generate("--seed=-1"),
  "drafts beyond the model": _generate("--drafts=2"),
  "window beyond the model": _generate("--window=128"),
  "--think without a chat": _generate("--think=hide"),
  "chat into a file": lambda place: place.generate(
    "bf16", "--chat", place.output, prompt=None
  ),
  "output in a missing folder": _generate("--output=/no/answers.jsonl"),
  "output is a folder": _output_is_a_folder,
  "output on a full disk": _output_on_full_disk,
  "mesh that does not match the devices": _generate(
    "--gin.Generation.mesh=@MeshShape()", "--gin.MeshShape.data=3"
  ),
  "misspelt binding": _generate("--gin.Generation.sead=1"),
}
_SERVE: dict[str, Case] = {
  "no checkpoint": _nothing(_serves),
  "missing checkpoint": _nowhere(_serves),
  "damaged checkpoint": _damaged(_serves),
  "truncated weights": _truncated(_serves),
  "NaN in a tensor": _nan(_serves),
  "tokenizer missing": _serve("--vocabulary="),
  "FP8 of a folder without": _serve("--dtype=fp8"),
  "port in use": _port_in_use,
  "port that is none": _serve("--port=70000"),
  "another machine's address": _serve("--host=192.0.2.1"),
  "no address": _serve("--host=not an address"),
  "window too long": _serve("--window=128"),
  "window of one token": _serve("--window=1"),
  "drafts beyond the model": _serve("--drafts=2"),
  "no slots": _serve("--slots=0"),
  "cache of no tokens": _serve("--cache_tokens=0"),
  "slots that do not divide by the mesh": _serve(
    "--gin.Serving.mesh=@MeshShape()",
    "--gin.MeshShape.data=2",
    "--slots=3",
    **_DEVICES,
  ),
  "mesh that does not match the devices": _serve(
    "--gin.Serving.mesh=@MeshShape()", "--gin.MeshShape.data=3"
  ),
  "limit of 0": _serve("--gin.Serving.max_requests=0"),
  "misspelt limit": _serve("--gin.Serving.max_request=9"),
}
_CASES = {
  f"{binary}: {name}": case
  for binary, group in (
    ("convert", _CONVERT),
    ("generate", _GENERATE),
    ("serve", _SERVE),
  )
  for name, case in group.items()
}
_NEED_MOUNT = [name for name in _CASES if re.search(r"\bdisk\b", name)]


def passes(unused_name: str, outcome: cases.Outcome) -> bool:
  """Whether a case ended as it should."""
  return cases.is_one_line(outcome) and not outcome.output


def row(name: str, outcome: cases.Outcome, folder) -> list[str]:
  """One line of the table; a failure shows what else was found."""
  said = " ".join([*outcome.lines[-1:], outcome.output]).strip()
  return cases.row(name.partition(": ")[2], said, outcome, folder)


def _tables(names: list[str], rows: list[list[str]]) -> str:
  """A table for each binary."""
  grouped: dict[str, list[list[str]]] = {}
  for name, line in zip(names, rows, strict=True):
    grouped.setdefault(name.partition(":")[0], []).append(line)
  return "\n\n".join(
    f"### experiments.{binary}\n\n{report.table(list(cases.HEADER), lines)}"
    for binary, lines in grouped.items()
  )


def main(argv):
  """Tries the cases and prints, or records, the tables."""
  if argv[1:]:
    raise app.UsageError(f"unexpected arguments {argv[1:]}")
  logging.set_verbosity(logging.WARNING)
  names = [name for name in _CASES if re.search(_ONLY.value, name)]
  names = cases.mountable(names, _NEED_MOUNT)
  with tempfile.TemporaryDirectory(prefix="dsx_bad_models_") as made:
    models.make(pathlib.Path(made))
    rows, failed = cases.run(
      names,
      lambda name, folder: _CASES[name](Place(folder, pathlib.Path(made))),
      passes,
      row,
    )
  text = _tables(names, rows)
  print(f"{len(rows) - len(failed)} of {len(rows)} as they should be: {failed}")
  if _RECORD.value:
    cases.record(_TITLE, "bad_inputs_inference", _WORDS, text)
  return 1 if failed else 0


if __name__ == "__main__":
  os.environ["JAX_PLATFORMS"] = "cpu"
  app.run(main)
