"""Offline W&B runs hold what a person wants to see: read back from the files that ``wandb sync`` uploads."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_sample
from tiny_fit import fit_sample
from wandb.proto import wandb_internal_pb2 as wandb_records

from ttopt.config.settings import FitSettings
from ttopt.data.find import given_queries
from ttopt.data.video import read_video
from ttopt.evaluate.statistics import Estimate
from ttopt.evaluate.table import rows
from ttopt.evaluate.tracking import log_comparison
from ttopt.models.load import Models
from ttopt.run.tracking import log_result, wandb_mode, wandb_run


def records(folder: Path) -> Iterator[Any]:
    """W&B's records in its run file: blocks of 32 KiB with LevelDB's log framing, each record a protobuf message."""
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    data, at, whole = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        if at + 7 + length > len(data):
            return  # not written to its end yet
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record = wandb_records.Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


def content(folder: Path) -> tuple[Any, list[dict[str, Any]], dict[str, Any]]:
    """The run, its history row by row, and its summary."""
    for _ in range(200):  # W&B's own process may still be writing when the run is finished here
        found = list(records(folder))
        if found and found[-1].WhichOneof("record_type") == "exit":
            break
        time.sleep(0.05)
    run, history, summary = None, [], {}
    for record in found:
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run
        elif kind == "history":
            items = record.history.item
            history.append({item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items})
        elif kind == "summary":
            items = record.summary.update
            summary |= {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}
    return run, history, summary


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", "/nowhere")


def test_curves_and_media_of_a_sample(models: Models, settings: Callable[..., FitSettings], tmp_path: Path) -> None:
    s = settings(optimization={"steps": 2}, logging={"wandb": "auto"})
    folder = tmp_path / "exp/methods/lora"
    folder.mkdir(parents=True)
    with wandb_run(s, "a", folder) as logger:
        result = fit_sample(tiny_sample(), models, s, folder, queries=given_queries(s), logger=logger)
        log_result(logger, result, folder)
    run, history, summary = content(folder)
    assert (run.display_name, run.run_group, run.job_type, run.project) == ("a", "exp", "lora", "ttopt")
    curves = {name: [row[name] for row in history if name in row] for name in ("loss", "confidence", "p_yes/goal")}
    assert all(len(curve) == 3 for curve in curves.values()), "steps 0, 1 and 2"
    assert len([row for row in history if "p_yes/process_1" in row]) == 3
    assert [row["trainer/global_step"] for row in history if "loss" in row] == [0, 1, 2]
    assert result.optimization is not None
    assert curves["loss"][-1] == pytest.approx(result.optimization.prediction_after.loss)
    (media,) = (row for row in history if "video.path" in row)
    place = next(folder.glob("wandb/offline-run-*/files"))
    for name in ("video", "base"):
        assert read_video(place / media[f"{name}.path"]).shape == (9, 3, 48, 48), "a file, as it was written"
    assert summary["method"] == "teacher_lora" and summary["steps"] == 2


def test_comparison_is_a_table(settings: Callable[..., FitSettings], tmp_path: Path) -> None:
    from test_table import entries, family

    table = rows({"single": entries([1, 0]), "ours": entries([1, 1])}, "single", family)
    assert isinstance(table[0].score, Estimate)
    log_comparison(settings(logging={"wandb": "offline"}), tmp_path, "success", table)
    run, history, summary = content(tmp_path)
    assert (run.display_name, run.run_group) == ("comparison", tmp_path.name)
    (row,) = history
    file = next(tmp_path.glob("wandb/offline-run-*/files")) / row["comparison.path"]
    written = json.loads(file.read_text())
    named = [dict(zip(written["columns"], line, strict=True)) for line in written["data"]]
    assert [(line["method"], line["success"], line["gain"]) for line in named] == [
        ("single", 0.5, None),
        ("ours", 1, 0.5),
    ]
    assert summary["success/ours"] == 1


def test_disabled_writes_nothing(settings: Callable[..., FitSettings], tmp_path: Path) -> None:
    log_comparison(settings(logging={"wandb": "disabled"}), tmp_path, "success", [])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("base_url", "machine", "mode"),
    [
        (None, "api.wandb.ai", "online"),
        (None, "wandb.example.org", "offline"),
        ("https://wandb.example.org:8443/", "wandb.example.org", "online"),
        ("https://wandb.example.org", "api.wandb.ai", "offline"),
        ("https://wandb.example.org", "default", "offline"),
    ],
)
def test_auto_finds_the_key_of_the_server_that_is_asked(
    base_url: str | None, machine: str, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "keys"
    file.write_text(f"machine {machine}\n  login user\n  password {'0' * 40}\n")
    monkeypatch.setenv("NETRC", str(file))
    if base_url:
        monkeypatch.setenv("WANDB_BASE_URL", base_url)
    assert wandb_mode("auto") == mode
