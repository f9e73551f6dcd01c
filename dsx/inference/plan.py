"""What will be generated, found right before any weights are read."""

from collections.abc import Sequence
import dataclasses

from dsx.data import vocab as vocab_lib
from dsx.inference import decoding as decoding_lib
from dsx.inference import generation as generation_lib
from dsx.inference import prompts_file
from dsx.inference import sampling as sampling_lib
from dsx.inference import template as template_lib
from dsx.models import config as config_lib

# Of a chat for which no window is asked: a longer cache has its price.
CHAT_WINDOW = 16_384
# Of a chunk, where somebody watches the tokens come.
_STREAMED_STEPS = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
  """What will be generated.

  Attributes:
    how: with everything that depends on model and prompts filled in.
    template: how prompts are put.
    prompts: to be answered; none for a chat.
    tokens: the ids of each.
    window: most tokens of a prompt and its text.
  """

  how: generation_lib.Generation
  template: template_lib.Template
  prompts: Sequence[prompts_file.Prompt]
  tokens: Sequence[Sequence[int]]
  window: int

  def __str__(self) -> str:
    if self.prompts:
      words = _lengths([len(ids) for ids in self.tokens])
    else:
      words = "a chat"
    if self.how.samples > 1:
      words += f", {self.how.samples} samples of each"
    words += f", window={self.window}, seed={self.how.seed}"
    if self.how.decoding.drafts:
      words += f", drafts={self.how.decoding.drafts}"
    return words + _sampling(self.how.sampling)

  def details(self) -> str:
    """The ids of each prompt, a line each."""
    return "\n".join(
      " ".join([f"{prompt.place}: {len(ids)} tokens:", *map(str, ids)])
      for prompt, ids in zip(self.prompts, self.tokens, strict=True)
    )


def make(
  how: generation_lib.Generation,
  template: template_lib.Template,
  prompts: Sequence[prompts_file.Prompt],
  *,
  config: config_lib.DeepSeekConfig,
  vocabulary: vocab_lib.Vocabulary,
  window: int,
  shards: int = 1,
) -> Plan:
  """Plans.

  Args:
    how: what was asked for.
    template: how prompts are put.
    prompts: to be answered; none for a chat.
    config: the model, with the MTP modules that there are.
    vocabulary: of the model.
    window: tokens of context that the model was trained with.
    shards: parts into which a mesh divides a batch.

  Raises:
    ValueError: vocabulary, drafts, window or a prompt do not fit the model.
  """
  _check(how.decoding, vocabulary, config)
  if not prompts:
    window = min(window, CHAT_WINDOW)
  longest = config.max_position_embeddings
  window = how.decoding.context or min(window, longest)
  tokens = [template.prompt(vocabulary, prompt) for prompt in prompts]
  for prompt, ids in zip(prompts, tokens, strict=True):
    _check_length(prompt.place, len(ids), window, longest)
  lengths = [len(ids) for ids in tokens]
  if prompts:
    decoding = _no_larger_than_needed(how, lengths, window, shards)
  else:
    template.conversation(vocabulary, [("user", "?")])  # can it chat?
    decoding = _streaming(how.decoding, shards, window)
    how = _as_long_as_it_takes(how, window)
  return Plan(
    how=dataclasses.replace(how, decoding=decoding),
    template=template,
    prompts=prompts,
    tokens=tokens,
    window=window,
  )


def _check(
  decoding: decoding_lib.Decoding,
  vocabulary: vocab_lib.Vocabulary,
  config: config_lib.DeepSeekConfig,
) -> None:
  """Refuses what the model is not made for."""
  decoding_lib.check_model(
    config, drafts=decoding.drafts, vocabulary=vocabulary
  )
  longest = config.max_position_embeddings
  if decoding.context is not None and decoding.context > longest:
    raise ValueError(
      f"window={decoding.context}: expected at most "
      f"max_position_embeddings={longest}, the model's context; shorten it"
    )


def _check_length(place: str, length: int, window: int, longest: int) -> None:
  """Refuses a prompt that leaves no room for an answer."""
  if length >= window:
    remedy = "shorten it"
    if window < longest:
      remedy += f", or raise the window (this model's context is {longest})"
    raise ValueError(
      f"{place}: prompt of {length} tokens: expected fewer than "
      f"window={window}; {remedy}"
    )


def _as_long_as_it_takes(
  how: generation_lib.Generation, window: int
) -> generation_lib.Generation:
  """Unless a length is asked for, an answer of a chat may fill the window."""
  if how.sampling.max_new_tokens != sampling_lib.Sampling().max_new_tokens:
    return how
  return how.replace(max_new_tokens=window)


def _no_larger_than_needed(
  how: generation_lib.Generation,
  lengths: Sequence[int],
  window: int,
  shards: int,
) -> decoding_lib.Decoding:
  """Slots and a cache for the prompts at hand."""
  context = min(window, max(lengths) + how.sampling.max_new_tokens)
  texts = how.samples * len(lengths)
  if texts == 1:
    return _streaming(how.decoding, shards, context)
  slots = min(how.decoding.slots, texts)
  return dataclasses.replace(
    how.decoding, slots=-(-slots // shards) * shards, context=context
  )


def _streaming(
  decoding: decoding_lib.Decoding, shards: int, context: int
) -> decoding_lib.Decoding:
  """For one text, whose tokens come a few at a time."""
  steps = min(decoding.steps, _STREAMED_STEPS)
  return dataclasses.replace(
    decoding, slots=shards, steps=steps, context=context
  )


def _lengths(lengths: Sequence[int]) -> str:
  if len(lengths) == 1:
    return f"prompt of {lengths[0]} tokens"
  low, high = min(lengths), max(lengths)
  between = f"{low}" if low == high else f"{low} to {high}"
  return f"{len(lengths)} prompts of {between} tokens"


def _sampling(how: sampling_lib.Sampling) -> str:
  """Length, temperature and whatever is not as by default."""
  usual = dataclasses.asdict(sampling_lib.Sampling())
  always = ("max_new_tokens", "temperature")
  return "".join(
    f", {name}={value!r}"
    for name, value in dataclasses.asdict(how).items()
    if name in always or value != usual[name]
  )
