"""What a server is bound to, and how much it takes on."""

import dataclasses
import ipaddress

from dsx.parallel import mesh as mesh_lib
from dsx.parallel import sharding as sharding_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Serving:
  """Where a server listens, how it decodes, and its limits.

  Attributes:
    host: address to listen on; the default is reachable from this machine
      only.
    port: 0 takes a free one.
    model_name: what clients call the model; empty for its folder's name.
    allowed_hosts: names by which browsers and clients may address the server;
      empty for loopback's names on a loopback address and for any elsewhere.
      Keeps web pages from talking to a local server under a name of theirs.
    think: whether chats begin with reasoning unless they say otherwise; None
      if the vocabulary has a token for it.
    slots: sequences decoded at once.
    drafts: MTP drafts per step.
    window: longest prompt and answer in tokens; None for what the model was
      trained with.
    cache_tokens: tokens that the cache holds; None for slots x window, within
      8 GiB.
    steps: tokens drawn between two looks at what was asked; streams come in
      pieces of as many.
    mesh: the devices; None for one of them alone.
    sharding: where on the mesh.
    placement: file with the experts and their copies that each device is to
      hold (`parallel/placement_file.py`); empty for none.
    max_connections: connections at once; more are refused with 503.
    max_requests: completions being worked on at once; more get 429.
    max_sequences: their prompts times `n` at once, running or waiting.
    max_choices: prompts times `n` of one request.
    max_body_bytes: of one request.
    body_seconds: within which a request's body has to arrive.
    request_seconds: within which an answer has to be complete.
    grace_seconds: for answers in flight when the server is told to stop.
  """

  host: str = "127.0.0.1"
  port: int = 8000
  model_name: str = ""
  allowed_hosts: tuple[str, ...] = ()
  think: bool | None = None
  slots: int = 8
  drafts: int = 0
  window: int | None = None
  cache_tokens: int | None = None
  steps: int = 16
  mesh: mesh_lib.MeshShape | None = None
  sharding: sharding_lib.Sharding = sharding_lib.Sharding()
  placement: str = ""
  max_connections: int = 1024
  max_requests: int = 512
  max_sequences: int = 1024
  max_choices: int = 128
  max_body_bytes: int = 4 * 2**20
  body_seconds: float = 30.0
  request_seconds: float = 600.0
  grace_seconds: float = 30.0

  def __post_init__(self):
    if not self.host:
      raise ValueError("host='': expected an address, such as 127.0.0.1")
    if not 0 <= self.port < 2**16:
      raise ValueError(
        f"port={self.port!r}: expected 0 to 65535; 0 takes a free one"
      )
    if self.drafts < 0:
      raise ValueError(f"drafts={self.drafts!r}: expected at least 0; raise it")
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      counts = field.name in ("slots", "window", "cache_tokens", "steps")
      if not (counts or field.name.startswith("max_")) or value is None:
        continue
      if value < 1:
        raise ValueError(
          f"{field.name}={value!r}: expected at least 1; raise it"
        )
    for name in ("body_seconds", "request_seconds", "grace_seconds"):
      if not 0 < getattr(self, name) < float("inf"):
        raise ValueError(
          f"{name}={getattr(self, name)!r}: expected a time above 0; raise it"
        )

  @property
  def is_loopback(self) -> bool:
    """Whether only this machine can reach the server."""
    if self.host == "localhost":
      return True
    try:
      return ipaddress.ip_address(self.host).is_loopback
    except ValueError:
      return False

  @property
  def hosts(self) -> frozenset[str]:
    """Names that a request's Host header may have; empty for any."""
    if self.allowed_hosts or not self.is_loopback:
      return frozenset(name.lower() for name in self.allowed_hosts)
    return frozenset({"localhost", "127.0.0.1", "::1", self.host.lower()})
