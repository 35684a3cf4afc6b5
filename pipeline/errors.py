"""The exception hierarchy. Every message is one line: the file or key, what was found, what to do."""

from __future__ import annotations

import errno

from pipeline.text import printable


class PipelineError(Exception):
    """Base class of expected failures, shown to the user as one line without a traceback.

    Messages may quote untrusted text (file names, library errors), so control characters are replaced.
    """

    #: Whether running the same command again later may succeed.
    retryable = True

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(str(message)))


class ConfigError(PipelineError):
    """The configuration file cannot be read, parsed or validated."""

    retryable = False


class DataError(PipelineError):
    """A data set's source cannot be reached or does not hold the expected data set."""

    retryable = False


class SourceUnreachable(DataError):
    """A data set's source does not respond, or responds with an error, for now."""

    retryable = True


class WeightsError(PipelineError):
    """A `.params` file is damaged, foreign, or does not fit the network."""

    retryable = False


class DeviceError(PipelineError):
    """The requested device, MXNet, or one of its dependencies is not usable here."""

    retryable = False


class WorkspaceError(PipelineError):
    """The workspace cannot be written, is full, or holds a file that does not match its manifest."""


class AlreadyRunning(PipelineError):
    """Another live process is working on the same stage of the same run."""


class TrainingDiverged(PipelineError):
    """The loss became NaN or infinite; more epochs cannot help."""

    retryable = False


class Interrupted(PipelineError):
    """The stage was asked to stop and left a checkpoint to resume from."""


class StageFailed(PipelineError):
    """A stage's process ended without a result (killed, out of memory, crashed)."""


BY_NAME: dict[str, type[PipelineError]] = {
    name: kind for name, kind in globals().items() if isinstance(kind, type) and issubclass(kind, PipelineError)
}


def from_os_error(error: OSError, doing: str, instead: str = "choose another --workspace") -> WorkspaceError:
    """Turn an `OSError` from reading or writing into a message that the user can act on.

    `doing` completes "cannot …", for example "write the checkpoint"; `instead` suggests another location.
    """
    where = error.filename or "the workspace"
    advice = {
        errno.ENOSPC: "the disk is full: free some space and run the same command again",
        errno.EDQUOT: "the disk quota is used up: free some space and run the same command again",
        errno.EROFS: f"the file system is read-only: {instead} or remount it",
        errno.EACCES: f"permission denied: make it accessible to this user or {instead}",
        errno.EPERM: f"operation not permitted: make it accessible to this user or {instead}",
    }.get(error.errno or 0, error.strerror or str(error))
    return WorkspaceError(f"{where}: cannot {doing}: {advice}")
