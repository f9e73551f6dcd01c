"""How texts are generated: what gin and flags bind, and what follows from it.

Each continuation has a seed of its own, made from that of the run, the prompt's
place and the sample's number, so that what it says does not depend on what is
decoded beside it.
"""

from collections.abc import Sequence
import dataclasses
import hashlib

from dsx.inference import decoding as decoding_lib
from dsx.inference import request as request_lib
from dsx.inference import sampling as sampling_lib
from dsx.parallel import mesh as mesh_lib
from dsx.parallel import sharding as sharding_lib

_SEEDS = 2**64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generation:
  """How texts are generated.

  Attributes:
    seed: of the run, from which each continuation's own is made.
    samples: continuations of each prompt.
    sampling: length, temperature and what else shapes a continuation; its
      seed is not used.
    decoding: how many at once, with how many drafts, in how long a context.
    mesh: the devices; None for one of them alone.
    sharding: where on the mesh.
    placement: file with the experts and their copies that each device is to
      hold (`parallel/placement_file.py`); empty for none.
  """

  seed: int = 0
  samples: int = 1
  sampling: sampling_lib.Sampling = sampling_lib.Sampling()
  decoding: decoding_lib.Decoding = decoding_lib.Decoding()
  mesh: mesh_lib.MeshShape | None = None
  sharding: sharding_lib.Sharding = sharding_lib.Sharding()
  placement: str = ""

  def __post_init__(self):
    if self.samples < 1:
      raise ValueError(
        f"samples={self.samples!r}: expected at least 1; raise it"
      )
    if not 0 <= self.seed < _SEEDS:
      raise ValueError(
        f"seed={self.seed!r}: expected 0 to 2**64 - 1; give another"
      )
    if self.sampling.seed:
      raise ValueError(
        f"sampling.seed={self.sampling.seed!r}: expected none, each "
        "continuation has its own; set generation.Generation.seed"
      )
    if not self.sampling.max_new_tokens:
      raise ValueError("max_new_tokens=0: expected at least 1; raise it")

  def replace(self, **given) -> "Generation":
    """With other values, of its own fields, `sampling`'s or `decoding`'s.

    None stands for a value that is not given.

    Raises:
      ValueError: a value is refused.
    """
    given = {name: value for name, value in given.items() if value is not None}
    parts = {}
    for part in ("sampling", "decoding"):
      old = getattr(self, part)
      fields = {field.name for field in dataclasses.fields(old)}
      changed = {
        name: given.pop(name)
        for name in fields & given.keys() - {"seed", "samples"}
      }
      parts[part] = dataclasses.replace(old, **changed)
    return dataclasses.replace(self, **parts, **given)

  def requests(
    self, prompts: Sequence[Sequence[int]]
  ) -> list[request_lib.Request]:
    """Requests for all prompts, those for one beside each other."""
    return [
      request_lib.Request(
        prompt=tuple(prompt),
        sampling=dataclasses.replace(
          self.sampling, seed=folded(self.seed, index, sample)
        ),
      )
      for index, prompt in enumerate(prompts)
      for sample in range(self.samples)
    ]


def folded(seed: int, index: int, sample: int) -> int:
  """The seed of a continuation, 0 to 2**64 - 1.

  The first of the first prompt has the run's own.
  """
  if index == sample == 0:
    return seed
  words = f"{seed} {index} {sample}".encode()
  return int.from_bytes(hashlib.sha256(words).digest()[:8], "big")
