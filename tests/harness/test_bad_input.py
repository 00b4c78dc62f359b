"""Hundreds of invalid overrides fail with at most three lines, before any file is made.

A server imports everything once. It forks for each case, and the fork runs an entry point as if
started from a shell. Random cases have a fixed seed, so that failures are reproducible.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import hydra
import pytest
from omegaconf import OmegaConf

from harness.config import checks, schemas
from harness.config.keys import iterate_keys
from tests.conftest import ROOT, clean_environment
from tests.harness.test_cli import BAD
from tests.project.test_conf import compose, to_plain
from tests.tally import Promise, Survived

OVERRIDES = "overrides that are misspelt, of a wrong type, out of range or contradictory"
UNUSUAL = "rare but valid values, groups and keys"

SEED = 20
TIME_LIMIT = 60  # seconds per case on a busy machine; 0.2 is usual


class Case(NamedTuple):
    """Overrides of a script, and texts that its error message must contain."""

    script: str
    overrides: list[str]
    fragments: list[str] = []  # noqa: RUF012 - never changed
    torch: bool = False  # whether the script needs torch to find the error


class Result(NamedTuple):
    code: int  # exit code; negative for a signal
    out: str
    error: str
    seconds: float
    files: list[str]  # names of the files that the script wrote


# without evaluate.py if the user has deleted it
SCRIPTS = [s for s in ("train", "generate", "evaluate") if (ROOT / "src" / f"{s}.py").is_file()]

# runs in its own process without torch; reads a line of JSON per case and writes one per result
SERVER = r"""
import contextlib, gc, importlib, io, json, os, sys, time, types
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import harness.command_line.hooks, hydra, hydra.core.hydra_config  # once for all cases
from hydra._internal.core_plugins import basic_launcher, basic_sweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from harness.config.checks import validate
from harness.config.composition import compose_config
from harness.config.paths import CONF
OverridesParser.create().parse_override("a=1")
modules = {name: importlib.import_module(name) for name in sys.argv[2:]}
assert "torch" not in sys.modules
do_not_train = lambda run_dir, **_: None
sys.modules["my_package"] = user_package = types.ModuleType("my_package")  # classes of a user
def make_class(name):
    if name.startswith("_"):
        raise AttributeError(name)
    return lambda **arguments: None
user_package.__getattr__ = make_class
for name, module in modules.items():  # reads the signatures once
    config = compose_config(CONF, name)
    validate(config, None if name == "train" else name)
gc.freeze()
for line in sys.stdin:
    case = json.loads(line)
    child = os.fork()
    if child == 0:
        folder = Path(case["folder"])
        for number, name in ((1, "out"), (2, "error")):
            os.dup2(os.open(folder / name, os.O_CREAT | os.O_WRONLY), number)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", errors="backslashreplace")
        os.chdir(folder)
        overrides = (os.fsdecode(text.encode("latin-1")) for text in case["overrides"])
        sys.argv = [case["script"] + ".py", *overrides]
        if case["is_valid"]:
            modules["train"].launch = do_not_train  # write the run folder, but do not train
        elif not case["torch"]:
            sys.modules["torch"] = None  # bad input is rejected without torch
        code = 1
        try:
            modules[case["script"]].main()
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
        except BaseException:
            import traceback
            traceback.print_exc()
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
    start, status = time.monotonic(), (0, 0)
    while status[0] == 0 and time.monotonic() < start + case["limit"]:
        status = os.waitpid(child, os.WNOHANG)
        time.sleep(0.005)
    if status[0] == 0:
        os.kill(child, 9)
        os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status[1]) if status[0] else -9
    print(json.dumps({"code": code, "seconds": time.monotonic() - start}), flush=True)
"""


class EntryPoints:
    """A process that imports the scripts once and forks for every case."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.count = 0
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(ROOT / "src"), *SCRIPTS, "embed", "compare"],
            env=clean_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, case: Case, is_valid: bool = False) -> Result:
        self.count += 1
        folder = self.folder / str(self.count)
        folder.mkdir()
        run_dir_override = [f"hydra.run.dir={folder / 'run'}"] if case.script == "train" else []
        if any("hydra.run.dir=" in override or override == "-m" for override in case.overrides):
            run_dir_override = []
        overrides = [
            os.fsencode(text).decode("latin-1") for text in [*case.overrides, *run_dir_override]
        ]
        request = {
            "script": case.script,
            "overrides": overrides,
            "folder": str(folder),
            "torch": case.torch,
            "is_valid": is_valid,
            "limit": TIME_LIMIT,
        }
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(request), file=self.process.stdin)
        self.process.stdin.flush()
        reply = json.loads(self.process.stdout.readline())
        out, error = (
            (folder / name).read_text(encoding="utf-8", errors="replace")
            for name in ("out", "error")
        )
        files = [p.name for p in folder.iterdir() if p.name not in ("out", "error")]
        return Result(reply["code"], out, error, reply["seconds"], files)

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(timeout=20)
        self.process.stdout.close()


