"""A small Llama with a cache that never moves, so that a step is a fixed sequence of kernels and captures cleanly."""

import torch
import torch.nn.functional as F


class Llama:
    """Weights by GGUF's names (`token_embd.weight`, `blk.N.attn_q.weight`, ...) and a cache for `rows` conversations of
    `context` positions each, with `slack` more behind them for what is not to be kept."""

    def __init__(self, weights, shape, device, dtype, rows, context, slack):
        self.heads, self.kv_heads, self.layers, self.eps = shape["heads"], shape["kv_heads"], shape["layers"], shape["eps"]
        self.context, self.span = context, context + slack
        self.embed = weights["token_embd.weight"].to(device, dtype)
        self.dim, self.width = self.embed.shape[1], self.embed.shape[1] // self.heads
        self.norm = weights["output_norm.weight"].to(device, dtype)
        part = lambda n, name: weights[f"blk.{n}.{name}.weight"].to(device, dtype)
        self.blocks = [
            {
                "norm": part(n, "attn_norm"),
                "qkv": torch.cat([part(n, "attn_q"), part(n, "attn_k"), part(n, "attn_v")]).t().contiguous(),
                "out": part(n, "attn_output").t().contiguous(),
                "norm2": part(n, "ffn_norm"),
                "gate_up": torch.cat([part(n, "ffn_gate"), part(n, "ffn_up")]).t().contiguous(),
                "down": part(n, "ffn_down").t().contiguous(),
            }
            for n in range(self.layers)
        ]
        angle = torch.arange(self.span)[:, None] * shape["base"] ** (-torch.arange(0, self.width, 2) / self.width)
        self.turn = torch.polar(torch.ones_like(angle), angle).to(device)
        self.keys, self.values = (
            torch.zeros(self.layers, rows * self.span, self.kv_heads, self.width, device=device, dtype=dtype) for _ in "kv"
        )
        self.places = torch.arange(rows * self.span, device=device)

    def forward(self, tokens, row, first, live):
        """Reads tokens [T] of conversation `row` at positions from `first` on; what is not `live` goes to the slack.
        Everything is a tensor. Returns hidden states [T, dim], normed."""
        count = len(tokens)
        ahead = torch.arange(count, device=tokens.device)
        place = torch.where(live, first, self.context) + ahead
        slot, base = row * self.span + place, row * self.span
        # Who sees what: the same conversation, no later position, nothing of the slack.
        visible = (self.places >= base) & (self.places <= slot[:, None])
        mask = torch.zeros_like(visible, dtype=self.embed.dtype).masked_fill_(~visible, -torch.inf)
        share = self.heads // self.kv_heads
        mask = mask.repeat_interleave(share, 0)  # each position's heads of a group lie together
        turn = self.turn.index_select(0, place)[:, None]
        x = self.embed.index_select(0, tokens)
        for n, block in enumerate(self.blocks):
            x = self.attend(n, block, x, slot, turn, mask, share)
            gate, up = torch.mm(F.rms_norm(x, (self.dim,), block["norm2"], self.eps), block["gate_up"]).chunk(2, -1)
            x = torch.addmm(x, F.silu(gate) * up, block["down"])
        return F.rms_norm(x, (self.dim,), self.norm, self.eps)

    def attend(self, n, block, x, slot, turn, mask, share):
        count, turned = len(x), self.heads + self.kv_heads
        qkv = torch.mm(F.rms_norm(x, (self.dim,), block["norm"], self.eps), block["qkv"]).view(count, -1, self.width)
        pairs = torch.view_as_complex(qkv[:, :turned].float().view(count, turned, -1, 2)) * turn
        qk = torch.view_as_real(pairs).flatten(2).to(x.dtype)
        keys, values = self.keys[n], self.values[n]
        keys.index_copy_(0, slot, qk[:, self.heads :])
        values.index_copy_(0, slot, qkv[:, turned:])
        q = qk[:, : self.heads].view(count, self.kv_heads, share, -1).transpose(0, 1).reshape(self.kv_heads, count * share, -1)
        scores = torch.baddbmm(mask, q, keys.permute(1, 2, 0), alpha=self.width**-0.5)
        seen = torch.bmm(scores.float().softmax(-1).to(x.dtype), values.transpose(0, 1))
        seen = seen.view(self.kv_heads, count, share, -1).transpose(0, 1).reshape(count, self.dim)
        return torch.addmm(x, seen, block["out"])

    def logits(self, hidden):
        return torch.mv(self.embed, hidden).float()
