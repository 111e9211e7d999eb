"""Evaluation without a graph: intervals, trials, episodes by one process and by several, the verb and its report page."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from point_mass import Fixed, PointMass, Seeker, chunk_for

from bitvla_ros import cli
from bitvla_ros.control.session import Outcome
from bitvla_ros.evaluation.episodes import FIRST_SEED, Attempt, SeedError, Trial, percentiles, summary, trials
from bitvla_ros.evaluation.evaluation import Choice, EvaluationError, evaluate, number_of_tasks, play
from bitvla_ros.evaluation.film import Film
from bitvla_ros.evaluation.intervals import paired_difference, wilson
from bitvla_ros.evaluation.report import write_report
from bitvla_ros.evaluation.rollout import rollout
from bitvla_ros.simulation import FIRST_TRAINING_SEED

ROOT = Path(__file__).resolve().parents[1]
SUITE = "tabletop_object"
COUNTS = st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
PAIRS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=120)


class Failing(Seeker):
    """Gives `good` chunks and then breaks down."""

    def __init__(self, good: int) -> None:
        super().__init__()
        self.good = good

    def infer(self, observation):
        if len(self.seen) == self.good:
            raise RuntimeError("out of memory")
        return super().infer(observation)


# Intervals


@given(COUNTS)
def test_wilson_bounds_are_the_rates_whose_score_is_the_quantile(counts):
    successes, episodes = counts
    low, high = wilson(successes, episodes)
    rate = successes / episodes
    assert 0.0 <= low <= rate <= high <= 1.0
    for bound in (low, high):
        if 0.0 < bound < 1.0:
            assert abs(rate - bound) / sqrt(bound * (1 - bound) / episodes) == pytest.approx(1.959964, rel=1e-4)
    assert (1 - high, 1 - low) == pytest.approx(wilson(episodes - successes, episodes))


def test_wilson_known_values():
    assert wilson(40, 50) == pytest.approx((0.6696, 0.8876), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)


@pytest.mark.parametrize("counts", [(0, 0), (3, 2), (-1, 2)])
def test_counts_that_cannot_be_are_refused(counts):
    with pytest.raises(ValueError, match="episode"):
        wilson(*counts)


@pytest.mark.parametrize(
    ("table", "expected"),
    [((1, 1, 7, 12), (-0.2857, -0.5069, -0.0256)), ((14, 5, 0, 22), (0.1220, 0.0115, 0.2265))],  # Bentur 2009; Altman 2000, table 6.2
)
def test_paired_difference_of_published_tables(table, expected):
    outcomes = [pair for pair, count in zip([(1, 1), (1, 0), (0, 1), (0, 0)], table, strict=True) for _ in range(count)]
    found = paired_difference(*([bool(pair[side]) for pair in outcomes] for side in (0, 1)))
    assert (found.difference, found.low, found.high) == pytest.approx(expected, abs=1e-4)


@given(PAIRS)
def test_paired_difference_holds_its_estimate_and_turns_with_its_sides(pairs):
    first, second = zip(*pairs, strict=True)
    found, turned = paired_difference(first, second), paired_difference(second, first)
    assert found.difference == pytest.approx(np.mean(first) - np.mean(second), abs=1e-12)
    assert -1.0 - 1e-9 <= found.low <= found.difference + 1e-12 and found.difference - 1e-12 <= found.high <= 1.0 + 1e-9
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low))


def test_equal_outcomes_pin_the_difference_down_far_better_than_unrelated_ones():
    first = [True, False] * 100
    equal, unrelated = paired_difference(first, first), paired_difference(first, [True, True, False, False] * 50)
    assert equal.high - equal.low < 0.03 < 0.15 < unrelated.high - unrelated.low


def test_outcomes_of_other_episodes_are_no_pairs():
    with pytest.raises(ValueError, match="3 outcomes against 2"):
        paired_difference([True] * 3, [True] * 2)


# Trials and summary


@given(st.integers(1, 12), st.integers(1, 200), st.integers(0, 1000))
def test_trials_go_round_the_tasks_with_seeds_below_those_of_training(tasks, episodes, seed):
    plan = trials(SUITE, tasks, episodes, seed)
    counts = [sum(trial.task == task for trial in plan) for task in range(tasks)]
    assert sum(counts) == episodes and max(counts) - min(counts) <= 1
    assert [trial.seed for trial in plan] == list(range(FIRST_SEED + seed, FIRST_SEED + seed + episodes))
    assert plan[-1].seed < FIRST_TRAINING_SEED


def test_seeds_of_training_are_refused():
    with pytest.raises(SeedError, match="train"):
        trials(SUITE, 5, 50, FIRST_TRAINING_SEED)
    assert trials(SUITE, 5, 50, FIRST_TRAINING_SEED - FIRST_SEED - 50)[-1].seed == FIRST_TRAINING_SEED - 1


def test_libero_takes_each_tasks_initial_states_in_turn():
    assert trials("libero_goal", 2, 5, 3) == [Trial(0, 3), Trial(1, 3), Trial(0, 4), Trial(1, 4), Trial(0, 5)]


def attempts() -> list[Attempt]:
    return [
        Attempt(0, 10000, "pick <b>", "success", "the goal is reached", 100, (0.010, 0.020)),
        Attempt(1, 10001, "place", "time_limit", "not reached within 14 s", 280, (0.030,)),
        Attempt(0, 10002, "pick <b>", "fault", "the chunk was refused: <nan>", 40),
    ]


def test_summary_is_what_the_verb_promises():
    found = summary(SUITE, attempts())
    assert found["episodes_detail"][1] == {"task": 1, "seed": 10001, "success": False, "steps": 280}
    assert found["by_task"]["0"]["instruction"] == "pick <b>" and found["by_task"]["0"]["interval"] == [0.094531, 0.905469]
    assert found["by_task"]["0"]["success_rate"] == 0.5 and found["by_task"]["1"]["successes"] == 0
    assert found["latency_ms"] == {"p50": 20.0, "p99": 29.8}
    assert (found["episodes"], found["successes"], found["success_rate"], found["mean_steps"]) == (3, 1, 0.333333, 140.0)
    json.dumps(found, allow_nan=False)


def test_percentiles_of_nothing_are_none():
    assert percentiles([]) == {"p50": None, "p99": None}


# Episodes


def test_policy_that_breaks_down_is_a_failure_with_its_reason_and_steps():
    attempt = play(PointMass(), Failing(good=1), Trial(0, 0))
    assert (attempt.outcome, attempt.success, attempt.steps) == ("fault", False, 8)
    assert "out of memory" in attempt.reason
    assert rollout(PointMass(), Failing(good=0), 0, 0).outcome is Outcome.FAULT


def test_attempts_do_not_depend_on_the_number_of_workers():
    plan = trials(SUITE, number_of_tasks(SUITE), 4, 0)
    done: list[Attempt] = []
    alone = evaluate(Choice("expert"), SUITE, plan)
    together = evaluate(Choice("expert"), SUITE, plan, workers=2, on_done=done.append)
    assert [(a.task, a.seed, a.outcome, a.steps) for a in alone] == [(a.task, a.seed, a.outcome, a.steps) for a in together]
    assert [Trial(a.task, a.seed) for a in together] == plan and set(done) == set(together)
    assert all(attempt.success for attempt in alone)


def test_worker_that_cannot_load_says_why():
    with pytest.raises(ValueError, match="tabletop_nonsense"):
        evaluate(Choice("expert"), "tabletop_nonsense", [Trial(0, 0), Trial(1, 1)], workers=2)


def test_worker_that_is_killed_ends_the_evaluation():
    def kill(_: Attempt) -> None:
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGKILL)

    with pytest.raises(EvaluationError, match="killed"):
        evaluate(Choice("expert"), SUITE, trials(SUITE, 5, 40, 0), workers=2, on_done=kill)


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(condition, what: str, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.05)


def test_interrupt_leaves_no_workers_behind(tmp_path: Path):
    pytest.importorskip("imageio_ffmpeg")
    options = ["--episodes", "400", "--workers", "2", "--image-size", "64", "--output", str(tmp_path)]
    command = [sys.executable, "-m", "bitvla_ros.cli", "eval", "expert", *options]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a job in the background inherits as ignored
    )
    until(lambda: list(tmp_path.glob("videos/*/task*.mp4")), "the first video")
    tasks = Path(f"/proc/{process.pid}/task").glob("*/children")
    children = [int(pid) for path in tasks for pid in path.read_text().split()]
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert len(children) >= 2
    until(lambda: not any(map(running, children)), "the end of all workers", 10.0)


def test_video_shows_every_step_and_the_end(tmp_path: Path):
    reader = pytest.importorskip("imageio_ffmpeg")
    film = Film(tmp_path, "a point")
    environment = PointMass()
    attempt = play(environment, Seeker(), Trial(1, 3), film)
    assert attempt.success and attempt.video == "videos/point_mass/task1_seed3.mp4"
    frames = reader.read_frames(str(tmp_path / attempt.video))
    next(frames)
    assert sum(1 for _ in frames) == attempt.steps + 1 + 30  # the last is held
    assert attempt.still.startswith(b"\xff\xd8")
    again = play(environment, Seeker(), Trial(1, 3))
    assert again.steps == attempt.steps and again.video is None


def test_trial_that_a_suite_lacks_is_named():
    with pytest.raises(EvaluationError, match=r"task 2, seed 5 cannot be played.*expected 0 to 1"):
        play(PointMass(), Seeker(), Trial(2, 5))


# The report page


class Page(HTMLParser):
    """Checks that elements are closed in order; collects links, sources and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.sources: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.links += [value for name, value in attributes if name == "href"]
        self.sources += [value for name, value in attributes if name == "src"]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data + "\n"


