"""The one exception that reaches a user without a traceback."""


class UserError(Exception):
    """A mistake in what was given: input, flag, folder or checkpoint.

    The message is one line: what was expected, what was found, and what to do next.
    The experiments print it and exit with code 2.
    """
