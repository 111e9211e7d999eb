from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from bitvla_ros import cli
from bitvla_ros.evaluation.video import VideoError

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A verb of the test's own: set `run`."""
    module = ModuleType("verb_of_the_test")
    module.EXAMPLES = "  bitvla try --size 3"
    module.add_arguments = lambda parser: parser.add_argument("--size", type=int, default=1)
    module.run = lambda arguments: {"size": arguments.size}
    module.show = lambda result: print("size", result["size"])
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(cli.VERBS, "try", cli.Verb("try something", module.__name__))
    return module


def raising(error: Exception):
    def run(arguments: argparse.Namespace) -> dict:
        raise error

    return run


def test_help_names_every_verb_and_imports_none_of_them():
    code = (
        "import sys; from bitvla_ros import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'mujoco', 'rclpy', 'transformers', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in cli.VERBS)


@pytest.mark.parametrize("name", list(cli.VERBS))
def test_every_verb_explains_itself_without_ros_torch_or_mujoco(name: str):
    """The help of a verb must work where what the verb needs is missing."""
    code = (
        "import sys\n"
        "for name in ('rclpy', 'torch', 'mujoco', 'rich', 'bitvla_ros.msg'): sys.modules[name] = None\n"
        f"from bitvla_ros import cli; cli.main([{name!r}, '--help'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "examples:" in done.stdout and f"bitvla {name}" in done.stdout and "--json" in done.stdout


def test_unknown_verb_is_refused_with_the_known_ones(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as left:
        cli.main(["fly"])
    assert left.value.code == 2
    assert "demo" in capsys.readouterr().err


def test_result_is_shown_to_people(verb: ModuleType, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["try", "--size", "3"]) == 0
    assert capsys.readouterr().out == "size 3\n"


def test_json_is_alone_on_stdout_whatever_else_is_printed(verb: ModuleType, capfd: pytest.CaptureFixture[str]):
    def run(arguments: argparse.Namespace) -> dict:
        print("a library chats")
        os.write(1, b"a C library too\n")
        return {"size": arguments.size}

    verb.run = run
    assert cli.main(["try", "--size", "3", "--json"]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out) == {"size": 3}
    assert "a library chats" in err and "a C library too" in err


def test_our_error_is_one_message_and_exit_code_2(verb: ModuleType, capsys: pytest.CaptureFixture[str]):
    verb.run = raising(VideoError("the disk is full: free some"))
    assert cli.main(["try"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err == "bitvla try: the disk is full: free some\n"


def test_error_with_json_is_an_object_too(verb: ModuleType, capsys: pytest.CaptureFixture[str]):
    verb.run = raising(VideoError("the disk is full"))
    assert cli.main(["try", "--json"]) == 2
    assert json.loads(capsys.readouterr().out) == {"error": "the disk is full"}


def test_debug_shows_the_traceback(verb: ModuleType, capsys: pytest.CaptureFixture[str]):
    verb.run = raising(VideoError("the disk is full"))
    assert cli.main(["try", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_mistake_of_ours_is_not_dressed_up(verb: ModuleType):
    verb.run = raising(KeyError("forgotten"))
    with pytest.raises(KeyError):
        cli.main(["try"])


@pytest.mark.parametrize(
    ("missing", "remedy"),
    [
        ("rclpy", "pip install '.[ros]'"),
        ("bitvla_ros.msg", "colcon build"),
        ("std_msgs.msg", "source your ROS"),
        ("some_package", "some_package"),
    ],
)
def test_missing_package_is_named_with_what_brings_it(verb: ModuleType, capsys: pytest.CaptureFixture[str], missing: str, remedy: str):
    verb.run = raising(ModuleNotFoundError(f"No module named {missing!r}", name=missing))
    assert cli.main(["try"]) == 2
    assert remedy in capsys.readouterr().err


def test_result_that_tells_of_a_failure_gives_exit_code_1(verb: ModuleType, capsys: pytest.CaptureFixture[str]):
    verb.run = lambda arguments: {"size": 1, "error": "the expert failed"}
    assert cli.main(["try", "--json"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["size"] == 1 and "the expert failed" in err


def test_interrupt_gives_exit_code_130(verb: ModuleType, capsys: pytest.CaptureFixture[str]):
    def run(arguments: argparse.Namespace) -> dict:
        raise KeyboardInterrupt

    verb.run = run
    assert cli.main(["try"]) == 130
    assert "Traceback" not in capsys.readouterr().err


# --- what only serves to show ---------------------------------------------------------------------------------------------


def without(module: str, *command: object, timeout: float = 100.0) -> subprocess.CompletedProcess[str]:
    """`bitvla COMMAND` where Python does not find a module."""
    code = f"""
import sys

class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {module!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Hide())
from bitvla_ros import cli
sys.exit(cli.main({list(map(str, command))!r}))
"""
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=timeout)


@pytest.mark.parametrize(
    "command",
    [
        "demo --output OUT",
        "wiggle --simulator",
        "eval expert --episodes 1",
        "pack random:nano OUT",
        "record --suite tabletop_object --episodes 1 --output OUT",
        "bench",
        "prove --only seam --output OUT",
    ],
)
def test_without_rich_a_verb_says_so_in_one_line_and_does_nothing(tmp_path: Path, command: str):
    if command.startswith(("demo", "wiggle", "prove")):
        pytest.importorskip("rclpy")
    done = without("rich", *command.replace("OUT", str(tmp_path / "out")).split())
    name = command.split()[0]
    assert done.returncode == 2 and not done.stdout and not (tmp_path / "out").exists()
    assert (
        done.stderr.strip().startswith(f"bitvla {name}: {name} needs rich: pip install 'rich>=13'") and len(done.stderr.splitlines()) == 1
    )


def test_without_rich_a_result_is_not_lost():
    done = without("rich", "inspect", "nano")
    assert done.returncode == 0 and json.loads(done.stdout)["encoding"] == "2bit"
    assert done.stderr.startswith("bitvla inspect: a table needs rich: pip install 'rich>=13'") and "as JSON:" in done.stderr


def test_without_rich_the_doctor_does_its_work():
    pytest.importorskip("rclpy")
    done = without("rich", "doctor", "--seconds", "0.5", "--model", "nano")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "ok    model " in done.stdout and "packed and whole" in done.stdout and " failed" in done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("module", "command", "words"),
    [
        ("imageio_ffmpeg", "demo --output OUT", "writing a video needs imageio-ffmpeg"),
        ("imageio_ffmpeg", "eval expert --episodes 1 --output OUT", "writing a video needs imageio-ffmpeg"),
        ("matplotlib", "bench --plot OUT.png", "needs matplotlib: pip install '.[plot]'"),
        ("matplotlib", "prove --only seam --output OUT", "needs matplotlib: pip install '.[plot]'"),
    ],
)
def test_what_pictures_need_is_asked_for_before_the_work(tmp_path: Path, module: str, command: str, words: str):
    if command.startswith(("demo", "prove")):
        pytest.importorskip("rclpy")
    done = without(module, *command.replace("OUT", str(tmp_path / "out")).split())
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1 and not (tmp_path / "out").exists()