def test_page_tells_of_failures_first_and_needs_nothing_from_elsewhere(tmp_path: Path):
    played = [Attempt(**{**vars(attempt), "video": f"videos/{attempt.seed}.mp4", "still": b"\xff\xd8"}) for attempt in attempts()]
    path = write_report(tmp_path, "A <policy>", {"machine": "fast & small"}, [(summary(SUITE, played), played)])
    html = path.read_text()
    page = Page(html)
    assert page.links == ["videos/10001.mp4", "videos/10002.mp4", "videos/10000.mp4"]
    assert page.sources and all(source.startswith("data:") for source in page.sources)
    assert not re.search(r"https?://|<script|@import|url\(", html)
    for words in ("A <policy>", "fast & small", "pick <b>", "the chunk was refused: <nan>", "33.3%", "1 of 3", "Failures: 2"):
        assert words in page.text
    assert [entry.name for entry in tmp_path.iterdir()] == ["index.html"]


def test_page_without_failures_or_videos(tmp_path: Path):
    played = attempts()[:1]
    page = Page(write_report(tmp_path, "A", {}, [(summary(SUITE, played), played)]).read_text())
    assert page.links == [] and "Failures" not in page.text and "Successes: 1" in page.text


# The verb


def run(capfd, *arguments: str) -> tuple[int, dict, str]:
    code = cli.main(["eval", *arguments, "--json"])
    out, err = capfd.readouterr()
    return code, json.loads(out), err


