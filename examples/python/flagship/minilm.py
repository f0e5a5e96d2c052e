"""MiniLM: a BERT of six layers that turns up to 128 word pieces into one vector of length one."""

import torch
import torch.nn.functional as F


class MiniLM:
    def __init__(self, weights, heads, device, dtype, eps=1e-12):
        self.weights = {name: value.to(device, dtype) for name, value in weights.items() if value.is_floating_point()}
        self.heads, self.eps = heads, eps
        self.dim = self.weights["embeddings.word_embeddings.weight"].shape[1]
        self.layers = 1 + max(int(n.split(".")[2]) for n in self.weights if n.startswith("encoder.layer."))

    def linear(self, name, x):
        return F.linear(x, self.weights[name + ".weight"], self.weights[name + ".bias"])

    def norm(self, name, x):
        return F.layer_norm(x, (self.dim,), self.weights[name + ".weight"], self.weights[name + ".bias"], self.eps)

    def forward(self, pieces, count):
        """Pieces [L], of which the first `count` (a tensor) are meant. Returns [dim], float32."""
        length = len(pieces)
        meant = torch.arange(length, device=pieces.device) < count
        x = F.embedding(pieces, self.weights["embeddings.word_embeddings.weight"])
        x = x + self.weights["embeddings.position_embeddings.weight"][:length] + self.weights["embeddings.token_type_embeddings.weight"][0]
        x = self.norm("embeddings.LayerNorm", x)
        for n in range(self.layers):
            at = f"encoder.layer.{n}."
            q, k, v = (
                self.linear(at + "attention.self." + name, x).view(length, self.heads, -1).transpose(0, 1)
                for name in ("query", "key", "value")
            )
            mixed = F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=meant.expand(length, length))[0].transpose(0, 1).flatten(1)
            x = self.norm(at + "attention.output.LayerNorm", x + self.linear(at + "attention.output.dense", mixed))
            more = self.linear(at + "output.dense", F.gelu(self.linear(at + "intermediate.dense", x)))
            x = self.norm(at + "output.LayerNorm", x + more)
        mean = torch.where(meant[:, None], x.float(), 0).sum(0) / count
        return F.normalize(mean, dim=0)
