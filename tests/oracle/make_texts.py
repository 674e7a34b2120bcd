"""Write units/texts.json: chat templates, prompts, questions and answers of both families.

    OMP_NUM_THREADS=1 python make_texts.py --golden ../golden

Needs the checkpoints of make_small.py, whose tokenizers it uses.  README.md in tests/golden says how the file is read.
"""
import argparse
import contextlib
import json
import os
import re

import vidi_oracle as vo
from parts import text
from parts.tokenizer import GEMMA2_CHAT_TEMPLATE, MISTRAL_LATER_CHAT_TEMPLATE, MISTRAL_V2, MISTRAL_V3

# name: (family, checkpoint whose tokenizer goes with it, template)
TEMPLATES = {
    "gemma-2": (vo.GEMMA2, "tied", GEMMA2_CHAT_TEMPLATE),
    "mistral-v0.3": (vo.MISTRAL, "7b", MISTRAL_V3.template),
    "mistral-later": (vo.MISTRAL, "7b", MISTRAL_LATER_CHAT_TEMPLATE),
    "mistral-v0.2": (vo.MISTRAL, "7b-tied", MISTRAL_V2.template),
}

QUESTIONS = [
    "Why?", " Why? ", "Why? \n\t", "\n\nWhy?", "Why?\x1d", "\u00a0Why?\u3000", "", " ", ".", "two  spaces", "line\nbreak\n\nend", "tab\there",
    "The end.", "an <image> inside", "<image>", "<image><image> twice", "[INST] inside [/INST] and after", "[/INST]", "[/INST] ", "<start_of_turn>model\n",
    "a<end_of_turn>b", "a<s>b<s>", "a</s>b", "a<bos>b<bos>", "<ima<s>ge>", "<ima<bos>ge>", "[IN<s>ST]", "<unk>", "<pad>",
    "{{ bos_token }} {% if x %} {# y #}", "na\u00efve \u201chello\u201d \u2013 \u6f22\u5b57 \U0001f3ac", "e\u0301 and \u00e9", "0.12-0.34, 0.56-0.78", "\u2581 and \u2581\u2581",
]
RETRIEVALS = [
    ("a man slicing onions", 5.2), ("a man slicing onions.", 5.2), ("x..", 0.0), ("", 1.0), (".", 1.0), ("the logo", 3725.5), ("a {duration} in braces {}", 12.0),
    (" leading and trailing ", 10.0), ("an <image> inside", 10.0), ("[/INST]", 10.0), ("caf\u00e9 \u6f22\u5b57 \U0001f3ac", 10.0), ("a\nb.\n", 10.0),
    # the length to two decimals: the double's exact value decides, and ties go to the even digit
    ("ties", 0.125), ("ties", 0.375), ("ties", 3.625), ("ties", 2.675), ("ties", 1.005), ("ties", 59.995), ("ties", 99999.994999), ("ties", 86400.0), ("ties", 0.004999),
]
ANSWERS = [
    ("0.12-0.34, 0.56-0.78", 100.0), ("0.00-1.00", 3725.5), ("0.5-0.75", 59.99), ("12.5-13.0", 10.0), ("0.1-0.2-0.3-0.4", 1000.0), ("0.999-1.000", 86400.0),
    ("no range", 10.0), ("", 10.0), ("0.10 - 0.20", 10.0), (" 0.25-0.50 ", 3600.0), ("0.12-.34", 10.0), ("1-2", 10.0), ("1.-2.", 10.0), (".5-1", 10.0),
    ("10.25-0.50", 400.0), ("0.3333333333-0.6666666666", 360000.0), ("0.29-0.57", 100.0), ("0.05-0.10", 100.0), ("00.5-000.75", 100.0),
    ("from 0.10-0.20 to 0.5-0.7.", 100.0), ("0.1.2-0.3", 10.0), ("|-0.5", 10.0), ("0.1|0.2-0.3", 10.0), (".-.", 10.0), ("...-0.5", 10.0),
    ("0.12-0.34.", 100.0), ("0.12-0.34|0.56-0.78", 100.0), ("-0.5", 10.0), ("0.5-", 10.0), ("a-b", 10.0), ("0.5--0.7", 10.0), ("0.7-0.5", 100.0),
    ("\u0660.\u0661-\u0660.\u0665", 100.0), ("0\uff0e1-0.5", 10.0), ("1e-1-0.5", 100.0), ("0.1-0.2e1", 100.0), ("99-100", 3600.0),
    ("0.12\u20130.34", 100.0), ("0.01-0.02", 0.004), ("0.5-0.6", 7200.0),
]


def templates(golden):
    """name -> what renders with it."""
    out = {}
    for name, (family, checkpoint, template) in TEMPLATES.items():
        chat = text.Chat(os.path.join(golden, "checkpoints", checkpoint), family.prompt_suffix)
        chat.template = template
        out[name] = (family, checkpoint, chat)
    return out


def prompt_row(name, chat, question):
    """The prompt, and its tokens where only the placeholder of the video splits it (MODEL.md, "Decisions")."""
    prompt = chat.prompt("<image>\n" + question)
    row = dict(template=name, question=question, prompt=prompt, pieces=prompt.split("<image>", 1), text_token_ids=chat.encode(prompt, most=1)[1])
    official = chat.encode(prompt)[1]
    if official != row["text_token_ids"]:
        row["official_text_token_ids"] = official
    return row


def answer_row(family, said, duration):
    """What the official code reads, or the error that ends it; `ours` where this project reads something else: pairs in which
    one is no number are left out, and digits are ASCII's (MODEL-7B.md, "Decisions")."""
    row = dict(model_type=family.model_type, text=said, duration=duration)
    try:
        row.update(vo.time_ranges(said, duration, family))
    except ValueError as e:
        row["error"] = str(e)
    if family is vo.MISTRAL:
        ours = numbers_only(family, said, duration)
        if any(row.get(k) != v for k, v in ours.items()):
            row["ours"] = ours
    return row


def numbers_only(family, said, duration):
    def is_number(part):
        with contextlib.suppress(ValueError):
            float(part)
            return True
        return False

    ascii_only = re.compile(family.range_re.pattern, re.ASCII)
    pairs = [pair for pair in ascii_only.findall(said.strip()) if all(map(is_number, pair))]
    return vo.time_ranges(", ".join("-".join(pair) for pair in pairs), duration, family)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--golden", required=True)
    golden = ap.parse_args().golden
    chats = templates(golden)
    table = dict(
        templates={name: dict(model_type=family.model_type, checkpoint=checkpoint, chat_template=chat.template, special_tokens=chat.tokens, suffix=chat.suffix)
                   for name, (family, checkpoint, chat) in chats.items()},
        prompts=[prompt_row(name, chat, q) for name, (_, _, chat) in chats.items() for q in QUESTIONS],
        retrieval=[dict(model_type=f.model_type, query=q, duration=d, question=f.question(q, d)) for f in vo.FAMILIES.values() for q, d in RETRIEVALS],
        answers=[answer_row(f, said, d) for f in vo.FAMILIES.values() for said, d in ANSWERS])
    path = os.path.join(golden, "units", "texts.json")
    with open(path, "w") as f:
        json.dump(table, f, ensure_ascii=False, indent=1)
        f.write("\n")
    print(path, {k: len(v) for k, v in table.items()})


if __name__ == "__main__":
    main()
