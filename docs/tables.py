"""Writes the tables of the README and of ablations.md from what the measuring commands leave.

``python docs/tables.py``; a test holds both to it.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

DOCS = Path(__file__).resolve().parent
PAGES = (DOCS.parent / "README.md", DOCS / "ablations.md")
TABLE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def faults(document: dict[str, Any]) -> str:
    """What was promised, what was injected, and how much of it survived (make test-long)."""
    promises: dict[str, list[dict[str, Any]]] = {}
    for row in document["faults"]:
        promises.setdefault(row["promise"], []).append(row)
    rows = []
    for promise, kinds in promises.items():
        injected, survived = (sum(row[k] for row in kinds) for k in ("injected", "survived"))
        kinds.sort(key=lambda row: -row["injected"])
        what = "; ".join(f"{row['injected']:,} × {row['fault']}" for row in kinds)
        rows.append((promise, what, f"{survived:,} of {injected:,}"))
    return markdown(("promise", "faults injected", "survived"), rows)


def bench(document: dict[str, Any]) -> str:
    """Images per second of every contender, beside the bare loop (make bench)."""
    rates = {name: found["median"] for name, found in document["training"].items()}
    rows = [
        (name, f"{rates[name]:,.0f}", f"{rates[name] / rates['bare']:.2f}")
        for name in sorted(rates, key=lambda name: -rates[name])
    ]
    return markdown(("training", "images/s", "beside the bare loop"), rows)


def summary(document: dict[str, Any]) -> str:
    """What was asked of the speed, and what was found (make bench)."""
    training, curve = document["training"], document["curves"]["processes x threads"]
    each = [o / b for o, b in zip(training["ours"]["all"], training["bare"]["all"], strict=True)]
    parts = document["parts"]["milliseconds"]
    loader = next(v for name, v in parts.items() if "data.py" in name)
    share = loader / document["step_milliseconds"]
    started = {name: found["median"] for name, found in document["starting"].items()}
    late = started["to the first step"] - started["import torch, lightning"]
    pair = curve["2 x 1"]["median"] / curve["1 x 2"]["median"]
    rows = [
        (
            "ours beside the bare loop, equal settings",
            f"{document['ours_over_bare']:.2f} ({min(each):.2f} to {max(each):.2f}, "
            f"{document['rounds']} rounds)",
            "≥ 0.97",
        ),
        ("our fastest setting beside it", f"{document['best_over_bare']:.2f}", "≥ 1.6"),
        (
            "our fastest at batch 128 beside it",
            f"{document['best_at_equal_batch_over_bare']:.2f}",
            "",
        ),
        ("batches, of a step", f"{share:.1%}", "< 2 %"),
        (
            "checkpoints and pictures, of a default run",
            f"{document['pauses']['share']:.1%}",
            "< 1 %",
        ),
        (
            "the first step after `import torch, lightning` would have ended",
            f"{late:.1f} s",
            "≤ 2 s",
        ),
        (
            "the importance-weighted bound beside its decoder alone, K = 5,000",
            f"{document['evaluation']['over_roofline']:.2f}",
            "≥ 0.70",
        ),
        ("two processes of one thread beside one of two", f"{pair:.2f}", "≥ 0.9"),
    ]
    return markdown(("what", "found", "goal"), rows)


def parts(document: dict[str, Any]) -> str:
    """Milliseconds of a step of cvae_plain, part by part (make bench)."""
    total = document["step_milliseconds"]
    found = dict(document["parts"]["milliseconds"])
    found["what is left of a step, most of it the Trainer's Python"] = total - sum(found.values())
    rows = [(name, f"{value:.2f}", f"{value / total:.1%}") for name, value in found.items()]
    return markdown(("part of a step", "ms", "share"), [*rows, ("all", f"{total:.1f}", "")])


def precision(document: dict[str, Any]) -> str:
    """Nats that bfloat16 costs, in -elbo and in nll: above 0 is worse (make precision)."""
    low, high = document["trained_difference_95_percent"]
    rows = [
        ("the same weights, scored", f"{document['same_weights_difference_nats']:+.4f}", ""),
        (
            f"trained, {document['seeds']} seeds of experiment={document['experiment']}",
            f"{document['trained_difference_nats']:+.2f}",
            f"{low:+.2f} to {high:+.2f}",
        ),
    ]
    return markdown(("bf16-mixed beside float32", "nats lost", "95 % interval"), rows)


def seconds(document: dict[str, Any]) -> str:
    """Seconds until something happens (make bench)."""
    found = {**document["starting"]}
    found |= {
        f"a job of a sweep beside its training, {k}": v for k, v in document["sweeping"].items()
    }
    rows = [(name, f"{value['median']:.1f}") for name, value in found.items()]
    return markdown(("starting", "seconds"), rows)


# nats per test image, dynamic binarization; * as others quote it. Conditional, or unconditional
_PUBLISHED = (
    ("VAE, MLP 200-200, z 100, learned p(z\\|y) [1]", "82.32", "", "5,000"),
    ("the same, importance-weighted bound of 50 samples [1]", "80.78", "", "5,000"),
    ("VAE, MLP 200-200, z 50 [2]", "", "86.76", "5,000"),
    ("importance-weighted bound of 50 samples [2]", "", "84.78", "5,000"),
    ("VampPrior, gated MLP [3]", "", "82.43*", "5,000"),
    ("convolutional ResNet [4]", "", "81.08*", "128"),
    ("the same with an autoregressive flow for a posterior [4]", "", "79.10*", "128"),
    ("ResNet with a flow for a prior [5]", "", "78.49*", "1,000"),
)


def recipes(document: dict[str, Any]) -> str:
    """The likelihood of each recipe (make recipes), and what others published."""
    rows = []
    for name, row in document["recipes"].items():
        k = row["num_samples"]
        bounds = [row[f"test/{what}nll_k{k}"] for what in ("", "joint_", "marginal_")]
        shares = [row[m] for m in ("samples/label_agreement", "latent/label_accuracy_mlp")]
        nats = [f"{found['mean']:.2f} ± {found['sd']:.2f}" for found in bounds]
        percent = [f"{100 * found['mean']:.2f} ± {100 * found['sd']:.2f}" for found in shares]
        rows.append((f"**{name}**", *nats, f"{k:,}", *percent))
    for name, conditional, marginal, num_samples in _PUBLISHED:
        joint = f"{float(conditional) + math.log(10):.2f}" if conditional else ""
        rows.append((name, conditional, joint, marginal, num_samples, "", ""))
    nats = ["-log p(x\\|y)", "-log p(x, y)", "-log p(x)", "K"]
    return markdown(("model", *nats, "right digit, %", "label read from z, %"), rows)


def ablations(document: dict[str, Any]) -> str:
    """What the default gains or loses by a change, seed by seed (make ablations)."""
    variants = document["variants"]
    default = variants["default"]["runs"]
    rows, spreads = [], []
    for name, variant in variants.items():
        found = variant["runs"]
        if len(default) < 2 or set(found) != set(default):
            continue  # not all seeds yet
        nats = [found[seed]["nll"] for seed in default]
        right = [100 * found[seed]["label_agreement"] for seed in default]
        gains = [default[seed]["nll"] - found[seed]["nll"] for seed in default]
        error = stdev(gains) / math.sqrt(len(gains))
        spreads += [stdev(gains)] if name != "default" else []
        rows.append(
            (
                name,
                "<br>".join(f"`{word}`" for word in variant["overrides"]),
                f"{mean(nats):.2f}",
                f"{mean(gains):+.2f} ± {error:.2f}" if name != "default" else "",
                f"{mean(right):.2f} ± {stdev(right):.2f}",
            )
        )
    pooled = math.sqrt(mean(s**2 for s in spreads)) if spreads else math.nan
    each = (run["cpu"] for variant in variants.values() for run in variant["runs"].values())
    caption = (
        f"Validation images, K = {document['num_samples']}, mean of {len(default)} seeds; + is "
        "better. Nats gained ± standard error, right digits ± s.d. The gain of one seed has an "
        f"s.d. of {pooled:.2f} nats, pooled over the rows: for a standard error that is smaller, "
        f"{pooled / math.sqrt(len(default)):.2f} is the safer one. "
        f"{', '.join(sorted(set(each)))}, one core a run.\n\n"
    )
    return caption + markdown(("name", "change", "nats", "gained", "right digits, %"), rows)


TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {  # with the file of each
    "ablations": ("ablations", ablations),
    "faults": ("faults", faults),
    "bench": ("bench", bench),
    "summary": ("bench", summary),
    "parts": ("bench", parts),
    "precision": ("precision", precision),
    "recipes": ("recipes", recipes),
    "seconds": ("bench", seconds),
}


def with_tables(text: str) -> str:
    """The text with every marked table made anew from its file."""

    def made(match: re.Match[str]) -> str:
        if match[2] == "article":  # a page that make article writes
            return match[1] + (DOCS / "article.md").read_text(encoding="utf-8") + match[3]
        name, render = TABLES[match[2]]
        document = json.loads((DOCS / f"{name}.json").read_text(encoding="utf-8"))
        return match[1] + render(document) + match[3]

    return TABLE.sub(made, text)


if __name__ == "__main__":
    for page in PAGES:
        text = with_tables(page.read_text(encoding="utf-8"))
        page.write_text(text, encoding="utf-8")
