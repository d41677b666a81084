"""The errors that a user can mend. The command line prints them in one line and exits with status 2."""


class UserError(Exception):
    """Something the user gave is wrong: the message names it and says what to do."""


class ConfigError(UserError):
    """A config file or an override is wrong: the message names the key's full path."""