@pytest.fixture(scope="module")
def entry_points(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EntryPoints]:
    started = EntryPoints(tmp_path_factory.mktemp("bad input"))
    yield started
    started.close()


# cases


def list_keys(script: str) -> list[str]:
    known = iterate_keys(to_plain(compose(config=script)))
    # model.condition interpolates data.condition
    unset = ("hydra", "_target_", "_partial_", "model.condition.")
    return [key for key in known if not any(part in key for part in unset)]


def misspell_a_key(rng: random.Random, script: str, valid_keys: list[str]) -> Case:
    """Return a case with one typing error in a key."""
    while True:
        key = rng.choice(valid_keys)
        position = rng.randrange(len(key))
        slip = rng.choice(["drop", "double", "swap", "other", "case", "prefix"])
        if slip == "drop":
            bad = key[:position] + key[position + 1 :]
        elif slip == "double":
            bad = key[:position] + key[position] + key[position:]
        elif slip == "swap":
            bad = key[:position] + key[position : position + 2][::-1] + key[position + 2 :]
        elif slip == "other":
            bad = key[:position] + rng.choice("abcdefghijklmnopqrstuvwxyz_") + key[position + 1 :]
        elif slip == "case":
            bad = key[:position] + key[position].swapcase() + key[position + 1 :]
        else:
            bad = rng.choice(["models", "train", "x", "opt"]) + "." + key
        parts = bad.split(".")
        if bad not in valid_keys and all(re.fullmatch(r"[A-Za-z_]\w*", part) for part in parts):
            return Case(script, [f"{bad}=1"], [bad])


WRONG_BY_TYPE = {  # invalid values for every setting whose value in conf/ has this type
    int: ["abc", "1.5", "[1]", "{a:1}", "'3'", "nan", "1e400"],
    float: ["abc", "[1,2]", "{}", "'1'", "nan", "inf", "-inf"],
    bool: ["maybe", "[true]", "0.5"],
    str: ["[[a]]", "{a:b}"],
    list: ["3", "[[],abc]", "{a:1}"],
    dict: ["3", "word", "[1]"],
}
CANDIDATE_VALUES = [
    "null",
    "true",
    "false",
    "3",
    "1.5",
    "[]",
    "word",
    "nonsense:/",
    "-1",
    "-1e9",
    "0",
    "2",
]


def list_wrong_values(
    value: Any, schema: dict[str, Any], accepts: Callable[[Any], bool]
) -> list[str]:
    """Return values that a setting must reject, as override text.

    Args:
        value: value of the setting in conf/.
        schema: JSON Schema of the setting, for values out of range.
        accepts: returns whether a value is valid for the setting.
    """
    certain = WRONG_BY_TYPE.get(type(value), []) if schema.get("type") != "null" else []
    certain = [v for v in certain if v not in ("abc", "'3'") or "string" not in str(schema)]
    certain = [v for v in certain if v != "1.5" or "number" not in str(schema)]
    bounds = [
        str(found[bound] + step)
        for found in (schema, *schema.get("anyOf", ()), schema.get("items", {}))
        for bound, step in (
            *(("minimum", -1), ("maximum", 1)),
            *(("exclusiveMinimum", 0), ("exclusiveMaximum", 0)),
        )
        if bound in found
    ]
    others = [v for v in (*bounds, *CANDIDATE_VALUES) if not accepts(parse_value(v))]
    return list(dict.fromkeys([*certain, *others]))


def parse_value(text: str) -> Any:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    value = OverridesParser.create().parse_override(f"k={text}").value()
    return OmegaConf.to_container(OmegaConf.create({"k": value}))["k"]  # type: ignore[index,call-overload]


