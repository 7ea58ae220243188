"""Parameter counts of published models, and shapes of equal size."""

import pytest

from kdsweep.search_spaces.shape import (
    IsoShapes,
    Shape,
    embedding_parameters,
    encoder_parameters,
    forward_flops_per_token,
    iso_shapes,
    shape_label,
)

# Counts of the Hugging Face checkpoints: encoder alone, and with embeddings and pooler.
PUBLISHED = [
    ("BERT-tiny", (2, 128, 2, 512), 396_544, 4_385_920),
    ("BERT-mini", (4, 256, 4, 1024), 3_159_040, 11_170_560),
    ("BERT-small", (4, 512, 8, 2048), 12_609_536, 28_763_648),
    ("BERT-medium", (8, 512, 8, 2048), 25_219_072, 41_373_184),
    ("BERT-base", (12, 768, 12, 3072), 85_054_464, 109_482_240),
    ("TinyBERT4", (4, 312, 12, 1200), 4_568_736, 14_350_248),
    ("TinyBERT6", (6, 768, 12, 3072), 42_527_232, 66_955_008),
    ("MiniLM-L12-H384", (12, 384, 12, 1536), 21_293_568, 33_360_000),
    ("MiniLM-L6-H384", (6, 384, 12, 1536), 10_646_784, 22_713_216),
]


@pytest.mark.parametrize(("name", "sizes", "encoder", "total"), PUBLISHED)
def test_counts_equal_those_of_published_models(
    name: str, sizes: tuple[int, int, int, int], encoder: int, total: int
) -> None:
    layers, width, heads, feed_forward = sizes
    shape = Shape(layers=layers, width=width, heads=heads, feed_forward=feed_forward)
    embeddings = embedding_parameters(width, vocab_size=30522, max_positions=512)
    pooler = width * width + width
    assert encoder_parameters(shape) == encoder
    assert encoder_parameters(shape) + embeddings + pooler == total


def test_operations_count_a_multiply_add_as_two() -> None:
    # By hand, 1 layer, width 2, feed-forward 8, 3 tokens: 2 (4*4 + 2*2*8) + 4*3*2 = 120.
    shape = Shape(layers=1, width=2, heads=1)
    assert forward_flops_per_token(shape, sequence_length=3) == 120


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (3.159e6, ["1x512x8", "4x256x4", "7x192x3", "15x128x2", "16x128x2"]),
        (4.569e6, ["2x448x7", "6x256x4", "10x192x3", "22x128x2", "23x128x2", "24x128x2"]),
    ],
)
def test_iso_shapes_are_those_of_the_published_enumeration(
    target: float, expected: list[str]
) -> None:
    spec = IsoShapes(
        iso="encoder_parameters", target=target, tolerance=0.06, layers=tuple(range(1, 25))
    )
    assert [shape_label(shape) for shape in iso_shapes(spec)] == expected


def test_iso_shapes_take_a_fixed_number_of_heads() -> None:
    spec = IsoShapes(iso="encoder_parameters", target=10_646_784, layers=(6,), heads=12)
    assert [shape_label(shape) for shape in iso_shapes(spec)] == ["6x384x12"]


def test_a_label_names_the_feed_forward_width_only_where_it_is_unusual() -> None:
    assert shape_label(Shape(layers=3, width=384, heads=12, feed_forward=1536)) == "3x384x12"
    assert shape_label(Shape(layers=4, width=312, heads=12, feed_forward=1200)) == "4x312x12x1200"


def test_large_budgets_are_enumerated_without_walking_from_zero() -> None:
    spec = IsoShapes(
        iso="encoder_parameters", target=1e12, tolerance=1e-5, layers=(12,), width_multiple=1
    )
    shapes = iso_shapes(spec)
    assert shapes
    assert all(abs(encoder_parameters(shape) / 1e12 - 1) <= 1e-5 for shape in shapes)
