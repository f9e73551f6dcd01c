"""The bodies of requests, checked and made into what the engine takes.

OpenAI's completions and chat completions, with `top_k`, `min_p`,
`stop_token_ids`, `ignore_eos`, `add_special_tokens` and `skip_special_tokens`
beside their fields. A field that this server
cannot honour is refused unless its value changes nothing.
"""

import dataclasses
import hashlib
import secrets
from typing import Any

from dsx.inference import request as request_lib
from dsx.inference import sampling as sampling_lib
from dsx.serving import fields as fields_lib
from dsx.serving import refusal

MOST_STOPS = 16
_HOTTEST = 100.0
_LARGEST = 2**63 - 1
# Fields about accounts, storage and routing at OpenAI: without effect here.
_IGNORED = (
  "metadata",
  "prompt_cache_key",
  "safety_identifier",
  "service_tier",
  "store",
  "user",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Call:
  """What completions and chat completions have in common.

  Attributes:
    sampling: how to continue; its `max_new_tokens` is not used.
    max_tokens: to draw; None for as many as the context has room for.
    n: answers to each prompt.
    stream: whether to answer in pieces.
    include_usage: whether the stream ends with a count of tokens.
    logprobs: whether to report log-probabilities.
  """

  sampling: sampling_lib.Sampling
  max_tokens: int | None
  n: int
  stream: bool
  include_usage: bool
  logprobs: bool

  def request(
    self, prompt: tuple[int, ...], answer: int, context: int
  ) -> request_lib.Request:
    """What to ask the engine for one of the answers to a prompt.

    Args:
      prompt: token ids.
      answer: its number, from 0 to n - 1.
      context: longest prompt and answer of the engine, in tokens.

    Raises:
      refusal.Refusal: the prompt is empty or too long.
    """
    room = context - len(prompt)
    wanted = room if self.max_tokens is None else self.max_tokens
    if not prompt:
      raise refusal.Refusal(
        "prompt: it has no tokens; expected at least one", param="prompt"
      )
    least = 0 if self.max_tokens == 0 else 1
    if room < least:
      raise refusal.Refusal(
        f"prompt of {len(prompt)} tokens: expected at most {context - least}, "
        f"the model's context is {context} tokens; shorten it",
        param="messages" if isinstance(self, Chat) else "prompt",
        code="context_length_exceeded",
      )
    sampling = dataclasses.replace(
      self.sampling,
      max_new_tokens=min(wanted, room),
      seed=fold(self.sampling.seed, answer),
    )
    # The engine draws nothing only for the sake of a score.
    scored = isinstance(self, Completion) and self.echo
    scored = scored and (self.logprobs or self.max_tokens == 0)
    return request_lib.Request(
      prompt=prompt, sampling=sampling, score_prompt=scored
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Completion(Call):
  """The body of /v1/completions.

  Attributes:
    prompts: each a text or token ids.
    echo: whether the answers begin with the prompt.
    add_special_tokens: whether BOS goes before a text.
    skip_special_tokens: whether special tokens are left out of the text.
  """

  prompts: tuple[str | tuple[int, ...], ...]
  echo: bool
  add_special_tokens: bool
  skip_special_tokens: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chat(Call):
  """The body of /v1/chat/completions.

  Attributes:
    messages: each with `role` and `content`.
    think: whether the model is asked to reason first; None for what is usual.
  """

  messages: tuple[dict[str, str], ...]
  think: bool | None


def fold(seed: int, answer: int) -> int:
  """The seed of one of the answers; the first has the request's own."""
  if answer == 0:
    return seed
  digest = hashlib.blake2b(f"{seed}/{answer}".encode(), digest_size=8).digest()
  return int.from_bytes(digest, "big")


def completion(
  fields: fields_lib.Fields, *, vocab_size: int, max_choices: int
) -> Completion:
  """Reads the body of /v1/completions.

  Raises:
    refusal.Refusal: a field is not what it should be.
  """
  echo = fields.boolean("echo")
  top = fields.integer("logprobs", None, 0, sampling_lib.MOST_TOP_LOGPROBS)
  max_tokens = fields.integer("max_tokens", 16, 0, _LARGEST)
  if max_tokens == 0 and not echo:
    raise fields.refuse("max_tokens", 0, "at least 1, or 0 with echo")
  fields.only("suffix", lambda v: v == "", "none; dsx does not fill in")
  common = _common(fields, max_tokens=max_tokens, top_logprobs=top)
  fields.only(
    "best_of",
    lambda v: fields_lib.is_integer(v) and v == 1,
    "1; ask for n answers and choose among them",
  )
  call = Completion(
    prompts=_prompts(fields, vocab_size),
    echo=echo,
    add_special_tokens=fields.boolean("add_special_tokens", True),
    skip_special_tokens=fields.boolean("skip_special_tokens", True),
    **common,
  )
  if len(call.prompts) * call.n > max_choices:
    raise refusal.Refusal(
      f"{len(call.prompts)} prompts with n={call.n}: expected at most "
      f"{max_choices} answers to a request; send several",
      param="n" if call.n > 1 else "prompt",
    )
  fields.finish()
  return call


def chat(fields: fields_lib.Fields, *, max_choices: int) -> Chat:
  """Reads the body of /v1/chat/completions.

  Raises:
    refusal.Refusal: a field is not what it should be.
  """
  wanted = fields.boolean("logprobs")
  top = fields.integer("top_logprobs", None, 0, sampling_lib.MOST_TOP_LOGPROBS)
  if top is not None and not wanted:
    raise fields.refuse("top_logprobs", top, "none without logprobs=true")
  tokens = [
    fields.integer(name, None, 1, _LARGEST)
    for name in ("max_completion_tokens", "max_tokens")
  ]
  for name in ("tools", "functions"):
    fields.only(name, lambda v: v == [], "none; dsx calls no tools")
  for name in ("tool_choice", "function_call"):
    fields.only(name, lambda v: v in ("none", "auto"), "none, or 'none'")
  fields.only(
    "response_format",
    lambda v: v == {"type": "text"},
    '{"type": "text"}; dsx does not constrain what is drawn',
  )
  fields.only("modalities", lambda v: v == ["text"], '["text"]')
  fields.ignore("parallel_tool_calls")
  thinking = fields.object("thinking")
  think = None
  if thinking is not None:
    kind = thinking.text("type")
    if kind not in ("enabled", "disabled"):
      raise thinking.refuse("type", kind, "'enabled' or 'disabled'")
    thinking.finish()
    think = kind == "enabled"
  call = Chat(
    messages=messages(fields),
    think=think,
    **_common(
      fields,
      max_tokens=next((value for value in tokens if value is not None), None),
      top_logprobs=(top or 0) if wanted else None,
    ),
  )
  if call.n > max_choices:
    raise fields.refuse("n", call.n, f"an integer from 1 to {max_choices}")
  fields.finish()
  return call


def _common(
  fields: fields_lib.Fields, *, max_tokens: int | None, top_logprobs: int | None
) -> dict[str, Any]:
  """The fields of both, as the arguments of a `Call`."""
  fields.ignore("model", *_IGNORED)
  for name in ("presence_penalty", "frequency_penalty"):
    fields.only(name, lambda v: v == 0, "0; dsx has no penalties")
  fields.only(
    "logit_bias", lambda v: v == {}, "{}; dsx does not change what is likely"
  )
  stream = fields.boolean("stream")
  options = fields.object("stream_options")
  include_usage = False
  if options is not None:
    if not stream:
      raise fields.refuse("stream_options", {}, "none without stream=true")
    include_usage = options.boolean("include_usage")
    options.ignore("include_obfuscation")
    options.finish()
  top_p = fields.number("top_p", 1.0, 0.0, 1.0)
  if top_p == 0:
    raise fields.refuse("top_p", 0, "above 0; temperature=0 is greedy")
  seed = fields.integer("seed", None, -_LARGEST - 1, 2**64 - 1)
  top_k = fields.integer("top_k", 0, -1, _LARGEST)
  sampling = sampling_lib.Sampling(
    temperature=fields.number("temperature", 1.0, 0.0, _HOTTEST),
    top_p=top_p,
    # -1 is what vLLM's clients say for all.
    top_k=max(top_k or 0, 0),
    min_p=fields.number("min_p", 0.0, 0.0, 1.0),
    seed=secrets.randbits(64) if seed is None else seed % 2**64,
    stop=fields.strings("stop", MOST_STOPS),
    stop_tokens=fields.integers(
      "stop_token_ids", sampling_lib.MOST_STOP_TOKENS, 2**31 - 1
    ),
    ignore_eos=fields.boolean("ignore_eos"),
    top_logprobs=top_logprobs or 0,
  )
  return {
    "sampling": sampling,
    "max_tokens": max_tokens,
    "n": fields.integer("n", 1, 1, _LARGEST),
    "stream": stream,
    "include_usage": include_usage,
    "logprobs": top_logprobs is not None,
  }


def _prompts(
  fields: fields_lib.Fields, vocab_size: int
) -> tuple[str | tuple[int, ...], ...]:
  """One or several prompts, of text or of token ids."""
  value = fields.get("prompt")
  expected = "a string, token ids, or a list of strings or of lists of ids"
  if isinstance(value, str):
    value = [value]
  if not isinstance(value, list) or not value:
    raise fields.refuse("prompt", value, expected)
  if all(fields_lib.is_integer(token) for token in value):
    value = [value]
  prompts = []
  for prompt in value:
    if isinstance(prompt, str):
      prompts.append(fields.utf8("prompt", prompt))
    elif isinstance(prompt, list):
      prompts.append(token_ids(fields, "prompt", prompt, vocab_size))
    else:
      raise fields.refuse("prompt", prompt, expected)
  if len({type(prompt) for prompt in prompts}) > 1:
    raise fields.refuse("prompt", value, expected)
  return tuple(prompts)


def token_ids(
  fields: fields_lib.Fields, field: str, value: Any, vocab_size: int
) -> tuple[int, ...]:
  """A list of ids of the vocabulary.

  Raises:
    refusal.Refusal: it is something else.
  """
  if not isinstance(value, list):
    raise fields.refuse(field, value, "a list of token ids")
  for token in value:
    if not fields_lib.is_integer(token) or not 0 <= token < vocab_size:
      raise fields.refuse(field, token, f"token ids from 0 to {vocab_size - 1}")
  return tuple(value)


def messages(fields: fields_lib.Fields) -> tuple[dict[str, str], ...]:
  """The conversation, each message a role and its text.

  Raises:
    refusal.Refusal: it is none.
  """
  value = fields.get("messages")
  if not isinstance(value, list) or not value:
    raise fields.refuse("messages", value, "a list of at least one message")
  said = []
  for i, message in enumerate(value):
    name = f"messages[{i}]"
    if not isinstance(message, dict):
      raise fields.refuse(name, message, "an object with role and content")
    inner = fields_lib.Fields(message, name)
    role = inner.text("role")
    content = inner.get("content")
    if isinstance(content, list):
      content = "".join(
        _part(part, f"{name}.content[{k}]") for k, part in enumerate(content)
      )
    if not isinstance(content, str):
      raise inner.refuse("content", content, "text, or a list of text parts")
    inner.utf8("content", content)
    # What an answer of ours has beside its content, sent back with it.
    inner.ignore("reasoning_content", "annotations")
    inner.only("prefix", lambda v: v is False, "false; answers begin anew")
    inner.finish()
    # OpenAI's newer name of the same thing.
    role = "system" if role == "developer" else role
    said.append({"role": role, "content": content})
  return tuple(said)


def _part(value: Any, name: str) -> str:
  """The text of one part of a message."""
  if not isinstance(value, dict):
    raise refusal.Refusal(
      f'{name}: got {refusal.shown(value)}, expected {{"type": "text", '
      '"text": ...}',
      param=name,
    )
  part = fields_lib.Fields(value, name)
  kind = part.text("type")
  if kind != "text":
    raise part.refuse("type", kind, "'text'; dsx reads nothing else here")
  text = part.text("text")
  part.finish()
  return text
