"""From a checkpoint to the engine that serves it."""

from collections.abc import Callable

from dsx.inference import engine as engine_lib
from dsx.serving import settings
from dsx.training import pretrained


def decoding(
  found: pretrained.Pretrained, serving: settings.Serving
) -> engine_lib.Decoding:
  """How the engine decodes, once it is found to suit the model.

  Raises:
    ValueError: the vocabulary, the drafts or the context do not fit the model.
  """
  vocabulary, modules = found.vocabulary, found.config.num_nextn_predict_layers
  if vocabulary.size > found.config.vocab_size:
    raise ValueError(
      f"vocabulary {vocabulary.name!r} has {vocabulary.size} ids, the model "
      f"{found.config.vocab_size}: expected the vocabulary it was trained with"
    )
  if serving.drafts > modules:
    raise ValueError(
      f"drafts={serving.drafts}: expected at most {modules}, one for each MTP "
      "module of this checkpoint; lower it"
    )
  longest = found.config.max_position_embeddings
  context = serving.context or min(found.window, longest)
  if not 2 <= context <= longest:
    raise ValueError(
      f"context={context}: expected 2 to {longest}, the model's "
      "max_position_embeddings; change it"
    )
  return engine_lib.Decoding(
    slots=serving.slots,
    drafts=serving.drafts,
    context=context,
    cache_tokens=serving.cache_tokens,
    steps=serving.steps,
  )


def builder(
  found: pretrained.Pretrained, how: engine_lib.Decoding
) -> Callable[[], engine_lib.Engine]:
  """Reads the weights; what it returns makes an engine, any number of times.

  Raises:
    ValueError: in one line, what is wrong with the files.
  """
  variables = found.read(layout="layers", mtp=how.drafts > 0)

  def build() -> engine_lib.Engine:
    return engine_lib.Engine(
      found.config,
      variables,
      dtypes=found.dtypes,
      decoding=how,
      eos=found.vocabulary.special["eos"],
      vocab_size=found.vocabulary.size,
    )

  return build
