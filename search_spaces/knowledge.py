"""What is transferred: one class a kind. A term is a kind with its weight, label and matching.

Notation of the docstrings: S and T stand for student and teacher, z for logits, p for their
softmax, h for hidden states; L_S and L_T are the depths.
"""

from collections.abc import Iterable, Iterator
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints, WithJsonSchema

from .matching import Matching
from .schedules import TemperatureSchedule, WeightSchedule
from .spec import (
    Count,
    Label,
    NonNegative,
    Number,
    Positive,
    ProperShare,
    Share,
    Spec,
    Weight,
)

ShownFeature = Literal["logits", "hidden_states", "attentions", "queries", "keys", "values"]
"""What any model shows of itself; `attentions` are scores before mask and softmax."""

FeatureKind = Literal[ShownFeature, "attention_means", "words"]
"""With the mean over heads of attention probabilities, and the logits over the vocabulary at hidden
tokens."""

Projection = Literal["none", "linear", "linear_norm", "mlp", "orthogonal"]
"""A learned map from the student's width to the teacher's; never part of the exported student."""

SampleFeature = Literal["cls", "mean", "logits"]
"""What stands for a row: its first token, the mean of its tokens, or its logits."""


class _Term(Spec):
    label: Label | None = None
    """Names the term in addresses and columns; its kind unless said. Not part of any id."""
    weight: Weight = 1.0
    """Multiplies the term in the objective; 0 removes the term."""
    scale: Literal["gradient_norm"] | None = None
    """`gradient_norm`: at the stage's first step the term's loss is scaled so that its gradient on
    the student's encoder is as long as the mean of all terms' gradients; the factor stays."""
    schedule: WeightSchedule | None = None
    """Multiplies the weight: `{linear_up: share}`, `{linear_down: share}` or `{cosine: share}` over
    a first share of the stage's steps, `{gate: [begin, end]}`, `{once: {kind: K, loss: X}}` from
    when the loss of the stage's term of that kind falls below X, `{ratio_to: K}` to weigh as much
    as that term."""


class LayerTerm(_Term):
    """A term that compares layers and therefore needs a matching."""

    matching: Matching | None = None
    """Which layers are compared; what the axis `matching` fills."""
    reduce_layers: Literal["mean", "sum"] = "mean"
    """Over matched pairs. A mean keeps depth from changing the term's weight; published recipes
    often sum."""


# Response: what the models answer


class HardLabels(_Term):
    """Cross-entropy of the student's logits with the task's own labels.

    Formula: -log p_S[y], mean over rows, in nats; with `label_smoothing` s the target is
    (1 - s) * onehot(y) + s / C.
    Needs: no teacher.
    Paper: label smoothing is Szegedy et al., 2016, arXiv:1512.00567.
    """

    kind: Literal["hard_labels"]
    label_smoothing: Share = 0.0
    """Share of the target that is spread evenly over all classes."""


class Jsd(Spec):
    """Generalised Jensen-Shannon divergence."""

    jsd: ProperShare
    """beta: the teacher's share in the mixture and the weight of its divergence."""


class AnnealedMse(Spec):
    """Squared distance to the teacher's logits, which grow to their full size in steps."""

    annealed_mse: Count
    """T_max: number of steps from 1 / T_max of the logits to all of them; 7 in the paper."""


class DkdWeights(Spec):
    """Weights of the two parts of decoupled distillation."""

    target: NonNegative = 1.0
    """alpha: of the target class against the rest."""
    others: NonNegative = 8.0
    """beta: of the other classes among themselves."""


class Dkd(Spec):
    """Decoupled knowledge distillation."""

    dkd: DkdWeights
    """Weights of its two parts."""


class DistWeights(Spec):
    """Weights of the two correlations."""

    rows: NonNegative = 1.0
    """beta: of the classes within a row."""
    columns: NonNegative = 1.0
    """gamma: of the rows within a class."""


class Dist(Spec):
    """One minus Pearson's correlation, of rows and of columns."""

    dist: DistWeights
    """Weights of its two parts."""


SoftDistance = Literal["kl", "mse", "cross_entropy", "reverse_kl"] | Jsd | AnnealedMse | Dkd | Dist
"""How the student's answer is compared with the teacher's."""


