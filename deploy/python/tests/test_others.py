"""Clients that are not ours, unchanged: the orchestrator's own with requests, and the package openai."""

from __future__ import annotations

import re

import openai
import requests
from conftest import Pipeline, agreement

CODE = r"\d{2}:\d{2}:\d{2}\.\d{2}"


def seconds(code: str) -> float:
    hours, minutes, rest = code.split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(rest)


def test_the_orchestrators_own_client_is_answered(pipeline: Pipeline) -> None:
    assert requests.get(f"{pipeline.url}/health", timeout=5).status_code == 200
    video = pipeline.video
    what, when = video.question("qa"), video.question("retrieval")
    answers = []
    for question, task in [(what.query, "vqa"), (when.query, "retrieval")]:
        with video.path.open("rb") as file:
            response = requests.post(
                f"{pipeline.url}/inference",
                files={"video": (video.path.name, file, "video/mp4")},
                data={"question": question, "task": task},
                timeout=120,
            )
        response.raise_for_status()
        answers.append(response.json()["answer"])
    assert answers[0] == what.text
    assert re.fullmatch(f"{CODE}-{CODE}(, {CODE}-{CODE})*", answers[1])
    found = [tuple(seconds(code) for code in one.split("-")) for one in answers[1].split(", ")]
    assert agreement(found, when.ranges or []) >= 0.5  # type: ignore[arg-type]


def test_the_package_openai_is_answered_whole_and_in_pieces(pipeline: Pipeline) -> None:
    video = pipeline.video
    question = video.question("qa")
    client = openai.OpenAI(base_url=f"{pipeline.url}/v1", api_key="none needed", max_retries=0)
    model = client.models.list().data[0].id
    content = [
        {"type": "video_url", "video_url": {"url": f"file://{video.path}"}},
        {"type": "text", "text": question.query},
    ]
    messages = [{"role": "user", "content": content}]
    whole = client.chat.completions.create(model=model, messages=messages)  # type: ignore[call-overload]
    assert whole.choices[0].message.content == question.text and whole.choices[0].finish_reason == "stop"
    said = ""
    for chunk in client.chat.completions.create(model=model, messages=messages, stream=True):  # type: ignore[call-overload]
        if chunk.choices and chunk.choices[0].delta.content:
            said += chunk.choices[0].delta.content
    assert said.strip() == question.text
