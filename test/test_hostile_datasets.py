"""Datasets spoiled at random: each is read or refused in a sentence, whatever its files hold."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from converting import convert
from test_conversion_lerobot import OPTIONS, write

from bitvla_ros.training.dataset import Dataset, DatasetError

pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")

TRIES = 25  # of each seed
NONSENSE = (None, "", -1, 0, 1e9, float("nan"), float("inf"), "x", [], {}, True, [1, 2], {"a": 1}, "../../x", 2**70, -0.5, "{index", "é")


def spoil(folder: Path, choice: random.Random) -> None:
    """One value of one file."""
    files = sorted(file for file in folder.rglob("*") if file.suffix in (".json", ".jsonl", ".parquet"))
    file = choice.choice(files) if choice.random() < 0.6 else folder / "meta/info.json"
    if file.suffix == ".parquet":
        spoil_table(file, choice)
    elif file.suffix == ".json":
        file.write_text(json.dumps(spoiled(json.loads(file.read_text()), choice)))
    else:
        rows = spoiled([json.loads(line) for line in file.read_text().splitlines()], choice)
        file.write_text("\n".join(map(json.dumps, rows)))


def spoiled(content: Any, choice: random.Random) -> Any:
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
            places.append((value, key))
            walk(value[key])

    walk(content)
    holder, key = choice.choice(places)
    if choice.random() < 0.3:
        del holder[key]
    else:
        holder[key] = choice.choice(NONSENSE)
    return content


def spoil_table(file: Path, choice: random.Random) -> None:
    columns = pq.read_table(file).to_pydict()
    name, kind = choice.choice(sorted(columns)), choice.randrange(4)
    length = len(columns[name])
    if kind == 0:
        del columns[name]
    elif kind == 1:
        columns[name][choice.randrange(length)] = None
    elif kind == 2:
        columns[name] = [choice.choice((None, -1, 0, 1, "a", 1.5))] * length
    else:
        columns = {key: values[:-1] for key, values in columns.items()}
    pq.write_table(pa.table(columns), file)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_a_spoiled_dataset_is_converted_or_refused(tmp_path, capsys, version, seed):
    source, choice = write(tmp_path / "in", version, video=False), random.Random(seed)
    for _ in range(TRIES):
        for name in ("spoiled", "out"):
            shutil.rmtree(tmp_path / name, ignore_errors=True)
        spoil(Path(shutil.copytree(source, tmp_path / "spoiled")), choice)
        skip = ["--skip-bad"] if choice.random() < 0.5 else []
        code, result, err = convert(capsys, tmp_path / "spoiled", tmp_path / "out", *OPTIONS, *skip)
        assert code == 0 or (code == 2 and result["error"] and not (tmp_path / "out").exists()), err


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_a_spoiled_dataset_of_ours_is_read_or_refused(tmp_path, capsys, version, seed):
    ours, choice = Path(__file__).parent / "data" / "dataset_v2.1", random.Random(seed)
    if version == "v3.0":
        assert convert(capsys, ours, tmp_path / "in")[0] == 0
        ours = tmp_path / "in"
    for _ in range(TRIES):
        shutil.rmtree(tmp_path / "spoiled", ignore_errors=True)
        spoil(Path(shutil.copytree(ours, tmp_path / "spoiled")), choice)
        with contextlib.suppress(DatasetError):
            dataset = Dataset(tmp_path / "spoiled")
            for i in range(len(dataset.lengths)):
                assert len(dataset.episode(i)) == dataset.lengths[i]
