#!/usr/bin/env python3
"""Runs test programs side by side, since many of their tests wait.

Standard input: what `cargo build --all-targets --message-format=json-render-diagnostics` prints. Each program runs in its
package's folder, as under `cargo test`, and its output is printed in one piece once it has ended, with the seconds and the
CPU seconds that it and its processes took; ffmpeg that is started as a fork (fork_server.c) is none of these. Modules of the
program `system` run as programs of their own. Exit status: 1 if a program failed or if there is none.
"""

import json
import os
import subprocess
import sys
import tempfile
import time

# Programs at a time, and with a busy one among them. Where two of the others ran it was idle for a ninth to half of the time.
SLOTS, SLOTS_WITH_BUSY = 3, 2
# They compute all the time.
BUSY = ["suite", "truth", "gateway", "parity"]
# One link for all of its modules, which know nothing of each other.
OF_MODULES = "system"
# Run before the others, the longest first: no long one is left over at the end.
LONG = ["suite", "truth", "gateway", "owners", "python", "parity"]
# Runs behind all others: its cases run side by side by themselves, and are held to times. Each has a pipeline of its own, whose processes
# compute on one thread: 4 % less CPU time for the suite, four cases at a time. With more cases at a time than other programs run tests,
# since they wait for half of theirs, the machine is hardly ever idle.
LAST = "faults"
LAST_RUNS_WITH = {"RAYON_NUM_THREADS": "1", "RUST_TEST_THREADS": str(5 * os.cpu_count() // 2)}
# Run beside that one: they hardly do anything but wait.
QUIET = ["slow_share", "cluster", "mps", "slow", "replay"]


def modules(path, folder):
    """Names of the tests of a program, by its modules."""
    listed = subprocess.run([path, "--list", "--format=terse"], cwd=folder, check=True, capture_output=True, text=True).stdout
    found = {}
    for line in listed.splitlines():
        if line.endswith(": test"):
            found.setdefault(line.partition("::")[0], []).append(line.removesuffix(": test"))
    return found


def programs(lines):
    """Names of the test programs, their commands, and the folders of their packages, in the order in which they run."""
    found = []
    for line in lines:
        artifact = json.loads(line)
        if artifact.get("reason") != "compiler-artifact" or not artifact["executable"]:
            continue
        # Examples are built, to be linted, and have no tests.
        if artifact["profile"]["test"] and artifact["target"]["test"]:
            name, path, folder = artifact["target"]["name"], artifact["executable"], os.path.dirname(artifact["manifest_path"])
            if name == OF_MODULES:
                found += [(module, [path, "--exact", *tests], folder) for module, tests in modules(path, folder).items()]
            else:
                found.append((name, [path], folder))
    order = [*LONG, None, LAST, *QUIET]
    return sorted(found, key=lambda program: order.index(program[0] if program[0] in order else None))


def slots(names):
    """Programs that run at a time, those of these names among them."""
    return SLOTS_WITH_BUSY if any(name == LAST or name in BUSY for name in names) else SLOTS


class Running:
    """A program that runs."""

    def __init__(self, name, command, folder):
        self.name, self.path, self.began = name, command[0], time.monotonic()
        # So that one shows which does not end.
        print(f"     Starting {name}", flush=True)
        self.output = tempfile.TemporaryFile()
        environment = {**os.environ, "CARGO_MANIFEST_DIR": folder, **(LAST_RUNS_WITH if name == LAST else {})}
        self.child = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=self.output, stderr=subprocess.STDOUT
        )

    def ended(self, status, usage):
        """Prints what the program said. Returns its exit status."""
        self.child.returncode = os.waitstatus_to_exitcode(status)
        took, cpu = time.monotonic() - self.began, usage.ru_utime + usage.ru_stime
        print(f"\n     Running {self.name} ({os.path.relpath(self.path)})", flush=True)
        self.output.seek(0)
        sys.stdout.buffer.write(self.output.read())
        print(f"     {self.name}: {took:.1f} s, {cpu:.1f} s of CPU time, exit status {self.child.returncode}", flush=True)
        return self.child.returncode


def main():
    waiting, running, failed = programs(sys.stdin), {}, []
    count = len(waiting)
    while waiting or running:
        while waiting and not (running and waiting[0][0] == LAST):
            names = [*(program.name for program in running.values()), waiting[0][0]]
            if len(running) >= slots(names):
                break
            program = Running(*waiting.pop(0))
            running[program.child.pid] = program
        pid, status, usage = os.wait4(-1, 0)
        program = running.pop(pid)
        if program.ended(status, usage) != 0:
            failed.append(program.name)
    if failed or not count:
        sys.exit(f"failed: {', '.join(failed) or 'there is no test program'} ({count} programs)")
    print(f"\nall {count} test programs passed")


if __name__ == "__main__":
    main()
