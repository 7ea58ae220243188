"""Where a student's weights start."""

from typing import Annotated, Literal, assert_never, get_args

from pydantic import BeforeValidator, Field

from .matching import BlockRule, LayerPair, MatchingError, Rule, layer_pairs
from .spec import Count, Spec

Part = Literal["copy", "random"]


def _gives_each_block_one(value: object) -> object:
    rules = get_args(BlockRule)
    if value in get_args(Rule) and value not in rules:
        raise ValueError(
            f"`{value}` does not give each student block exactly one teacher block; write one of "
            f"{', '.join(rules)}, or a list of teacher layers"
        )
    return value


class TeacherLayers(Spec):
    """Blocks copied from chosen teacher layers; every other part is said explicitly.

    Needs a student of the teacher's width, heads and feed-forward width.
    """

    teacher_layers: Annotated[
        BlockRule | Annotated[tuple[Count, ...], Field(min_length=1)],
        BeforeValidator(_gives_each_block_one),
    ]
    """A rule that gives each student block its teacher block, or one teacher block for each."""
    from_: Literal["fine_tuned", "pretrained"] = Field(default="fine_tuned", alias="from")
    """The teacher after or before its fine-tuning on the task."""
    embeddings: Part = "copy"
    """Word, position and type embeddings."""
    layer_norms: Part = "copy"
    """LayerNorms of the copied blocks and the embeddings; `random` resets them to 1 and 0."""
    pooler: Part = "copy"
    """The map from the first token to the head."""
    head: Part = "random"
    """The classifier; `copy` needs `from: fine_tuned`."""


Initialisation = Literal["random"] | TeacherLayers


def source_layers(
    initialisation: TeacherLayers, *, num_teacher_layers: int, num_student_layers: int
) -> tuple[LayerPair, ...]:
    """Which teacher block each student block copies.

    Raises:
        MatchingError: The rule or list does not give each student block a teacher block.
    """
    chosen = initialisation.teacher_layers
    match chosen:
        case str():
            return layer_pairs(
                chosen,
                num_teacher_layers=num_teacher_layers,
                num_student_layers=num_student_layers,
            )
        case tuple():
            if len(chosen) != num_student_layers:
                raise MatchingError(
                    f"{len(chosen)} teacher layers are listed for a student of "
                    f"{num_student_layers} layers"
                )
            if max(chosen) > num_teacher_layers:
                raise MatchingError(
                    f"layer {max(chosen)} lies outside the teacher's {num_teacher_layers} layers"
                )
            return tuple(LayerPair(n, layer) for n, layer in enumerate(chosen, start=1))
        case _:
            assert_never(chosen)


def initialisation_label(initialisation: Initialisation) -> str:
    """`random`, or the layers and whatever differs from the defaults.

    For example `teacher-uniform`, `teacher-1.3.5+head-copy`.
    """
    if isinstance(initialisation, str):
        return initialisation
    changed = initialisation.model_dump(exclude_defaults=True, exclude={"teacher_layers"})
    parts = [f"{key}-{value}" for key, value in changed.items()]
    layers = initialisation.teacher_layers
    chosen = layers if isinstance(layers, str) else ".".join(map(str, layers))
    return "+".join([f"teacher-{chosen}", *parts])
