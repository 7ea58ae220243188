"""How near a lane comes to doing nothing but the student's own work, and that to the processor.

    python benchmarks/limit.py [tiny|small|full]

Share: of a lane's time, what its student's forward, backward, optimiser and evaluations take, by
the columns `seconds/<phase>` of its attempts. It is told of the attempts' own wall time, with
all other phases beside it (`rest` is in none); of the same without each lane's first attempt, which
imports PyTorch and reads the teacher; of lane time from the first attempt's start to the last one's
end, gaps between attempts included; and of all of the launch, start of Ray and lanes included.
The spread of the first is over shapes and knowledge, of the others over repeats.

Rate: floating-point operations of a step of the student (three times the forward pass of its
blocks over real tokens; embeddings, pooler, head, terms and optimiser are not counted, padding is
not work) in the time that a step takes, beside a plain matrix multiplication of this machine in
the same precision and threads, in as many processes at once as there are lanes: of squares, and of
the student's own feed-forward map.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from printing import Ratio, tell
from tweets import (
    FULL,
    KNOWLEDGE,
    MAX_LENGTH,
    SHAPES,
    SMALL,
    TINY,
    TRAINING,
    Launched,
    Prepared,
    Setting,
    count_lanes,
    launch,
    prepare,
)

from kdsweep.search_spaces.shape import Shape, forward_flops_per_token

OWN = ("seconds/student", "seconds/evaluate")
"""Phases in which a lane does the student's own work."""

LOGITS_ALONE = frozenset({"hard_labels", "soft_logits"})
"""Knowledge that leaves the student's last block to the first token."""

SQUARE = 1024


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    setting: Setting
    shapes: Sequence[str]
    knowledge: Sequence[str]
    waves: int
    """Trials of a lane for each shape and knowledge."""
    repeats: int
    seconds: float
    """Of a multiplication."""


SIZES: Mapping[str, Size] = {
    "tiny": Size(TINY, ["2x128"], ["logits+hidden+attention"], waves=2, repeats=1, seconds=0.1),
    "small": Size(SMALL, list(SHAPES), ["logits"], waves=1, repeats=1, seconds=1.0),
    "full": Size(FULL, list(SHAPES), list(KNOWLEDGE), waves=2, repeats=3, seconds=3.0),
}


def main() -> None:
    """Print a table and one JSON line."""
    [asked] = sys.argv[1:] or ["small"]
    size, lanes = SIZES[asked], count_lanes()
    prepared = prepare(size.setting)
    tokens = mean_tokens(prepared)
    launches, speeds = [], []
    for repeat in range(size.repeats):
        launches.append(run(size, prepared, lanes, repeat))
        speeds.append(multiplications(size, launches[-1].trials, tokens, lanes))
    fastest = {of: statistics.median(each[of] for each in speeds) for of in speeds[0]}
    trials = pd.concat([launched.trials for launched in launches])
    rows = []
    for name in size.shapes:
        for kind in size.knowledge:
            is_whole = not LOGITS_ALONE.issuperset(KNOWLEDGE[kind])
            flops = step_flops(SHAPES[name], tokens, is_whole=is_whole)
            some = trials[has(trials, name, kind)]
            step = rates(some, flops, size.setting.num_steps)
            beside = {
                "of square %": 100 * step["GFLOP/s"] / fastest["square"],
                "of own map %": 100 * step["GFLOP/s"] / fastest[name],
            }
            rows.append({"shape": name, "knowledge": kind, **shares(some), **step, **beside})
    of_lanes = [lane_share(launched, lanes) for launched in launches]
    lane_shares = {of: Ratio.of([share[of] for share in of_lanes]) for of in of_lanes[0]}
    [precision], [threads] = trials["precision"].unique(), trials["threads"].unique()
    tell(
        "limit",
        rows,
        columns={"shape": "", "knowledge": ""}
        | dict.fromkeys(shares(trials), ".1f")
        | {"step ms": ".1f", "GFLOP/s": ".0f", "of square %": ".0f", "of own map %": ".0f"},
        ratios={
            "own work/attempts": Ratio.of([row["own %"] / 100 for row in rows]),
            **{f"own work/{of}": share for of, share in lane_shares.items()},
            "step/square": Ratio.of([row["of square %"] / 100 for row in rows]),
        },
        notes=[
            f"{size.setting.num_steps} steps a trial, {lanes} lanes, {precision},"
            f" {threads:.0f} threads a lane; {tokens:.1f} tokens a row",
            "own work: " + ", ".join(f"{share} of {of}" for of, share in lane_shares.items()),
            f"multiplying {SQUARE}x{SQUARE}: {fastest['square']:.0f} GFLOP/s a lane",
        ],
        size=asked,
        lanes=lanes,
        gflops=fastest,
    )