def list_settings(script: str) -> list[tuple[str, Any, dict[str, Any], Callable[[Any], bool]]]:
    """Return key, value, JSON Schema and validity check of each setting of a composed config."""
    settings: list[tuple[str, Any, dict[str, Any], Callable[[Any], bool]]] = []

    def add(node: dict[str, Any], arguments: checks.Arguments | None, prefix: str) -> None:
        if arguments is None:
            return
        properties = schemas.json_schema(arguments.model)["properties"]
        for name in properties.keys() & node.keys():

            def accepts(value: Any, name: str = name) -> bool:
                return not list(schemas.wrong_values(arguments.model, {name: value}))

            settings.append((f"{prefix}{name}", node[name], properties[name], accepts))

    def walk(node: Any, prefix: str) -> None:
        if isinstance(node, dict):
            if target := node.get("_target_"):
                add(node, checks.arguments_of(target), prefix)
            for key, child in node.items():
                walk(child, f"{prefix}{key}.")

    cfg = to_plain(compose(config=script))
    is_run = script == "train"
    add(cfg, checks.train_arguments(cfg) if is_run else checks.arguments_of(f"{script}.main"), "")
    walk(cfg, "")
    if is_run:
        add(cfg["trainer"], checks.arguments_of("lightning.Trainer"), "trainer.")
    unset = ("hydra", "data_dir", "run_dir", "run_id", "sweep", "run", "output", "resume", "rerun")
    groups = ("data", "model", "module", "optimizer", "trainer", "scheduler", "logger", "callbacks")
    kept = [f for f in settings if f[0].rpartition(".")[2] not in unset and f[0] not in groups]
    # model.condition interpolates data.condition
    kept = [f for f in kept if not f[0].startswith("model.condition.")]
    return sorted(kept, key=lambda f: f[0])


def make_wrong_value_cases(script: str) -> list[Case]:
    """Return a case for each invalid value of each setting."""
    cases = []
    for key, value_in_conf, schema, accepts in list_settings(script):
        for value in list_wrong_values(value_in_conf, schema, accepts):
            fragments = [key, "must be" if key not in ("label",) else "label"]
            cases.append(Case(script, [f"{key}={value}"], fragments))
    return cases


