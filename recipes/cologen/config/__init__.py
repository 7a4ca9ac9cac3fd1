"""Settings of a run: pydantic models, read from YAML files and the command line."""

from recipes.cologen.config.errors import ConfigError
from recipes.cologen.config.run import CONFIGS, REPOSITORY, RunConfig, load_config, parse_config

__all__ = ["CONFIGS", "REPOSITORY", "ConfigError", "RunConfig", "load_config", "parse_config"]
