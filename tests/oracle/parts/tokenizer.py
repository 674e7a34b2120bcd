"""Tokenizers of the random checkpoints: byte-fallback BPE in the layouts of Gemma and of two Mistral releases, and their chat
templates."""
import json
import os
from dataclasses import dataclass

GEMMA2_CHAT_TEMPLATE = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}")


def mistral_chat_template(end_of_turn):
    """The template of Mistral-7B-Instruct: v0.3 ends the user's turn with "[/INST]", v0.2 with " [/INST]"."""
    return ("{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
            "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
            "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + '" + end_of_turn + "' }}"
            "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}"
            "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}")


# What the templates of later releases are built of (whitespace control, slices, namespaces, filters), for one turn the same text
# as v0.3's.
MISTRAL_LATER_CHAT_TEMPLATE = """{%- if messages[0]["role"] == "system" %}
    {%- set before = messages[0]["content"] %}
    {%- set turns = messages[1:] %}
{%- else %}
    {%- set turns = messages %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- set asked = turns | selectattr("role", "equalto", "user") | list %}

{#- Users and assistants take turns. #}
{%- set seen = namespace() %}
{%- set seen.count = 0 %}
{%- for turn in turns %}
    {%- if turn.tool_calls is not defined or turn.tool_calls is none %}
        {%- if (turn["role"] == "user") != (seen.count % 2 == 0) %}
            {{- raise_exception("the user and the assistant must take turns") }}
        {%- endif %}
        {%- set seen.count = seen.count + 1 %}
    {%- endif %}
{%- endfor %}

{{- bos_token }}
{%- for turn in turns %}
    {%- if turn["role"] == "user" %}
        {%- if tools is not none and turn == asked[-1] %}
            {{- "[AVAILABLE_TOOLS] " + tools | tojson + "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and before is defined %}
            {{- "[INST] " + before + "\\n\\n" + turn["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + turn["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif turn["role"] == "assistant" %}
        {{- " " + turn["content"] | trim + eos_token }}
    {%- else %}
        {{- raise_exception("unknown role: " + turn["role"]) }}
    {%- endif %}
{%- endfor %}
"""

CORPUS = """During which time segments in the video can we see a man slicing onions on a wooden board?
The answer is a list of time ranges given as fractions of the whole video, for example 0.12-0.34, 0.56-0.78, 0.90-0.95.
A woman walks along the beach while two dogs run into the water and a boat passes behind them.
During which time segments in the video can we see the chef pouring sauce over the noodles?
At the beginning we see the logo, then the speaker introduces the topic, and later the audience asks questions.
The segments are 0.00-0.05, 0.21-0.43, 0.61-0.72 and 0.84-1.00. There are 3 cars, 12 people, 450 birds and 6789 leaves.
In which part of the movie does the red car stop in front of the old house near the river?
He opens the door, looks around the room, takes the camera from the table and leaves again.
Which time ranges show the children playing with a yellow ball in the park? They can be seen near the end.
Music plays softly while snow falls; somebody says "hello, how are you?" and the other person answers: "quite well!"
"""
MISTRAL_CORPUS = CORPUS + """Given the frames from a video, answer the time range in percentage that corresponds to query text split by comma.
Video length is: 5.20 and text query is: a man slicing onions. Video length is: 3725.50 and text query is: the logo.
[INST] Given the frames from a video, what happens? [/INST] A boat passes behind them.
"""

BYTES = [f"<0x{i:02X}>" for i in range(256)]


@dataclass(frozen=True)
class Layout:
    """The first entries of a vocabulary, and which of them are special."""
    head: list                  # in order; the learned pieces follow
    added: list                 # those that are split off the text before anything else
    special: set                # those of them that decoding leaves out
    corpus: str
    bos: str
    template: str
    config: dict                # more keys of tokenizer_config.json
    legacy: bool = False        # SentencePiece's old way: a space in front of every stretch between special tokens


SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<2mass>", "[@BOS@]"] + [f"<unused{i}>" for i in range(99)] \
    + ["<start_of_turn>", "<end_of_turn>"]
NEWLINES = ["\n", "\n\n"]
# Gemma's layout: <pad>=0 <eos>=1 <bos>=2 <unk>=3 ... <start_of_turn>=106 <end_of_turn>=107 '\n'=108 '\n\n'=109, then 256 byte tokens
TOKENIZER_HEAD = SPECIAL + NEWLINES + BYTES
GEMMA = Layout(
    head=TOKENIZER_HEAD, added=SPECIAL + NEWLINES,
    special={"<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"},
    corpus=CORPUS, bos="<bos>", template=GEMMA2_CHAT_TEMPLATE,
    config={"additional_special_tokens": ["<start_of_turn>", "<end_of_turn>"],
            "bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>",
            "tokenizer_class": "GemmaTokenizer"})
GEMMA2_SPECIAL = {"bos_token": "<bos>", "eos_token": "<eos>"}
MISTRAL_V3_HEAD = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]",
                   "[TOOL_RESULTS]", "[/TOOL_RESULTS]"]
