"""The examples of the documents, as they stand there but for address, video, question and job."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Pipeline

import vidi_client
from vidi_client.transport import new_job

HERE = Path(__file__).parents[1]


def examples(document: Path, names: str) -> list[str]:
    blocks = re.findall(r"^```python\n(.*?)^```$", document.read_text(), re.M | re.S)
    return [block for block in blocks if names in block]


@pytest.mark.parametrize(
    ("document", "names", "number"),
    [
        ("README.md", "vidi_client", 0),
        ("../README.md", "from vidi_client import", 0),
        ("../README.md", "vidi_client.sync", 0),
        ("../README.md", "nats.connect", 0),
    ],
)
def test_an_example_prints_the_true_answer(pipeline: Pipeline, document: str, names: str, number: int) -> None:
    program = examples(HERE / document, names)[number]
    assert len([line for line in program.splitlines() if line]) <= 12, "longer than a reader has patience for"
    video = pipeline.video
    what, when = video.question("qa"), video.question("retrieval")
    for there, here in [
        ("http://127.0.0.1:8099", pipeline.url),
        ("nats://127.0.0.1:4222", pipeline.nats),
        ("/home/me/videos/kitchen.mp4", str(video.path)),
        ("kitchen.mp4", str(video.path)),
        ("a man slicing onions", when.query),
        ("What is he cooking?", what.query),
        ("k7", new_job()),
    ]:
        program = program.replace(there, here)
    env = {**os.environ, "PYTHONPATH": str(Path(vidi_client.__file__).parents[1])}
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env, timeout=120)
    assert ran.returncode == 0, ran.stderr
    if what.query in program:
        assert what.text in ran.stdout
        return
    said = [float(number) for number in re.findall(r"(?:^|: )([\d.]+)(?: to|,)", ran.stdout.splitlines()[-1])]
    starts = [start for start, _ in when.ranges or []]
    assert any(abs(number - start) < 1 for number in said for start in starts), ran.stdout
