"""Strict configuration and the errors a user can mend. Knows no section; imports no torch."""

from coatnet.config.duration import Duration
from coatnet.config.errors import ConfigError, UserError
from coatnet.config.load import config_digest, from_dict, load_config, to_dict, to_yaml

__all__ = [
    "ConfigError",
    "Duration",
    "UserError",
    "config_digest",
    "from_dict",
    "load_config",
    "to_dict",
    "to_yaml",
]