LONG = "a" * 20_000
# list elements: valid keys in Hydra 1.4, invalid before
BRACKETS = ("trainer[devices]=2", "data.image_shape[0]=1")
HANDWRITTEN = [
    # unknown or contradictory groups
    Case("train", ["model=null"], ["model"]),
    Case("train", ["optimizer=null"], ["optimizer"]),
    Case("train", ["data=null"], ["data"]),
    Case("train", ["trainer=null"], ["trainer"]),
    Case("train", ["+model=vae"], ["model"]),
    Case("train", ["~model"], ["model"]),
    Case("train", ["~data"], ["data"]),
    Case("train", ["~nothing"], ["nothing"]),
    Case("train", ["model@data=vae"], ["model"]),
    Case(
        "train",
        ["model.network=conv"],
        ["model.network=conv", "group of settings", "model/network=conv"],
    ),
    Case("train", ["model.network=null"], ["model.network"]),
    Case("train", ["model/network=null"], ["model/network"]),
    Case("train", ["model._target_=null"], ["model._target_"]),
    Case("train", ["model._target_=VAE"], ["model._target_"]),
    Case("train", ["optimizer._target_=[a.b]"], ["optimizer._target_"]),
    Case("train", ["optimizer._partial_=false"], ["optimizer._partial_"]),
    Case(
        "train",
        ["optimizer._target_=torch.optim.SGD"],
        ["optimizer.betas", "torch.optim.SGD has no such key", "to drop it: ~optimizer.betas"],
    ),
    Case("train", ["optimizer=lion"], ["optimizer=lion", "adamw"]),
    Case("train", ["model=conv"], ["model=conv", "did you mean model/network=conv"]),
    Case("train", ["epochs=3"], ["epochs=3", "did you mean trainer.max_epochs"]),
    Case("train", ["lr=1e-3"], ["lr=1e-3", "did you mean optimizer.lr"]),
    Case("train", ["name=2024"], ["name=2024: must be text", "name='2024'"]),
    Case("train", ["name=12e4567"], ["name=12e4567: must be text"]),
    Case("train", ["model.network._target_=cvae.networks.MPL"], ["did you mean cvae.networks.MLP"]),
    Case("train", ["optimizer._target_=torch.optim.Adamw"], ["did you mean torch.optim.AdamW?"]),
    Case("train", ["+callbacks.best.save_topk=2"], ["did you mean callbacks.best.save_top_k"]),
    Case("train", ["optimizer=sgd", "optimizer.momentum=2"], ["momentum=2", "below 1"]),
    Case("train", ["experiment=slow"], ["experiment=slow", "quick"]),
    Case("train", ["device=tpu"], ["device=tpu", "cpu"]),
    Case("train", ["device=gpu"], ["trainer.accelerator=gpu", "no GPU"]),
    Case("train", ["device=mps"], ["trainer.accelerator=mps"]),
    Case("train", ["data=cifar10"], ["data=cifar10", "mnist"]),
    Case("train", ["logger=wnadb"], ["logger=wnadb", "wandb"]),
    Case("train", ["callbacks.mine={}"], ["callbacks.mine"]),
    Case("train", ["+callbacks.mine=3"], ["callbacks.mine"]),
    Case("train", ["+logger.mine={a:1}"], ["logger.mine"]),
    Case("train", ["+data.seed=3"], ["data.seed", "the code sets it"]),
    Case("train", ["+optimizer.momentum=0.9"], ["optimizer.momentum", "no such key"]),
    Case("train", ["+trainer.logger=true"], ["trainer.logger", "the code sets it"]),
    Case("train", ["+sede=3"], ["sede", "no such key"]),
    Case("train", ["++model.latnet_dim=3"], ["model.latnet_dim", "latent_dim"]),
    Case("train", ["~optimizer.lr"], ["optimizer.lr", "missing"]),
    Case("train", ["~model.latent_dim"], ["model.latent_dim", "missing"]),
    Case("train", ["model/prior=flow", "model.latent_dim=1"], ["latent_dim=1", "at least 2"]),
    Case("train", ["model=autoencoder", "model/penalty=adversary"], ["model/penalty", "have no"]),
    Case("train", ["model.penalty=adversary"], ["model/penalty=adversary"]),
    Case("train", ["model/penalty=adversary", "model.penalty.weight=-1"], ["model.penalty.weight"]),
    Case("train", ["model=autoencoder", "model/prior=flow"], ["model/prior=flow", "have no"]),
    Case("train", ["~trainer.devices"], ["trainer.devices", "missing"]),
    Case("train", ["run_dir=/tmp"], ["run_dir"]),
    Case("train", ["run_id=mine"], ["run_id"]),
    Case("train", ["monitor=val/elb"], ["monitor=val/elb", "val/elbo"]),
    Case("train", ["model=autoencoder", "monitor=val/elbo"], ["monitor", "val/reconstruction"]),
    Case("train", ["model=autoencoder", "model.beta=2"], ["model.beta"]),
    Case("train", ["model=autoencoder", "+model.beta=2"], ["model.beta", "no such key"]),
    Case("train", ["optimizer.fused=true", "+optimizer.foreach=true"], ["optimizer.foreach"]),
    Case("train", ["trainer.precision=16-mixed", "device=cpu"], ["trainer.precision"]),
    Case("train", ["trainer.max_epochs=-1"], ["trainer.max_epochs"]),
    Case("train", ["trainer.devices=0"], ["trainer.devices=0"]),
    Case("train", ["trainer.devices=many"], ["trainer.devices=many"]),
    Case("train", ["trainer.devices=[1]"], ["trainer.devices=[1]", "number of processes"]),
    Case("train", ["trainer.devices=100000"], ["trainer.devices=100000", "cores"]),
    Case("train", ["trainer.num_nodes=3"], ["trainer.num_nodes"]),
    Case("train", ["trainer.devices=2", "data.batch_size=33"], ["data.batch_size=33"]),
    Case("train", ["trainer.barebones=true"], ["trainer.barebones"]),
    Case("train", ["trainer.use_distributed_sampler=true"], ["use_distributed_sampler"]),
    Case("train", ["trainer.profiler=foo"], ["trainer.profiler=foo", "simple"]),
    Case("train", ["trainer.strategy=foo"], ["trainer.strategy=foo", "ddp"]),
    Case("train", ["trainer.val_check_interval=-1"], ["trainer.val_check_interval=-1"]),
    Case("train", ["trainer.max_time=1h"], ["trainer.max_time=1h", "DD:HH:MM:SS"]),
    Case("train", ["trainer.plugins=[a]"], ["trainer.plugins"]),
    # files and folders
    Case("train", ["hydra.run.dir=/proc/nothing"], ["/proc"]),
    Case("train", ["hydra.run.dir=/dev/null/x"], ["/dev/null"]),
    Case("train", ["hydra.run.dir=/" + LONG], ["hydra.run.dir"]),
    Case("train", ["hydra.run.dir=out"], ["hydra.run.dir", "not a writable folder"]),
    Case("train", ["data.data_dir="], ["data.data_dir"]),
    Case("generate", ["run=/no/such/place"], ["/no/such/place", "no such folder"]),
    Case("generate", ["run=~nobody-here/x"], ["nobody-here", "no such folder"]),
    Case("generate", ["run=/" + LONG], ["no such folder"]),
    Case("generate", ["run=/dev/null"], ["/dev/null"]),
    Case("generate", ["run=/proc"], ["/proc", "no checkpoint"]),
    Case("generate", ["run=数字"], ["no such folder"]),
    Case("generate", ["run=a,b"], ["a,b", "no such folder"]),
    Case("generate", ["run=null"], ["run=null"]),
    Case("generate", ["run="], ["run"]),
    Case("evaluate", ["run=[a,b]"], ["[a,b]"]),
    Case("evaluate", ["run=/etc/passwd"], ["/etc/passwd", "not a checkpoint"], torch=True),
    Case("evaluate", ["trust=[]"], ["trust"]),
    Case("evaluate", ["trust="], ["trust"]),
    # Hydra's own options
    Case("train", ["--config-name=other"], ["other"]),
    Case("train", ["--config-dir=/no/such"], ["/no/such"]),
    Case("train", ["--config-path=/no/such"], ["/no/such"]),
    Case("train", ["--info=nothing"], ["nothing"]),
    Case("train", ["--cfg"], ["--cfg"]),
    Case("train", ["--cfg", "nothing"], ["nothing"]),
    Case("train", ["+seed=3"], ["seed"]),
    Case("train", ["logger.wandb.tags={a:1}"], ["logger.wandb.tags"]),
    Case("train", ["callbacks.best.save_top_k=2"], ["+callbacks.best.save_top_k=2"]),
    Case("train", ["+callbacks.best.save_top_k=2"], ["callbacks.best.save_top_k=2", "{step}"]),
    Case("train", ["+callbacks.best.save_last=link"], ["callbacks.best.save_last=link"]),
    Case("train", ["--verbose"], ["--verbose"]),
    Case("train", ["-x"], ["-x"]),
    Case("train", ["--seed=3"], ["--seed"]),
    Case("train", ["-m", "seed=1,x", "hydra.sweep.dir=sweep"], ["seed=x"]),
    Case("train", ["seed=1,2"], ["seed"]),
    Case("train", ["hydra/launcher=nothing"], ["nothing"]),
    Case("train", ["hydra/sweeper=nothing"], ["nothing"]),
    Case("train", ["hydra.nothing=1"], ["hydra.nothing"]),
    Case("train", ["hydra.mode=SOMETIMES"], ["hydra.mode"]),
    Case("generate", ["-m", "label=1,2"], ["-m"]),
    # not of the form key=value
    Case("train", ["seed"], ["seed"]),
    Case("train", ["="], ["="]),
    Case("train", ["=3"], ["=3"]),
    Case("train", ["seed=[1"], ["seed=[1"]),
    Case("train", ["seed={a"], ["seed={a"]),
    Case("train", ["seed='1"], ["seed='1"]),
    Case("train", ["seed=1)"], ["seed=1)"]),
    Case("train", ["seed=f(1)"], ["seed=f(1)"]),
    Case("train", ["seed=range(1,"], ["range"]),
    Case("train", ["seed=choice(1,2)"], ["seed"]),
    Case("train", ["seed=glob(*)"], ["seed"]),
    Case("train", ["seed=int(x)"], ["seed"]),
    Case("train", ["seed=1 2"], ["seed=1 2"]),
    Case("train", ["a b=1"], ["a b=1"]),
    Case("train", ["model..latent_dim=3"], ["model..latent_dim"]),
    Case("train", [".seed=3"], [".seed"]),
    Case("train", ["seed.x=3"], ["seed"]),
    Case("train", ["model.latent_dim.x=3"], ["latent_dim"]),
    *(Case("train", [a], [a.split("=")[0]]) for a in BRACKETS if hydra.__version__ < "1.4"),
    Case("train", ["-"], ["-"]),
    Case("train", ["name=\x1b[31mred"], ["name"]),
    Case("train", [r"name='\${x}'"], ["name", "without ${"]),
    # unresolvable interpolations
    Case("train", ["seed=${nothing}"], ["nothing"]),
    Case("train", ["seed=${oc.env:NO_SUCH_VARIABLE}"], ["NO_SUCH_VARIABLE"]),
    Case("train", ["seed=${seed}"], ["seed"]),
    Case("train", ["seed=${no_resolver:1}"], ["no_resolver"]),
    Case("train", ["seed=${"], ["seed=${"]),
    Case("train", ["seed=???"], ["seed"]),
    Case("train", ["model=${data}"], ["model"]),
    # other alphabets, other encodings
    Case("train", ["sämling=3"], ["sämling"]),
    Case("train", ["seed=七"], ["seed=七", "an integer"]),
    Case("train", ["seed=٣"], ["seed=٣"]),
    Case("train", ["модель=vae"], ["модель"]),
    Case("train", ["model=вае"], ["model=вае"]),
    Case("train", ["model.latent_dim=３"], ["model.latent_dim=３"]),
    Case("train", ["trainer.precision=３２"], ["trainer.precision"]),
    Case("train", ["name=" + os.fsdecode(b"\xff\xfe")], ["name"]),
    Case("train", ["hydra.run.dir=" + os.fsdecode(b"x\xff")], ["hydra.run.dir"]),
    Case("train", ["seed=\u202e1"], ["seed"]),
    Case("train", ["\ufeffseed=1"], ["seed"]),
    Case("generate", ["label=سبعة"], ["label=سبعة"]),
    # very long
    Case("train", [f"{LONG}=1"], ["aaa"]),
    Case("train", [f"seed={LONG}"], ["seed=aaa", "an integer"]),
    Case("train", [f"name={LONG}"], ["name=aaa", "128"]),
    Case("train", ["seed=" + "9" * 5000], ["seed=999"]),
    Case("train", ["seed=" + "[" * 300], ["seed=["]),
    Case("train", ["seed=" + "[" * 400 + "]" * 400], ["seed"]),
    Case("train", [".".join("a" * 300) + "=1"], ["a.a"]),
    Case("train", [f"model.latent_dim=[{','.join('1' * 500)}]"], ["model.latent_dim"]),
    Case("train", [f"model={LONG}"], ["model=aaa"]),
    Case("train", [f"logger.wandb.project={LONG}"], ["logger.wandb.project"]),
    Case("generate", [f"label={LONG}"], ["label=aaa"]),
]


