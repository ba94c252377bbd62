"""The peer that a user would pick instead: a plain PyTorch GPT of the same architecture, and the usual loop over
degraded copies of it.  Nothing of JAX is imported here."""

import copy
import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wane.launch.bench.peers import Work


class Attention(nn.Module):
    """Causal self-attention with rotary embeddings; q, k, v in one product, PyTorch's fused attention."""

    def __init__(self, d_model: int, n_heads: int, head_dim: int):
        super().__init__()
        self.n_heads, self.head_dim = n_heads, head_dim
        self.qkv = nn.Linear(d_model, 3 * n_heads * head_dim, bias=False)
        self.o = nn.Linear(n_heads * head_dim, d_model, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        B, S, _ = x.shape
        q, k, v = self.qkv(x).view(B, S, 3, self.n_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o(y.transpose(1, 2).reshape(B, S, -1))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Block(nn.Module):
    def __init__(self, d_model: int, n_heads: int, head_dim: int, d_ff: int, eps: float):
        super().__init__()
        self.attn_norm, self.mlp_norm = nn.RMSNorm(d_model, eps), nn.RMSNorm(d_model, eps)
        self.attention = Attention(d_model, n_heads, head_dim)
        self.gate = nn.Linear(d_model, d_ff, bias=False)
        self.up = nn.Linear(d_model, d_ff, bias=False)
        self.down = nn.Linear(d_ff, d_model, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attention(self.attn_norm(x), cos, sin)
        y = self.mlp_norm(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class GPT(nn.Module):
    """Logits [B, S, V] of tokens [B, S]."""

    def __init__(
        self, *, d_model: int, n_layers: int, n_heads: int, head_dim: int, d_ff: int, vocab: int, context: int,
        norm_eps: float = 1e-5, rope_theta: float = 10_000.0,
    ):  # fmt: skip
        super().__init__()
        self.embed = nn.Embedding(vocab, d_model)
        self.blocks = nn.ModuleList(
            Block(d_model, n_heads, head_dim, d_ff, norm_eps) for _ in range(n_layers)
        )
        self.final_norm = nn.RMSNorm(d_model, norm_eps)
        self.unembed = nn.Linear(d_model, vocab, bias=False)
        half = head_dim // 2
        angle = torch.arange(context)[:, None] * rope_theta ** (-torch.arange(half) / half)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x, S = self.embed(tokens), tokens.shape[1]
        for block in self.blocks:
            x = block(x, self.cos[:S], self.sin[:S])
        return self.unembed(self.final_norm(x))


def loss_of(logits: Tensor, tokens: Tensor, reduction: str = "mean") -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten(), reduction=reduction)


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def name_of_device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def autocast(dtype: str):
    return torch.autocast(device().type, torch.bfloat16, enabled=dtype == "bfloat16")


def products(*, size: int, dtype: str) -> Work:
    """The rate of matrix products: one square product a repetition."""
    a = torch.randn(size, size, device=device(), dtype=getattr(torch, dtype))
    b = torch.randn(size, size, device=device(), dtype=getattr(torch, dtype))
    out = torch.empty_like(a)

    def run(repetitions: int) -> None:
        for _ in range(repetitions):
            torch.mm(a, b, out=out)
        wait()

    about = f"PyTorch {torch.__version__} on {name_of_device()}, {torch.get_num_threads()} threads"
    return Work({"product": run}, {"flops": 2 * size**3, "is": about})


def training(*, dims: dict[str, int], batch: int, dtype: str, compiled: bool) -> Work:
    """One AdamW step with a clipped gradient a repetition, the same batch again."""
    torch.manual_seed(0)
    model = GPT(**dims).to(device())
    forward = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
    tokens = torch.randint(dims["vocab"], (batch, dims["context"] + 1), device=device())

    def run(repetitions: int) -> None:
        for _ in range(repetitions):
            optimizer.zero_grad(set_to_none=True)
            with autocast(dtype):
                loss = loss_of(forward(tokens[:, :-1]), tokens)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        wait()

    return Work({"training": run})


def evaluate(model: nn.Module, tokens_NT: Tensor, batch: int, dtype: str) -> Tensor:
    """Mean loss of each sequence [N]."""
    losses = []
    for tokens in tokens_NT.split(batch):
        with autocast(dtype):
            loss = loss_of(model(tokens[:, :-1]), tokens, "none")
        losses.append(loss.view(len(tokens), -1).mean(1))
    return torch.cat(losses)


def forward(*, dims: dict[str, int], sequences: int, batch: int, dtype: str, compiled: bool) -> Work:
    """The loss of every sequence of an evaluation set a repetition."""
    torch.manual_seed(0)
    model = GPT(**dims).to(device()).eval()
    called = torch.compile(model) if compiled else model
    tokens_NT = torch.randint(dims["vocab"], (sequences, dims["context"] + 1), device=device())

    @torch.inference_mode()
    def run(repetitions: int) -> None:
        for _ in range(repetitions):
            evaluate(called, tokens_NT, batch, dtype)
        wait()

    return Work({"forward": run})


def sweeping(
    *,
    dims: dict[str, int],
    sequences: int,
    batch: int,
    dtype: str,
    methods: list[str],
    severities: list[float],
) -> Work:
    """One draw of a method a repetition: copy the model, degrade the copy, evaluate it, for every severity."""
    torch.manual_seed(0)
    model = GPT(**dims).to(device()).eval()
    tokens_NT = torch.randint(dims["vocab"], (sequences, dims["context"] + 1), device=device())

    @torch.inference_mode()
    def run(degrade: Callable[[GPT, float], None], repetitions: int) -> None:
        for draw in range(repetitions):
            for severity in severities:
                torch.manual_seed(draw)
                degraded = copy.deepcopy(model)
                degrade(degraded, severity)
                evaluate(degraded, tokens_NT, batch, dtype).cpu()
        wait()

    return Work({method: functools.partial(run, METHODS[method]) for method in methods})


def matrices(model: GPT) -> list[nn.Linear]:
    return [m for block in model.blocks for m in block.modules() if isinstance(m, nn.Linear)]


def lowest(scores: Tensor, severity: float) -> Tensor:
    """True for the share of least score."""
    out = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    out[scores.flatten().topk(int(severity * scores.numel()), largest=False).indices] = True
    return out.view_as(scores)


def random_weights(model: GPT, severity: float) -> None:
    for m in matrices(model):
        m.weight.masked_fill_(lowest(torch.rand_like(m.weight), severity), 0)


def random_neurons(model: GPT, severity: float) -> None:
    for block in model.blocks:
        gone = lowest(torch.rand(block.down.in_features, device=block.down.weight.device), severity)
        block.down.weight[:, gone] = 0


def random_heads(model: GPT, severity: float) -> None:
    for block in model.blocks:
        a = block.attention
        gone = lowest(torch.rand(a.n_heads, device=a.o.weight.device), severity)
        a.o.weight[:, gone.repeat_interleave(a.head_dim)] = 0


def gaussian_noise(model: GPT, severity: float) -> None:
    """Of severity times the root mean square of each matrix."""
    for m in matrices(model):
        m.weight.add_(torch.randn_like(m.weight) * (severity * m.weight.square().mean().sqrt()))


def rtn(model: GPT, severity: float) -> None:
    """Symmetric, one scale per output; severity is 1 - bits / 16, as in wane."""
    top = 2 ** (16 * (1 - severity) - 1) - 0.5
    for m in matrices(model):
        scale = m.weight.abs().amax(1, keepdim=True) / top
        m.weight.copy_((m.weight / scale).round().clamp(math.ceil(-top), math.floor(top)) * scale)


METHODS: dict[str, Callable[[GPT, float], None]] = {
    "random_weights": random_weights,
    "random_neurons": random_neurons,
    "random_heads": random_heads,
    "gaussian_noise": gaussian_noise,
    "rtn": rtn,
}
