"""One server process on a loopback port of its own, which cannot outlive the process that started it.

What makes sure of that, from the ordinary to the last resort:

- `with Server(...)`, or `close()`, ends the process and removes its data directory;
- whatever is still there when Python ends, on an error or on Ctrl-C, is closed then;
- when this process dies without a word (SIGKILL), the kernel sends the server its parent-death signal;
- what all that leaves (a data directory, a process that was stopped by SIGSTOP) goes at the next start of a server.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, Self

import mirakuru
import mirakuru.base
import psutil

_DIRECTORY_PREFIX = "cellcache-server-"
_ABANDONED_AFTER_S = 60.0
_TIMEOUT_S = 60.0
_MEMORY = Path("/dev/shm")
_MEMORY_WANTED = 1 << 30

# mirakuru's own sweep at exit kills every process in whose mark the digits of this process's id occur *anywhere*:
# the servers of another test run beside this one too. The marks of a single server, which it uses otherwise, are
# unique.
atexit.unregister(mirakuru.base.cleanup_subprocesses)

# The kernel sends the parent-death signal when the *thread* that started the server ends. A server that a
# short-lived thread restarts is therefore started by this one, which lasts as long as Python does.
_starter = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tests.server_process")


class ServerFailed(RuntimeError):
    """A server did not start; the text has the end of its log."""


class _Process(mirakuru.Executor):
    """One run of a server's program: started once it is `ready`, ended together with its children."""

    def __init__(self, command: Sequence[str], ready: Callable[[], bool], **kwargs: Any) -> None:
        super().__init__(list(command), timeout=_TIMEOUT_S, sleep=0.01, **kwargs)
        self._ready = ready
        self._owner = os.getpid()

    @property
    def _popen_kwargs(self) -> dict[str, Any]:
        kwargs: dict[str, Any] = super()._popen_kwargs
        # The same new session as mirakuru makes, without a function that runs between fork and exec: Python warns
        # of that once there are threads.
        del kwargs["preexec_fn"]
        return kwargs | {"start_new_session": True}

    def pre_start_check(self) -> bool:
        return False  # the port is reserved: nobody else can be listening

    def after_start_check(self) -> bool:
        return self._ready()

    def __del__(self) -> None:
        if os.getpid() == self._owner:  # not in a forked child: the server is its parent's
            super().__del__()