def all_bad_cases(seed: int = SEED, count: int = 620) -> list[Case]:
    """Return the handwritten cases, and random cases of wrong values and misspelt keys."""
    rng = random.Random(seed)
    cases = [case for case in HANDWRITTEN if case.script in SCRIPTS]
    drawn = [c for script in SCRIPTS for c in make_wrong_value_cases(script)]
    rng.shuffle(drawn)
    cases += drawn[: max(0, count - len(cases) - 150)]
    known = {script: list_keys(script) for script in SCRIPTS}
    while len(cases) < count:
        script = rng.choice(["train", "train", *SCRIPTS])
        cases.append(misspell_a_key(rng, script, known[script]))
    return cases


def find_problem(case: Case, result: Result) -> str | None:
    """Return what is wrong with the result of invalid input, or None."""
    lines = result.error.strip().splitlines()
    if result.code != 2:
        return f"exit code {result.code}"
    if "Traceback" in result.error or result.out.strip():
        return "a traceback, or output"
    if not 1 <= len(lines) <= 3 or not lines[0].startswith("error: "):
        return f"{len(lines)} lines"
    if max(map(len, lines)) > 700:
        return "a line too long to read"
    if missing := [part for part in case.fragments if part not in result.error]:
        return f"it does not say {missing}"
    if result.files:
        return f"it left {result.files}"
    return None


