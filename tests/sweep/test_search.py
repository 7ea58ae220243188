"""A search in its store: what is proposed, when, and what a killed launch leaves to go on from."""

import json
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pandas as pd
import pytest
from toy import PROGRAM

from kdsweep import results
from kdsweep.results.proposals import Proposal, Told, read_proposals
from kdsweep.results.schema import PlanRow
from kdsweep.results.store import Store
from kdsweep.search_spaces import load_grid
from kdsweep.sweep.doctor import diagnose
from kdsweep.sweep.planning import Content
from kdsweep.sweep.search import Searching, open_search, record_studies

Kdsweep = Callable[..., CompletedProcess[str]]
WriteGrid = Callable[..., Path]
Values = Mapping[str, float]

SERIAL = ("--executor", "serial", "--quiet")
AXES: Mapping[str, Any] = {
    "knowledge": ["hard_labels", ["hard_labels", "soft_logits"]],
    "shape": [{"layers": 1, "width": 16, "heads": 2}, {"layers": 2, "width": 16, "heads": 2}],
    "training.learning_rate": {"log": [1e-4, 1e-1]},
    "seed": [0, 1],
}
TPE = {"method": "tpe", "trials": 6}
SHORT = {"epochs": 1, "batch_size": 16, "evaluate": {"times": 1}}


def opened(grid: Path, store: Path) -> Searching:
    """A search as a launch opens it."""
    sweep = Store(store)
    if not sweep.exists():
        sweep.create({})
    search = open_search(sweep, load_grid(grid), Content())
    assert search is not None
    record_studies(sweep, search)
    return search


def score(row: PlanRow) -> Values:
    """Stands for a training: best at a rate of 1e-2, and a little better with seed 1."""
    rate = float(row.axes["learning_rate"] or 0)
    return {
        "select/primary": -abs(math.log10(rate) + 2) + 0.1 * int(row.axes["seed"] or 0),
        "parameters": 100.0 if row.axes["shape"] == "1x16x2" else 200.0,
    }


def fill(
    search: Searching,
    trained: dict[str, Values],
    *,
    most: int = 1000,
    score: Callable[[PlanRow], Values] = score,
) -> None:
    """Propose and train, one point at a time, as one lane would; `most` points."""
    for id, values in trained.items():
        search.complete(id, values)
    for row in search.rows:
        if row.what == "trial" and row.id not in trained:
            trained[str(row.id)] = score(row)
            search.complete(str(row.id), trained[str(row.id)])
    for _ in range(most):
        rows = search.propose(())
        if not rows:
            return
        for row in rows:
            if row.what == "trial":
                trained[str(row.id)] = score(row)
                search.complete(str(row.id), trained[str(row.id)])


def proposals(store: Path) -> tuple[Proposal, ...]:
    return read_proposals(Store(store).source).found


def test_a_proposal_is_in_the_store_before_anything_of_it_trains(
    write_grid: WriteGrid, tmp_path: Path
) -> None:
    search = opened(write_grid(axes=AXES, search=TPE), tmp_path / "store")
    teacher, *trials = search.propose(())
    assert teacher.what == "teacher"
    assert [row.axes["seed"] for row in trials] == [0, 1]
    assert [row.depends_on for row in trials] == [(teacher.id,)] * 2
    assert len({row.group_id for row in trials}) == 1
    [proposal] = proposals(tmp_path / "store")
    assert proposal.trials == tuple(row.id for row in trials)
    shown = results.load(tmp_path / "store").trials
    assert list(shown["trial_id"]) == list(proposal.trials)
    assert set(shown["status"]) == {"pending"}
    assert list(shown["learning_rate"]) == [row.axes["learning_rate"] for row in trials]


def test_a_search_is_told_the_mean_over_seeds_of_what_is_completed(
    write_grid: WriteGrid, tmp_path: Path
) -> None:
    search = opened(write_grid(axes=AXES, search=TPE), tmp_path / "store")
    first = [row for row in search.propose(()) if row.what == "trial"]
    search.complete(str(first[0].id), {"select/primary": 0.5})
    second = [row for row in search.propose(()) if row.what == "trial"]
    search.complete(str(first[1].id), {"select/primary": 0.75})
    search.complete(str(second[0].id), {"select/primary": 0.25})
    search.propose(())
    told = [proposal.told for proposal in proposals(tmp_path / "store")]
    assert told == [(), (), (Told(0, (0.625,)),)]