class Server:
    """A server on 127.0.0.1, on one port for its whole life, through every stop, kill and restart.

    `options` are added to the command line; changing them takes effect with the next start. `in_memory` keeps the
    data off the disk where that is possible. A server of root's runs as `nobody`, so a file that it is to read
    comes from `add_file`.
    """

    scheme: ClassVar[str]
    host: ClassVar[str] = "127.0.0.1"
    _stop_signal: ClassVar[int] = signal.SIGTERM
    _death_signal: ClassVar[str] = "KILL"

    def __init__(self, options: Sequence[str] = (), *, in_memory: bool = False) -> None:
        self.options = tuple(options)
        self._owner = os.getpid()
        self._process: _Process | None = None
        self._suspended = False
        self._prepared = False
        self._reservation = reserve_port()
        self.port: int = self._reservation.getsockname()[1]
        self.directory, self._lock = _make_directory(in_memory)
        _open_servers.append(self)

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.address}"

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        if self._process is None or self._process.process is None:
            raise ServerFailed(f"{self} is not running")
        return self._process.process.pid

    @property
    def running(self) -> bool:
        """Whether the process is there, suspended or not."""
        return self._process is not None and self._process.running()

    @property
    def log(self) -> str:
        """What the server has written so far."""
        path = self.directory / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def start(self) -> Self:
        """Start the server and wait until it answers."""
        if self.running:
            return self
        if threading.current_thread() is threading.main_thread():
            self._start()
        else:
            _starter.submit(self._start).result()
        return self

    def _start(self) -> None:
        if not self._prepared:
            self._prepare()
            self._prepared = True
        with (self.directory / "log").open("ab") as log:
            self._process = _Process(
                [*_confined(self._death_signal), *self._command(), *self.options],
                self._ready,
                cwd=str(self.directory),
                stop_signal=self._stop_signal,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            try:
                self._process.start()
            except mirakuru.ExecutorError as error:
                self._process = None
                raise ServerFailed(f"{self} did not start: {error}\n{self.log[-4000:]}") from error

    def stop(self) -> None:
        """End the server in an orderly way and wait until it is gone; its data and its port remain."""
        if self._process is None:
            return
        self.resume()
        if self._process.running():
            self._process.stop(expected_returncode=0)
        self._process.kill()  # also forgets a process that had ended by itself
        self._process = None

    def kill(self) -> None:
        """End the server and its children by SIGKILL and wait until they are gone; its data and port remain."""
        if self._process is None:
            return
        children = self._processes()[1:] if self.running else []
        self._process.kill()
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
                _wait_until_threads_are("ZX", child)  # whoever inherits it may take its time to reap it
        self._process = None
        self._suspended = False

    def suspend(self) -> None:
        """Stop the server by SIGSTOP; when this returns, no thread of it runs. Its port still takes connections."""
        self._suspended = True
        _suspend(psutil.Process(self.pid))  # alone first: then it starts no more children
        for process in self._processes():
            _suspend(process)

    def resume(self) -> None:
        """Let a suspended server go on."""
        if self._suspended and self.running:
            for process in self._processes():
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.resume()
        self._suspended = False

    def restart(self) -> None:
        """Stop the server and start it again on the same port."""
        self.stop()
        self.start()

    def recover(self) -> None:
        """Bring the server back to running, whatever a test did to it."""
        self.resume()
        if not self.running:
            self.kill()
            self.start()

    def close(self) -> None:
        """End the server and remove its data; it cannot be started again."""
        if self not in _open_servers:
            return
        _open_servers.remove(self)
        if os.getpid() == self._owner:
            self.kill()
            _remove_data(self.directory)
        self._reservation.close()
        os.close(self._lock)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.address}>"

    def add_file(self, name: str, content: bytes) -> Path:
        """Write a file that this server can read, a certificate say, beside its data."""
        path = self.directory / name
        path.touch(mode=0o600)
        path.write_bytes(content)
        os.chown(path, *_user())
        return path

    def _prepare(self) -> None:
        """Make the data directory; called once."""

    def _command(self) -> list[str]:
        """The program and its arguments."""
        raise NotImplementedError

    def _ready(self) -> bool:
        """Whether the server answers requests."""
        raise NotImplementedError

    def _ask(self, request: bytes) -> bytes | None:
        """The first bytes of the reply to `request`; None if there is nothing listening yet."""
        try:
            with socket.create_connection((self.host, self.port), timeout=5) as connection:
                connection.sendall(request)
                return connection.recv(1024)
        except OSError:
            return None

    def _run(self, command: Sequence[str]) -> None:
        """Run a program that prepares the data directory, as the server's user."""
        done = subprocess.run(
            [*_confined("KILL"), *command], cwd=self.directory, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise ServerFailed(f"{command[0]} failed: {(done.stdout + done.stderr)[-4000:]}")

    def _processes(self) -> list[psutil.Process]:
        main = psutil.Process(self.pid)
        return [main, *main.children(recursive=True)]


def _user() -> tuple[int, int]:
    """Whom the servers run as: PostgreSQL refuses to run as root, and none of them needs to."""
    if os.geteuid():
        return os.geteuid(), os.getegid()
    nobody = pwd.getpwnam("nobody")
    return nobody.pw_uid, nobody.pw_gid


def _confined(death_signal: str) -> list[str]:
    """The command that becomes the server: as its user, to be ended by the kernel when we are gone."""
    command = ["setpriv", f"--pdeathsig={death_signal}"]
    if not os.geteuid():
        uid, gid = _user()
        command += [f"--reuid={uid}", f"--regid={gid}", "--clear-groups"]
    return command


def reserve_port() -> socket.socket:
    """Take a free port that nobody else is given while the socket is open.

    Bound but never listening, with SO_REUSEADDR: the server can bind it as well (each of ours sets that option),
    while the kernel gives it neither to another who asks for any port nor to an outgoing connection. That last is
    what lets a connection to a server that is down reach itself, now and then.
    """
    reservation = socket.socket()
    reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reservation.bind((Server.host, 0))
    return reservation


def _make_directory(in_memory: bool) -> tuple[Path, int]:
    """Make an empty directory, and hold a lock on it that says its owner lives."""
    _remove_abandoned()
    place = Path(tempfile.gettempdir())
    if in_memory and _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > _MEMORY_WANTED:
        place = _MEMORY
    directory = Path(tempfile.mkdtemp(prefix=_DIRECTORY_PREFIX, dir=place))
    lock = os.open(directory, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    os.chown(directory, *_user())
    return directory, lock


def _remove_abandoned() -> None:
    """Remove the directories whose owner was killed, and the suspended processes that sit in them."""
    for place in (Path(tempfile.gettempdir()), _MEMORY):
        for directory in place.glob(f"{_DIRECTORY_PREFIX}*"):
            # One that somebody is making now is not locked yet; someone else's cannot be opened.
            with contextlib.suppress(OSError):
                found = directory.lstat()
                ours = stat.S_ISDIR(found.st_mode) and found.st_uid in {os.geteuid(), _user()[0]}
                if ours and time.time() - found.st_mtime > _ABANDONED_AFTER_S:
                    _remove_unless_locked(directory)


def _remove_unless_locked(directory: Path) -> None:
    lock = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for process in _processes_in(directory):
            process.kill()
        _remove_data(directory)
    finally:
        os.close(lock)


def _remove_data(directory: Path) -> None:
    for pid_file in directory.glob("data/postmaster.pid"):
        # A killed PostgreSQL leaves a few bytes of System V shared memory, which its next start would have taken.
        lines = pid_file.read_text().splitlines()
        if len(lines) > 6 and len(lines[6].split()) == 2:
            subprocess.run(["ipcrm", "-m", lines[6].split()[1]], capture_output=True, check=False)
    shutil.rmtree(directory, ignore_errors=True)


def _processes_in(directory: Path) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if Path(process.cwd()).is_relative_to(directory):
                yield process


def _suspend(process: psutil.Process) -> None:
    """Stop one process and wait until none of its threads runs."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process.suspend()
        _wait_until_threads_are("TtZX", process)


def _wait_until_threads_are(states: str, process: psutil.Process) -> None:
    deadline = time.monotonic() + _TIMEOUT_S
    while not set(_thread_states(process.pid)) <= set(states):
        if time.monotonic() > deadline:
            raise ServerFailed(f"process {process.pid} did not take a signal within {_TIMEOUT_S:.0f} s")
        time.sleep(0.001)


def _thread_states(pid: int) -> Iterator[str]:
    """The state letter of every thread of a process, as the kernel shows it."""
    for state in Path(f"/proc/{pid}/task").glob("*/stat"):
        with contextlib.suppress(OSError):
            yield state.read_text().rpartition(")")[2].split()[0]


_open_servers: list[Server] = []


@atexit.register
def _close_all() -> None:
    for server in _open_servers[::-1]:
        if os.getpid() == server._owner:
            server.close()