def assert_rejected(cases: list[Case], entry_points: EntryPoints, survived: Survived) -> None:
    failures = []
    for case in cases:
        result = entry_points.run(case)
        if problem := find_problem(case, result):
            shown = [t if len(t) < 200 else t[:200] + "..." for t in case.overrides]
            failures.append(f"{case.script} {shown}: {problem}\n    {result.error[-600:]}")
    survived(len(cases) - len(failures))
    assert not failures, f"{len(failures)} of {len(cases)}:\n" + "\n".join(failures)


@pytest.mark.parametrize(
    ("name", "argument", "fragments"), BAD, ids=[f"{n} {t}" for n, t, _ in BAD]
)
def test_bad_input_fails_with_a_clear_message(
    name: str, argument: str, fragments: list[str], entry_points: EntryPoints
) -> None:
    case = Case(name, [argument], fragments)
    result = entry_points.run(case)
    assert find_problem(case, result) is None, result.error


def test_bad_input_is_rejected(entry_points: EntryPoints, survived: Survived) -> None:
    """Try a sample; the long tests try all cases."""
    cases = random.Random(SEED).sample(all_bad_cases(), 45)
    assert_rejected(cases, entry_points, survived)


@pytest.mark.long
@pytest.mark.fault(Promise.INPUT, OVERRIDES)
@pytest.mark.parametrize("part", range(8))
def test_all_bad_input_is_rejected(
    part: int, entry_points: EntryPoints, survived: Survived
) -> None:
    cases = all_bad_cases()
    assert len({(c.script, *c.overrides) for c in cases}) >= 500
    assert_rejected(cases[part::8], entry_points, survived)


