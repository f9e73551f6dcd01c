"""Serves a trained model over HTTP, in the words of OpenAI's API.

  python -m experiments.serve --checkpoint=runs/v3_tiny --port=8000
  curl http://127.0.0.1:8000/v1/completions --json \\
    '{"prompt": "def ", "max_tokens": 20}'

The checkpoint is the workdir of a run, or a folder in Hugging Face's layout
(config.json, *.safetensors, tokenizer.json). Only this machine can connect
unless --host says otherwise; clients need a key if DSX_API_KEY or --api_key is
set. Says on standard output where it listens, once the model answers. SIGTERM
and Ctrl-C end it after the answers in flight. Limits are fields of
settings.Serving (--gin.Serving.max_requests=9), and so is the mesh of several
devices; docs/serving.md has all of it.
--dry_run says what would be served.
"""

import dataclasses
import os
import pathlib
import sys

from absl import flags

from experiments import cli

TARGET = "dsx.serving.settings.Serving"
# The workdir's own config.gin is no mistake.
ALSO = ("dsx.training.pretraining.Pretraining",)

CHECKPOINT = flags.DEFINE_string(
  "checkpoint", None, "Workdir or Hugging Face folder; by default --workdir."
)
PORT = flags.DEFINE_integer("port", None, "By default 8000; 0 takes any.")
HOST = flags.DEFINE_string(
  "host", None, "Address to listen on; by default 127.0.0.1, this machine only."
)
MODEL_NAME = flags.DEFINE_string(
  "model_name", None, "Name for clients; by default that of the folder."
)
API_KEY = flags.DEFINE_string(
  "api_key",
  None,
  "What clients have to send. Others on this machine can read it in the list of"
  " processes: better set DSX_API_KEY.",
)
SLOTS = flags.DEFINE_integer("slots", None, "Sequences decoded at once.")
DRAFTS = flags.DEFINE_integer("drafts", None, "MTP drafts per step.")
WINDOW = flags.DEFINE_integer(
  "window", None, "Longest prompt and answer; by default as it was trained."
)
CACHE_TOKENS = flags.DEFINE_integer(
  "cache_tokens",
  None,
  "Tokens in the cache; by default slots x window, within 8 GiB.",
)
STEP = flags.DEFINE_integer("step", None, "Checkpoint, by default the newest.")
AVERAGE = flags.DEFINE_bool(
  "average", False, "Use the moving average of a run's parameters."
)
VOCABULARY = flags.DEFINE_string(
  "vocabulary", None, "'byte' or a tokenizer.json, if it is not where it was."
)
DTYPE = flags.DEFINE_enum(
  "dtype",
  None,
  ["float32", "bfloat16", "float16", "fp8"],
  "Of parameters and products; by default the run's own, or float32.",
)


def main(argv):
  """Serves until it is told to stop, or says what it would serve."""
  del argv
  serving = _serving()
  folder = CHECKPOINT.value or cli.WORKDIR.value
  if not folder:
    raise ValueError("--checkpoint is missing: expected a folder with a model")
  from dsx.parallel import placement_file
  from dsx.serving import served_model
  from dsx.serving import server
  from dsx.training import pretrained

  found = pretrained.find(
    folder,
    step=STEP.value,
    average=AVERAGE.value,
    vocabulary=VOCABULARY.value,
    dtype=DTYPE.value,
  )
  name = pathlib.Path(folder).expanduser().absolute().name
  if not serving.model_name:
    serving = dataclasses.replace(serving, model_name=name)
  decoding = served_model.decoding(found, serving)
  mesh = served_model.mesh(found, decoding, serving)
  placement = placement_file.find(serving.placement, found.config, mesh)
  plan = f"{found.description}; {decoding}"
  if cli.DRY_RUN.value:
    print(f"{plan}; {serving}")
    return
  taken = server.bind(serving)
  print(plan, file=sys.stderr)
  ended = server.run(
    serving,
    taken,
    served_model.builder(found, decoding, mesh, serving.sharding, placement),
    found.vocabulary,
    api_key=API_KEY.value or os.environ.get("DSX_API_KEY") or None,
  )
  if not ended:
    # A thread that is compiling would abort an interpreter that ends.
    sys.stderr.flush()
    os._exit(0)


def _serving():
  """What to serve with: the defaults, gin's bindings, then these flags."""
  flags_given = (PORT, HOST, MODEL_NAME, SLOTS, DRAFTS, WINDOW, CACHE_TOKENS)
  given = {flag.name: flag.value for flag in flags_given}
  given = {name: value for name, value in given.items() if value is not None}
  return dataclasses.replace(cli.build(TARGET), **given)


if __name__ == "__main__":
  cli.run(main, target=TARGET, also=ALSO)
