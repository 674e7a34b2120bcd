"""Questions, prompts and answers (MODEL.md 2.4 and 8; MODEL-7B.md, "Pre-processing" and "Post-processing")."""
import json
import os
import re

IMAGE_PLACEHOLDER = "<image>"
IMAGE_PLACEHOLDER_ID = -200


def without_full_stop(query):
    return query[:-1] if query.endswith(".") else query


def gemma_question(query, duration=None):
    """The retrieval question of Vidi 1.5."""
    return f"During which time segments in the video can we see {without_full_stop(query)}?"


def mistral_question(query, duration):
    """The retrieval question of Vidi 7B, which tells the model how long the video is."""
    if duration is None:
        raise ValueError("the question of Vidi 7B has the video's length in it: give the duration")
    return ("Given the frames from a video, answer the time range in percentage that corresponds to query text split by comma. "
            f"Video length is: {duration:.2f} and text query is: {without_full_stop(query)}.")


def render(template, content, tokens):
    """A chat template applied to one message of the user, as transformers does it without a generation prompt.

    tokens: {"bos_token": text, ...}, the special tokens that a template may name."""
    from jinja2.exceptions import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message):
        raise TemplateError(message)

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    env.globals["raise_exception"] = raise_exception
    messages = [{"role": "user", "content": content}]
    return env.from_string(template).render(messages=messages, add_generation_prompt=False, **tokens)


def special_tokens(config):
    """{"bos_token": text, ...} of a tokenizer_config.json."""
    names = ("bos_token", "eos_token", "unk_token", "pad_token")
    found = {n: config.get(n) for n in names}
    return {n: t["content"] if isinstance(t, dict) else t for n, t in found.items() if t is not None}


class Chat:
    """The prompt of a checkpoint: its own chat template around the user's turn, and its tokenizer."""

    def __init__(self, directory, suffix):
        from tokenizers import Tokenizer
        with open(os.path.join(directory, "tokenizer_config.json")) as f:
            config = json.load(f)
        self.template, self.tokens, self.suffix = config["chat_template"], special_tokens(config), suffix
        self.tok = Tokenizer.from_file(os.path.join(directory, "tokenizer.json"))

    def prompt(self, user_text):
        return chat_prompt(self.template, user_text, self.tokens, self.suffix)

    def encode(self, prompt, most=-1):
        return encode_with_image(self.tok, prompt, self.tok.token_to_id(self.tokens["bos_token"]), most)


def chat_prompt(template, user_text, tokens, suffix):
    """The template's text without any bos (the tokenizer adds it again), then what the family's code puts after it."""
    return render(template, user_text, tokens).replace(tokens["bos_token"], "") + suffix


def encode_with_image(tok, prompt, bos_id=2, most=-1):
    """Returns (ids incl. the -200 placeholder, ids fed to the LLM).

    Each side of '<image>' is tokenised on its own, with its own bos; the first bos is kept,
    the later ones are dropped, the placeholder is removed without leaving an embedding.
    most: how often the prompt is split; 1 takes a later '<image>' as text."""
    chunks = [tok.encode(c, add_special_tokens=True).ids for c in prompt.split(IMAGE_PLACEHOLDER, most)]
    if chunks[0] and chunks[0][0] == bos_id:
        ids = [bos_id]
        for n, c in enumerate(chunks):
            ids += ([IMAGE_PLACEHOLDER_ID] if n else []) + c[1:]
    else:
        ids = list(chunks[0])
        for c in chunks[1:]:
            ids += [IMAGE_PLACEHOLDER_ID] + c
    return ids, [i for i in ids if i != IMAGE_PLACEHOLDER_ID]


RANGE_RE = re.compile(r"(\d\.\d+)-(\d\.\d+)")
MISTRAL_RANGE_RE = re.compile(r"([\d|\.]+)-([\d|\.]+)")       # the class has `|` in it


def clock(t):
    return int(t / 3600), (int(t) % 3600) // 60, int(t) % 60


def gemma_time(t):
    return "{:02d}:{:02d}:{:02d}".format(*clock(t))


def mistral_time(t):
    """Whole seconds with two zero decimals and no padding: 00:00:5.00."""
    return "{:02d}:{:02d}:{:.2f}".format(*clock(t))


def time_ranges(text, duration, family=None):
    """The time ranges that the official code reads in an answer; Vidi 1.5's when no family is given.

    Raises ValueError where the official code does: Vidi 7B's expression also takes what is no number ("0.7.", "|")."""
    pattern, written = (family.range_re, family.written_time) if family else (RANGE_RE, gemma_time)
    pairs = [(float(a), float(b)) for a, b in pattern.findall(text.strip())]
    return {"fractions": pairs,
            "seconds": [[a * duration, b * duration] for a, b in pairs],
            "formatted": ", ".join(f"{written(a * duration)}-{written(b * duration)}" for a, b in pairs)}