@pytest.mark.parametrize("what", ["nan", "lost", "unmeasured"])
def test_nan_and_failures_are_told_as_failures(
    write_grid: WriteGrid, tmp_path: Path, what: str
) -> None:
    search = opened(write_grid(axes=AXES, search=TPE), tmp_path / "store")
    first = [str(row.id) for row in search.propose(()) if row.what == "trial"]
    search.complete(first[0], {"select/primary": 0.5})
    if what != "lost":
        search.complete(first[1], {"select/primary": math.nan} if what == "nan" else {})
    search.propose(first[1:] if what == "lost" else ())
    assert proposals(tmp_path / "store")[1].told == (Told(0, None),)


def test_a_failure_that_was_mended_is_told_anew(write_grid: WriteGrid, tmp_path: Path) -> None:
    grid = write_grid(axes=AXES, search=TPE)
    search = opened(grid, tmp_path / "store")
    first = [str(row.id) for row in search.propose(()) if row.what == "trial"]
    search.propose(first)
    again = opened(grid, tmp_path / "store")
    for id in first:
        again.complete(id, {"select/primary": 0.5})
    again.propose(())
    told = [proposal.told for proposal in proposals(tmp_path / "store")]
    assert told == [(), (Told(0, None),), (Told(0, (0.5,)),)]


@pytest.mark.parametrize("method", ["random", "tpe", "nsga2"])
def test_a_search_that_is_opened_before_each_point_goes_on_as_if_it_had_never_been_closed(
    write_grid: WriteGrid, tmp_path: Path, method: str
) -> None:
    search = {"method": method, "trials": 14} | ({"population": 4} if method == "nsga2" else {})
    grid = write_grid(axes=AXES, search=search)
    whole: dict[str, Values] = {}
    fill(opened(grid, tmp_path / "whole"), whole)
    parts: dict[str, Values] = {}
    for _ in range(14):
        fill(opened(grid, tmp_path / "parts"), parts, most=1)
    assert len(proposals(tmp_path / "whole")) == 14
    assert proposals(tmp_path / "parts") == proposals(tmp_path / "whole")


def test_a_point_that_was_proposed_before_is_not_trained_again(
    write_grid: WriteGrid, tmp_path: Path
) -> None:
    axes = {**AXES, "training.learning_rate": [1e-3, 1e-2]}
    axes["knowledge"] = ["hard_labels"]
    grid = write_grid(axes=axes, search={"method": "random", "trials": 20})
    trained: dict[str, Values] = {}
    fill(opened(grid, tmp_path / "store"), trained)
    # 2 shapes x 2 rates, each with 2 seeds, however often they are drawn.
    assert len(trained) == 8
    found = proposals(tmp_path / "store")
    assert [proposal.slot for proposal in found] == list(range(20))
    assert {id for proposal in found for id in proposal.trials} == trained.keys()
    frame = results.load(tmp_path / "store")
    assert len(frame.trials) == 8
    assert len(frame.search()) == 20


def test_a_point_that_was_stopped_or_given_up_before_fills_its_slot_and_the_next_is_proposed(
    write_grid: WriteGrid, tmp_path: Path
) -> None:
    axes = {**AXES, "training.learning_rate": [1e-3]}
    grid = write_grid(axes=axes, search={"method": "random", "trials": 8})
    one = opened(grid, tmp_path / "one")
    first = [str(row.id) for row in one.propose(()) if row.what == "trial"]
    # As where the whole grid was trained before, with early stopping.
    other = opened(grid, tmp_path / "other")
    found = [str(row.id) for row in other.propose(first) if row.what == "trial"]
    assert set(found) > set(first)


def test_an_impossible_point_is_never_trained_and_the_slot_draws_another(
    write_grid: WriteGrid, tmp_path: Path
) -> None:
    odd = [{"layers": 1, "width": 16, "heads": heads} for heads in (2, 3, 5, 7)]
    grid = write_grid(axes={**AXES, "shape": odd}, search={"method": "tpe", "trials": 8})
    trained: dict[str, Values] = {}
    fill(opened(grid, tmp_path / "store"), trained)
    found = proposals(tmp_path / "store")
    assert all(len(proposal.trials) == 2 for proposal in found)
    assert {proposal.choices["shape"] for proposal in found if proposal.choices} == {"1x16x2"}
    refused = [choices for proposal in found for choices in proposal.impossible]
    assert {choices["shape"] for choices in refused} <= {"1x16x3", "1x16x5", "1x16x7"}
    assert refused
    skipped = [row for row in Store(tmp_path / "store").read_plan() if row.what == "skipped"]
    assert len(skipped) == len(refused)
    assert all("heads do not divide" in str(row.reason) for row in skipped)
    # Opened again, the study knows of these as well.
    assert opened(grid, tmp_path / "store").slots == (8, 8)


