"""Bad input, by the hundred: refused in at most three lines, before anything is made.

Everything is imported once; each case is a fork of that process, which runs an entry point as a
person would have started it. The cases are drawn from a seed, so that a failure can be had again.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin, get_type_hints

import pytest
from omegaconf import OmegaConf

from harness.config import checks
from harness.config.fields import Trainer, schema_of
from harness.config.keys import leaf_keys
from harness.config.paths import CONF
from harness.contract import settings
from harness.contract.settings import LEFT_OUT
from tests.conftest import ROOT, clean_environment
from tests.project.test_conf import compose, plain
from tests.tally import Promise, Survived

OVERRIDES = "misspelt, of another type, out of range, contradictory"
UNUSUAL = "values, groups and keys that few people type"

SEED = 20
LIMIT = 60  # seconds for a case on a busy machine; a usual one takes 0.2


class Case(NamedTuple):
    """What is typed, and what the answer must contain."""

    script: str
    typed: list[str]
    said: list[str] = []  # noqa: RUF012 - never changed
    torch: bool = False  # whether the answer needs it


class Answer(NamedTuple):
    code: int  # of the exit; negative for a signal
    out: str
    error: str
    seconds: float
    made: list[str]  # in the folder of the run


# the evaluation may be deleted
SCRIPTS = [s for s in ("train", "generate", "evaluate") if (ROOT / "src" / f"{s}.py").is_file()]

# One line of JSON a case comes in, one answer goes out. Runs in its own process: no torch here.
SERVER = r"""
import contextlib, importlib, io, json, os, sys, time, types
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import harness.command_line.hooks, hydra, hydra.core.hydra_config  # once for all cases
from hydra._internal.core_plugins import basic_launcher, basic_sweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
OverridesParser.create().parse_override("a=1")
modules = {name: importlib.import_module(name) for name in sys.argv[2:]}
assert "torch" not in sys.modules
stop = lambda run_dir, **_: None
sys.modules["my_package"] = mine = types.ModuleType("my_package")  # classes of a user
def class_of_mine(name):
    if name.startswith("_"):
        raise AttributeError(name)
    return lambda **arguments: None