# unusual but valid

VALID = [
    *([f"seed={n}"] for n in (0, 1, 2**32 - 1)),
    *([f"name={n}"] for n in ("a", "'with space'", "数字", "a-b_c.d", "'50%'", "null", "'[x]'")),
    *([f"monitor={m}"] for m in ("val/elbo", "val/reconstruction", "null")),
    *([f"test_num_samples={n}"] for n in (0, 1, 5000)),
    *([f"model={m}"] for m in ("vae", "cvae", "autoencoder", "cvae_plain")),
    *([f"model/penalty={p}"] for p in ("none", "labelwise_adversary")),
    *([f"data={d}"] for d in ("kmnist", "emnist_digits", "fashion_mnist", "images")),
    *([f"data.batch_size={n}"] for n in (1, 7, 60000)),
    *([f"data.validation_size={n}"] for n in (1, 59999)),
    ["data.binarization=none", "model/likelihood=discretized_logistic"],
    ["data.binarization=none", "model/likelihood=gaussian", "model.likelihood.scale=0.1"],
    ["data=coloured_mnist", "model/likelihood=continuous_bernoulli"],
    ["data=rotated_mnist", "model/prior=conditional"],
    ["experiment=quadrants_3", "data.condition.hidden_dim=64"],
    ["data.num_workers=2"],
    ["data.data_dir=~/data"],
    ["data.data_dir='a, b=c'"],
    ["data.data_dir=数字"],
    ["data=images", "data.name=letters", "data.num_classes=26", "data.image_shape=[1,32,48]"],
    ["model.latent_dim=1"],
    ["model.latent_dim=1000"],
    ["model.latent_dim=2", "model.beta=0"],
    ["model.beta=1e3"],
    ["model.beta=.5"],
    ["model.warmup_steps=0"],
    ["model.warmup_steps=100000000"],
    ["model/network=conv"],
    ["model/network=conv", "model.network.channels=[8]"],
    ["model/network=conv", "model.network.num_blocks=0", "model.network.latent_blocks=0"],
    ["model/network=conv", "model.network.patch_size=4"],
    ["model.network.encoder_blocks=0", "model.network.decoder_blocks=0"],
    ["data/augmentation=warp"],
    ["data/augmentation=warp", "data.augmentation.share=0", "data.augmentation.until=0"],
    ["data.augmentation={_target_: my_package.Crop, _partial_: true, size: 20}"],
    ["model.network._target_=my_package.Net", "+model.network.anything={a: [1, {b: c}]}"],
    ["model._target_=my_package.Model", "monitor=val/mine"],
    ["optimizer.lr=1e-12"],
    ["optimizer.lr=3"],
    ["optimizer.betas=[0,0]"],
    ["optimizer.weight_decay=0"],
    ["optimizer.fused=false"],
    ["optimizer.fused=null", "+optimizer.foreach=true"],
    ["+optimizer.eps=1e-6"],
    ["+optimizer.amsgrad=true"],
    ["optimizer._target_=torch.optim.Adam", "~optimizer.fused"],
    ["optimizer._target_=torch.optim.SGD", "~optimizer.betas", "+optimizer.momentum=0.9"],
    ["scheduler=constant"],
    ["scheduler=null"],
    ["scheduler.warmup_fraction=0"],
    ["scheduler=constant", "trainer.max_epochs=-1", "trainer.max_time=00:00:10:00"],
    ["callbacks=null"],
    ["callbacks=early_stopping"],
    ["callbacks=early_stopping", "callbacks.early_stopping.patience=0"],
    ["callbacks.ema=null"],
    ["callbacks.ema.decay=0"],
    ["callbacks.figures.every_n_epochs=0"],
    ["+callbacks.best.save_top_k=-1", "callbacks.best.filename='{epoch}'"],
    ["~callbacks.progress"],
    ["+callbacks.mine={_target_: my_package.Mine, x: 1}"],
    ["logger=csv"],
    ["logger=null"],
    ["logger=tensorboard"],
    ["logger.wandb.tags=[a, 'b c', '数']"],
    ["logger.wandb.notes='two words'"],
    ["logger.wandb.mode=disabled"],
    ["logger.wandb.project=Größe"],
    ["logger.wandb.group=mine"],
    ["device=cpu"],
    ["device=cpu", "trainer.devices=1"],
    ["trainer.devices='1'"],
    ["trainer.precision=bf16-mixed"],
    ["trainer.precision=64"],
    ["trainer.precision='32'"],
    ["trainer.precision=null"],
    ["trainer.max_epochs=0"],
    ["trainer.max_epochs=null", "trainer.max_steps=10"],
    ["trainer.max_steps=0"],
    ["trainer.max_time={minutes: 1}"],
    ["trainer.max_time=00:12:00:00"],
    ["trainer.min_epochs=2"],
    ["trainer.limit_train_batches=0.01"],
    ["trainer.limit_train_batches=1"],
    ["trainer.limit_train_batches=1.0"],
    ["trainer.limit_val_batches=0"],
    ["trainer.limit_test_batches=3"],
    ["trainer.overfit_batches=2"],
    ["trainer.overfit_batches=0.1"],
    ["trainer.fast_dev_run=3"],
    ["trainer.fast_dev_run=true"],
    ["trainer.val_check_interval=0.25"],
    ["trainer.val_check_interval=100"],
    ["trainer.val_check_interval=1.0"],
    ["trainer.val_check_interval=00:00:10:00"],
    ["trainer.check_val_every_n_epoch=null", "trainer.val_check_interval=1000"],
    ["trainer.num_sanity_val_steps=-1"],
    ["trainer.log_every_n_steps=0"],
    ["trainer.gradient_clip_val=0"],
    ["trainer.gradient_clip_val=null"],
    ["trainer.gradient_clip_algorithm=value"],
    ["trainer.accumulate_grad_batches=8"],
    ["trainer.deterministic=warn"],
    ["trainer.deterministic=true"],
    ["trainer.profiler=pytorch"],
    ["trainer.profiler=advanced"],
    ["trainer.strategy=ddp"],
    ["trainer.strategy=ddp_find_unused_parameters_true"],
    ["trainer.enable_checkpointing=false"],
    ["trainer.enable_progress_bar=false"],
    ["trainer.enable_model_summary=true"],
    ["trainer.detect_anomaly=true"],
    ["trainer.default_root_dir='a b'"],
    ["debug=overfit"],
    ["debug=profiler", "experiment=quick"],
    ["debug=one_batch"],
    ["experiment=quick", "seed=3"],
    ["experiment=null", "debug=null"],
    ["++seed=5"],
    ["name=${oc.env:COLUMNS}"],
    ["optimizer.lr=${model.beta}"],
]


