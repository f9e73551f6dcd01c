"""From a checkpoint to the engine that serves it."""

from collections.abc import Callable

import jax

from dsx.convert import byte_progress
from dsx.inference import decoding as decoding_lib
from dsx.inference import engine as engine_lib
from dsx.parallel import mesh as mesh_lib
from dsx.parallel import placement_file
from dsx.parallel import sharding as sharding_lib
from dsx.serving import settings
from dsx.training import pretrained


def decoding(
  found: pretrained.Pretrained, serving: settings.Serving
) -> decoding_lib.Decoding:
  """How the engine decodes, once it is found to suit the model.

  Raises:
    ValueError: the vocabulary, the drafts or the context do not fit the model.
  """
  decoding_lib.check_model(
    found.config, drafts=serving.drafts, vocabulary=found.vocabulary
  )
  longest = found.config.max_position_embeddings
  window = serving.window or min(found.window, longest)
  if not 2 <= window <= longest:
    raise ValueError(
      f"window={window}: expected 2 to max_position_embeddings={longest}, the "
      "model's context; change it"
    )
  return decoding_lib.Decoding(
    slots=serving.slots,
    drafts=serving.drafts,
    context=window,
    cache_tokens=serving.cache_tokens,
    steps=serving.steps,
  )


def mesh(
  found: pretrained.Pretrained,
  how: decoding_lib.Decoding,
  serving: settings.Serving,
) -> jax.sharding.Mesh | None:
  """The devices, if there are to be several.

  Raises:
    ValueError: there are not as many, or they cannot decode so.
  """
  if serving.mesh is None:
    return None
  devices = mesh_lib.make(serving.mesh)
  decoding_lib.check(how, found.config, devices)
  return devices


def builder(
  found: pretrained.Pretrained,
  how: decoding_lib.Decoding,
  devices: jax.sharding.Mesh | None,
  sharding: sharding_lib.Sharding,
  placement: placement_file.Placement | None = None,
) -> Callable[[], engine_lib.Engine]:
  """Reads the weights; what it returns makes an engine, any number of times.

  Raises:
    ValueError: in one line, what is wrong with the files.
  """
  with byte_progress.ByteProgress(brief=True) as progress:
    variables = found.read(
      layout="layers",
      mtp=how.drafts > 0,
      mesh=devices,
      sharding=sharding,
      placement=placement,
      progress=progress,
    )

  def build() -> engine_lib.Engine:
    return engine_lib.Engine(
      found.config,
      variables,
      dtypes=found.dtypes,
      decoding=how,
      eos=found.vocabulary.special["eos"],
      vocab_size=found.vocabulary.size,
      mesh=devices,
      sharding=sharding,
    )

  return build
