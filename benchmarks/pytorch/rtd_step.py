"""RTD's published training step in PyTorch, as its authors' code does it: the other side of `rtd_step`.

Captions are padded to the context; the frozen encoder runs on T_t, and on T_r twice, for φ and for the target; the
trained encoder runs on both kinds of queries; the loss exponentiates the joint similarities.
"""

from dataclasses import dataclass

import torch
from torch import nn

MARKER_ID = 259


class Phi(nn.Module):
    """SEARLE's and LinCIR's network."""

    def __init__(self, inputs: int, hidden: int, outputs: int, dropout: float = 0.5):
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Linear(inputs, hidden), nn.GELU(), nn.Dropout(dropout)),
            *(nn.Linear(hidden, hidden), nn.GELU(), nn.Dropout(dropout)),
            nn.Linear(hidden, outputs),
        )

    def forward(self, x):
        return self.layers(x)


@dataclass
class Encoder:
    """A text encoder of transformers' CLIP with its projection.

    Attributes:
      network: a CLIPModel.
      marker_id: what pseudo tokens replace.
    """

    network: nn.Module
    marker_id: int = MARKER_ID

    def __post_init__(self):
        self.pseudo = None
        # Registered once: torch.compile traces hooks, and would compile anew for each new one.
        self.network.text_model.embeddings.token_embedding.register_forward_hook(self._replace)

    def _replace(self, module, inputs, embedded):
        if self.pseudo is None:
            return embedded
        return torch.where((inputs[0] == self.marker_id)[..., None], self.pseudo[:, None], embedded)

    def parameters(self) -> list[nn.Parameter]:
        return [*self.network.text_model.parameters(), *self.network.text_projection.parameters()]

    def __call__(self, ids: torch.Tensor, pseudo: torch.Tensor | None = None) -> torch.Tensor:
        """Embeddings (n, d), not normalised, of ids (n, t); pseudo tokens (n, w) in the marker's place."""
        self.pseudo = pseudo
        embeddings = self.network.text_projection(self.network.text_model(input_ids=ids).pooler_output)
        self.pseudo = None
        return embeddings


def joint_contrast(queries: torch.Tensor, targets: torch.Tensor, temperature: float) -> torch.Tensor:
    """The published loss: exponentials of the joint similarities, their sum without the diagonal."""
    queries, targets = nn.functional.normalize(queries), nn.functional.normalize(targets)
    positive = torch.exp((queries * targets).sum(-1) / temperature)
    joint = torch.cat([queries, targets])
    every = torch.exp(joint @ joint.T / temperature)
    others = every.sum(0) - every.diagonal()
    return -torch.log(torch.cat([positive, positive]) / others).mean()


def loss(
    trained: Encoder, frozen: Encoder, phi: nn.Module, batch: dict[str, torch.Tensor], temperature: float = 0.07
) -> torch.Tensor:
    """The loss of one batch.

    Args:
      trained: ψ̃.
      frozen: ψ.
      phi: in evaluation mode.
      batch: ids `reference`, `target`, `composed` and `plain`, (b, t) each, and `noise` (b, d).
      temperature: τ.
    """
    with torch.no_grad():
        tokens = phi(frozen(batch["reference"]) + batch["noise"])
        targets = frozen(batch["target"])
        references = frozen(batch["reference"])
    queries = torch.cat([trained(batch["composed"], tokens), trained(batch["plain"], tokens)])
    return joint_contrast(queries, torch.cat([targets, references]), temperature)
