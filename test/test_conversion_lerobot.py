"""Datasets in LeRobot's layouts v2.1 and v3.0 become ours (bitvla convert)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from converting import convert
from recordings import png

from bitvla_ros.training.dataset import Dataset, DatasetWriter, Episode

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

FPS, SIZE = 10, 32
LENGTHS = (6, 9, 4)
TASKS = ("open the drawer", "close the drawer", "open the drawer")
MEANING = ["--action-kind", "offsets", "--action-rotation", "axis-angle", "--state-rotation", "axis-angle"]
OPTIONS = [*MEANING, "--gripper-open", "-1", "--gripper-closed", "1"]


def numbers(episode: int) -> tuple[np.ndarray, np.ndarray]:
    """State [T, 8] and actions [T, 7]; gripper -1 = open, 1 = closed."""
    random = np.random.default_rng(episode)
    actions = random.uniform(-1, 1, (LENGTHS[episode], 7)).astype(np.float32)
    actions[:, 6] = np.where(np.arange(LENGTHS[episode]) < 3, -1, 1)
    return random.normal(size=(LENGTHS[episode], 8)).astype(np.float32), actions


def shade(episode: int, frame: int) -> int:
    """Of a grey picture; steps that survive a video codec."""
    return 20 + 11 * (sum(LENGTHS[:episode]) + frame)


def pictures(episode: int, size: int = SIZE) -> list[np.ndarray]:
    return [np.full((size, size, 3), shade(episode, i), np.uint8) for i in range(LENGTHS[episode])]


def write_video(path: Path, frames: list[np.ndarray], codec: str = "libx264") -> None:
    import imageio_ffmpeg

    path.parent.mkdir(parents=True, exist_ok=True)
    writer = imageio_ffmpeg.write_frames(
        str(path), frames[0].shape[1::-1], fps=FPS, codec=codec, quality=None, bitrate="2M", macro_block_size=1
    )
    writer.send(None)
    for frame in frames:
        writer.send(np.ascontiguousarray(frame))
    writer.close()


def rows(episode: int, *, pictured: bool, size: int = SIZE) -> dict[str, Any]:
    state, actions = numbers(episode)
    length = len(state)
    columns: dict[str, Any] = {
        "observation.state": pa.array(list(state)),
        "action": pa.array(list(actions)),
        "timestamp": pa.array(np.arange(length, dtype=np.float32) / FPS),
        "frame_index": pa.array(np.arange(length)),
        "episode_index": pa.array(np.full(length, episode)),
        "index": pa.array(sum(LENGTHS[:episode]) + np.arange(length)),
        "task_index": pa.array(np.full(length, sorted(set(TASKS)).index(TASKS[episode]))),
    }
    if pictured:
        columns["observation.images.scene"] = pa.array(
            [{"bytes": png(image), "path": f"{i}.png"} for i, image in enumerate(pictures(episode, size))]
        )
    return columns


def write(root: Path, version: str, *, video: bool, size: int = SIZE, **change: Any) -> Path:
    """A dataset by hand. size: of its pictures, not of videos. change: of info.json."""
    kind = {"dtype": "video" if video else "image", "shape": [size, size, 3], "names": ["height", "width", "channels"]}
    features = {
        "observation.images.scene": kind,
        "observation.state": {"dtype": "float32", "shape": [8], "names": None},
        "action": {"dtype": "float32", "shape": [7], "names": None},
    }
    new = version == "v3.0"
    info = {
        "codebase_version": version,
        "fps": FPS,
        "features": features,
        "chunks_size": 1000,
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
        if new
        else "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
        if new
        else "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        **change,
    }
    (root / "meta").mkdir(parents=True)
    (root / "meta/info.json").write_text(json.dumps(info))
    tables = [pa.table(rows(i, pictured=not video, size=size)) for i in range(len(LENGTHS))]
    tasks = sorted(set(TASKS))
    if new:
        (root / "data/chunk-000").mkdir(parents=True)
        pq.write_table(pa.concat_tables(tables[:2]), root / "data/chunk-000/file-000.parquet")
        pq.write_table(tables[2], root / "data/chunk-000/file-001.parquet")
        pq.write_table(pa.table({"task_index": [0, 1], "__index_level_0__": tasks}), root / "meta/tasks.parquet")
        (root / "meta/episodes/chunk-000").mkdir(parents=True)
        listed = []
        for i, length in enumerate(LENGTHS):
            first = 0 if i == 2 else sum(LENGTHS[:i])
            row = {"episode_index": i, "length": length, "tasks": [TASKS[i]], "data/chunk_index": 0, "data/file_index": i // 2}
            key = "videos/observation.images.scene"
            listed.append({**row, f"{key}/chunk_index": 0, f"{key}/file_index": i // 2, f"{key}/from_timestamp": first / FPS})
        pq.write_table(pa.Table.from_pylist(listed), root / "meta/episodes/chunk-000/file-000.parquet")
        if video:
            folder = root / "videos/observation.images.scene/chunk-000"
            write_video(folder / "file-000.mp4", pictures(0) + pictures(1))
            write_video(folder / "file-001.mp4", pictures(2))
        return root
    (root / "data/chunk-000").mkdir(parents=True)
    for i, table in enumerate(tables):
        pq.write_table(table, root / f"data/chunk-000/episode_{i:06d}.parquet")
        if video:
            write_video(root / f"videos/chunk-000/observation.images.scene/episode_{i:06d}.mp4", pictures(i))
    lines = [{"episode_index": i, "tasks": [TASKS[i]], "length": length} for i, length in enumerate(LENGTHS)]
    (root / "meta/episodes.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (root / "meta/tasks.jsonl").write_text("\n".join(json.dumps({"task_index": i, "task": task}) for i, task in enumerate(tasks)))
    return root


def refused(capsys: pytest.CaptureFixture[str], source: Path, *arguments: object) -> str:
    out = source.parent / "out"
    code, result, _ = convert(capsys, source, out, *arguments)
    assert code == 2
    assert {path.name for path in source.parent.iterdir()} == {source.name}
    return str(result["error"])


@pytest.mark.parametrize("video", [False, True], ids=["pictures", "videos"])
@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_every_frame_is_where_it_was(tmp_path, capsys, version, video):
    source = write(tmp_path / "in", version, video=video)
    code, result, err = convert(capsys, source, tmp_path / "out", *OPTIONS)
    assert code == 0, err
    assert "converted to 1 = open, 0 = closed" in err
    dataset = Dataset(tmp_path / "out")
    assert dataset.lengths == LENGTHS and dataset.fps == FPS == result["fps"]
    for i, task in enumerate(TASKS):
        episode = dataset.episode(i)
        state, actions = numbers(i)
        assert episode.task == task
        np.testing.assert_array_equal(episode.state, state)
        np.testing.assert_array_equal(episode.actions[:, :6], actions[:, :6])
        np.testing.assert_array_equal(episode.actions[:, 6], actions[:, 6] == -1)
        shades = episode.images["scene"].reshape(len(episode), -1).mean(axis=1)
        np.testing.assert_allclose(shades, [shade(i, frame) for frame in range(len(episode))], atol=2 if video else 0)
    assert dataset.statistics["num_trajectories"] == 3
    assert dataset.statistics["action"]["mask"] == [True] * 6 + [False]


def test_a_dataset_of_ours_goes_through_unchanged(tmp_path, capsys):
    state, actions = numbers(0)
    actions[:, 6] = actions[:, 6] == -1
    images = {role: np.random.default_rng(1).integers(0, 256, (LENGTHS[0], 8, 10, 3), np.uint8) for role in ("scene", "wrist")}
    writer = DatasetWriter(tmp_path / "in", 20, {"scene": (8, 10), "wrist": (8, 10)}, name="mine")
    writer.add(Episode("a task", images, state, actions))
    writer.close()
    code, _, err = convert(capsys, tmp_path / "in", tmp_path / "out", "--name", "mine")
    assert code == 0, err
    before, after = Dataset(tmp_path / "in"), Dataset(tmp_path / "out")
    assert before.statistics == after.statistics and before.name == after.name
    for role in images:
        np.testing.assert_array_equal(after.episode(0).images[role], images[role])
    np.testing.assert_array_equal(after.episode(0).actions, actions)


def test_features_with_names_of_their_own_are_mapped(tmp_path, capsys):
    source = write(tmp_path / "in", "v2.1", video=False)
    info = json.loads((source / "meta/info.json").read_text())
    names = {"observation.images.scene": "image", "observation.state": "state", "action": "actions"}
    info["features"] = {names[name]: feature for name, feature in info["features"].items()}
    (source / "meta/info.json").write_text(json.dumps(info))
    for file in source.glob("data/*/*.parquet"):
        table = pq.read_table(file)
        pq.write_table(table.rename_columns([names.get(name, name) for name in table.column_names]), file)
    options = [*OPTIONS, "--camera", "front=image", "--state", "state", "--action", "actions", "--instruction", "tidy up"]
    assert "it has image, state, actions" in refused(capsys, source, *OPTIONS)
    assert convert(capsys, source, tmp_path / "out", *options)[0] == 0
    episode = Dataset(tmp_path / "out").episode(1)
    assert list(episode.images) == ["front"] and episode.task == "tidy up"


def test_an_unsaid_gripper_convention_is_refused(tmp_path, capsys):
    source = write(tmp_path / "in", "v2.1", video=False)
    assert "--gripper-open" in refused(capsys, source, *MEANING)
    assert "together" in refused(capsys, source, *MEANING, "--gripper-open", 1)
    error = refused(capsys, source, *MEANING, "--gripper-open", 1, "--gripper-closed", 0)
    assert "episode 0" in error and "frame 0" in error and "-1" in error


def change(file: Path, name: str, frame: int, value: Any) -> None:
    table = pq.read_table(file)
    column = table.column(name).to_pylist()
    column[frame] = value
    index = table.column_names.index(name)
    pq.write_table(table.set_column(index, name, pa.array(column, None)), file)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("action", [float("nan")] * 7, "finite"),
        ("action", [2.0] + [0.0] * 6, "leaves [-1, 1]"),
        ("action", [0.0] * 14, "14 dimensions, expected 7"),
        ("observation.state", [0.0] * 7, "7 dimensions, expected 8"),
        ("frame_index", 5, "frame_index is 5"),
        ("observation.images.scene", {"bytes": b"no picture", "path": ""}, "observation.images.scene"),
        ("observation.images.scene", {"bytes": None, "path": "images/none.png"}, "none.png"),
        ("observation.images.scene", {"bytes": png(np.zeros((8, 8, 3), np.uint8)), "path": ""}, "changes its size"),
    ],
)
def test_bad_frames_are_refused_by_episode_and_frame(tmp_path, capsys, name, value, words):
    source = write(tmp_path / "in", "v2.1", video=False)
    change(source / "data/chunk-000/episode_000001.parquet", name, 2, value)
    error = refused(capsys, source, *OPTIONS)
    assert "episode 1" in error and "frame 2" in error and words in error


def test_a_missing_row_is_refused(tmp_path, capsys):
    source = write(tmp_path / "in", "v2.1", video=False)
    file = source / "data/chunk-000/episode_000001.parquet"
    pq.write_table(pq.read_table(file).slice(0, 7), file)
    error = refused(capsys, source, *OPTIONS)
    assert "episode 1" in error and "frame 7" in error and "9 in meta/" in error


@pytest.mark.parametrize(
    ("fault", "words"),
    [("short", "ends after 5 frames"), ("long", "more frames"), ("damaged", "does not decode"), ("missing", "is missing")],
)
def test_videos_that_do_not_fit_are_refused(tmp_path, capsys, fault, words):
    source = write(tmp_path / "in", "v2.1", video=True)
    file = source / "videos/chunk-000/observation.images.scene/episode_000001.mp4"
    if fault == "damaged":
        file.write_bytes(b"x" * 1000)
    else:
        file.unlink()
    if fault in ("short", "long"):
        write_video(file, pictures(1)[:5] if fault == "short" else [*pictures(1), *pictures(2)])
    error = refused(capsys, source, *OPTIONS)
    assert "episode 1" in error and words in error and file.name in error
    assert fault == "missing" or "frame" in error


def test_frames_are_found_anywhere_in_a_video(tmp_path):
    from bitvla_ros.training.sources.videos import Videos

    write_video(tmp_path / "a.mp4", pictures(0) + pictures(1))
    with Videos() as videos:
        for first, count in ((4, 3), (9, 2), (2, 5), (2, 1)):  # on, on with a gap, back, back
            frames = np.stack(list(videos.read(tmp_path / "a.mp4", first, count, alone=False)))
            np.testing.assert_allclose(frames.reshape(count, -1).mean(axis=1), [shade(0, first + i) for i in range(count)], atol=2)


def test_av1_decodes(tmp_path):
    """LeRobot's own default."""
    from bitvla_ros.training.sources.videos import Videos

    write_video(tmp_path / "a.mp4", [np.repeat(np.repeat(image, 4, 0), 4, 1) for image in pictures(0)], "libsvtav1")
    with Videos() as videos:
        frames = np.stack(list(videos.read(tmp_path / "a.mp4", 0, LENGTHS[0], alone=True)))
    np.testing.assert_allclose(frames.reshape(len(frames), -1).mean(axis=1), [shade(0, i) for i in range(len(frames))], atol=3)


def test_a_v3_video_that_ends_early_is_refused(tmp_path, capsys):
    source = write(tmp_path / "in", "v3.0", video=True)
    write_video(source / "videos/observation.images.scene/chunk-000/file-000.mp4", (pictures(0) + pictures(1))[:10])
    error = refused(capsys, source, *OPTIONS)
    assert "episode 1" in error and "frame 4" in error and "ends after 10 frames" in error


def test_datasets_that_are_none_are_refused(tmp_path, capsys):
    source = write(tmp_path / "in", "v1.6", video=False)
    assert "v1.6" in refused(capsys, source, *OPTIONS)
    (source / "meta/info.json").write_text("{")
    assert "damaged" in refused(capsys, source, *OPTIONS)
    (source / "meta/info.json").unlink()
    assert "is no rosbag2" in refused(capsys, source, *OPTIONS)


def test_another_rate_is_refused(tmp_path, capsys):
    source = write(tmp_path / "in", "v2.1", video=False)
    assert "states 10" in refused(capsys, source, *OPTIONS, "--control-hz", 20)
    assert "no pictures wrist=w" in refused(capsys, source, *OPTIONS, "--camera", "wrist=w")
