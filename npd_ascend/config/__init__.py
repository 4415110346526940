"""The configuration: pydantic models, YAML with ``--set`` overrides, validation with readable errors."""

from npd_ascend.config.load import dump_config, load_config
from npd_ascend.config.schema import Config

__all__ = ["Config", "dump_config", "load_config"]
