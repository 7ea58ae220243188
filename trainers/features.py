"""What a model gives to the objective, and what of it the objective asks for.

B rows, L tokens, H width, A heads, C classes, M hidden tokens, V vocabulary. Positions of padding
may hold anything.

* logits: [B, C];
* words: logits over the vocabulary at the hidden tokens, row after row, [M, V];
* hidden_states: the output of a block, or of the embeddings for layer 0, [B, L, H];
* attentions: scaled dot products before mask and softmax, query by key, [B, A, L, L];
* attention_means: their softmax over real keys, averaged over heads, [B, 1, L, L];
* queries, keys, values: of a block, heads side by side, [B, L, H].
"""

from collections.abc import Mapping

from torch import Tensor

from ..search_spaces.resolution import LOGITS as LOGITS
from ..search_spaces.resolution import WORDS as WORDS
from ..search_spaces.resolution import Feature as Feature
from ..search_spaces.sizes import Sizes as Sizes

Needs = frozenset[Feature]
"""What is read of one model."""

Features = Mapping[Feature, Tensor]
"""What one forward pass gave."""
