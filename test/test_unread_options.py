"""Options that nothing would read in the given combination: refused before anything is done, with what would read them."""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path

import pytest

from bitvla_ros import cli
from bitvla_ros.arguments import UnreadOption, require_read

READ = {"a bag": ("pose", "gripper_open"), "a file": ("gripper_open",)}


def refused(capfd: pytest.CaptureFixture[str], *command: object) -> str:
    assert cli.main([*map(str, command), "--json"]) == 2
    return str(json.loads(capfd.readouterr().out)["error"])


def test_an_option_is_read_by_its_rows_or_by_all():
    require_read(["name", "gripper_open"], READ, "a file")
    require_read(["pose"], READ, "a file", "a bag")
    with pytest.raises(UnreadOption, match=r"^--pose is not read by a file, only by a bag: leave it out$"):
        require_read(["pose"], READ, "a file")
    with pytest.raises(UnreadOption, match=r"^gripper_open is not read by a film, only by a bag, a file: leave it out$"):
        require_read(["gripper_open"], READ, "a film", prefix="")


def test_options_that_were_given_are_known_even_if_they_have_their_defaults():
    class Verb:
        @staticmethod
        def add_arguments(parser: argparse.ArgumentParser) -> None:
            parser.add_argument("files", nargs="+")
            parser.add_argument("out")
            parser.add_argument("--size", type=int, default=3)
            parser.add_argument("--word", default="a")
            parser.add_argument("--suite", action="append", default=[])
            parser.add_argument("--pair", nargs=2, type=float, default=[0.0, 0.0])
            parser.add_argument("--fast", action="store_true")

    assert cli.given(Verb, ["one", "two", "out"]) == {"files", "out"}
    given = cli.given(Verb, ["one", "out", "--size", "3", "--suite", "x", "--suite", "y", "--pair", "0", "0", "--fast", "--json"])
    assert given == {"files", "out", "size", "suite", "pair", "fast", "json"}
    assert "word" in cli.given(Verb, ["--word", "a", "one", "out"])


@pytest.mark.parametrize("name", list(cli.VERBS))
def test_the_tables_name_options_that_the_verbs_have(name):
    module = importlib.import_module(cli.VERBS[name].module)
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    options = {action.dest for action in parser._actions}
    for table in (getattr(module, "READ", {}), getattr(module, "READ_OF_BAGS", {})):
        assert {option for row in table.values() for option in row} <= options


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("eval expert --control-hz 20", "--control-hz is not read by the expert"),
        ("eval expert --norm-key x", "--norm-key is not read by the expert"),
        ("eval expert --threads 2", "--threads is not read by the expert"),
        ("eval expert --device cpu", "--device is not read by the expert"),
        ("eval expert --image-size 64", "--image-size is not read by the expert or --through process, only by a network, --output"),
        ("eval nano --through ros --workers 1", "--workers is not read by a network or --through ros, only by --through process"),
        ("demo --policy expert --model nano", "--model is not read by expert, only by bitvla"),
        ("demo --policy expert --control-hz 20", "--control-hz is not read by expert"),
        ("demo --policy expert --norm-key x", "--norm-key is not read by expert"),
        ("bench --kernels --chunks 3", "--chunks is not read by --kernels, only by a chunk"),
        ("bench --kernels --warmup 3", "--warmup is not read by --kernels"),
        ("bench --kernels --image-size 64", "--image-size is not read by --kernels"),
        ("bench --kernels --norm-key x", "--norm-key is not read by --kernels"),
        (
            "record --suite tabletop_spatial --episodes 1 --output OUT --counterfactuals 3",
            "--counterfactuals is not read by tabletop_spatial",
        ),
        ("prove --only lifecycle --seed 1 --output OUT", "--seed is not read by lifecycle"),
    ],
)
def test_what_nothing_reads_is_refused(tmp_path, capfd, command, words):
    if command.startswith(("demo", "prove", "eval nano")):
        pytest.importorskip("rclpy")
    assert words in refused(capfd, *command.replace("OUT", str(tmp_path / "out")).split())
    assert not (tmp_path / "out").exists()


