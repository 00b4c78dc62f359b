"""Metrics on disk and on Weights & Biases."""

import csv
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import wandb

from harness.command_line.messages import _with_variable
from harness.config import resume_overrides
from harness.config.checks import validate
from harness.config.composition import settings_to_validate
from harness.contract.errors import ConfigError
from harness.run_folder import reading
from harness.run_folder.folder import RunFolder
from harness.run_folder.metrics_file import MetricsFile
from harness.tracking.wandb import Mode, _start_run, has_wandb_account, log_evaluation, wandb_mode
from tests.conftest import ROOT, run_light, run_script, run_warm, tiny
from tests.project.test_conf import compose, to_plain
from tests.tally import Promise


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_every_row_is_written_immediately(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    metrics = MetricsFile(path)
    metrics.log_metrics({"a": 1.5, "images_seen": 20_000_001.0}, step=1)
    assert read_rows(path) == [{"step": "1", "images_seen": "20000001", "a": "1.5"}]
    metrics.log_metrics({"b": 2.0}, step=2)
    metrics.log_metrics({"a": 3.0}, step=3)
    assert [row["a"] for row in read_rows(path)] == ["1.5", "", "3.0"]
    assert [row["b"] for row in read_rows(path)] == ["", "2.0", ""]
    MetricsFile(path).log_metrics({"b": 4.0}, step=4)  # a resumed run appends
    assert [row["step"] for row in read_rows(path)] == ["1", "2", "3", "4"]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.csv"]


def read_wandb_records(run_dir: Path, index: int = 0) -> list[dict[str, Any]]:
    """Return the records of an offline file of a run, read by W&B's own command.

    The process of W&B may write after the run has ended, so wait for its last record.
    """
    file = sorted(run_dir.glob("wandb/offline-run-*/run-*.wandb"))[index]
    command = Path(sys.executable).parent / "wandb"
    for _ in range(20):
        done = subprocess.run(
            [command, "leet", "inspect", "--json", file], capture_output=True, text=True, check=True
        )
        records = [json.loads(line) for line in done.stdout.splitlines()]
        if any(r["type"] == "exit" for r in records):
            break
        time.sleep(0.5)
    return records


def test_the_offline_file_holds_config_metrics_and_pictures(finished_run: Path) -> None:
    records = read_wandb_records(finished_run)
    summary = json.loads((finished_run / "summary.json").read_text())
    (run,) = [r["run"] for r in records if r["type"] == "run"]
    assert run["run_id"] == summary["run_id"]
    assert run["display_name"] == "cvae-mlp-adversary-z3-kmnist-s1"
    assert run["project"] == "conditional-vae"
    assert run["job_type"] == "train"
    config = run["config"]["update"]  # from the start, so that wandb leet shows it
    assert config["latent_dim"] == 3
    assert config["batch_size"] == 32
    assert "git_commit" in config
    history = [r["history"]["item"] for r in records if r["type"] == "history"]
    steps = [row["trainer/global_step"] for row in history if "train/loss" in row]
    assert steps == list(range(1, 15))
    assert all({"epoch", "images_seen"} <= row.keys() for row in history if "val/elbo" in row)
    pictures = {k.partition(".")[0] for row in history for k in row if k.startswith("figures/")}
    names = ["label_grid", "reconstructions", "style_transfer", "traversals"]
    names += ["latent_plane", "curves"]
    log = (finished_run / "train.log").read_text()
    assert pictures == {f"figures/{name}" for name in names}, log
    files = [
        row[f"figures/{name}.filenames"]
        for row in history
        for name in names
        if f"figures/{name}.filenames" in row
    ]
    assert len(files) == len(names)
    for (name,) in files:
        (file,) = finished_run.glob(f"wandb/offline-run-*/files/{name}")
        assert file.stat().st_size > 500
    (end,) = [r["exit"] for r in records if r["type"] == "exit"]
    assert end.get("exit_code", 0) == 0
    defined = {
        r["metric"].get("name") or r["metric"].get("glob_name")
        for r in records
        if r["type"] == "metric"
    }
    assert {"images_seen", "epoch", "val/elbo"} <= defined
    final = {
        k: v for r in records if r["type"] == "summary" for k, v in r["summary"]["update"].items()
    }
    assert final["test/elbo"] == pytest.approx(summary["metrics"]["test/elbo"])


def test_a_failed_run_is_marked_failed(data_dir: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    overrides = ["optimizer._target_=mine.explode", "optimizer._partial_=true"]
    overrides += [f"~optimizer.{key}" for key in ("betas", "weight_decay", "fused", "lr")]
    (tmp_path / "mine.py").write_text("def explode(groups):\n    raise ZeroDivisionError\n")
    done = run_script("train", *tiny(data_dir, run_dir), *overrides, PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    (end,) = [r["exit"] for r in read_wandb_records(run_dir) if r["type"] == "exit"]
    assert end["exit_code"] == 1


API_KEY = "0" * 40
OWN_URL = "https://wandb.example:8080"
HOST = "{host}"  # the default server of W&B


@pytest.fixture
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Reset W&B; return an empty folder that is the home and the working directory."""
    for name in ("NETRC", "XDG_CACHE_HOME", *(n for n in os.environ if n.startswith("WANDB_"))):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    before = os.environ.copy()
    wandb.teardown()
    yield tmp_path
    wandb.teardown()
    os.environ.clear()  # restore variables that the tested code sets
    os.environ.update(before)


def configure_wandb(home: Path, entries: Mapping[str, str]) -> None:
    """Write files with mode 644 and set variables (upper case); {home} and {host} are replaced."""
    host = urlsplit(wandb.Settings().base_url).netloc
    for name, text in entries.items():
        text = text.format(home=home, host=host)
        if name.isupper():
            os.environ[name] = text
        else:
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            (home / name).write_text(text)
            (home / name).chmod(0o644)


def make_netrc(host: str) -> str:
    return f"machine {host}\n  login user\n  password {API_KEY}\n"


OWN_NETRC = make_netrc("wandb.example:8080")
OWN_SERVER = f"[default]\nbase_url = {OWN_URL}\n"
ACCOUNTS: dict[str, tuple[dict[str, str], bool]] = {
    "nothing": ({}, False),
    "key": ({"WANDB_API_KEY": API_KEY}, True),
    "malformed key": ({"WANDB_API_KEY": "0123"}, False),
    "netrc": ({".netrc": make_netrc(HOST)}, True),
    "_netrc": ({"_netrc": make_netrc(HOST)}, True),
    "NETRC": ({"NETRC": "{home}/mine", "mine": make_netrc(HOST)}, True),
    "NETRC without a file": ({"NETRC": "{home}/mine", ".netrc": make_netrc(HOST)}, False),
    "NETRC is a folder": ({"NETRC": "{home}", ".netrc": make_netrc(HOST)}, False),
    "broken netrc": ({".netrc": "machine {host} nonsense"}, False),
    "netrc of another server": ({".netrc": OWN_NETRC}, False),
    "own server": ({"WANDB_BASE_URL": OWN_URL, ".netrc": OWN_NETRC}, True),
    "own server without a key": ({"WANDB_BASE_URL": OWN_URL, ".netrc": make_netrc(HOST)}, False),
    "invalid server": ({"WANDB_BASE_URL": "nonsense", ".netrc": make_netrc(HOST)}, False),
    "settings": ({".config/wandb/settings": OWN_SERVER, ".netrc": OWN_NETRC}, True),
    "settings elsewhere": (
        {"WANDB_CONFIG_DIR": "{home}/a", "a/settings": OWN_SERVER, ".netrc": OWN_NETRC},
        True,
    ),
    "settings of the project": ({"wandb/settings": OWN_SERVER, ".netrc": OWN_NETRC}, True),
    "settings of another project": ({"a/wandb/settings": OWN_SERVER, ".netrc": OWN_NETRC}, False),
    "project before home": (
        {"wandb/settings": OWN_SERVER, ".config/wandb/settings": "[default]\nbase_url = http://a\n"}
        | {".netrc": OWN_NETRC},
        True,
    ),
    "variable before settings": (
        {"WANDB_BASE_URL": "http://a", "wandb/settings": OWN_SERVER, ".netrc": OWN_NETRC},
        False,
    ),
    "broken settings": ({"wandb/settings": "nonsense", ".netrc": make_netrc(HOST)}, True),
    "key in settings": ({"wandb/settings": f"[default]\napi_key = {API_KEY}\n"}, True),
    "identity token": ({"WANDB_IDENTITY_TOKEN_FILE": "{home}/token", "token": "a.b.c"}, True),
    "key and token": ({"WANDB_API_KEY": API_KEY, "WANDB_IDENTITY_TOKEN_FILE": "{home}/t"}, False),
    "offline": ({"WANDB_API_KEY": API_KEY, "wandb/settings": "[default]\nmode = offline\n"}, False),
    "empty variables": (
        {"WANDB_API_KEY": "", "WANDB_BASE_URL": "", "WANDB_MODE": "", ".netrc": make_netrc(HOST)},
        True,
    ),
    "invalid mode": ({"WANDB_MODE": "on", "WANDB_API_KEY": API_KEY}, False),
    "no home": ({"HOME": "/nowhere"}, False),
    "no home, but a key": ({"HOME": "/nowhere", "WANDB_API_KEY": API_KEY}, True),
}


@pytest.mark.parametrize("account", ACCOUNTS)
def test_an_account_is_found_as_wandb_finds_it(
    account: str,
    empty_home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The check asks and prints nothing, and starts no W&B process, which would use the network."""
    monkeypatch.setattr("click.prompt", lambda *_, **__: pytest.fail("asked"))
    monkeypatch.setattr("wandb.errors.term.can_use_terminput", lambda: True)
    monkeypatch.setenv("WANDB__SERVICE_WAIT", "0.0001")  # makes the W&B process fail
    entries, expected = ACCOUNTS[account]
    configure_wandb(empty_home, entries)
    assert has_wandb_account() is expected
    assert capfd.readouterr() == ("", "")


def test_the_account_of_wandb_login_is_found(empty_home: Path) -> None:
    configure_wandb(empty_home, {"WANDB_SILENT": "true"})
    wandb.login(key=API_KEY, verify=False)
    assert list(empty_home.glob("*netrc"))
    wandb.teardown()
    assert has_wandb_account()


@pytest.mark.parametrize(
    ("mode", "entries", "expected"),
    [
        ("auto", {}, "offline"),
        ("auto", {"WANDB_API_KEY": API_KEY}, "online"),
        ("auto", {"WANDB_API_KEY": "0123"}, "offline"),
        ("auto", {"WANDB_MODE": "online"}, "offline"),
        ("auto", {"WANDB_MODE": "dryrun", "WANDB_API_KEY": API_KEY}, "offline"),
        ("auto", {"WANDB_MODE": "disabled", "WANDB_API_KEY": API_KEY}, "disabled"),
        (
            "auto",
            {"wandb/settings": "[default]\nmode = offline\n", "WANDB_API_KEY": API_KEY},
            "offline",
        ),
        ("auto", {"wandb/settings": "[default]\nmode = disabled\n"}, "disabled"),
        ("online", {"WANDB_MODE": "offline", "WANDB_API_KEY": API_KEY}, "online"),
        ("online", {}, "offline"),
        ("offline", {"WANDB_MODE": "online", "WANDB_API_KEY": API_KEY}, "offline"),
        ("disabled", {"WANDB_MODE": "online", "WANDB_API_KEY": API_KEY}, "disabled"),
    ],
)
def test_the_mode_follows_override_then_environment_then_account(
    mode: Mode,
    entries: dict[str, str],
    expected: str,
    empty_home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    configure_wandb(empty_home, entries)
    monkeypatch.setattr(wandb, "init", lambda mode, **_: mode)
    assert _start_run(mode, {"dir": str(empty_home)}) == expected


@pytest.mark.fault(Promise.NETWORK, "W&B fails to start")
def test_a_run_is_untracked_if_wandb_does_not_start(
    empty_home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def init(mode: str, **_: Any) -> str:
        if mode != "disabled":
            raise wandb.errors.Error("no process")
        return mode

    configure_wandb(empty_home, {"WANDB_API_KEY": API_KEY})
    monkeypatch.setattr(wandb, "init", init)
    assert _start_run("auto", {"dir": str(empty_home)}) == "disabled"
    ours = [r.message for r in caplog.records if r.name == "harness.tracking.wandb"]
    assert [message.partition(" (")[0] for message in ours] == [
        "W&B does not answer",
        "W&B does not start",
    ]


def test_a_user_without_a_passwd_entry_and_home_is_tracked(
    empty_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_entry(_: int) -> None:
        raise KeyError

    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", no_entry)
    monkeypatch.setattr(wandb, "init", lambda mode, **_: mode)
    assert _start_run("auto", {"dir": str(empty_home)}) == "offline"


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        ({"WANDB_CONSOLE": "loud"}, "WANDB_CONSOLE=loud"),
        ({"WANDB_MODE": "on"}, "WANDB_MODE=on"),
        ({"WANDB_BASE_URL": "nonsense"}, "WANDB_BASE_URL=nonsense"),
        ({"WANDB__SERVICE_WAIT": "long"}, "WANDB__SERVICE_WAIT=long"),
        ({"WANDB_RUN_ID": "a/b"}, "Run ID"),
    ],
)
def test_variables_that_wandb_rejects_are_reported(
    variable: dict[str, str], message: str, empty_home: Path
) -> None:
    configure_wandb(empty_home, variable)
    with pytest.raises(ConfigError, match=re.escape(message)):
        _start_run("auto", {"dir": str(empty_home)})


ENVIRONMENT = {
    "WANDB_PROJECT": "ours",
    "WANDB_ENTITY": "team",
    "WANDB_NAME": "named",
    "WANDB_RUN_GROUP": "together",
    "WANDB_JOB_TYPE": "ablation",
    "WANDB_TAGS": "a, b c",
    "WANDB_NOTES": "two words",
}
WANDB_KEYS = ("project", "entity", "name", "group", "job_type", "tags", "notes")


def test_overrides_precede_the_environment_which_precedes_defaults(empty_home: Path) -> None:
    def compose_wandb_settings(*overrides: str) -> list[Any]:
        run = to_plain(compose(*overrides))["logger"]["wandb"]
        return [run[key] for key in WANDB_KEYS]

    default = ["conditional-vae", None, None, None, "train", None, None]
    assert compose_wandb_settings() == default
    typed_overrides = ["name=mine", "logger.wandb.notes=null", "logger.wandb.tags=[c]"]
    typed_overrides += [
        f"logger.wandb.{key}=mine" for key in ("project", "entity", "group", "job_type")
    ]
    mine = ["mine", "mine", "mine", "mine", "mine", ["c"], None]
    assert compose_wandb_settings(*typed_overrides) == mine
    configure_wandb(empty_home, ENVIRONMENT)
    assert compose_wandb_settings() == list(ENVIRONMENT.values())
    assert compose_wandb_settings(*typed_overrides) == mine
    view = to_plain(compose(config="dashboard"))
    assert (view["project"], view["entity"]) == ("ours", "team")
    configure_wandb(empty_home, dict.fromkeys(ENVIRONMENT, ""))
    assert compose_wandb_settings() == default


@pytest.mark.parametrize("group", [None, "together"])
def test_the_environment_overrides_the_group_of_a_sweep(
    group: str | None, empty_home: Path
) -> None:
    configure_wandb(empty_home, {"WANDB_RUN_GROUP": group or ""})
    RunFolder.archive(compose(), empty_home / "run", sweep="my-sweep")
    assert reading.load_config(empty_home / "run").logger.wandb.group == (group or "my-sweep")


def test_a_run_keeps_its_project_with_another_logger_override(empty_home: Path) -> None:
    RunFolder.archive(compose(), empty_home / "run")
    cfg = reading.load_config(empty_home / "run")
    configure_wandb(empty_home, ENVIRONMENT)
    resume_overrides.apply_overrides(cfg, compose("logger=wandb"), ["logger=wandb"])
    assert (cfg.logger.wandb.project, cfg.logger.wandb.entity) == ("conditional-vae", None)
    typed_overrides = ["logger=wandb", "logger.wandb.project=typed"]
    resume_overrides.apply_overrides(cfg, compose(*typed_overrides), typed_overrides)
    assert (cfg.logger.wandb.project, cfg.logger.wandb.entity) == ("typed", None)


@pytest.mark.fault(
    Promise.INPUT, "overrides that are misspelt, of a wrong type, out of range or contradictory"
)
@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("WANDB_PROJECT", "a/b"),
        ("WANDB_TAGS", "a,,b"),
        ("WANDB_NAME", "x" * 129),
        ("WANDB_NOTES", "${name}"),
        ("WANDB_MODE", "on"),
    ],
)
def test_an_invalid_variable_is_named_in_the_message(
    variable: str, value: str, empty_home: Path
) -> None:
    os.environ[variable] = value
    cfg = compose()
    assert _with_variable(cfg, validate(settings_to_validate(cfg))[0]).startswith(variable)


def test_an_invalid_variable_is_rejected_before_a_folder_is_made(
    data_dir: Path, tmp_path: Path
) -> None:
    done = run_light("train", *tiny(data_dir, tmp_path / "run"), WANDB_PROJECT="a/b")
    assert done.returncode == 2
    assert done.stderr.startswith("error: WANDB_PROJECT: logger.wandb.project=a/b: must be ")
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_keeps_the_environment_of_its_start(data_dir: Path, tmp_path: Path) -> None:
    run_dir, script = tmp_path / "run", ROOT / "src" / "train.py"
    overrides = ["callbacks.figures=null", "trainer.max_epochs=1"]
    environment = {**ENVIRONMENT, "WANDB_ENTITY": ""}  # empty counts as unset
    done = run_warm(script, [*tiny(data_dir, run_dir), *overrides], ROOT, 120, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    later = {**dict.fromkeys(environment, "later"), "WANDB_TAGS": ",,"}
    resume = [f"resume={run_dir}", "trainer.max_epochs=2"]
    done = run_warm(script, resume, ROOT, 120, **later)
    assert done.returncode == 0, done.stdout + done.stderr
    kept = [
        r["run"]
        for index in (0, 1)
        for r in read_wandb_records(run_dir, index)
        if r["type"] == "run"
    ]
    assert len(kept) == 2
    for run in kept:
        assert (run["project"], run.get("entity", "")) == ("ours", "")
        assert (run["display_name"], run["run_group"]) == ("named", "together")
    assert kept[0]["tags"] == ["a", "b c"]
    assert (kept[0]["job_type"], kept[0]["notes"]) == ("ablation", "two words")
    assert json.loads((run_dir / "summary.json").read_text())["name"] == "named"


def test_a_run_is_tracked_offline_if_the_server_refuses(data_dir: Path, tmp_path: Path) -> None:
    """With a key the run starts online; if the server rejects it, the run continues offline."""
    run_dir = tmp_path / "run"
    done = run_script(
        "train",
        *tiny(data_dir, run_dir),
        "trainer.max_epochs=1",
        "callbacks.figures=null",
        WANDB_MODE="online",
        WANDB_API_KEY="0" * 40,
        WANDB_BASE_URL="http://127.0.0.1:9",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tracked offline" in done.stdout
    assert json.loads((run_dir / "summary.json").read_text())["status"] == "finished"


def test_an_evaluation_does_not_fail_if_wandb_does(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def start() -> Any:
        raise RuntimeError("the server is unavailable")

    log_evaluation(start, {"test/nll_k50": {"value": 84.0}}, {}, ["value"])
    assert "the server is unavailable" in caplog.text


@pytest.mark.parametrize(
    ("tracked_folder", "environment", "mode"),
    [
        ("run-20260101-abc", "", "auto"),
        ("offline-run-20260101-abc", "", "offline"),
        ("run-20260101-abc", "disabled", None),
        (None, "", None),
    ],
)
def test_an_evaluation_is_added_in_the_mode_of_the_tracked_run(
    tracked_folder: str | None,
    environment: str,
    mode: str | None,
    empty_home: Path,
) -> None:
    configure_wandb(empty_home, {"WANDB_MODE": environment})
    if tracked_folder is not None:
        (empty_home / "wandb" / tracked_folder).mkdir(parents=True)
    assert wandb_mode(empty_home) == mode
