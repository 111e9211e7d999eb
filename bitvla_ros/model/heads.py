"""What joins the ternary networks to the world: connector, proprioception, actions. Small, and not quantized."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class Connector(nn.Module):
    """Image features [..., vision size] -> language embeddings [..., language size]."""

    def __init__(self, vision_size: int, hidden_size: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(vision_size, hidden_size)
        self.linear_2 = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.gelu(self.linear_1(x)))


class ProprioProjector(nn.Module):
    """Normalised robot state [..., proprio_dim] -> one language embedding [..., hidden_size]."""

    def __init__(self, proprio_dim: int, hidden_size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(proprio_dim, hidden_size)
        self.fc2 = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class ActionHead(nn.Module):
    """Regresses an action from the hidden states of its action_dim tokens, [..., action_dim * hidden_size] -> [..., action_dim]."""

    def __init__(self, action_dim: int, hidden_size: int) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(action_dim * hidden_size)
        self.fc1 = nn.Linear(action_dim * hidden_size, hidden_size)
        self.blocks = nn.ModuleList(ResidualBlock(hidden_size) for _ in range(2))
        self.layer_norm2 = nn.LayerNorm(hidden_size)
        self.fc2 = nn.Linear(hidden_size, action_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.fc1(self.layer_norm1(x)))
        for block in self.blocks:
            x = block(x)
        return self.fc2(self.layer_norm2(x))


class ResidualBlock(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.ffn = nn.Sequential(nn.LayerNorm(size), nn.Linear(size, size), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.ffn(x)