def test_training_refuses_a_dtype_or_a_warmup_that_would_not_hold(tmp_path, capfd):
    from demonstrations import write_demonstrations

    write_demonstrations(tmp_path / "demos")
    train = ["train", "random:nano", "--dataset", tmp_path / "demos", "--output", tmp_path / "run", "--steps", 2]
    assert "--dtype is not read by --direct-bf16" in refused(capfd, *train, "--direct-bf16", "--dtype", "float32")
    assert "--warmup is 3 of --steps 2: give as many or fewer" in refused(capfd, *train, "--warmup", 3)
    assert not (tmp_path / "run").exists()


def test_the_doctor_refuses_a_model_for_a_profile_without_a_network(tmp_path, capfd):
    pytest.importorskip("rclpy")
    profile = tmp_path / "cell.yaml"
    profile.write_text("/**/policy:\n  ros__parameters:\n    policy: expert\n/**/controller:\n  ros__parameters:\n    control_hz: 20.0\n")
    error = refused(capfd, "doctor", "--profile", profile, "--model", "nano")
    assert "--model is not read by the profile's policy 'expert', only by a policy that is the network: leave it out" in error


# --- convert --------------------------------------------------------------------------------------------------------------

BAGS = (
    "--pose p, --tf a b, --joints j, --command none, --command-frame pose, --gripper g, --split s, --max-gap 1, --gripper-joints a, "
    "--gripper-scale 1 1, --gripper-offset 0 0"
)
UNITS = "--metres-per-unit 1, --radians-per-unit 1, --orientation-branch 1 0 0 0"
LEROBOT = "--state s, --action a, --action-kind offsets, --action-rotation euler, --state-rotation euler"
LIBERO = "--keep-noops"
PICTURES = "--camera scene=x"
GRIPPER = "--gripper-open 1 --gripper-closed 0"


def sources(folder: Path) -> dict[str, Path]:
    """Just enough of each kind to be recognised: what is refused is refused before anything is read."""
    (folder / "lerobot" / "meta").mkdir(parents=True)
    (folder / "lerobot" / "meta" / "info.json").write_text(
        '{"codebase_version": "v2.1", "fps": 10, "features": {}, "data_path": "x", "robot_type": "so101"}'
    )
    (folder / "bag").mkdir()
    (folder / "bag" / "metadata.yaml").write_text("rosbag2_bagfile_information: {}\n")
    (folder / "libero.hdf5").write_bytes(b"")
    return {"lerobot": folder / "lerobot", "rosbag2": folder / "bag", "libero": folder / "libero.hdf5"}


@pytest.mark.parametrize(
    ("kind", "options"),
    [("lerobot", option) for option in [*BAGS.split(", "), LIBERO]]
    + [("libero", option) for option in [*BAGS.split(", "), *UNITS.split(", "), *LEROBOT.split(", "), PICTURES, GRIPPER]]
    + [("rosbag2", option) for option in [*LEROBOT.split(", "), LIBERO]],
)
def test_convert_refuses_options_of_another_format(tmp_path, capfd, kind, options):
    error = refused(capfd, "convert", sources(tmp_path)[kind], tmp_path / "out", *options.split())
    assert error.startswith(options.split()[0].replace("--gripper-open", "--gripper-")) and f"is not read by {kind}, only by" in error


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--tf base tip --pose p", "--pose is not read by --tf"),
        (
            "--command none --command-frame pose",
            "--command-frame is not read by a pose topic or the measured motion",
        ),
        (GRIPPER, "--gripper-closed is not read by a pose topic or a command or the fingers' motion, only by a gripper topic (--gripper)"),
    ],
)
def test_convert_refuses_options_of_a_bag_that_others_replace(tmp_path, capfd, options, words):
    assert words in refused(capfd, "convert", sources(tmp_path)["rosbag2"], tmp_path / "out", *options.split())


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("lerobot", "--control-hz 20", "--control-hz is 20, but "),
        ("lerobot", "--robot-type panda", "--robot-type is 'panda', but "),
        ("libero", "--control-hz 10", "--control-hz is 10, but LIBERO's recording states 20: leave --control-hz out"),
    ],
)
def test_convert_refuses_what_the_recording_contradicts(tmp_path, capfd, kind, options, words):
    assert words in refused(capfd, "convert", sources(tmp_path)[kind], tmp_path / "out", *options.split())