mine.__getattr__ = class_of_mine
for line in sys.stdin:
    case = json.loads(line)
    child = os.fork()
    if child == 0:
        folder = Path(case["folder"])
        for number, name in ((1, "out"), (2, "error")):
            os.dup2(os.open(folder / name, os.O_CREAT | os.O_WRONLY), number)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", errors="backslashreplace")
        os.chdir(folder)
        typed = (os.fsdecode(word.encode("latin-1")) for word in case["typed"])
        sys.argv = [case["script"] + ".py", *typed]
        if case["good"]:
            modules["train"].launch = stop  # accepted and archived: training is another test's
        elif not case["torch"]:
            sys.modules["torch"] = None  # an answer to bad input needs no torch
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
    """The three scripts, imported once and forked for every case."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.count = 0
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(ROOT / "src"), *SCRIPTS],
            env=clean_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, case: Case, good: bool = False) -> Answer:
        self.count += 1
        folder = self.folder / str(self.count)
        folder.mkdir()
        where = [f"hydra.run.dir={folder / 'run'}"] if case.script == "train" else []
        if any("hydra.run.dir=" in typed or typed == "-m" for typed in case.typed):
            where = []
        typed = [os.fsencode(word).decode("latin-1") for word in [*case.typed, *where]]
        request = {
            "script": case.script,
            "typed": typed,
            "folder": str(folder),
            "torch": case.torch,
        }
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps({**request, "good": good, "limit": LIMIT}), file=self.process.stdin)
        self.process.stdin.flush()
        told = json.loads(self.process.stdout.readline())
        out, error = (
            (folder / name).read_text(encoding="utf-8", errors="replace")
            for name in ("out", "error")
        )
        made = [p.name for p in folder.iterdir() if p.name not in ("out", "error")]
        return Answer(told["code"], out, error, told["seconds"], made)

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


def keys_of(script: str) -> list[str]:
    known = leaf_keys(plain(compose(config=script)))
    return [k for k in known if "hydra" not in k and "_target_" not in k and "_partial_" not in k]


def misspelt(rng: random.Random, script: str, known: list[str]) -> Case:
    """A key with one slip of a finger."""
    while True:
        key = rng.choice(known)
        place = rng.randrange(len(key))
        slip = rng.choice(["drop", "double", "swap", "other", "case", "prefix"])
        if slip == "drop":
            bad = key[:place] + key[place + 1 :]
        elif slip == "double":
            bad = key[:place] + key[place] + key[place:]
        elif slip == "swap":
            bad = key[:place] + key[place : place + 2][::-1] + key[place + 2 :]
        elif slip == "other":
            bad = key[:place] + rng.choice("abcdefghijklmnopqrstuvwxyz_") + key[place + 1 :]
        elif slip == "case":
            bad = key[:place] + key[place].swapcase() + key[place + 1 :]
        else:
            bad = rng.choice(["models", "train", "x", "opt"]) + "." + key
        parts = bad.split(".")
        if bad not in known and all(re.fullmatch(r"[A-Za-z_]\w*", part) for part in parts):
            return Case(script, [f"{bad}=1"], [bad])


def wrong_values(kind: Any) -> list[str]:
    """Values that a field of this type and range must refuse, as they are typed."""
    origin = get_origin(kind)
    if kind is Any:
        return []
    if origin is Annotated:
        base, *limits = get_args(kind)
        found = wrong_values(base)
        for limit in limits:
            if isinstance(limit, settings.AtLeast):
                found += [str(limit.bound - 1), "-1e9"]
            elif isinstance(limit, settings.Above):
                found += [str(limit.bound), "-3"]
            elif isinstance(limit, settings.Between):
                found += [str(limit.low - 1), str(limit.high + 1)]
            elif isinstance(limit, settings.Below):
                found += [str(limit.high), "-0.1"]
            elif isinstance(limit, settings.Length):
                found += ["[" + ",".join(["0.5"] * (limit.count + 1)) + "]"]
            elif isinstance(limit, settings.OneOf | settings.Matching):
                found += ["nonsense:/"]
        return [v for v in found if not accepted(kind, v)]
    if origin in (Union, UnionType):
        found = [v for option in get_args(kind) for v in wrong_values(option)]
    elif origin is list:
        found = ["3", "[]", "[abc,[]]"]
    elif origin is dict:
        found = ["3", "word", "[1]"]
    else:
        found = {
            int: ["abc", "1.5", "null", "true", "[1]", "{a:1}", "'3'", "nan", "1e400"],
            float: ["abc", "null", "false", "[1,2]", "nan", "inf", "-inf", "{}", "'1'"],
            bool: ["maybe", "3", "null", "[true]", "0.5"],
            str: ["3", "1.5", "[a]", "{a:b}", "true"],
            None: ["3", "word"],
            NoneType: ["{a:1}", "[[1]]"],
        }[kind]
    return [v for v in found if not accepted(kind, v)]


def accepted(kind: Any, typed: str) -> bool:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    value = OverridesParser.create().parse_override(f"k={typed}").value()
    return checks._allows(kind, OmegaConf.to_container(OmegaConf.create({"k": value}))["k"])  # type: ignore[index,call-overload]


def top_level(script: str) -> type:
    """Types and ranges of the top level of a script's settings, which its file names."""
    checked = OmegaConf.select(OmegaConf.load(CONF / f"{script}.yaml"), "hydra.callbacks.checks")
    module, _, name = str((checked or {}).get("settings", "cvae.settings.Train")).rpartition(".")
    found: type = getattr(import_module(module), name)
    return found


def fields(script: str) -> list[tuple[str, Any]]:
    """Every key of a composed config that a schema describes, and its type."""
    found: list[tuple[str, Any]] = []

    def add(node: dict[str, Any], kind: type, prefix: str) -> None:
        hints = get_type_hints(kind, include_extras=True)
        found.extend((f"{prefix}{k}", t) for k, t in hints.items() if k in node)

    def walk(node: Any, prefix: str) -> None:
        if isinstance(node, dict):
            if kind := schema_of(str(node.get("_target_"))):
                add(node, kind, prefix)
            for key, child in node.items():
                walk(child, f"{prefix}{key}.")

    cfg = plain(compose(config=script))
    add(cfg, top_level(script), "")
    walk(cfg, "")
    if script == "train":
        add(cfg["trainer"], Trainer, "trainer.")
    taken = ("hydra", "data_dir", "run_dir", "run_id", "sweep", "run", "output", "resume", "rerun")
    groups = ("data", "model", "optimizer", "trainer", "scheduler", "logger", "callbacks")
    return [(k, t) for k, t in found if k.rpartition(".")[2] not in taken and k not in groups]