class SoftLogits(_Term):
    """The teacher's output distribution, softened by a temperature, or its raw logits.

    Formula: with p = softmax(z / temperature), mean over rows, in nats, times temperature**2:
    kl: KL(p_T || p_S). cross_entropy: -sum p_T log p_S, which is kl plus the teacher's entropy and
    has the same gradient. reverse_kl: KL(p_S || p_T). jsd: b KL(p_T || m) + (1 - b) KL(p_S || m),
    m = b p_T + (1 - b) p_S. dkd: target * KL of (p_y, 1 - p_y) + others * KL among the other
    classes. dist: rows * (1 - Pearson within a row) + columns * (1 - Pearson within a class).
    Of raw logits: mse: mean of (z_S - z_T)**2 over rows and classes. annealed_mse: mean over rows
    of ||z_S - phi z_T||**2, phi rising in steps from 1 / T_max to 1 over the stage.
    Needs: two classes, but for raw logits; three for `standardise` and for the rows of dist, which
    have no gradient with two. The columns of dist couple the rows of a batch.
    Paper: kl is Hinton, Vinyals and Dean, 2015, arXiv:1503.02531, section 2; reverse_kl Gu et al.,
    2024, arXiv:2306.08543; jsd Agarwal et al., 2024, arXiv:2306.13649; dkd Zhao et al., 2022,
    arXiv:2203.08679; dist Huang et al., 2022, arXiv:2205.10536; mse Ba and Caruana, 2014,
    arXiv:1312.6184; annealed_mse Jafari et al., 2021, arXiv:2104.07163.
    """

    kind: Literal["soft_logits"]
    distance: SoftDistance = "kl"
    """`kl`, `cross_entropy`, `reverse_kl`, `{jsd: beta}`, `{dkd: {target: 1, others: 8}}` and
    `{dist: {rows: 1, columns: 1}}` compare softened distributions; `mse` and
    `{annealed_mse: 7}` raw logits."""
    temperature: Positive | None = None
    """Divides both models' logits before the softmax; what the axis `temperature` fills."""
    temperature_schedule: TemperatureSchedule | None = None
    """How it changes: `{anneal: T}` ends at another one; `{flsw: {beta: 1, gamma: 1}}` and
    `{cwsm: beta}` give each row of a batch its own."""
    temperature_squared: bool = True
    """Whether temperature**2 multiplies a softened distance, so that the size of its gradient does
    not depend on the temperature."""
    standardise: bool = False
    """Whether each row of logits is brought to mean 0 and deviation 1 (the population's) before it
    is softened (Sun et al., 2024, arXiv:2403.01427)."""

    @property
    def is_softened(self) -> bool:
        """Whether a temperature divides the logits."""
        return self.distance != "mse" and not isinstance(self.distance, AnnealedMse)


class MaskedLabels(_Term):
    """Masked language modelling: the student guesses hidden tokens.

    Formula: -log p_S[true token], mean over the hidden tokens of a batch, in nats. A stage with
    such a term hides 15 % of each row's tokens from both models, at least one, drawn with the seed
    anew in each step: 80 % of them behind the mask token, 10 % behind a random one, 10 % not at
    all. The student guesses with a head of the stage's own (a map, GELU, LayerNorm, and the word
    embeddings for an output), which is not exported.
    Needs: no teacher and no labels; a tokenizer with a mask token.
    Paper: Devlin et al., BERT, 2019, arXiv:1810.04805, section 3.1 and appendix A.1.
    """

    kind: Literal["masked_labels"]


class MaskedLogits(_Term):
    """What a masked language model expects behind hidden tokens, softened by a temperature.

    Formula: with p = softmax(z / temperature) over the vocabulary: KL(p_T || p_S), mean over the
    hidden tokens of a batch, in nats, times temperature**2. Tokens are hidden as for
    `masked_labels`.
    Needs: a stage with `teacher: pretrained`, and a teacher with a head for masked language
    modelling: one from its checkpoint, or one that `teacher.language_head` trains.
    Paper: Sanh et al., DistilBERT, 2019, arXiv:1910.01108, section 2, there over all tokens.
    """

    kind: Literal["masked_logits"]
    temperature: Positive | None = None
    """Divides both models' logits before the softmax; what the axis `temperature` fills."""
    temperature_squared: bool = True
    """Whether temperature**2 multiplies the divergence."""