def test_verb_prints_one_suite_as_promised(capfd):
    code, result, _ = run(capfd, "expert", "--episodes", "2", "--seed", "7")
    assert code == 0
    keys = ["suite", "episodes", "successes", "success_rate", "interval", "by_task", "mean_steps", "latency_ms", "episodes_detail"]
    assert list(result) == keys
    assert [(e["task"], e["seed"]) for e in result["episodes_detail"]] == [(0, 10007), (1, 10008)]


def test_verb_prints_several_suites_as_a_list(capfd):
    suites = ["tabletop_goal", "tabletop_spatial"]
    code, result, _ = run(capfd, "expert", "--episodes", "1", "--suite", suites[0], "--suite", suites[1])
    assert code == 0 and [suite["suite"] for suite in result["suites"]] == suites


def test_videos_and_the_report_are_kept_and_change_nothing(capfd, tmp_path: Path):
    pytest.importorskip("imageio_ffmpeg")
    _, plain, _ = run(capfd, "expert", "--episodes", "1")
    _, filmed, errors = run(capfd, "expert", "--episodes", "1", "--image-size", "64", "--output", str(tmp_path))
    assert filmed["episodes_detail"] == plain["episodes_detail"]
    page = Page((tmp_path / "index.html").read_text())
    assert page.links == ["videos/tabletop_object/task0_seed10000.mp4"] and (tmp_path / page.links[0]).is_file()
    assert "64 pixels" in page.text and str(tmp_path / "index.html") in errors.replace("\n", "")


def test_verb_shows_people_a_table(capfd):
    assert cli.main(["eval", "expert", "--episodes", "1"]) == 0
    out, _ = capfd.readouterr()
    assert all(words in out for words in ("pick up the red", "1 of 1", "100.0%", "20.7% to 100.0%"))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("expert", "--through", "ros", "--workers", "2"), "--workers is not read by"),
        (("expert", "--suite", "tabletop_nonsense"), "tabletop_nonsense"),
        (("expert", "--image-size", "4", "--output", "nowhere"), "8 to 2048"),
        (("expert", "--control-hz", "20"), "--control-hz is not read by the expert"),
        (("expert", "--seed", "999999999"), "train"),
        (("random:nano", "--device", "gpu"), "device 'gpu'"),
        (("/nowhere/model",), "/nowhere/model"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_with_the_reason(capfd, arguments, reason):
    code, result, _ = run(capfd, *arguments)
    assert code == 2 and reason in result["error"]


def test_policy_that_never_acts_is_an_error(capfd, monkeypatch: pytest.MonkeyPatch):
    refused = Fixed(lambda observation: chunk_for(observation, np.zeros((8, 7)), step_duration=100_000_000))
    monkeypatch.setattr(Choice, "load", lambda choice, suite: refused)
    code, result, errors = run(capfd, "a_model", "--episodes", "2")
    assert code == 1 and "control_hz" in result["error"] and "task 1, seed 10001: fault" in errors
    assert result["successes"] == 0 and [episode["steps"] for episode in result["episodes_detail"]] == [0, 0]


# Shipped models


@pytest.mark.parametrize("place", ["models", "share/bitvla_ros/models"])
def test_shipped_model_is_found_in_the_source_tree_and_in_an_installation(tmp_path: Path, monkeypatch, place: str):
    from bitvla_ros.model import checkpoint, shipped

    package = tmp_path if place == "models" else tmp_path / "lib" / "python3.11" / "site-packages"
    monkeypatch.setattr(shipped, "__file__", str(package / "bitvla_ros" / "model" / "shipped.py"))
    with pytest.raises(shipped.ShippedModelError, match="'nano' is not in this installation"):
        checkpoint.resolve("nano")
    (tmp_path / place / "nano").mkdir(parents=True)
    (tmp_path / place / "nano" / "config.json").touch()
    assert checkpoint.resolve("nano") == tmp_path / place / "nano"