def wrong(script: str) -> list[Case]:
    """Every described key with every value that it must refuse."""
    cases = []
    for key, kind in fields(script):
        for value in dict.fromkeys(wrong_values(kind)):
            said = [key, "must be" if key not in ("label",) else "label"]
            cases.append(Case(script, [f"{key}={value}"], said))
    return cases


LONG = "a" * 20_000
BY_HAND = [
    # groups that cannot be, or not together
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
        ["optimizer.betas", "torch.optim.SGD does not take it", "to drop it: ~optimizer.betas"],
        torch=True,
    ),
    Case("train", ["optimizer=sgd"], ["optimizer=sgd", "adamw"]),
    Case("train", ["experiment=slow"], ["experiment=slow", "quick"]),
    Case("train", ["device=tpu"], ["device=tpu", "cpu"]),
    Case("train", ["device=gpu"], ["trainer.accelerator=gpu", "no GPU"]),
    Case("train", ["device=mps"], ["trainer.accelerator=mps"]),
    Case("train", ["data=cifar10"], ["data=cifar10", "mnist"]),
    Case("train", ["logger=wnadb"], ["logger=wnadb", "wandb"]),
    Case("train", ["callbacks.mine={}"], ["callbacks.mine"]),
    Case("train", ["+callbacks.mine=3"], ["callbacks.mine"]),
    Case("train", ["+logger.mine={a:1}"], ["logger.mine"]),
    Case("train", ["+data.seed=3"], ["data.seed", "no such key"]),
    Case("train", ["+optimizer.momentum=0.9"], ["optimizer.momentum", "no such key"]),
    Case("train", ["+trainer.logger=true"], ["trainer.logger", "no such key"]),
    Case("train", ["+sede=3"], ["sede", "no such key"]),
    Case("train", ["++model.latnet_dim=3"], ["model.latnet_dim", "latent_dim"]),
    Case("train", ["~optimizer.lr"], ["optimizer.lr", "missing"]),
    Case("train", ["~model.latent_dim"], ["model.latent_dim", "missing"]),
    Case("train", ["model/prior=flow", "model.latent_dim=1"], ["latent_dim=1", "at least 2"]),
    Case("train", ["model=autoencoder", "model/penalty=adversary"], ["model/penalty", "has no"]),
    Case("train", ["model.penalty=adversary"], ["model/penalty=adversary"]),
    Case("train", ["model/penalty=adversary", "model.penalty.weight=-1"], ["model.penalty.weight"]),
    Case("train", ["model=autoencoder", "model/prior=flow"], ["model/prior=flow", "has no"]),
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
    Case("train", ["hydra.run.dir=out"], ["hydra.run.dir", "no folder"]),
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
    # words that Hydra reads itself
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
    # what is no key=value
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
    Case("train", ["trainer[devices]=2"], ["trainer[devices]=2"]),
    Case("train", ["data.image_shape[0]=1"], ["image_shape[0]"]),
    Case("train", ["-"], ["-"]),
    Case("train", ["name=\x1b[31mred"], ["name"]),
    Case("train", [r"name='\${x}'"], ["name", "without ${"]),
    # interpolations that lead nowhere
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
    """Those written by hand, and more of every other kind, drawn from a seed."""
    rng = random.Random(seed)
    cases = [case for case in BY_HAND if case.script in SCRIPTS]
    drawn = [c for script in SCRIPTS for c in wrong(script)]
    rng.shuffle(drawn)
    cases += drawn[: max(0, count - len(cases) - 150)]
    known = {script: keys_of(script) for script in SCRIPTS}
    while len(cases) < count:
        script = rng.choice(["train", "train", *SCRIPTS])
        cases.append(misspelt(rng, script, known[script]))
    return cases


def problem_with(case: Case, answer: Answer) -> str | None:
    """What is wrong with the answer to bad input, or nothing."""
    lines = answer.error.strip().splitlines()
    if answer.code != 2:
        return f"exit code {answer.code}"
    if answer.seconds > LIMIT:
        return f"{answer.seconds:.0f} s"
    if "Traceback" in answer.error or answer.out.strip():
        return "a traceback, or output"
    if not 1 <= len(lines) <= 3 or not lines[0].startswith("error: "):
        return f"{len(lines)} lines"
    if max(map(len, lines)) > 700:
        return "a line too long to read"
    if missing := [part for part in case.said if part not in answer.error]:
        return f"it does not say {missing}"
    if answer.made:
        return f"it left {answer.made}"
    return None