# Hidden states


class HiddenStates(LayerTerm):
    """The outputs of matched blocks, over the tokens that are not padding.

    Formula: mse: mean over tokens and features of (W h_S - h_T)**2. cosine: mean over tokens of
    1 - cos(W h_S, h_T). W is the projection. PKD is mse with `of: cls`, `normalise: true` and
    `reduce_features: sum`.
    Needs: equal widths, or a projection.
    Paper: mse is Jiao et al., TinyBERT, 2020, arXiv:1909.10351 (L_hidn); cosine Sanh et al.,
    DistilBERT, 2019, arXiv:1910.01108, and with `of: cls` Aguilar et al., 2020,
    arXiv:1910.03723; PKD is Sun et al., 2019, arXiv:1908.09355.
    """

    kind: Literal["hidden_states"]
    of: Literal["tokens", "cls", "mean"] = "tokens"
    """What is compared: every token, the first one, or the mean of a row's tokens."""
    distance: Literal["mse", "cosine"] = "mse"
    """How two vectors are compared."""
    normalise: bool = False
    """Whether both vectors are brought to length 1 before `mse`."""
    projection: Projection = "linear"
    """The student's map to the teacher's width where the widths differ; `none` needs equal widths.
    `linear` has a bias, `linear_norm` a LayerNorm behind it, `mlp` one hidden layer with GELU,
    `orthogonal` columns that stay orthonormal."""
    share_projection: bool = False
    """Whether all pairs use one map, as TinyBERT's code does."""
    reduce_features: Literal["mean", "sum"] = "mean"
    """Over the features of `mse`."""


class Gram(LayerTerm):
    """Which features of a block are active together: the flow of a solution procedure.

    Formula: G = h^T h / number of tokens, per row; mean of (G_S - G_T)**2 over rows and pairs of
    features.
    Needs: equal widths, or a projection.
    Paper: Yim et al., FSP, 2017 (CVPR), with both sides of a pair taken from one block.
    """

    kind: Literal["gram"]
    projection: Projection = "linear"
    """The student's map to the teacher's width where the widths differ."""
    share_projection: bool = False
    """Whether all pairs use one map."""


class TokenSimilarity(LayerTerm):
    """Which tokens of a row a block makes alike: maximum mean discrepancy of second order.

    Formula: R = h h^T / width, per row; mean of (R_S - R_T)**2 over pairs of tokens.
    Needs: nothing of the widths, each side is divided by its own.
    Paper: Huang and Wang, NST, 2017, arXiv:1707.01219, with a polynomial kernel on features that
    are divided by their width instead of their length.
    """

    kind: Literal["token_similarity"]


class Cka(LayerTerm):
    """How alike two representations are up to rotation and scale.

    Formula: 1 - HSIC(S, T) / sqrt(HSIC(S, S) HSIC(T, T)) with a linear kernel over all real tokens
    of a batch, or over its rows for `of: cls` and `of: mean`; the unbiased estimator, which does
    not call independent representations alike when rows are few.
    Needs: nothing of the widths; four tokens or rows in a batch. Couples the rows of a batch.
    Paper: Kornblith et al., 2019, arXiv:1905.00414; the estimator of HSIC is that of Song et al.,
    2012 (JMLR 13).
    """

    kind: Literal["cka"]
    of: Literal["tokens", "cls", "mean"] = "tokens"
    """What is one example: every token, a row's first one, or the mean of its tokens."""


# Attention


class Attentions(LayerTerm):
    """The attention of matched blocks, over pairs of tokens that are not padding.

    Formula: mse: mean over heads and pairs of tokens of (a_S - a_T)**2. kl: KL(T || S) of each row
    of probabilities, mean over heads and rows. cross_entropy: kl plus the teacher's entropy.
    Needs: equal numbers of heads, or a head map that makes them equal.
    Paper: mse of scores is Jiao et al., TinyBERT, 2020, arXiv:1909.10351 (L_attn); kl is Wang et
    al., MiniLM, 2020, arXiv:2002.10957 (L_AT).
    """

    kind: Literal["attentions"]
    of: Literal["scores", "probabilities"] = "scores"
    """What the head map acts on and `mse` compares: dot products before the softmax, or the
    distributions after it."""
    distance: Literal["mse", "kl", "cross_entropy"] | None = None
    """`mse` for scores and `kl` for probabilities unless said."""
    head_map: Literal["equal", "mean", "sum", "grouped"] = "equal"
    """`equal` compares head with head and needs equal numbers; `mean` and `sum` compare one map of
    all heads; `grouped` takes the mean over as many of the teacher's neighbouring heads as make
    the student's number."""

    @property
    def reads_means(self) -> bool:
        """Whether what is compared is one map of probabilities, the mean over heads."""
        return self.of == "probabilities" and self.head_map == "mean"

    @property
    def compared(self) -> Literal["mse", "kl", "cross_entropy"]:
        """The distance, with its default written out."""
        return self.distance or ("mse" if self.of == "scores" else "kl")


