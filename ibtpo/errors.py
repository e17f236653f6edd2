"""The errors that are about the user's input."""


class UserError(ValueError):
    """Something given to the program cannot be used: a value, a file, a model, a checkpoint.

    The message is one line that names the value, the place and the way out. A command prints it after "error:" and
    ends with code 2. Any other exception is a fault of the program and keeps its traceback.
    """


class RunFailure(RuntimeError):
    """The machine under a run failed: storage that takes no more data, another host that is gone.

    The message is one line that says what failed and what to do. A command prints it after "error:" and ends with code
    1, since running the same command again may go on.
    """


def one_line(error: BaseException) -> str:
    """The kind and the first words of an error."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}{': ' * bool(text)}{text[:200]}{'...' * (len(text) > 200)}"
