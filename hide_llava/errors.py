"""What ends a command by intention: a user's mistake, and a signal."""


class UserError(Exception):
    """Bad usage or bad input: the command line prints its message without a traceback and exits with code 2.

    The message is one sentence or two: what is wrong, where (file, record, field), and what to do about it.
    """

    def __init__(self, message: str = ""):
        # torch rebuilds an exception of a data worker from the text of its traceback; only our sentence is for the user
        if message.startswith("Caught UserError in "):
            message = message.rsplit("hide_llava.errors.UserError: ", 1)[-1].strip()
        super().__init__(message)


class BadRecord(UserError):
    """A record that cannot be trained on or asked. `kind`: a few words, by which such records are counted."""

    def __init__(self, message: str = "", kind: str = "other"):
        super().__init__(message)
        self.kind = kind


class Interrupted(BaseException):
    """SIGTERM or SIGUSR1 arrived; the state is saved and the same command goes on from it.

    Not an Exception, so that code which turns any failure of a library into a sentence lets it pass.
    """
