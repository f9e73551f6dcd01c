"""Gives convert, generate and serve every bad input and notes what they say.

  python -m benchmarks.bad_inputs_inference [--record] [--only=REGEX]

Each case is a real command line on a copy of a tiny model. It passes if the
process ends with an exit code that is not 0, prints nothing but one line that
says why (beside lines that say how far it was), and leaves sources as they
were and nothing that could be taken for a model or for finished answers. Small
disks are tmpfs mounts, which takes root on Linux; without it these cases are
left out. --record writes a section of docs/bad_inputs.md.
"""

import os
import pathlib
import re
import tempfile

from absl import app
from absl import flags
from absl import logging
import numpy as np

from benchmarks import bad_input_cases as cases
from benchmarks import bad_input_models as models
from benchmarks import bad_input_place
from benchmarks import bad_input_spoiling as spoil
from benchmarks import report

_RECORD = flags.DEFINE_bool("record", False, "Write docs/bad_inputs.md.")
_ONLY = flags.DEFINE_string("only", ".", "Cases whose name matches this.")

_TITLE = "Converting, generating and serving"
_WORDS = """\
Tried on `experiments.convert`, `generate` and `serve` with the model of
`benchmarks/bad_input_models.py`. Lines that say what was read, how far it is
and how many tokens were drawn are left out. Sources stay as they were, and what
is left in a target looks neither like a model nor like finished answers."""