RelationSource = Literal["q", "k", "v"]


def _in_order(of: tuple[RelationSource, ...]) -> tuple[RelationSource, ...]:
    return tuple(sorted(set(of)))


class Relations(LayerTerm):
    """Self-attention relations: which queries, keys or values are alike.

    Formula: for X of q, k, v, split into `heads` of width d: R = softmax(X X^T / sqrt(d)) over real
    tokens; KL(R_T || R_S), mean over heads and rows, sum over `of`.
    Needs: `heads` divides both widths; without `heads` both models have equal numbers of heads.
    Paper: Wang et al., MiniLMv2, 2021, arXiv:2012.15828; `of: [v]` without
    `heads` is the value relation of MiniLM, 2020, arXiv:2002.10957.
    """

    kind: Literal["relations"]
    of: Annotated[
        tuple[RelationSource, ...], Field(min_length=1, max_length=3), AfterValidator(_in_order)
    ] = ("k", "q", "v")
    """Which of queries, keys and values are related with themselves."""
    heads: Count | None = None
    """Relation heads; the models' own attention heads unless said."""


class WordRelations(LayerTerm):
    """How the tokens of a row stand to their neighbours in a block: contextual distillation.

    Formula: pairs: cos(h_i, h_j) of tokens at most `window` apart, softmax over j; KL(T || S), mean
    over tokens. angles: cos of the angle at a token between two others at most `window` away; mean
    squared difference.
    Needs: nothing of the widths.
    Paper: Park, Kim and Yang, CKD, 2021, arXiv:2109.08359 (word relation).
    """

    kind: Literal["word_relations"]
    of: Literal["pairs", "angles"] = "pairs"
    """What is compared: pairs of tokens or triples."""
    window: Count = 10
    """How far apart two related tokens may be; the paper's window of 21 tokens reaches 10."""


class LayerRelations(LayerTerm):
    """How a token changes from layer to layer: contextual distillation across depth.

    Formula: over the matched layers of one token: pairs: cos(h^a, h^b), softmax over b; KL(T || S),
    mean over layers and tokens. angles: cos of the angle at layer b between layers a < b < c; mean
    squared difference.
    Needs: two matched pairs of layers, for angles three; nothing of the widths.
    Paper: Park, Kim and Yang, CKD, 2021, arXiv:2109.08359 (layer transforming
    relation).
    """

    kind: Literal["layer_relations"]
    of: Literal["pairs", "angles"] = "pairs"
    """What is compared: pairs of layers or triples."""


# Relations between the rows of a batch


class Rkd(LayerTerm):
    """How the rows of a batch lie to each other.

    Formula: distances: Huber loss of ||x_i - x_j|| divided by its mean over pairs; angles: Huber
    loss of cos of the angle at x_j between x_i and x_k; mean over pairs, or triples, of different
    rows.
    Needs: three rows in a batch; nothing of the widths. Couples the rows of a batch.
    Paper: Park et al., 2019, arXiv:1904.05068.
    """

    kind: Literal["rkd"]
    relation: Literal["distances", "angles"] = "distances"
    """What is compared: pairs of rows or triples."""
    of: SampleFeature = "cls"
    """What stands for a row."""


class Sp(LayerTerm):
    """Which rows of a batch activate a block alike.

    Formula: Q = x x^T with each row brought to length 1; sum of (Q_S - Q_T)**2 / B**2.
    Needs: three rows in a batch; nothing of the widths. Couples the rows of a batch.
    Paper: Tung and Mori, 2019, arXiv:1907.09682.
    """

    kind: Literal["sp"]
    of: SampleFeature = "cls"
    """What stands for a row."""


