"""The errors that are about the user's input."""


class UserError(ValueError):
    """Something given to the program cannot be used: a value, a file, a model, a checkpoint.

    The message is one line that names the value, the place and the way out. A command prints it after "error:" and
    ends with code 2. Any other exception is a fault of the program and keeps its traceback.
    """
