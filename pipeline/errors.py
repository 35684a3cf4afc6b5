"""The tree of errors, under one base class. Each is one line: the file or key, what was found there, what to do."""

from __future__ import annotations

import errno

from pipeline.text import printable


class PipelineError(Exception):
    """Base of every expected failure. Shown to the user as one line, without a traceback.

    What a message quotes (a name, a library's words) may hold anything; none of it reaches a terminal as a command.
    """

    #: Whether the same command may succeed later although nobody changed anything.
    may_pass = True

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(str(message)))


class ConfigError(PipelineError):
    """The configuration file cannot be read, parsed or validated."""

    may_pass = False


class DataError(PipelineError):
    """A data set's source cannot be reached, or is not the data set that it should be."""

    may_pass = False


class SourceUnreachable(DataError):
    """A data set's source does not answer, or not rightly, now."""

    may_pass = True


class WeightsError(PipelineError):
    """A `.params` file is damaged, foreign, or does not fit the network."""

    may_pass = False


class DeviceError(PipelineError):
    """The requested device, MXNet itself, or something that it needs is not usable here."""

    may_pass = False


class WorkspaceError(PipelineError):
    """The workspace cannot be written, is full, or holds a file that is not what its manifest says."""


class AlreadyRunning(PipelineError):
    """Another live process is working on the same stage of the same run."""


class TrainingDiverged(PipelineError):
    """The loss became NaN or infinite; more epochs cannot help."""

    may_pass = False


class Interrupted(PipelineError):
    """The stage was asked to stop and left a checkpoint to go on from."""


class StageFailed(PipelineError):
    """A stage's process ended without a result (killed, out of memory, crashed)."""


BY_NAME: dict[str, type[PipelineError]] = {
    name: kind for name, kind in globals().items() if isinstance(kind, type) and issubclass(kind, PipelineError)
}


def from_os_error(error: OSError, doing: str, instead: str = "choose another --workspace") -> WorkspaceError:
    """Turn an `OSError` of writing or reading into the one line that a user can act on.

    `doing` completes "cannot …", for example "write the checkpoint"; `instead` says how to go elsewhere.
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
