"""Which matrix products does the real model compute for one sequence, and how large are they.

One layer that keeps h heads of size d (width w = h·d) and n neurons, at hidden size H, for T tokens:

                        left matrix   right matrix   how often
    query, key, value   T by H        H by w         three times
    scores              T by d        d by T         h times
    context             T by T        T by d         h times
    output              T by w        w by H         once
    up                  T by H        H by n         once
    down                T by n        n by H         once

A layer that lost all its heads has no first four lines, one that lost all its neurons no last two.
"""

from dataclasses import dataclass
from typing import cast

from torch import nn

from objectives.layout import Layout
from objectives.parts import embeddings, head, layers, layout_of


@dataclass(frozen=True)
class Product:
    """`count` products of one size: a left matrix, rows by inner, times a right matrix, inner by columns.

    Attributes:
        rows: Rows of the left matrix, which holds activations.
        inner: Columns of the left and rows of the right matrix.
        columns: Columns of the right matrix.
        weights: Whether the right matrix holds weights; else it holds activations, as in attention.
        count: How many such products there are.
    """

    rows: int
    inner: int
    columns: int
    weights: bool = True
    count: int = 1

    @property
    def macs(self) -> int:
        """Multiply-accumulates.

        Example:
            >>> Product(rows=2, inner=3, columns=5).macs
            30
        """
        return self.count * self.rows * self.inner * self.columns

    @property
    def activations(self) -> int:
        """Numbers read and written that are not weights: the left matrix, the result, and the right one in attention.

        Example:
            >>> Product(2, 3, 5).activations, Product(2, 3, 5, weights=False).activations
            (16, 31)
        """
        right = 0 if self.weights else self.inner * self.columns
        return self.count * (self.rows * self.inner + right + self.rows * self.columns)


def encoder_products(model: nn.Module, *, tokens: int) -> list[Product]:
    """List the matrix products of the encoder for one sequence, from the sizes of its real modules.

    Args:
        model: A classifier, cut or dense.
        tokens: Length of the sequence with its special tokens, at least 1.

    Returns:
        The products, layer by layer.

    Raises:
        TypeError: If a part is not where the model's layout says, or one of its matrices is not a plain `nn.Linear`.
        ValueError: If `tokens` is less than 1, or a layer's width is no multiple of its head size.
    """
    if tokens < 1:
        raise ValueError(f"tokens is {tokens}: a sequence has at least 1 token")
    layout = layout_of(model)
    return [product for layer in layers(model) for product in _layer_products(layer, layout, tokens)]


def widths(model: nn.Module) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Count the heads and the neurons of each layer, on its real modules.

    Args:
        model: A classifier, cut or dense.

    Returns:
        Heads, and neurons, layer by layer; 0 where the block has vanished.

    Raises:
        TypeError: If a part is not where the model's layout says, or one of its matrices is not a plain `nn.Linear`.
        ValueError: If a layer's width is no multiple of its head size.
    """
    layout = layout_of(model)
    ups = [_linear(layer, layout.up) for layer in layers(model)]
    heads = tuple(_heads(layer, layout) for layer in layers(model))
    return heads, tuple(0 if up is None else up.out_features for up in ups)


def head_products(model: nn.Module) -> list[Product]:
    """List the matrix products of what reads the encoder (pooler, classification layer): one token of the sequence.

    Args:
        model: A classifier, cut or dense.

    Returns:
        The products.

    Raises:
        TypeError: If a part is not where the model's layout says.
    """
    linears = [module for part in head(model) for module in part.modules() if isinstance(module, nn.Linear)]
    return [Product(1, linear.in_features, linear.out_features) for linear in linears]


def embedding_products(model: nn.Module, *, tokens: int) -> list[Product]:
    """List the matrix products of the embeddings, where they are factorised or narrower than the hidden states.

    Args:
        model: A classifier, cut or dense.
        tokens: Length of the sequence with its special tokens.

    Returns:
        The products.

    Raises:
        TypeError: If a part is not where the model's layout says.
    """
    linears = [module for part in embeddings(model) for module in part.modules() if isinstance(module, nn.Linear)]
    return [Product(tokens, linear.in_features, linear.out_features) for linear in linears]


def _layer_products(layer: nn.Module, layout: Layout, tokens: int) -> list[Product]:
    paths = (*layout.into_attention, layout.attention_output, layout.up, layout.down)
    linears = [_linear(layer, path) for path in paths]
    return _attention_products(layer, layout, tokens) + [
        Product(tokens, linear.in_features, linear.out_features) for linear in linears if linear is not None
    ]


def _attention_products(layer: nn.Module, layout: Layout, tokens: int) -> list[Product]:
    heads = _heads(layer, layout)
    if not heads:
        return []
    head_size = _head_size(layer, layout)
    return [
        Product(tokens, head_size, tokens, weights=False, count=heads),
        Product(tokens, tokens, head_size, weights=False, count=heads),
    ]


def _heads(layer: nn.Module, layout: Layout) -> int:
    query = _linear(layer, layout.query)
    if query is None:
        return 0
    heads, rest = divmod(query.out_features, size := _head_size(layer, layout))
    if rest:
        raise ValueError(f"a query of width {query.out_features} with heads of size {size}: cut whole heads only")
    return heads


def _head_size(layer: nn.Module, layout: Layout) -> int:
    return cast(int, layer.get_submodule(layout.attention).attention_head_size)


def _linear(layer: nn.Module, path: str) -> nn.Linear | None:
    """The matrix at a path in a layer, or None where the cut has taken it out."""
    try:
        module = layer.get_submodule(path)
    except AttributeError:
        return None
    if isinstance(module, nn.Linear):
        return module if module.weight.numel() else None
    if hasattr(module, "weight"):
        raise TypeError(f"{path} is a {type(module).__name__}, which cannot be counted: only torch.nn.Linear can")
    return None
