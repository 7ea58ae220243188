"""Independent random streams: one for each (seed, role), whatever else a trial draws.

Two trials of one seed therefore see the same backbone and the same data order however their terms
differ, which is what makes a comparison by seed a paired one. No stream is PyTorch's global one.

Roles, the first of which names the stream:

* `"backbone"`, a parameter's name, and `"head"`, a parameter's name: a student's random weights;
* `"projection"`, a term's canonical JSON, a layer pair: a learned projection; with a side behind
  it, that side's map of a contrast;
* `"memory"`, a term's canonical JSON, a layer pair, a side: what a contrast remembers at first;
* `"negatives"`, a term's canonical JSON, a step: the rows that it tells a batch's from;
* `"matching"`, a term's canonical JSON, an epoch: the layers that a rule draws anew;
* `"language_head"`, a parameter's name: a stage's head for masked language modelling;
* `"order"`, an epoch: the order of the rows;
* `"hidden"`, a stage, a step: the tokens that are hidden;
* `"dropout"`, a stage, a step, a part of its batch: the masks of a model's dropout.
"""

import hashlib

import torch

from ..search_spaces.trial import canonical_json


def stream_seed(seed: int, *role: str) -> int:
    """The seed of a role's stream: 63 bits of SHA-256 over seed and role.

    Args:
        seed: The trial's seed.
        role: What the stream is for; ("a", "b") and ("ab",) are different roles.
    """
    content = hashlib.sha256(canonical_json([seed, *role]).encode()).digest()
    return int.from_bytes(content[:8], "big") >> 1


def generator(seed: int, *role: str) -> torch.Generator:
    """A CPU generator at the start of a role's stream.

    On the CPU, so that a student starts with the same weights on every device.
    """
    return torch.Generator().manual_seed(stream_seed(seed, *role))
