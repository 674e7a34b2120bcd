"""The tokenizer: Gemma's rules and first tokens, one token for each word that is used and for each time "0.00" to "1.00"."""
from reference import vo

WORDS = """During which time segments in the video can we see a an the something red green blue yellow purple white
circle square triangle cross object objects beep hum noise sound colour color shape is there heard how many are visible
What Is How at of and""".split()
FIRST_WORDS = """During What Is How user model a red green blue yellow purple white circle square triangle cross yes no none noise
the something""".split()
TIMES = [f"{k / 100:.2f}" for k in range(101)]
SPACE = "\u2581"


def build_tokenizer():
    """tokenizers.Tokenizer; every printable ASCII character is a token too, all else falls back to bytes."""
    vocab = {t: i for i, t in enumerate(vo.TOKENIZER_HEAD)}
    merges = {}

    def add(piece):
        vocab.setdefault(piece, len(vocab))

    def merge(left, right):
        merges.setdefault((left, right))
        add(left + right)

    for c in [SPACE] + [chr(i) for i in range(33, 127)]:
        add(c)
    for whole in "01":
        merge(whole, ".")
    for end in (2, 3):
        for time in TIMES:
            merge(time[:end], time[end])
    merge(",", SPACE)
    for word in [SPACE + w for w in WORDS] + FIRST_WORDS:
        for i in range(1, len(word)):
            merge(word[:i], word[i])
    return vo.gemma_tokenizer(vocab, list(merges))


class Words:
    """Text to token ids and back."""

    def __init__(self):
        self.tokenizer = build_tokenizer()
        self.size = self.tokenizer.get_vocab_size()
        self.known = {}
        self.times = [self.single(t) for t in TIMES]

    def single(self, text):
        ids = self.answer(text)
        assert len(ids) == 1, (text, ids)
        return ids[0]

    def answer(self, text):
        """Token ids of an answer, without its end."""
        if text not in self.known:
            self.known[text] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return self.known[text]

    def prompt(self, question):
        """Token ids of the whole turn, as the oracle makes them."""
        key = "?", question
        if key not in self.known:
            prompt = vo.chat_prompt(vo.GEMMA2_CHAT_TEMPLATE, "<image>\n" + question, vo.GEMMA2_SPECIAL, vo.GEMMA2.prompt_suffix)
            self.known[key] = vo.encode_with_image(self.tokenizer, prompt)[1]
        return self.known[key]

    def decode(self, ids):
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()

    def save(self, directory):
        """tokenizer.json and tokenizer_config.json."""
        vo.save_tokenizer(directory, self.tokenizer)