def multiplications(
    size: Size, trials: pd.DataFrame, tokens: float, lanes: int
) -> dict[str, float]:
    """GFLOP/s a lane: of squares, and by shape of the student's feed-forward map."""
    precision, threads = trials["precision"].iloc[0], int(trials["threads"].iloc[0])
    rows = round(TRAINING["batch_size"] * tokens)
    maps = {name: (rows, SHAPES[name]["width"], 4 * SHAPES[name]["width"]) for name in size.shapes}
    return {
        of: multiplied(shape, precision, threads, lanes=lanes, seconds=size.seconds)
        for of, shape in {"square": (SQUARE, SQUARE, SQUARE), **maps}.items()
    }


def run(size: Size, prepared: Prepared, lanes: int, repeat: int) -> Launched:
    """All shapes and knowledge as one sweep."""
    count = lanes * size.waves
    grid = prepared.grid(
        [SHAPES[name] for name in size.shapes],
        [KNOWLEDGE[kind] for kind in size.knowledge],
        range(repeat * count, (repeat + 1) * count),
    )
    with tempfile.TemporaryDirectory(prefix="kdsweep-bench-") as folder:
        return launch(grid, Path(folder) / "sweep", lanes=lanes)


def mean_tokens(prepared: Prepared) -> float:
    """Of a row of train, cut as it is trained on."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(prepared.teacher)
    texts = [text for (text,) in prepared.data.train.texts]
    rows = tokenizer(texts, truncation=True, max_length=MAX_LENGTH)["input_ids"]
    return statistics.mean(map(len, rows))


def has(trials: pd.DataFrame, shape: str, knowledge: str) -> pd.Series:
    """Which trials are of a shape and knowledge."""
    layers, width = SHAPES[shape]["layers"], SHAPES[shape]["width"]
    is_shape = (trials["num_hidden_layers"] == layers) & (trials["hidden_size"] == width)
    return is_shape & (trials["knowledge"] == "+".join(KNOWLEDGE[knowledge]))


def shares(trials: pd.DataFrame) -> dict[str, float]:
    """Of the attempts' wall time, in percent."""
    wall = trials["wall_seconds"].sum()
    phases = [name for name in trials if name.startswith("seconds/")]
    by_phase = {name: float(trials[name].sum() / wall) for name in phases}
    told = {f"{name.removeprefix('seconds/')} %": 100 * by_phase[name] for name in phases}
    own = 100 * sum(by_phase[name] for name in OWN)
    return {"own %": own, **told, "rest %": 100 * (1 - sum(by_phase.values()))}


def rates(trials: pd.DataFrame, flops: float, num_steps: int) -> dict[str, float]:
    """How fast a step of the student's is."""
    seconds = float(trials["seconds/student"].mean()) / num_steps
    return {"step ms": 1000 * seconds, "GFLOP/s": flops / seconds / 1e9}


def step_flops(shape: Mapping[str, int], tokens: float, *, is_whole: bool) -> float:
    """Of the blocks, forward and backward.

    Unless the last block is read, it runs for the first token, with keys and values of the others.
    """
    block = forward_flops_per_token(Shape(**{**shape, "layers": 1}), sequence_length=round(tokens))
    keys_and_values = 2 * 2 * shape["width"] ** 2
    last = block * tokens if is_whole else block + keys_and_values * (tokens - 1)
    forward = block * tokens * (shape["layers"] - 1) + last
    return 3 * forward * TRAINING["batch_size"]


def lane_share(launched: Launched, lanes: int) -> dict[str, float]:
    """What is the student's own, of later attempts, of lane time, of the launch."""
    trials = launched.trials
    own = trials[list(OWN)].sum(axis=1)
    is_later = launched.started.rank(method="first") > lanes
    between = launched.ended.max() - launched.started.min()
    return {
        "later attempts": float(own[is_later].sum() / trials["wall_seconds"][is_later].sum()),
        "lanes": float(own.sum()) / (lanes * between),
        "launch": float(own.sum()) / (lanes * launched.seconds),
    }


def multiplied(
    shape: Sequence[int], precision: str, threads: int, *, lanes: int, seconds: float
) -> float:
    """GFLOP/s of one process while as many multiply as there are lanes."""
    command = [sys.executable, __file__, "--multiply", json.dumps(shape), precision]
    command += [str(threads), str(seconds)]
    at_once: list[Any] = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(lanes)
    ]
    said = [process.communicate()[0] for process in at_once]
    assert not any(process.returncode for process in at_once), "a multiplication failed"
    return statistics.mean(map(float, said))


def multiply_here(shape: Sequence[int], precision: str, threads: int, seconds: float) -> float:
    """GFLOP/s of multiplying matrices of n x k and k x m over and over."""
    import torch

    torch.set_num_threads(threads)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    n, k, m = shape
    left, right = torch.randn(n, k, dtype=dtype), torch.randn(k, m, dtype=dtype)
    for _ in range(3):
        left @ right
    count, start = 0, time.perf_counter()
    while (took := time.perf_counter() - start) < seconds:
        left @ right
        count += 1
    return 2 * n * k * m * count / took / 1e9


if __name__ == "__main__":
    if sys.argv[1:2] == ["--multiply"]:
        text, precision, threads, seconds = sys.argv[2:]
        print(multiply_here(json.loads(text), precision, int(threads), float(seconds)))
    else:
        main()
