"""Runs a command that draws on the whole terminal in one of 24 lines of 80 columns, makes that larger, and ends it with q; then again,
with Ctrl-C. The terminal has to be as it was each time.

    python3 terminal.py COMMAND...
"""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time

SOON = 120
STAGES = [b"decode-", b"vision-", b"audio-", b"fuse-", b"llm-"]


def size(terminal, lines, columns):
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))


def until(what, terminal, seen, is_there):
    """Reads what is drawn until it is enough; an end of the command ends it too."""
    end = time.monotonic() + SOON
    while not is_there(seen):
        if time.monotonic() > end:
            sys.exit(f"error: {what}: not so after {SOON} s: {bytes(seen)!r}")
        if select.select([terminal], [], [], 0.2)[0]:
            try:
                seen += os.read(terminal, 65536)
            except OSError:
                return


def run(key, command):
    child, terminal = pty.fork()
    if child == 0:
        # The size is there before the command is.
        size(0, 24, 80)
        os.execv(command[0], command)
    before = termios.tcgetattr(terminal)
    seen = bytearray()
    until("all stages are drawn", terminal, seen, lambda seen: all(stage in seen for stage in STAGES))
    if b"\x1b[?1049h" not in seen:
        sys.exit("error: it does not draw on a screen of its own")
    # Where the cursor goes (`ESC [ LINE ; COLUMN H`); colours begin alike and end in m.
    if any(int(line) > 24 for line in re.findall(rb"\x1b\[(\d+);\d+H", seen)):
        sys.exit("error: it draws below line 24")
    drawn = len(seen)
    size(terminal, 40, 120)
    os.kill(child, signal.SIGWINCH)
    until("it draws again after the size has changed", terminal, seen, lambda seen: b"vidi top" in seen[drawn:])
    os.write(terminal, key)
    until("it ends", terminal, seen, lambda seen: seen.endswith(b"\x1b[?1049l") or b"\x1b[?1049l\x1b[?25h" in seen)
    # A terminal that nobody reads keeps its writer waiting.
    status = None
    end = time.monotonic() + SOON
    while status is None and time.monotonic() < end:
        if select.select([terminal], [], [], 0.1)[0]:
            try:
                seen += os.read(terminal, 65536)
            except OSError:
                pass
        done, waited = os.waitpid(child, os.WNOHANG)
        status = waited if done else None
    if status is None or os.waitstatus_to_exitcode(status) != 0:
        sys.exit(f"error: it ended with {status}: {bytes(seen)!r}")
    hidden, shown = seen.rfind(b"\x1b[?25l"), seen.rfind(b"\x1b[?25h")
    if hidden > shown:
        sys.exit("error: the cursor is still hidden")
    try:
        after = termios.tcgetattr(terminal)
    except termios.error:
        after = before  # gone with its last process, and its settings with it
    if after[:4] != before[:4]:
        sys.exit(f"error: the terminal's settings were {before[:4]}, and are {after[:4]}")
    os.close(terminal)
    return len(seen)


for name, key in [("q", b"q"), ("Ctrl-C", b"\x03")]:
    print(f"{name}: ended, {run(key, sys.argv[1:])} bytes drawn")