def check(cases: list[Case], entry_points: EntryPoints, survived: Survived) -> None:
    failures = []
    for case in cases:
        answer = entry_points.run(case)
        if problem := problem_with(case, answer):
            typed = [t if len(t) < 200 else t[:200] + "..." for t in case.typed]
            failures.append(f"{case.script} {typed}: {problem}\n    {answer.error[-600:]}")
    survived(len(cases) - len(failures))
    assert not failures, f"{len(failures)} of {len(cases)}:\n" + "\n".join(failures)


def test_bad_input_is_refused(entry_points: EntryPoints, survived: Survived) -> None:
    """A sample; the long tests try them all."""
    cases = random.Random(SEED).sample(all_bad_cases(), 45)
    check(cases, entry_points, survived)


@pytest.mark.long
@pytest.mark.fault(Promise.INPUT, OVERRIDES)
@pytest.mark.parametrize("part", range(8))
def test_all_bad_input_is_refused(part: int, entry_points: EntryPoints, survived: Survived) -> None:
    cases = all_bad_cases()
    assert len({(c.script, *c.typed) for c in cases}) >= 500
    check(cases[part::8], entry_points, survived)


# unusual and good

GOOD = [
    *([f"seed={n}"] for n in (0, 1, 2**32 - 1)),
    *([f"name={n}"] for n in ("a", "'with space'", "数字", "a-b_c.d", "'50%'", "null", "'[x]'")),
    *([f"monitor={m}"] for m in ("val/elbo", "val/reconstruction", "null")),
    *([f"test_num_samples={n}"] for n in (0, 1, 5000)),
    *([f"model={m}"] for m in ("vae", "cvae", "autoencoder", "cvae_plain")),
    *([f"model/penalty={p}"] for p in ("none", "labelwise_adversary")),
    *([f"data={d}"] for d in ("kmnist", "emnist_digits", "fashion_mnist", "images")),
    *([f"data.batch_size={n}"] for n in (1, 7, 60000)),
    *([f"data.validation_size={n}"] for n in (1, 59999)),
    ["data.binarization=none"],
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
    ["trainer.devices=[0]"],
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


def accept(cases: list[list[str]], entry_points: EntryPoints) -> None:
    failures = []
    for typed in cases:
        answer = entry_points.run(Case("train", typed), good=True)
        if answer.code != 0 or answer.error.strip() or answer.made != ["run"]:
            failures.append(f"{typed}: {answer.code} {answer.made}\n    {answer.error[-500:]}")
    assert not failures, f"{len(failures)} of {len(cases)}:\n" + "\n".join(failures)


def test_unusual_input_is_accepted(entry_points: EntryPoints) -> None:
    """A sample; the long tests try them all."""
    accept(random.Random(SEED).sample(GOOD, 12), entry_points)


@pytest.mark.long
@pytest.mark.fault(Promise.UNUSUAL, UNUSUAL)
@pytest.mark.parametrize("part", range(3))
def test_all_unusual_input_is_accepted(
    part: int, entry_points: EntryPoints, survived: Survived
) -> None:
    assert len(GOOD) >= 100
    accept(GOOD[part::3], entry_points)
    survived(len(GOOD[part::3]))


def test_a_traceback_would_be_seen(entry_points: EntryPoints) -> None:
    """The judge of the answers is no yes-man."""
    good = Answer(2, "", "error: seed=x: must be an integer", 0.1, [])
    case = Case("train", ["seed=x"], ["seed=x", "must be"])
    assert problem_with(case, good) is None
    for bad in (
        good._replace(code=1),
        good._replace(code=-signal.SIGKILL),
        good._replace(error="Traceback (most recent call last)"),
        good._replace(error="error: a\nb\nc\nd"),
        good._replace(error="error: must be an integer"),
        good._replace(error=""),
        good._replace(out="run folder"),
        good._replace(made=["run"]),
    ):
        assert problem_with(case, bad) is not None
    start = time.monotonic()
    assert entry_points.run(Case("train", ["seed=0"]), good=True).code == 0
    assert time.monotonic() - start < LIMIT
    assert LEFT_OUT is None