class Pkt(LayerTerm):
    """The probability that a row of a batch picks another as its neighbour.

    Formula: p(j | i) from (1 + cos(x_i, x_j)) / 2 over the other rows; KL(T || S), mean over rows.
    Needs: three rows in a batch; nothing of the widths. Couples the rows of a batch.
    Paper: Passalis and Tefas, 2018, arXiv:1803.10837.
    """

    kind: Literal["pkt"]
    of: SampleFeature = "cls"
    """What stands for a row."""


class Cc(LayerTerm):
    """The correlation of a batch's rows under a Gaussian kernel.

    Formula: K = exp(-gamma ||x_i - x_j||**2) with x of length 1; mean of (K_S - K_T)**2.
    Needs: three rows in a batch; nothing of the widths. Couples the rows of a batch.
    Paper: Peng et al., 2019, arXiv:1904.01802; without the Taylor series, which
    the exact kernel makes superfluous.
    """

    kind: Literal["cc"]
    of: SampleFeature = "cls"
    """What stands for a row."""
    gamma: Positive = 0.4
    """Of the kernel."""


# Contrast between the rows of train


class Crd(LayerTerm):
    """Which row of train a vector stands for, told from the other side's memory of all rows.

    Formula: s and t are linear maps of x_S and x_T to `dimension`, at length 1; each side remembers
    one such vector m a row. With e(a, m) = exp(a . m / tau), c the mean of e over the first batch
    and h = e / (e + negatives * c): -log h(s_i, m_i) - sum_j log(1 - h(s_i, m_j)) over the
    teacher's memory, plus the same of t_i over the student's; mean over rows. The j are
    `negatives` other rows, any of them as likely, drawn anew in each step. After the step m_i is
    momentum * m_i + (1 - momentum) * the row's new vector, at length 1.
    Needs: two rows of train; nothing of the widths. The teacher's map learns too, which only a
    contrast may let it; both are left behind. The memories take 8 * dimension bytes a row of train
    and pair of layers, on the device and in every checkpoint: 69 MB for SST-2, 402 for MNLI at 128.
    Paper: Tian, Krishnan and Isola, 2020, arXiv:1910.10699. Its code (RepDistiller), whose c is
    Z / M, draws its negatives, 16384 of 50,000 rows, from the other classes; with the two or three
    classes of most tasks that would leave out much of train.
    """

    kind: Literal["crd"]
    of: SampleFeature = "cls"
    """What stands for a row."""
    dimension: Count = 128
    """Of the vectors that are compared."""
    tau: Positive = 0.07
    """Divides their products; not softened logits' temperature, which an axis fills."""
    momentum: Annotated[Share, Field(lt=1)] = 0.5
    """How much of a row's remembered vector stays when the row comes again."""
    negatives: Count = 1024
    """Other rows that a row is told from in each step."""


# Losses of the user's own

LOSS_PATTERN = r"^[A-Za-z0-9_-]{1,64}\.[A-Za-z_][A-Za-z0-9_]{0,63}$"
"""How a grid names a loss: a file without `.py`, and a function of it."""


class PluginLoss(Spec):
    """A function of a file that the grid lists under `plugins`."""

    file: str
    """Where the grid found it; names it in messages and is part of no id."""
    digest: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    """Hexadecimal SHA-256 of the file's bytes."""
    function: str
    """One at the top level of the file."""


class PluginSettings(Spec):
    """Numbers by the names that a function gives its further arguments."""

    model_config = ConfigDict(extra="allow")

    __pydantic_extra__: dict[str, Number]

    def as_arguments(self) -> dict[str, int | float]:
        """What the function is called with beside its three tensors."""
        return dict(self.__pydantic_extra__)


