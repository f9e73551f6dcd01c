"""Continues texts, or chats, with a trained model.

  python -m experiments.generate --checkpoint=runs/v3_tiny --prompt='def '
  python -m experiments.generate --checkpoint=DIR --prompts_file=FILE \\
    --output=FILE.jsonl
  python -m experiments.generate --checkpoint=DIR --chat

The checkpoint is the workdir of a run, or a folder in Hugging Face's layout
(config.json, *.safetensors, tokenizer.json). One prompt streams to standard
output; several are decoded side by side and printed, or written, in their
order. A text ends where the model ends it, at a --stop string, after
--max_new_tokens, or when prompt and text fill the context (--window): nothing
is ever forgotten to make room. What was read, how far it is and how it ended
goes to standard error.

A file of prompts has one on each line; empty lines are skipped. If its name
ends in .jsonl, or its first line is a JSON object with a `prompt`, each line is
such an object. The output has an object on each line with prompt, sample, text,
token_ids, logprobs and finish_reason (of a chat reasoning, too); FILE.partial
has what is finished until all is.

--chat talks on the terminal in DeepSeek-R1's template, or takes its lines from
a pipe; /reset forgets, /quit ends. --chat_template puts single prompts so.

Devices of a mesh are bound by gin:

  --gin_bindings='Generation.mesh = @MeshShape()' \\
  --gin_bindings='MeshShape.tensor = 8'

--dry_run says what would be read, and the prompts' tokens.
"""

import contextlib
import sys

from absl import flags

from experiments import cli

TARGET = "dsx.inference.generation.Generation"
# The workdir's own config.gin is no mistake.
ALSO = ("dsx.training.pretraining.Pretraining",)

CHECKPOINT = flags.DEFINE_string(
  "checkpoint", None, "Workdir or Hugging Face folder; by default --workdir."
)
PROMPT = flags.DEFINE_string("prompt", None, "Text to continue.")
PROMPTS_FILE = flags.DEFINE_string(
  "prompts_file", None, "Texts to continue: plain lines or JSON lines."
)
CHAT = flags.DEFINE_bool("chat", False, "Talk, line by line.")
CHAT_TEMPLATE = flags.DEFINE_bool(
  "chat_template", False, "Put prompts as a user's words to a chat model."
)
SYSTEM = flags.DEFINE_string(
  "system", None, "What a chat model is told before all else."
)
THINK = flags.DEFINE_enum(
  "think",
  None,
  ["show", "hide", "off"],
  "Of a chat: show reasoning, hide it, or ask for an answer without any; by"
  " default show.",
)
OUTPUT = flags.DEFINE_string(
  "output", None, "File of JSON lines to write, instead of printing."
)
MAX_NEW_TOKENS = flags.DEFINE_integer(
  "max_new_tokens",
  None,
  "Most to draw for a text; by default 200, in a chat all that fit.",
)
TEMPERATURE = flags.DEFINE_float(
  "temperature", None, "0 takes the best token; by default 0.7."
)
TOP_K = flags.DEFINE_integer(
  "top_k", None, "Draw from this many best tokens; 0 for all."
)
TOP_P = flags.DEFINE_float(
  "top_p", None, "Draw from the best tokens up to this probability together."
)
MIN_P = flags.DEFINE_float(
  "min_p", None, "Draw from tokens at least this share as probable as the best."
)
STOP = flags.DEFINE_multi_string(
  "stop",
  None,
  "Text that ends a text, and is left out; may be repeated. A shell writes a"
  " line break $'\\n'.",
)
SAMPLES = flags.DEFINE_integer(
  "samples", None, "Texts for each prompt; by default 1."
)
SLOTS = flags.DEFINE_integer(
  "slots", None, "Texts decoded at once; by default 8."
)
DRAFTS = flags.DEFINE_integer(
  "drafts", None, "Tokens that MTP modules draft per step; by default 0."
)
WINDOW = flags.DEFINE_integer(
  "window",
  None,
  "Most tokens of prompt and text together; by default as many as it was"
  " trained with.",
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
  "Of parameters and products; by default the run's own, or float32. fp8 keeps"
  " FP8 weights as they are.",
)