_DEVICES = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
_ORBAX = "--target_format=orbax"
_CONVERT: dict[str, spoil.Case] = {
  "missing source": spoil.nowhere(spoil.converts),
  "empty source": spoil.nothing(spoil.converts),
  "weights missing": spoil.without(spoil.converts),
  "pickles only": spoil.without(spoil.converts, only_pickle=True),
  "config.json is not JSON": spoil.file("config.json", b"{"),
  "config.json of another model": spoil.fields(
    "bf16", architectures=["LlamaForCausalLM"]
  ),
  "config.json of another size": spoil.fields("bf16", hidden_size=192),
  "sizes that make no model": spoil.fields("bf16", hidden_size=10**30),
  "missing tensor": spoil.tensors("bf16", lambda made: made.pop(spoil.MATRIX)),
  "extra tensor": spoil.tensors(
    "bf16", lambda made: made.update(lora=np.zeros(2, np.float32))
  ),
  "misshapen tensor": spoil.tensors(
    "bf16", lambda made: made.update({spoil.MATRIX: made[spoil.MATRIX].T})
  ),
  "tensor of integers": spoil.tensors(
    "bf16",
    lambda made: made.update(
      {spoil.MATRIX: made[spoil.MATRIX].astype("int32")}
    ),
  ),
  "NaN in a tensor": spoil.nan(spoil.converts),
  "NaN in a tensor, into a workdir": spoil.nan(spoil.converts, _ORBAX),
  "number beyond float16": spoil.tensors(
    "bf16", spoil.number(spoil.MATRIX, 1e6), "--dtype=float16"
  ),
  "MTP module with an embedding of its own, into a workdir": spoil.tensors(
    "bf16", spoil.number("model.layers.2.embed_tokens.weight", 1.0), _ORBAX
  ),
  "truncated weights": spoil.truncated(spoil.converts),
  "weights that are none": spoil.file(
    models.WEIGHTS, b"<html>not found</html>"
  ),
  "index that leads out": spoil.indexed("../" + models.WEIGHTS),
  "index with an absolute path": spoil.indexed("/etc/x.safetensors"),
  "index that names a pickle": spoil.indexed("pytorch_model.bin"),
  "index of a missing file": spoil.indexed("model-00001-of-00002.safetensors"),
  "link that leads out": spoil.link,
  "FP8 without scales": spoil.tensors(
    "fp8", lambda made: made.pop(spoil.SCALES)
  ),
  "scale of zero": spoil.tensors("fp8", spoil.number(spoil.SCALES, 0.0)),
  "negative scale": spoil.tensors("fp8", spoil.number(spoil.SCALES, -1.0)),
  "scale of NaN": spoil.tensors("fp8", spoil.number(spoil.SCALES, np.nan)),
  "scale of NaN, into a workdir": spoil.tensors(
    "fp8", spoil.number(spoil.SCALES, np.nan), _ORBAX
  ),
  "misshapen scales": spoil.tensors(
    "fp8", lambda made: made.update({spoil.SCALES: made[spoil.SCALES][:1]})
  ),
  "scales of no matrix": spoil.tensors(
    "bf16",
    lambda made: made.update({spoil.SCALES: np.ones((3, 2), np.float32)}),
  ),
  "scales that are no powers of two": spoil.convert(
    "fp8", "--target_format=hf_fp8", "--scale_format=e8m0"
  ),
  "another quant_method": spoil.fields(
    "fp8", quantization_config={"quant_method": "gptq"}
  ),
  "another block size": spoil.fields(
    "fp8", quantization_config={"weight_block_size": [64, 64]}
  ),
  "FP8 that config.json does not announce": spoil.fields(
    "fp8", quantization_config=None
  ),
  "target is the source": spoil.onto("bf16", ""),
  "target in the source": spoil.onto("bf16", "converted"),
  "target is the source, into a workdir": spoil.onto("bf16", "", _ORBAX),
  "target in the source, into a workdir": spoil.onto(
    "bf16", "converted", _ORBAX
  ),
  "target is the workdir": spoil.onto("run", ""),
  "target in the checkpoint": spoil.onto("run", "checkpoints/0/converted"),
  "target among the checkpoints": spoil.onto("run", "checkpoints/converted"),
  "target of other options": spoil.other_options,
  "target of another source": spoil.of_another(),
  "target of another source, into a workdir": spoil.of_another(_ORBAX),
  "target is not empty": spoil.not_empty(),
  "target is not empty, into a workdir": spoil.not_empty(_ORBAX),
  "target is a file": spoil.is_a_file(),
  "target is a file, into a workdir": spoil.is_a_file(_ORBAX),
  "target below a file": spoil.below_a_file(),
  "target below a file, into a workdir": spoil.below_a_file(_ORBAX),
  "target on a read-only disk": spoil.disk("16m", read_only=True),
  "target on a read-only disk, into a workdir": spoil.disk(
    "16m", _ORBAX, read_only=True
  ),
  "target on a full disk": spoil.disk("1m"),
  "target on a full disk, into a workdir": spoil.disk("1m", _ORBAX),
  "disk that takes no more files": spoil.disk("16m", options="nr_inodes=4"),
  "disk that takes no more files, into a workdir": spoil.disk(
    "16m", _ORBAX, options="nr_inodes=9"
  ),
  "damaged checkpoint": spoil.damaged(spoil.converts),
  "step that is not there": spoil.convert("run", "--step=7"),
  "average that was not kept": spoil.convert("run", "--average"),
  "--step of a Hugging Face folder": spoil.convert("bf16", "--step=0"),
  "workdir into a workdir": spoil.convert("run", _ORBAX),
  "unknown format": spoil.convert("bf16", "--target_format=gguf"),
  "unknown dtype": spoil.convert("bf16", "--dtype=int4"),
  "scales without FP8": spoil.convert("bf16", "--scale_format=e8m0"),
  "files of no bytes": spoil.convert("bf16", "--shard_bytes=0"),
  "misspelt flag": spoil.convert("bf16", "--target_fromat=hf"),
}
_GENERATE: dict[str, spoil.Case] = {
  "no checkpoint": spoil.nothing(spoil.generates),
  "missing checkpoint": spoil.nowhere(spoil.generates),
  "damaged checkpoint": spoil.damaged(spoil.generates),
  "step that is not there": spoil.generate("--step=7", model="run"),
  "--step of a Hugging Face folder": spoil.generate("--step=0"),
  "average that was not kept": spoil.generate("--average", model="run"),
  "weights missing": spoil.without(spoil.generates),
  "pickles only": spoil.without(spoil.generates, only_pickle=True),
  "truncated weights": spoil.truncated(spoil.generates),
  "NaN in a tensor": spoil.nan(spoil.generates),
  "tokenizer missing": spoil.generate("--vocabulary="),
  "unknown vocabulary": spoil.generate("--vocabulary=/no/tokenizer.json"),
  "FP8 of a folder without": spoil.generate("--dtype=fp8"),
  "FP8 of a workdir without": spoil.generate("--dtype=fp8", model="run"),
  "unknown dtype": spoil.generate("--dtype=int4"),
  "no prompt": spoil.generate(prompt=None),
  "two sources of prompts": spoil.generate("--chat"),
  "empty prompt": spoil.generate(prompt=""),
  "prompt that is no UTF-8": spoil.generate(prompt="caf\udce9"),
  "prompt too long": spoil.generate(prompt="x" * 64),
  "missing file of prompts": spoil.generate(
    "--prompts_file=/no/file", prompt=None
  ),
  "folder of prompts": spoil.generate("--prompts_file=/", prompt=None),
  "empty file of prompts": spoil.prompts("\n\n"),
  "prompts that are no UTF-8": spoil.prompts(b"good\ncaf\xe9\n"),
  "bad JSON line": spoil.prompts(
    '{"prompt": "good"}\n{"prompt": bad}\n', "p.jsonl"
  ),
  "JSON line without a prompt": spoil.prompts('{"text": "good"}\n', "p.jsonl"),
  "empty prompt in a JSON line": spoil.prompts('{"prompt": ""}\n', "p.jsonl"),
  "lone surrogate in a JSON line": spoil.prompts(
    '{"prompt": "\\ud800"}\n', "p.jsonl"
  ),
  "one of the prompts too long": spoil.prompts(f"good\n{'x' * 64}\n"),
  "negative temperature": spoil.generate("--temperature=-1"),
  "temperature of NaN": spoil.generate("--temperature=nan"),
  "temperature that is no number": spoil.generate("--temperature=hot"),
  "top_p of 0": spoil.generate("--top_p=0"),
  "negative top_k": spoil.generate("--top_k=-1"),
  "min_p above 1": spoil.generate("--min_p=2"),
  "empty stop": spoil.generate("--stop="),
  "no tokens": spoil.generate("--max_new_tokens=0"),
  "no samples": spoil.generate("--samples=0"),
  "no slots": spoil.generate("--slots=0"),
  "negative seed": spoil.generate("--seed=-1"),
  "drafts beyond the model": spoil.generate("--drafts=2"),
  "window beyond the model": spoil.generate("--window=128"),
  "--think without a chat": spoil.generate("--think=hide"),
  "chat into a file": lambda place: place.generate(
    "bf16", "--chat", place.output, prompt=None
  ),
  "output in a missing folder": spoil.generate("--output=/no/answers.jsonl"),
  "output is a folder": spoil.output_is_a_folder,
  "output on a full disk": spoil.output_on_full_disk,
  "mesh that does not match the devices": spoil.generate(
    "--gin.Generation.mesh=@MeshShape()", "--gin.MeshShape.data=3"
  ),
  "misspelt binding": spoil.generate("--gin.Generation.sead=1"),
}
_SERVE: dict[str, spoil.Case] = {
  "no checkpoint": spoil.nothing(spoil.serves),
  "missing checkpoint": spoil.nowhere(spoil.serves),
  "damaged checkpoint": spoil.damaged(spoil.serves),
  "truncated weights": spoil.truncated(spoil.serves),
  "NaN in a tensor": spoil.nan(spoil.serves),
  "tokenizer missing": spoil.serve("--vocabulary="),
  "FP8 of a folder without": spoil.serve("--dtype=fp8"),
  "port in use": spoil.port_in_use,
  "port that is none": spoil.serve("--port=70000"),
  "another machine's address": spoil.serve("--host=192.0.2.1"),
  "no address": spoil.serve("--host=not an address"),
  "window too long": spoil.serve("--window=128"),
  "window of one token": spoil.serve("--window=1"),
  "drafts beyond the model": spoil.serve("--drafts=2"),
  "no slots": spoil.serve("--slots=0"),
  "cache of no tokens": spoil.serve("--cache_tokens=0"),
  "slots that do not divide by the mesh": spoil.serve(
    "--gin.Serving.mesh=@MeshShape()",
    "--gin.MeshShape.data=2",
    "--slots=3",
    **_DEVICES,
  ),
  "mesh that does not match the devices": spoil.serve(
    "--gin.Serving.mesh=@MeshShape()", "--gin.MeshShape.data=3"
  ),
  "limit of 0": spoil.serve("--gin.Serving.max_requests=0"),
  "misspelt limit": spoil.serve("--gin.Serving.max_request=9"),
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
      lambda name, folder: _CASES[name](
        bad_input_place.Place(folder, pathlib.Path(made))
      ),
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