class Plugin(LayerTerm):
    """A loss of your own: a function in a file that the grid lists under `plugins`.

    Formula: `def loss(student, teacher, token_mask, **settings)`, once for each matched pair of
    layers. It gets float32 tensors with zeros in the place of padding, the student's after its
    projection and the teacher's without a gradient, and `token_mask` [B, L], True at real tokens.
    It masks, reduces, and returns a tensor of shape []: the mean over the batch. Features: logits
    [B, C]; hidden_states, queries, keys and values [B, L, H]; attentions, scores before mask and
    softmax, [B, A, L, L].
    Needs: `--allow-plugins`, since training executes the file; it may import installed packages,
    and no file beside it. The function is pure: the first batch shows that its loss is a finite
    scalar with a gradient to the student, the same when asked again, and the same when the batch
    gets more padding. The id of a trial has the file's bytes in it and not its place.
    Paper: none; whoever writes the function knows.
    """

    kind: Literal["plugin"]
    loss: Annotated[PluginLoss, WithJsonSchema({"type": "string", "pattern": LOSS_PATTERN})]
    """The file without `.py`, and the function: `my_loss.pooled_l1`, which is then the term's
    label too, unless one is said."""
    reads: ShownFeature
    """The feature of both models that the function compares."""
    projection: Projection = "none"
    """A learned map of the student's vectors to the teacher's width where the widths differ;
    `none` hands both over as they are."""
    settings: PluginSettings = PluginSettings()
    """Numbers for the function's further arguments by name, such as `{beta: 0.5}`."""


VECTORS: tuple[ShownFeature, ...] = ("hidden_states", "queries", "keys", "values")
"""Features of a model's width, which a projection can map."""


Term = Annotated[
    HardLabels
    | SoftLogits
    | MaskedLabels
    | MaskedLogits
    | HiddenStates
    | Gram
    | TokenSimilarity
    | Cka
    | Attentions
    | Relations
    | WordRelations
    | LayerRelations
    | Rkd
    | Sp
    | Pkt
    | Cc
    | Crd
    | Plugin,
    Field(discriminator="kind"),
]
"""One summand of the objective."""

TERM_CLASSES: tuple[type[_Term], ...] = get_args(get_args(Term)[0])
"""Every kind, in the order in which they are explained."""

SampleTerm = Rkd | Sp | Pkt | Cc
"""Terms that compare the rows of a batch with each other."""


def kind_of(term_class: type[_Term]) -> str:
    """The word that stands for a kind in a grid."""
    word: str = get_args(term_class.model_fields["kind"].annotation)[0]
    return word


def term_label(term: Term) -> str:
    """The name of a term in addresses, tables and columns."""
    own = term.loss.function if isinstance(term, Plugin) else term.kind
    return term.label or own


LEAST_ROWS = 3
"""A batch of fewer rows has no relation between rows to speak of: angles need three, and of two
rows each picks the other."""


def reads_labels(term: Term) -> bool:
    """Whether a term reads the labels of its rows."""
    match term:
        case HardLabels() | SoftLogits(distance=Dkd()):
            return True
        case _:
            return False


def hides_tokens(terms: Iterable[Term]) -> bool:
    """Whether a stage of these terms hides tokens from both models."""
    return any(isinstance(term, MaskedLabels | MaskedLogits) for term in terms)


def couples_rows(term: Term) -> bool:
    """Whether the loss of a batch is more than the mean of its rows' losses."""
    match term:
        case SoftLogits(distance=Dist(dist=weights)):
            return weights.columns > 0
        case Rkd() | Sp() | Pkt() | Cc() | Cka():
            return True
        case _:
            return False


def open_fields(term: Term) -> frozenset[str]:
    """Fields that axes of their names fill: those that act and that the term does not say."""
    empty = {name for name in ("matching", "temperature") if getattr(term, name, "") is None}
    return frozenset(empty - inert_fields(term))


def inert_fields(term: Term) -> frozenset[str]:
    """Fields of a term that decide nothing, given its others."""
    return frozenset(_inert_fields(term))


def _inert_fields(term: Term) -> Iterator[str]:
    match term:
        case SoftLogits(is_softened=False):
            yield from ("temperature", "temperature_schedule")
            yield from ("temperature_squared", "standardise")
        case HiddenStates():
            if term.projection == "none":
                yield "share_projection"
            if term.distance == "cosine":
                yield from ("normalise", "reduce_features")
        case Gram(projection="none"):
            yield "share_projection"
        case Rkd() | Sp() | Pkt() | Cc() | Crd() if term.of == "logits":
            yield from ("matching", "reduce_layers")
        case LayerRelations():
            yield "reduce_layers"
        case Plugin(reads="logits"):
            yield from ("matching", "reduce_layers", "projection")
        case Plugin(reads="attentions"):
            yield "projection"
        case _:
            return
