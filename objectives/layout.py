"""Where the parts of a transformer classifier are: paths of modules, the same for all models of one family.

model ─┬─ bert ─┬─ embeddings
│        ├─ encoder ── layer ── 0 ─┬─ attention ─┬─ self ── query, key, value      reads the hidden states
│        │                         │             └─ output ── dense, LayerNorm     writes to them
│        │                         ├─ intermediate ── dense
│        │                         └─ output ── dense, LayerNorm
│        └─ pooler
└─ classifier
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """Paths of modules. The first five begin at the classifier, the others at a layer.

    Attributes:
        embeddings: Words, positions and, where there are any, token types.
        projection: From the width of the embeddings to that of the hidden states; None where both are one.
        encoder: All layers.
        layers: The list of the layers.
        head: What reads the encoder for the classification, in the order in which it computes.
        attention: The block that self-attention is, without what stays where no head is kept.
        query: Projection to the queries, from the hidden states.
        key: Projection to the keys.
        value: Projection to the values.
        attention_output: Projection from the heads to the hidden states.
        attention_norm: LayerNorm of the attention's output and the residual path.
        feed_forward: The block that the neurons are, without what stays where none is kept.
        up: Projection to the neurons.
        down: Projection from the neurons to the hidden states.
        norm: LayerNorm of the feed-forward output and the residual path.
    """

    embeddings: str
    encoder: str
    layers: str
    head: tuple[str, ...]
    projection: str | None = None
    attention: str = "attention.self"
    query: str = "attention.self.query"
    key: str = "attention.self.key"
    value: str = "attention.self.value"
    attention_output: str = "attention.output.dense"
    attention_norm: str = "attention.output.LayerNorm"
    feed_forward: str = "intermediate"
    up: str = "intermediate.dense"
    down: str = "output.dense"
    norm: str = "output.LayerNorm"

    @property
    def words(self) -> str:
        """The word embeddings."""
        return f"{self.embeddings}.word_embeddings"

    @property
    def positions(self) -> str:
        """The position embeddings."""
        return f"{self.embeddings}.position_embeddings"

    @property
    def into_attention(self) -> tuple[str, str, str]:
        """The projections whose rows are the channels of the heads."""
        return self.query, self.key, self.value


BERT = Layout(
    embeddings="bert.embeddings",
    encoder="bert.encoder",
    layers="bert.encoder.layer",
    head=("bert.pooler", "classifier"),
)
"""The layout of a model that does not say its own."""