MISTRAL_CONFIG = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": None, "unk_token": "<unk>", "tokenizer_class": "LlamaTokenizer"}
# As in Mistral-7B-Instruct-v0.3: <unk>=0 <s>=1 </s>=2 [INST]=3 [/INST]=4 and tool tokens, then 256 byte tokens
MISTRAL_V3 = Layout(head=MISTRAL_V3_HEAD + BYTES, added=MISTRAL_V3_HEAD, special=set(MISTRAL_V3_HEAD), corpus=MISTRAL_CORPUS, bos="<s>",
                    template=mistral_chat_template("[/INST]"), config={**MISTRAL_CONFIG, "legacy": False})
# As in v0.2: [INST] and [/INST] are text like any other
MISTRAL_V2 = Layout(head=["<unk>", "<s>", "</s>"] + BYTES, added=["<unk>", "<s>", "</s>"], special={"<unk>", "<s>", "</s>"},
                    corpus=MISTRAL_CORPUS, bos="<s>", template=mistral_chat_template(" [/INST]"),
                    config={**MISTRAL_CONFIG, "legacy": True}, legacy=True)
LAYOUTS = {"gemma": GEMMA, "mistral-v0.3": MISTRAL_V3, "mistral-v0.2": MISTRAL_V2}


def build_tokenizer(out, vocab_size, layout=GEMMA):
    """Byte-fallback BPE: the layout's first tokens, then characters and merges learned from its corpus, in `out`."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    room = vocab_size - len(layout.head)
    assert room > 100, "vocab too small"

    trainee = Tokenizer(models.BPE())
    trainee.normalizer = normalizers.Replace(" ", "\u2581")
    trainee.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
    trainer = trainers.BpeTrainer(vocab_size=room, show_progress=False)
    trainee.train_from_iterator([line for line in layout.corpus.split("\n")], trainer)
    learned = json.loads(trainee.to_str())["model"]
    vocab = {t: i for i, t in enumerate(layout.head)}
    for t, _ in sorted(learned["vocab"].items(), key=lambda kv: kv[1]):
        if t not in vocab and len(vocab) < vocab_size:
            vocab[t] = len(vocab)
    while len(vocab) < vocab_size:
        vocab[f"<unused_tail{len(vocab)}>"] = len(vocab)
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in learned["merges"]]
    merges = [m for m in merges if m[0] in vocab and m[1] in vocab and (m[0] + m[1]) in vocab]
    save_tokenizer(out, (gemma_tokenizer if layout is GEMMA else mistral_tokenizer)(vocab, merges, layout), layout)


def gemma_tokenizer(vocab, merges, layout=GEMMA):
    """tokenizers.Tokenizer with Gemma's rules.  vocab: {piece: id}, beginning with TOKENIZER_HEAD; merges: [(left, right)]."""
    from tokenizers import normalizers, pre_tokenizers, decoders
    tok = byte_fallback_bpe(vocab, merges)
    tok.normalizer = normalizers.Replace(" ", "\u2581")
    tok.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tok.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    return with_added(tok, layout)


def mistral_tokenizer(vocab, merges, layout):
    """tokenizers.Tokenizer with the rules of a Mistral release: a space is put in front of the text, and taken off an answer."""
    from tokenizers import normalizers, pre_tokenizers, decoders
    tok = byte_fallback_bpe(vocab, merges)
    if layout.legacy:
        tok.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    else:
        tok.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="first", split=False)
    tok.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return with_added(tok, layout)


def byte_fallback_bpe(vocab, merges):
    from tokenizers import Tokenizer, models
    return Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))


def with_added(tok, layout):
    """Added and special tokens, and one bos in front."""
    from tokenizers import AddedToken, processors
    for t in layout.added:
        is_special = t in layout.special
        (tok.add_special_tokens if is_special else tok.add_tokens)([AddedToken(t, normalized=False, special=is_special)])
    bos = layout.bos
    tok.post_processor = processors.TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, tok.token_to_id(bos))])
    return tok


def save_tokenizer(out, tok, layout=GEMMA):
    """tokenizer.json and tokenizer_config.json in `out`."""
    added = [(tok.token_to_id(t), t, t in layout.special) for t in layout.added]
    tok.save(os.path.join(out, "tokenizer.json"))
    cfg = {"add_bos_token": True, "add_eos_token": False,
           "added_tokens_decoder": {str(i): {"content": t, "lstrip": False, "normalized": False, "rstrip": False,
                                             "single_word": False, "special": s} for i, t, s in added},
           **layout.config,
           "chat_template": layout.template, "clean_up_tokenization_spaces": False,
           "model_max_length": 1000000000000000019884624838656, "sp_model_kwargs": {}, "spaces_between_special_tokens": False,
           "use_default_system_prompt": False}
    for key in ("tokenizer_class", "use_default_system_prompt"):        # the last two, as in the releases
        cfg[key] = cfg.pop(key)
    with open(os.path.join(out, "tokenizer_config.json"), "w") as f:
        json.dump(cfg, f, indent=1, ensure_ascii=False)
