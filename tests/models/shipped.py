"""The model files of gin_configs/models, as configs."""

import functools
import pathlib

import gin

from dsx.models import config as config_lib

_ROOT = pathlib.Path(__file__).parents[2]
NAMES = sorted(p.stem for p in (_ROOT / "gin_configs/models").glob("*.gin"))


@functools.cache
def config(name: str) -> config_lib.DeepSeekConfig:
  """What gin_configs/models/`name`.gin binds."""
  gin.clear_config()
  gin.add_config_file_search_path(str(_ROOT))
  gin.parse_config_file(f"gin_configs/models/{name}.gin")
  try:
    return gin.get_configurable("config.DeepSeekConfig")()
  finally:
    gin.clear_config()
