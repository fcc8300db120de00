"""The lock of a run's folder, with the process that holds it.

The kernel releases the lock when the process ends, also after `kill -9`.
"""

import contextlib
import json
import logging
import os
import socket
from pathlib import Path
from typing import Any

import psutil
from filelock import BaseFileLock, FileLock, Timeout

from fg_ssl_zoo.config import printable, write_whole

LOCK, OWNER = "run.lock", "run.owner.json"

LOCKED_BY_WORKERS = 15.0
"""Seconds that loader processes may outlive a killed run and hold its lock (torch: 5)."""

_log = logging.getLogger(__name__)


class RunFolderTaken(ValueError):
    """The output folder holds another run."""


class RunLock:
    """The lock of one folder.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.owner = path, path / OWNER
        self._lock: BaseFileLock | None = None

    def acquire(self) -> None:
        """Lock the folder for this process, until `release` or the end of the process.

        Raises:
            RunFolderTaken: Another run holds it.
        """
        self._lock = FileLock(self.path / LOCK)
        try:
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                if self._owner_lives():
                    raise
                self._lock.acquire(timeout=LOCKED_BY_WORKERS)
        except Timeout:
            owner = self._read_owner()
            who = f"process {owner.get('pid')} on {owner.get('host')}" if owner else "another run"
            raise RunFolderTaken(
                f"output folder {printable(self.path)} is in use by {who}; stop that run or wait "
                "for its end, or choose another folder with output=FOLDER"
            ) from None
        except NotImplementedError:  # a disk that cannot lock
            _log.warning("%s is on a disk without locks: start no second run in it", self.path)
        owner = {"pid": os.getpid(), "host": socket.gethostname()}
        write_whole(self.owner, json.dumps(owner) + "\n")

    def release(self) -> None:
        """Release the lock."""
        if self._lock is not None and self._lock.is_locked:
            self.owner.unlink(missing_ok=True)
            self._lock.release()

    def _read_owner(self) -> dict[str, Any]:
        """Process and host of the run that holds the lock; empty if unknown."""
        with contextlib.suppress(OSError, ValueError):
            owner = json.loads(self.owner.read_text(encoding="utf-8"))
            return owner if isinstance(owner, dict) else {}
        return {}

    def _owner_lives(self) -> bool:
        """Whether the named process is running, as far as this machine can tell."""
        owner = self._read_owner()
        here, pid = owner.get("host") == socket.gethostname(), owner.get("pid")
        return not here or (isinstance(pid, int) and psutil.pid_exists(pid))
