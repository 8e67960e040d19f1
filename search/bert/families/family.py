"""What is to be known of a family of models, so that everything else can cut, score and train one.

A family is a `Family` in a file of its own and a line in `search.bert.families.FAMILIES`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from objectives.layout import Layout
from search.bert.families.blocks import NoHeads
from search.plan import Shape


@dataclass(frozen=True)
class Family:
    """One family of encoders that classify.

    Attributes:
        title: Name, as people write it.
        model: The class of its pruned classifiers; without the fields of a pruned one its config makes a dense model.
        config: The class of its configs.
        layout: Where the parts of a model are.
        classifier: Names of weight and bias of the last layer, which only a fine-tuned checkpoint has.
        between: Names of the weights between encoder and last layer, which an encoder may lack.
        logits: From a model and the hidden states (batch, tokens, H) after its last layer to logits (batch, labels).
        pairs: What tells the two texts of a pair apart: token `types`, or separating `tokens` alone.
        neurons: Field of the config with the number of neurons.
        token_types: Field of the config with the number of token types; None where there are no token types.
        embedding: Field of the config with the width of the embeddings; None where it is the hidden size.
        without_heads: What stands in the place of an attention block, given here, that keeps no head.
        without_neurons: What stands in the place of a feed-forward block, given here, that keeps no neuron. Where the
            output projection is part of either block, what stands there has one of the same name, which gives the bias.
    """

    title: str
    model: type[PreTrainedModel]
    config: type[PreTrainedConfig]
    layout: Layout
    classifier: tuple[str, str]
    between: tuple[str, ...]
    logits: Callable[[PreTrainedModel, Tensor], Tensor]
    pairs: Literal["types", "tokens"] = "types"
    neurons: str = "intermediate_size"
    token_types: str | None = "type_vocab_size"
    embedding: str | None = None
    without_heads: Callable[[nn.Module], nn.Module] = lambda _block: NoHeads()
    without_neurons: Callable[[nn.Module], nn.Module] = lambda _block: nn.Identity()

    def shape(self, config: PreTrainedConfig) -> Shape:
        """Sizes of the dense model that a config describes, also that of a pruned one."""
        width = config.hidden_size if self.embedding is None else getattr(config, self.embedding)
        return Shape(
            layers=config.num_hidden_layers,
            heads=config.num_attention_heads,
            head_size=config.hidden_size // config.num_attention_heads,
            hidden=config.hidden_size,
            neurons=getattr(config, self.neurons),
            vocabulary=config.vocab_size,
            positions=config.max_position_embeddings,
            token_types=0 if self.token_types is None else getattr(config, self.token_types),
            labels=cast(int, config.num_labels),
            embedding=None if width == config.hidden_size else width,
        )
