"""Opens the loggers of a finished run with their own packages and compares them with its record.

    pip install tensorboard wandb trackio mlflow
    favonius dpo recipe.yaml --report_to=all --logging_dir=LOGS --output_dir=OUT
    python scripts/check_loggers.py OUT LOGS

Each logger must have every row of OUT/trainer_state.json once, in order, with the values of the
row. wandb's run is uploaded by `wandb sync` to a stand-in server in this process.
"""

import gzip
import http.server
import json
import math
import os
import struct
import subprocess
import sys
import threading
from pathlib import Path

OF_THE_RUN = {
    "train_runtime",
    "train_samples_per_second",
    "train_steps_per_second",
    "train_loss",
    "total_flos",
}


def tag(name):
    for split in ("eval", "test"):
        if name.startswith(split + "_"):
            return f"{split}/{name[len(split) + 1:]}"
    return f"train/{name}"


def same(a, b):
    return a == b or (math.isnan(a) and math.isnan(b))


def expected_rows(history):
    """The rows as wandb and trackio get them."""
    rows = []
    for row in history:
        values = {tag(k): float(v) for k, v in row.items() if k not in OF_THE_RUN and k != "step"}
        values["train/global_step"] = float(row["step"])
        rows.append(values)
    return rows


def compare(name, found, expected):
    assert len(found) == len(expected), f"{name}: {len(found)} rows, not {len(expected)}"
    for index, (a, b) in enumerate(zip(found, expected)):
        assert a.keys() == b.keys(), f"{name}, row {index}: {a.keys() ^ b.keys()}"
        for key in a:
            assert same(float(a[key]), b[key]), f"{name}, row {index}, {key}: {a[key]} {b[key]}"
    print(f"{name}: {len(found)} rows agree")


def check_tensorboard(folder, history):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    for name in events.Tags()["scalars"]:
        key = name.removeprefix("train/").replace("eval/", "eval_", 1)
        found = [(event.step, event.value) for event in events.Scalars(name)]
        wanted = [(row["step"], row[key]) for row in history if key in row]
        if key == "epoch":
            wanted = sorted(set(wanted))
        assert [step for step, _ in found] == [step for step, _ in wanted], name
        for (_, a), (_, b) in zip(found, wanted):
            assert same(a, struct.unpack("f", struct.pack("f", b))[0]), name
    print(f"tensorboard: {len(events.Tags()['scalars'])} tags agree")


class WandbServer(http.server.BaseHTTPRequestHandler):
    """Answers what `wandb sync` asks of a server, and keeps what it uploads."""

    uploads = {}
    run = {
        "id": "id",
        "name": "run",
        "displayName": "run",
        "description": "",
        "config": "{}",
        "summaryMetrics": "{}",
        "historyLineCount": 0,
        "eventsLineCount": 0,
        "logLineCount": 0,
        "historyTail": "[]",
        "eventsTail": "[]",
        "tags": [],
        "project": {"id": "id", "name": "project", "entity": {"id": "id", "name": "entity"}},
    }

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        reply = {"data": {}}
        if "file_stream" in self.path:
            for name, part in json.loads(body).get("files", {}).items():
                lines = self.uploads.setdefault(name, {})
                lines.update(enumerate(part["content"], part["offset"]))
        elif "graphql" in self.path:
            query = json.loads(body)
            if "upsertBucket" in query["query"]:
                self.uploads.setdefault("runs", []).append(query["variables"])
                reply["data"] = {"upsertBucket": {"bucket": self.run, "inserted": True}}
            else:
                reply["data"] = {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": []}}
        text = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


def check_wandb(folder, history):
    (run_folder,) = (folder / "wandb").glob("offline-run-*")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), WandbServer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {
        **os.environ,
        "WANDB_BASE_URL": f"http://127.0.0.1:{server.server_port}",
        "WANDB_API_KEY": "a" * 40,
    }
    command = [Path(sys.executable).parent / "wandb", "sync", run_folder]
    said = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert "Finished syncing" in said.stdout + said.stderr, said.stdout + said.stderr
    server.shutdown()
    lines = WandbServer.uploads["wandb-history.jsonl"]
    rows = [json.loads(lines[index]) for index in range(len(lines))]
    assert [row["_step"] for row in rows] == list(range(len(rows)))
    found = [{k: v for k, v in row.items() if not k.startswith("_")} for row in rows]
    compare("wandb sync", found, expected_rows(history))
    summary = {}
    for _, line in sorted(WandbServer.uploads["wandb-summary.json"].items()):
        summary = json.loads(line)
    assert summary["train_loss"] == history[-1]["train_loss"], summary
    run = WandbServer.uploads["runs"][-1]
    keys = len(json.loads(run["config"]))
    print(f"wandb sync: project {run['project']!r}, run {run['displayName']!r}, {keys} keys")


def check_trackio(folder, history):
    os.environ["TRACKIO_DIR"] = str(folder / "trackio")
    import trackio

    api = trackio.Api()
    (database,) = (folder / "trackio").glob("*.db")
    (run,) = api.runs(database.stem)
    from trackio.sqlite_storage import SQLiteStorage

    logs = SQLiteStorage.get_logs(database.stem, run.name)
    found = [{k: v for k, v in row.items() if k not in ("timestamp", "step")} for row in logs]
    compare("trackio", found, expected_rows(history))
    assert [row["step"] for row in logs] == list(range(len(logs)))
    print(f"trackio: run {run.name!r}")


def check_mlflow(folder, history):
    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"file://{(folder / 'mlruns').resolve()}")
    (experiment,) = [e for e in client.search_experiments() if client.search_runs(e.experiment_id)]
    (run,) = client.search_runs(experiment.experiment_id)
    assert run.info.status == "FINISHED", run.info.status
    for name in {name for row in history for name in row if name != "step"}:
        found = [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]
        wanted = [(row["step"], float(row[name])) for row in history if name in row]
        assert len(found) == len(wanted), name
        assert all(a[0] == b[0] and same(a[1], b[1]) for a, b in zip(found, wanted)), name
    print(
        f"mlflow: experiment {experiment.name!r}, run {run.info.run_name!r}, "
        f"{len(run.data.metrics)} metrics agree, {len(run.data.params)} parameters"
    )


def check_jsonl(folder, history):
    (path,) = folder.glob("metrics*.jsonl")
    events = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [event for event in events if event["event"] == "log"]
    assert [row["step"] for row in rows] == [row["step"] for row in history]
    for row, wanted in zip(rows, history):
        for name, value in wanted.items():
            key = name if name in ("step", "epoch") else tag(name)
            assert same(float(row[key]), float(value)), key
    assert events[-1]["event"] == "end" and events[-1]["finished"]
    print(f"jsonl: {len(rows)} rows agree")


def main():
    out, folder = map(Path, sys.argv[1:])
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    check_jsonl(folder, history)
    check_tensorboard(folder, history)
    check_wandb(folder, history)
    check_mlflow(folder, history)
    check_trackio(folder, history)


if __name__ == "__main__":
    main()
