"""The one error a user is meant to read."""


class UserError(ValueError):
    """Something the user can mend: a path, a config value, a file, a device.

    The message is one line that names the cause and the way out. Command line tools print it
    without a traceback and exit with status 2; everything else that reaches a user is a bug of ours.
    """