def main(argv):
  """Generates, or says what would be generated."""
  del argv
  how, prompts, template = _generation(), _prompts(), _template()
  from dsx.inference import answers
  from dsx.inference import answers_file
  from dsx.inference import plan as plan_lib
  from dsx.parallel import mesh as mesh_lib
  from dsx.parallel import placement_file
  from dsx.training import pretrained

  if OUTPUT.value is not None:
    answers_file.check(OUTPUT.value)
  found = pretrained.find(
    _folder(),
    step=STEP.value,
    average=AVERAGE.value,
    vocabulary=VOCABULARY.value,
    dtype=DTYPE.value,
  )
  mesh = mesh_lib.make(how.mesh) if how.mesh else None
  placement = placement_file.find(how.placement, found.config, mesh)
  # What is wrong with the prompts is said before the weights are read.
  plan = plan_lib.make(
    how,
    template,
    prompts,
    config=found.config,
    vocabulary=found.vocabulary,
    window=found.window,
    shards=mesh_lib.batch_shards(mesh),
  )
  if cli.DRY_RUN.value:
    print(f"{found.description}; {plan}", plan.details(), sep="\n")
    return
  print(f"{found.description}; {plan}", file=sys.stderr)
  with contextlib.ExitStack() as stack:
    writer = None
    if OUTPUT.value is not None:
      writer = stack.enter_context(answers_file.Writer(OUTPUT.value))
    answers.generate(
      plan,
      _engine(found, plan, mesh, placement),
      found.vocabulary,
      writer=writer,
      shows=THINK.value != "hide",
    )


def _generation():
  """How to generate: the defaults, gin's bindings, then this binary's flags."""
  return cli.build(TARGET).replace(
    max_new_tokens=MAX_NEW_TOKENS.value,
    temperature=TEMPERATURE.value,
    top_k=TOP_K.value,
    top_p=TOP_P.value,
    min_p=MIN_P.value,
    stop=None if STOP.value is None else tuple(STOP.value),
    samples=SAMPLES.value,
    slots=SLOTS.value,
    drafts=DRAFTS.value,
    context=WINDOW.value,
  )


def _folder():
  """The folder of the model."""
  folder = CHECKPOINT.value or cli.WORKDIR.value
  if not folder:
    raise ValueError("--checkpoint is missing: expected a folder with a model")
  return folder


def _prompts():
  """What to continue; nothing for a chat."""
  from dsx.inference import prompts_file

  given = {
    "--prompt": PROMPT.value is not None,
    "--prompts_file": PROMPTS_FILE.value is not None,
    "--chat": CHAT.value,
  }
  names = [name for name, is_given in given.items() if is_given]
  if len(names) != 1:
    raise ValueError(
      f"{' and '.join(names) or 'nothing to continue'}: expected one of "
      f"{', '.join(given)}; give one"
    )
  if CHAT.value:
    given = {"--output": OUTPUT.value, "--samples": SAMPLES.value}
    for name, value in given.items():
      if value is not None:
        raise ValueError(f"{name}: expected none with --chat; leave it out")
    return []
  if PROMPTS_FILE.value is not None:
    return prompts_file.read(PROMPTS_FILE.value)
  if not PROMPT.value:
    raise ValueError("--prompt is empty: expected text to continue")
  return [prompts_file.Prompt(PROMPT.value, "--prompt")]


def _template():
  """How prompts are put to the model."""
  from dsx.inference import template

  chat = CHAT.value or CHAT_TEMPLATE.value
  for name, value in (("--system", SYSTEM.value), ("--think", THINK.value)):
    if value is not None and not chat:
      raise ValueError(
        f"{name}: expected with --chat or --chat_template only; give one of "
        "them, or leave it out"
      )
  return template.Template(
    chat=chat, system=SYSTEM.value or "", think=THINK.value != "off"
  )


def _engine(found, plan, mesh, placement):
  """The model, read and ready."""
  from dsx.convert import byte_progress
  from dsx.inference import engine

  decoding = plan.how.decoding
  with byte_progress.ByteProgress(brief=True) as progress:
    variables = found.read(
      layout="layers",
      mtp=decoding.drafts > 0,
      mesh=mesh,
      sharding=plan.how.sharding,
      placement=placement,
      progress=progress,
    )
  return engine.Engine(
    found.config,
    variables,
    dtypes=found.dtypes,
    decoding=decoding,
    eos=found.vocabulary.special["eos"],
    vocab_size=found.vocabulary.size,
    mesh=mesh,
    sharding=plan.how.sharding,
  )


if __name__ == "__main__":
  cli.run(main, target=TARGET, also=ALSO)
