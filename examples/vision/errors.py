"""What a user can put right: shown as one line, without a traceback."""


class UserError(Exception):
    """A mistake in what was asked for; its message names the thing, its value and the way out."""
