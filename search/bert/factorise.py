"""Word embeddings of low rank: which directions of the table stay.

The table E (V, H) becomes a smaller table and a projection, E ≈ A·Bᵀ with A = E·B (V, r) and B (H, r). Tokens that the
task uses often count more: of all tables of rank r this one minimises Σ_v f_v·|e_v - ê_v|², with f_v the frequency of
token v.

    training rows ──► frequencies f, one added to each ──► Eᵀ·diag(f)·E ──► its eigenvectors, largest first

The first r eigenvectors are B at rank r, so they are computed once per study. No matrix of V by V is ever made.
"""

import torch
from torch import Tensor

from search.bert.encoding import Encoded


def frequencies(rows: Encoded, vocabulary: int) -> Tensor:
    """How often each token stands in the rows, and once more.

    The one that is added (Laplace) lets tokens that the rows do not have count as well: others will use them.

    Args:
        rows: The training split.
        vocabulary: Rows of the word embeddings.

    Returns:
        Counts (vocabulary,), float64, at least 1.
    """
    return torch.bincount(rows.ids.long(), minlength=vocabulary).double() + 1.0


@torch.no_grad()
def directions(table: Tensor, weights: Tensor) -> Tensor:
    """The directions of a table, those first that a weighted low-rank approximation keeps first.

    Minimising Σ_v f_v·|e_v - ê_v|² over tables of rank r is the truncated SVD of diag(√f)·E = U·S·Bᵀ, scaled back:
    Ê = diag(1/√f)·U_r·S_r·B_rᵀ = E·B_r·B_rᵀ. And B holds the eigenvectors of the Gram matrix Eᵀ·diag(f)·E.

    Args:
        table: Word embeddings E (vocabulary, H).
        weights: f (vocabulary,), above 0.

    Returns:
        B (H, H): orthonormal columns, float64 on the CPU.

    Reference:
        Eckart and Young 1936; for the weights, Srebro and Jaakkola 2003, "Weighted Low-Rank Approximations", section 2:
        weights of rank one keep the closed form.
    """
    exact = table.detach().cpu().double()
    gram = exact.T @ (weights.cpu().double()[:, None] * exact)
    ascending: Tensor = torch.linalg.eigh(gram).eigenvectors
    return ascending.flip(1).contiguous()