def assert_accepted(cases: list[list[str]], entry_points: EntryPoints) -> None:
    failures = []
    for overrides in cases:
        result = entry_points.run(Case("train", overrides), is_valid=True)
        if result.code != 0 or result.error.strip() or result.files != ["run"]:
            failures.append(f"{overrides}: {result.code} {result.files}\n    {result.error[-500:]}")
    assert not failures, f"{len(failures)} of {len(cases)}:\n" + "\n".join(failures)


def test_unusual_input_is_accepted(entry_points: EntryPoints) -> None:
    """Try a sample; the long tests try all cases."""
    assert_accepted(random.Random(SEED).sample(VALID, 12), entry_points)


@pytest.mark.long
@pytest.mark.fault(Promise.UNUSUAL, UNUSUAL)
@pytest.mark.parametrize("part", range(3))
def test_all_unusual_input_is_accepted(
    part: int, entry_points: EntryPoints, survived: Survived
) -> None:
    assert len(VALID) >= 100
    assert_accepted(VALID[part::3], entry_points)
    survived(len(VALID[part::3]))


def test_wrong_results_are_detected() -> None:
    """Check that ``find_problem`` detects wrong exit codes, messages, output and files."""
    good = Result(2, "", "error: seed=x: must be an integer", 0.1, [])
    case = Case("train", ["seed=x"], ["seed=x", "must be"])
    assert find_problem(case, good) is None
    for bad in (
        good._replace(code=1),
        good._replace(code=-signal.SIGKILL),
        good._replace(error="Traceback (most recent call last)"),
        good._replace(error="error: a\nb\nc\nd"),
        good._replace(error="error: must be an integer"),
        good._replace(error=""),
        good._replace(out="run folder"),
        good._replace(files=["run"]),
    ):
        assert find_problem(case, bad) is not None
