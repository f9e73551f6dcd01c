"""Any language model of dsx, by its config."""

from dsx.models import config as config_lib
from dsx.models import deepseek
from dsx.models import dense
from dsx.models import dense_config
from dsx.ops import dtypes as dtypes_lib

Config = dense_config.Config
Model = deepseek.DeepSeek | dense.DenseModel


def build(
  config: Config,
  dtypes: dtypes_lib.Dtypes = dtypes_lib.Dtypes(),  # noqa: B008, it is frozen
  execution: config_lib.Execution = config_lib.Execution(),  # noqa: B008
) -> Model:
  """The model that `config` describes."""
  if isinstance(config, dense_config.DenseConfig):
    return dense.DenseModel(config, dtypes, execution)
  return deepseek.DeepSeek(config, dtypes, execution)
