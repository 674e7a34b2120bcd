"""The product, asked: a running `vidi up` with settings of one's own, and `vidi ask --json` for each question."""
import json
import os
import signal
import subprocess
import sys
import tempfile
import time

READY_WAIT = 300


class Product:
    """A pipeline of its own, for a `with`.  options: what stands before `up` (--set, --profile); decoder: a gpu_bench that serves
    frames.npy and pcm.npy in place of stage-decode; dump: a folder for what stage-decode delivered last."""

    def __init__(self, vidi, model, root, options=(), decoder=None, dump=None):
        self.vidi, self.decoder, self.root = vidi, decoder, os.path.abspath(root)
        self.options = list(options)
        if dump:
            self.options += ["--set", f"decode.dump={os.path.abspath(dump)}"]
        self.model, self.children = model, []

    def __enter__(self):
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))     # so that whoever ends us ends the pipeline too
        self.state = tempfile.TemporaryDirectory()
        self.environment = dict(os.environ, VIDI_STATE=self.state.name)
        self.log = open(os.path.join(self.state.name, "up.log"), "w+b")
        try:
            none = ["--replicas", "decode=0"] if self.decoder else []
            self.start(self.vidi, *self.options, "up", "--model", self.model, "--media-root", self.root, *none)
            if self.decoder:
                self.start(self.decoder, "--set", f"bus.url={self.note()['url']}", "decode")
            self.until(lambda: self.said().count(b" ready stage=") == 5, "five stages that are ready")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for child in self.children:
            child.terminate()
        for child in self.children:
            child.wait()
        self.log.close()
        self.state.cleanup()

    def start(self, *command):
        self.children.append(subprocess.Popen(command, env=self.environment, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log))

    def said(self):
        with open(self.log.name, "rb") as f:
            return f.read()

    def until(self, there, what):
        """Waits; ends with the log if it does not come."""
        end = time.monotonic() + READY_WAIT
        while not there():
            if time.monotonic() > end or any(c.poll() is not None for c in self.children):
                raise SystemExit(f"no {what}; the log ends with\n{self.said().decode(errors='replace')[-3000:]}")
            time.sleep(0.05)

    def note(self):
        """What `vidi up` says of itself."""
        path = os.path.join(self.state.name, "up.json")
        self.until(lambda: os.path.exists(path), "broker")
        with open(path) as f:
            return json.load(f)

    def ask(self, video, task, *queries):
        """-> the result as `vidi ask --json` prints it; several queries are one job"""
        command = [self.vidi, "ask", video, *queries, "--task", task, "--json", "--quiet"]
        done = subprocess.run(command, env=self.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{video}: {', '.join(queries)}: {done.stderr.strip()}\n{self.said().decode(errors='replace')[-3000:]}")
        return json.loads(done.stdout)
