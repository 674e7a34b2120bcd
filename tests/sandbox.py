"""Runs a command as deploy/systemd would run stage-decode, as far as a machine without systemd can: its list of system calls, by
seccomp; its view of the file system, by bubblewrap; no privilege, another user.

    python tests/sandbox.py MEDIA WRITABLE COMMAND...      # the two directories, and nothing else below /tmp, are there

What the units say is read from them. Not done here: limits of memory and processors, and that nobody but the broker is reached.
"""

import os
import subprocess
import sys
from pathlib import Path

import pyseccomp

UNITS = Path(__file__).resolve().parent.parent / "deploy/systemd"
FILES = [UNITS / "vidi-stage@.service", UNITS / "vidi-stage@decode.service.d/sandbox.conf"]


def settings(key):
    """Values of a key, in the order in which systemd reads them."""
    lines = [line.strip() for file in FILES for line in file.read_text().splitlines()]
    return [line.removeprefix(f"{key}=") for line in lines if line.startswith(f"{key}=")]


def groups():
    """System calls of each group that systemd knows."""
    said = subprocess.run(["systemd-analyze", "syscall-filter"], capture_output=True, text=True, check=True).stdout
    known, group = {}, None
    for line in said.splitlines():
        if line.startswith("@"):
            group = known.setdefault(line.strip(), [])
        elif line.startswith("    ") and not line.strip().startswith("#"):
            group.append(line.strip())
    return known


def allowed():
    """System calls that the units allow."""
    known = groups()

    def calls(name):
        if not name.startswith("@"):
            return {name}
        return set().union(*(calls(one) for one in known[name]))

    listed = set()
    for value in settings("SystemCallFilter"):
        named = set().union(*(calls(name) for name in value.removeprefix("~").split()))
        listed = listed - named if value.startswith("~") else listed | named
    # systemd lets a process begin and end whatever is listed.
    return listed | calls("@default")


def shut():
    """Refuses every other system call from now on, with the error that the unit names."""
    (error,) = set(settings("SystemCallErrorNumber"))
    refuse = pyseccomp.SyscallFilter(pyseccomp.ERRNO(getattr(__import__("errno"), error)))
    for call in sorted(allowed()):
        try:
            refuse.add_rule(pyseccomp.ALLOW, call)
        except (OSError, RuntimeError, ValueError):
            pass  # of another processor, or newer than the library
    refuse.load()


def main():
    if sys.argv[1] == "--inside":
        shut()
        os.execv(sys.argv[2], sys.argv[2:])
    media, writable, *command = sys.argv[1:]
    hidden = [path.split(":")[0] for value in settings("TemporaryFileSystem") for path in value.split()]
    if "yes" in settings("ProtectHome"):
        hidden += ["/home", "/root"]
    arguments = ["bwrap", "--die-with-parent", "--unshare-user", "--unshare-pid", "--unshare-ipc", "--cap-drop", "ALL"]
    arguments += ["--uid", "10001", "--gid", "10001", "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]
    for path in hidden:
        if Path(path).is_dir():
            arguments += ["--tmpfs", path]
    arguments += ["--tmpfs", str(Path(media).parent)]
    # What this test itself needs may be in a directory that is hidden; a unit's is not.
    for path in {Path(__file__).resolve().parent.parent, Path(sys.prefix), Path(sys.base_prefix)}:
        arguments += ["--ro-bind", str(path), str(path)]
    arguments += ["--ro-bind", media, media, "--bind", writable, writable]
    python = [sys.executable, str(Path(__file__).resolve()), "--inside"]
    os.execvp(arguments[0], arguments + ["--"] + python + command)


main()
