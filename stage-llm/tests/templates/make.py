"""Prompts of the reference for a table of questions and templates: `python make.py > prompts.json`, with jinja2 3.1.6.

The environment is the one in which transformers 4.44.2 renders chat templates (tokenization_utils_base.py,
`_compile_jinja_template`); what is done to the text is MODEL.md 2.4 and MODEL-7B.md, "Pre-processing".
"""
import json
import pathlib

import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

HERE = pathlib.Path(__file__).parent
BUILT_IN = HERE / "../../src/text/templates"
TEMPLATES = [
    ("dattn_gemma2", BUILT_IN / "gemma2.jinja"),
    ("dattn_mistral", BUILT_IN / "mistral.jinja"),
    ("dattn_mistral", HERE / "mistral_v0.2.jinja"),
    ("dattn_mistral", HERE / "mistral_v0.3_tools.jinja"),
    ("dattn_mistral", HERE / "blocks.jinja"),
]
QUESTIONS = [
    "During which time segments in the video can we see a man slicing onions?",
    "Given the frames from a video, answer the time range in percentage that corresponds to query text split by comma. "
    "Video length is: 40.30 and text query is: a red box.",
    "", "Why?", " Why? \n\t", "Why?\x1d", "\x1c Why?", "\u00a0Why?\u2003", "a\r\nb\r", "a<bos>b<bos>", "<s>a</s>", "<ima<bos>ge>",
    "<ima<s>ge>", "<start_of_turn>", "[INST] [/INST]", "{{ bos_token }} {% raw %} {# x #}", "\"quotes\" 'and' \\n & <b>",
    "\u6f22\u5b57 \u00e9 \U0001f600", "x\u200b", "a\x85",
]


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def main():
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols])
    environment.globals["raise_exception"] = raise_exception
    cases = []
    for family, path in TEMPLATES:
        gemma = family == "dattn_gemma2"
        ends = ("<bos>", "<eos>") if gemma else ("<s>", "</s>")
        template = environment.from_string(path.read_text(encoding="utf-8"))
        for question in QUESTIONS:
            message = {"role": "user", "content": "<image>\n" + question}
            text = template.render(messages=[message], tools=None, documents=None, add_generation_prompt=gemma,
                                   bos_token=ends[0], eos_token=ends[1])
            prompt = text.replace(ends[0], "")
            cases.append({"model_type": family, "template": path.name, "question": question, "prompt": prompt})
    print(json.dumps(cases, indent=1, ensure_ascii=True))


main()