def test_a_slot_without_any_possible_point_is_spent(write_grid: WriteGrid, tmp_path: Path) -> None:
    odd = [{"layers": 1, "width": 16, "heads": heads} for heads in (3, 5)]
    grid = write_grid(axes={**AXES, "shape": odd}, search={"method": "random", "trials": 2})
    assert opened(grid, tmp_path / "store").propose(()) != ()
    found = proposals(tmp_path / "store")
    assert [(each.choices, len(each.impossible), each.trials) for each in found] == [
        (None, 50, ())
    ] * 2
    assert list(results.load(tmp_path / "store").search()["status"]) == ["impossible"] * 2


def test_every_arm_has_its_own_slots_and_they_take_turns(
    write_grid: WriteGrid, tmp_path: Path
) -> None:
    grid = write_grid(axes=AXES, search={**TPE, "trials": 3, "per": ["knowledge"]})
    search = opened(grid, tmp_path / "store")
    order = []
    while rows := search.propose(()):
        order += [row.axes["knowledge"] for row in rows if row.what == "trial"][:1]
    assert order == ["hard_labels", "hard_labels+soft_logits"] * 3
    assert search.slots == (6, 6)
    frame = results.load(tmp_path / "store").search()
    assert list(frame["knowledge"]) == ["hard_labels"] * 3 + ["hard_labels+soft_logits"] * 3
    assert list(frame["slot"]) == [1, 2, 3] * 2


def test_more_slots_go_on_where_the_study_was(write_grid: WriteGrid, tmp_path: Path) -> None:
    whole: dict[str, Values] = {}
    fill(opened(write_grid(axes=AXES, search={**TPE, "trials": 9}), tmp_path / "whole"), whole)
    grown: dict[str, Values] = {}
    for trials in (4, 9):
        grid = write_grid(axes=AXES, search={**TPE, "trials": trials})
        fill(opened(grid, tmp_path / "grown"), grown)
    assert proposals(tmp_path / "grown") == proposals(tmp_path / "whole")


def test_a_larger_space_keeps_the_study_and_a_space_without_its_points_begins_another(
    write_grid: WriteGrid, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    trained: dict[str, Values] = {}
    fill(opened(write_grid(axes=AXES, search={**TPE, "trials": 3}), store), trained)
    wider = {**AXES, "knowledge": [*AXES["knowledge"], "soft_logits"]}
    search = opened(write_grid(axes=wider, search={**TPE, "trials": 4}), store)
    assert search.slots == (3, 4)
    narrower = {**AXES, "training.learning_rate": {"log": [1e-9, 1e-8]}}
    search = opened(write_grid(axes=narrower, search={**TPE, "trials": 4}), store)
    assert search.slots == (0, 4)
    assert results.load(store).trials.empty
    assert len(results.load(store, include_inactive=True).trials) == len(trained)


def test_other_rows_begin_another_study_and_the_old_ones_bring_the_old_one_back(
    write_grid: WriteGrid, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    grid = write_grid(axes=AXES, search=TPE)
    opened(grid, store).propose(())
    rows = (tmp_path / "train.csv").read_text()
    (tmp_path / "train.csv").write_text(rows + "w1 w2 w3 another row,good\n")
    assert opened(grid, store).slots == (0, 6)
    (tmp_path / "train.csv").write_text(rows)
    assert opened(grid, store).slots == (1, 6)


def test_the_slot_of_a_damaged_proposal_is_not_used_again(
    write_grid: WriteGrid, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    grid = write_grid(axes=AXES, search=TPE)
    opened(grid, store).propose(())
    [file] = (store / "proposals").iterdir()
    file.write_bytes(file.read_bytes()[:100])
    [(damaged, _)] = Store(store).damaged()
    assert damaged == file
    found = {finding.path: finding.mend for finding in diagnose(store).found}
    assert found[f"proposals/{file.name}"] == "quarantine"
    search = opened(grid, store)
    assert search.slots == (1, 6)
    search.propose(())
    assert [proposal.slot for proposal in proposals(store)] == [1]


def test_nothing_is_proposed_on_a_teacher_that_failed(
    write_grid: WriteGrid, tmp_path: Path
) -> None:
    search = opened(write_grid(axes=AXES, search=TPE), tmp_path / "store")
    teacher = str(search.propose(())[0].id)
    assert search.propose([teacher]) == ()
    assert search.slots == (1, 6)


def test_the_best_so_far_by_the_number_of_trials(
    write_grid: WriteGrid, launched: Path, kdsweep: Kdsweep
) -> None:
    said = kdsweep(
        "launch",
        write_grid(axes=AXES, training=SHORT, search={**TPE, "trials": 3}),
        *("--yes", *SERIAL),
    )
    assert said.returncode == 0, said.stderr
    found = results.load(launched)
    scores = found.trials.groupby("group_id")["select/primary"].mean()
    search = found.search()
    assert list(search["select/primary"]) == [scores[group] for group in search["group_id"]]
    assert list(search["best"]) == [search["select/primary"][: n + 1].max() for n in range(3)]
    shown = json.loads(kdsweep("results", launched, "search", "--json").stdout)["rows"]
    assert [row["best"] for row in shown] == list(search["best"])
    said = kdsweep("results", launched, "pareto", "--metric", "primary", "--metric", "latency_ms")
    assert said.returncode == 0
    assert "latency_ms" in said.stdout
    # What is planned now is what the search would still do: nothing.
    planned = json.loads(kdsweep("plan", launched.parents[1] / "grid.yaml", "--json").stdout)
    assert planned["search"]["most_trials"] == planned["trials"] == 6
    assert (planned["done"], planned["to_run"]) == (6, 0)


def numbers(folder: Path) -> pd.DataFrame:
    """What of a frame must never depend on when its sweep was interrupted."""
    frame = results.load(folder).trials.set_index("trial_id").sort_index()
    return frame[[name for name in frame if name.startswith(("select/", "report/", "train/"))]]


@pytest.mark.slow
def test_a_search_whose_launch_is_killed_ends_as_one_that_was_not(
    launched: Path, write_grid: WriteGrid, kdsweep: Kdsweep, process: Kdsweep, tmp_path: Path
) -> None:
    # The completed sweep spares the teacher's training: it is in the store already.
    grid = write_grid(axes=AXES, training=SHORT, search=TPE)
    whole, killed = tmp_path / "runs" / "tiny", tmp_path / "killed"
    shutil.copytree(whole, killed)
    said = kdsweep("launch", grid, "--yes", *SERIAL)
    assert said.returncode == 0, said.stderr
    assert "6 of 6 slots of the search filled" in said.stderr
    second, fourth = (proposals(whole)[slot].trials for slot in (1, 3))
    for place, id in (("proposal", second[0]), ("row", second[1]), ("commit", fourth[1])):
        said = process(
            *("launch", grid, "--store", killed, "--yes", *SERIAL),
            KDSWEEP_FAILPOINT=f"{place}=kill:{id}:{tmp_path / place}",
        )
        assert said.returncode == -9, said.stderr
    status = json.loads(kdsweep("status", killed, "--json").stdout)
    assert status["slots"] == [4, 6]
    said = kdsweep("resume", killed, *SERIAL)
    assert said.returncode == 0, said.stderr
    assert proposals(killed) == proposals(whole)
    assert diagnose(killed).found == ()
    pd.testing.assert_frame_equal(numbers(killed), numbers(whole), check_exact=True)


def test_lanes_of_ray_fill_all_slots_and_each_knows_of_the_others(
    launched: Path, write_grid: WriteGrid, process: Kdsweep
) -> None:
    grid = write_grid(axes=AXES, training=SHORT, search=TPE)
    words = ("launch", grid, "--yes", "--quiet", "--max-concurrent", "2")
    said = process(*words, program=PROGRAM)
    assert said.returncode == 0, said.stderr
    found = results.load(launched)
    assert set(found.trials["status"]) == {"completed"}
    assert list(found.search()["slot"]) == [1, 2, 3, 4, 5, 6]
    told = [told.slot for proposal in proposals(launched) for told in proposal.told]
    assert sorted(told) == sorted(set(told))


def test_a_diverged_point_does_not_end_the_search(
    launched: Path, write_grid: WriteGrid, kdsweep: Kdsweep
) -> None:
    axes = {**AXES, "knowledge": ["hard_labels"], "training.learning_rate": [1e-2, 1e30]}
    said = kdsweep(
        "launch",
        write_grid(axes=axes, training=SHORT, search={"method": "random", "trials": 6}),
        *("--yes", *SERIAL),
    )
    assert said.returncode == 3, said.stderr
    found = results.load(launched)
    failed = found.trials[found.trials["learning_rate"] == 1e30]
    assert set(failed["failure_class"]) == {"nan"}
    told = [told for proposal in proposals(launched) for told in proposal.told]
    assert {told.values is None for told in told} == {True, False}
    assert len(found.search()) == 6
