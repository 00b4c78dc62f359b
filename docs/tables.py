"""Update the tables of README.md and docs/ from the JSON files of the benchmarks.

Run ``python docs/tables.py``; a test checks that the tables are up to date.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

DOCS = Path(__file__).resolve().parent
MEASURED = DOCS / "measured"
TABLE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


PAGES = tuple(
    page
    for page in (DOCS.parent / "README.md", *sorted(DOCS.rglob("*.md")))
    if TABLE.search(page.read_text(encoding="utf-8"))
)


def render_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def render_faults(document: dict[str, Any]) -> str:
    """Return injected and survived faults per promise (make test-long)."""
    promises: dict[str, list[dict[str, Any]]] = {}
    for row in document["faults"]:
        promises.setdefault(row["promise"], []).append(row)
    rows = []
    for promise, fault_rows in promises.items():
        injected, survived = (sum(row[k] for row in fault_rows) for k in ("injected", "survived"))
        fault_rows.sort(key=lambda row: -row["injected"])
        injections = "<br>".join(f"{row['injected']:,} × {row['fault']}" for row in fault_rows)
        rows.append((promise, injections, f"{survived:,} of {injected:,}"))
    return render_table(("promise", "faults injected", "survived"), rows)


def render_speed(document: dict[str, Any]) -> str:
    """Return images per second of every contender, compared with the bare loop (make bench)."""
    rates = {name: result["median"] for name, result in document["training"].items()}
    rows = [
        (name, f"{rates[name]:,.0f}", f"{rates[name] / rates['bare']:.2f}")
        for name in sorted(rates, key=lambda name: -rates[name])
    ]
    return render_table(("implementation", "images/s", "ratio to the bare loop"), rows)


def render_speed_goals(document: dict[str, Any]) -> str:
    """Return the speed goals and the measured values (make bench)."""
    training, curve = document["training"], document["curves"]["processes x threads"]
    ratios = [o / b for o, b in zip(training["ours"]["all"], training["bare"]["all"], strict=True)]
    parts = document["parts"]["milliseconds"]
    loader = next(v for name, v in parts.items() if "data.py" in name)
    share = loader / document["step_milliseconds"]
    start_up = {name: result["median"] for name, result in document["starting"].items()}
    first_step = start_up["to the first step"] - start_up["import torch, lightning"]
    one_device, two_devices = (result["median"] for result in document["sweeping"].values())
    process_ratio = curve["2 x 1"]["median"] / curve["1 x 2"]["median"]
    rows = [
        (
            "our speed / bare loop, equal settings",
            f"{document['ours_over_bare']:.2f} ({min(ratios):.2f} to {max(ratios):.2f}, "
            f"{document['rounds']} rounds)",
            "≥ 1.00",
        ),
        ("our fastest setting / bare loop", f"{document['best_over_bare']:.2f}", "≥ 1.7"),
        (
            "our fastest setting at batch size 128 / bare loop",
            f"{document['best_at_equal_batch_over_bare']:.2f}",
            "",
        ),
        ("batches, share of a step", f"{share:.1%}", "< 2 %"),
        (
            "checkpoints and figures, share of a default run",
            f"{document['pauses']['share']:.1%}",
            "< 1 %",
        ),
        ("start to first step, minus `import torch, lightning`", f"{first_step:.1f} s", "≤ 2 s"),
        (
            "importance-weighted bound, K = 5,000 / decoder alone, speed",
            f"{document['evaluation']['over_roofline']:.2f}",
            "≥ 0.70",
        ),
        ("sweep overhead per job, 1 device", f"{one_device:.1f} s", "≤ 3 s"),
        ("sweep overhead per job, 2 devices", f"{two_devices:.1f} s", "≤ 6 s"),
        (
            "two processes of one thread / one process of two threads, speed",
            f"{process_ratio:.2f}",
            "",
        ),
    ]
    return render_table(("quantity", "measured", "goal"), rows)


def render_step_parts(document: dict[str, Any]) -> str:
    """Return the milliseconds of each part of a step of cvae_plain (make bench)."""
    total = document["step_milliseconds"]
    milliseconds = dict(document["parts"]["milliseconds"])
    rest = total - sum(milliseconds.values())
    milliseconds["rest of the step, mostly Python of the Trainer"] = rest
    rows = [(name, f"{value:.2f}", f"{value / total:.1%}") for name, value in milliseconds.items()]
    return render_table(("part of a step", "ms", "share"), [*rows, ("total", f"{total:.1f}", "")])


def render_precision(document: dict[str, Any]) -> str:
    """Return the nats that bfloat16 costs, in -elbo and in nll (make precision)."""
    low, high = document["trained_difference_95_percent"]
    rows = [
        ("same weights, evaluated", f"{document['same_weights_difference_nats']:+.4f}", ""),
        (
            f"trained, {document['seeds']} seeds of experiment={document['experiment']}",
            f"{document['trained_difference_nats']:+.2f}",
            f"{low:+.2f} to {high:+.2f}",
        ),
    ]
    return render_table(("bf16-mixed compared with float32", "nats lost", "95 % interval"), rows)


def render_start_up(document: dict[str, Any]) -> str:
    """Return start-up times in seconds (make bench)."""
    times = {**document["starting"]}
    times |= {f"sweep overhead per job, {k}": v for k, v in document["sweeping"].items()}
    rows = [(name, f"{value['median']:.1f}") for name, value in times.items()]
    return render_table(("start-up", "seconds"), rows)


# nats per test image, dynamic binarization: -log p(x|y), -log p(x), K; * quoted by others
_PUBLISHED = (
    ("VAE, MLP 200-200, z 100, learned p(z\\|y) [1]", "82.32", "", "5,000"),
    ("the same, importance-weighted bound of 50 samples [1]", "80.78", "", "5,000"),
    ("VAE, MLP 200-200, z 50 [2]", "", "86.76", "5,000"),
    ("importance-weighted bound of 50 samples [2]", "", "84.78", "5,000"),
    ("VampPrior, gated MLP [3]", "", "82.43*", "5,000"),
    ("convolutional ResNet [4]", "", "81.08*", "128"),
    ("the same with an autoregressive flow as posterior [4]", "", "79.10*", "128"),
    ("ResNet with a flow as prior [5]", "", "78.49*", "1,000"),
)


def format_mean(statistic: dict[str, float], scale: float = 1) -> str:
    """Return mean ± s.d. with two decimals."""
    return f"{scale * statistic['mean']:.2f} ± {scale * statistic['sd']:.2f}"


def render_recipes(document: dict[str, Any]) -> str:
    """Return the likelihood of each recipe (make recipes), and published results."""
    rows = []
    for name, row in document["recipes"].items():
        k = row["num_samples"]
        nats = [format_mean(row[f"test/{bound}nll_k{k}"]) for bound in ("", "joint_", "marginal_")]
        percent = [format_mean(row[metric], 100) for metric in (_AGREEMENT, _PROBE)]
        rows.append((f"**{name}**", *nats, f"{k:,}", *percent, f"{row['minutes']:g}"))
    for name, conditional, marginal, num_samples in _PUBLISHED:
        joint = f"{float(conditional) + math.log(10):.2f}" if conditional else ""
        rows.append((name, conditional, joint, marginal, num_samples, "", "", ""))
    bounds = ("-log p(x\\|y)", "-log p(x, y)", "-log p(x)", "K")
    header = ("model", *bounds, "label agreement, %", "probe accuracy, %", "minutes")
    return render_table(header, rows)


_AGREEMENT, _PROBE = "samples/label_agreement", "latent/label_accuracy_mlp"


def read_article_column(name: str) -> dict[str, str]:
    """Return a column of the article's table by metric (make article), without percent signs."""
    text = (MEASURED / "article_results.md").read_text(encoding="utf-8")
    table = [
        [cell.strip().strip("`%") for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    (index,) = (i for i, title in enumerate(table[0]) if title.partition(" (")[0] == name)
    return {row[0]: row[index] for row in table[2:]}


def render_results(document: dict[str, Any]) -> str:
    """Return the main results: recipes (make recipes) and the article's CVAE (make article)."""
    rows = []
    for name, row in document["recipes"].items():
        command = f"`{' '.join(row['overrides'])}`" if row["overrides"] else "none (the default)"
        percent = [format_mean(row[metric], 100) for metric in (_AGREEMENT, _PROBE)]
        minutes = f"{row['minutes']:g}"
        rows.append((command, format_mean(row["test/nll_k50"]), *percent, minutes))
        if name == "default":
            plain = read_article_column("cvae_plain")
            cells = [plain[metric] for metric in ("test/nll_k50", _AGREEMENT, _PROBE)]
            rows.append(("`model=cvae_plain`", *cells, ""))
    real_data = read_article_column("real data")
    cpus = {row["machine"]["cpu"] for row in document["recipes"].values()}
    seed_counts = {row["n"] for row in document["recipes"].values()}
    caption = (
        "\nDefault: the article's CVAE plus an adversary that keeps most of the label out of z. "
        "`model=cvae_plain` is the article's CVAE, trained on the bound alone. Mean ± s.d. over "
        f"{', '.join(map(str, sorted(seed_counts)))} seeds, 10,000 test images, dynamic "
        "binarization. -log p(x|y): importance-weighted bound from K = 50 samples, nats per image, "
        "lower is better. Label agreement: share of 10,000 samples that a classifier assigns to "
        f"the requested label (real digits: {real_data[_AGREEMENT]}). Probe accuracy: share of "
        "labels that a perceptron predicts from z, lower is better (chance: "
        f"{real_data[_PROBE]}). Minutes of training: one core of an {', '.join(sorted(cpus))}, "
        "both cores busy.\n"
    )
    header = ("override of `python src/train.py`", "-log p(x\\|y), nats")
    percent_header = ("label agreement, %", "probe accuracy, %")
    return render_table((*header, *percent_header, "minutes, one core"), rows) + caption


def render_ablations(document: dict[str, Any]) -> str:
    """Return the gain of each change to the default, best first (make ablations)."""
    variants = document["variants"]
    default_runs = variants["default"]["runs"]
    gains_by_name, rows = {}, {}
    for name, variant in variants.items():
        runs = variant["runs"]
        if len(default_runs) < 2 or set(runs) != set(default_runs):
            continue  # some seeds are missing
        agreements = [100 * runs[seed]["label_agreement"] for seed in default_runs]
        gains = [default_runs[seed]["nll"] - runs[seed]["nll"] for seed in default_runs]
        gains_by_name[name] = gains
        error = stdev(gains) / math.sqrt(len(gains))
        is_default = name == "default"
        rows[name] = (
            "**default**" if is_default else name,
            "0" if is_default else f"{mean(gains):+.2f} ± {error:.2f}",
            f"{mean(runs[seed]['nll'] for seed in default_runs):.2f}",
            f"{mean(agreements):.2f} ± {stdev(agreements):.2f}",
            "<br>".join(f"`{override}`" for override in variant["overrides"]),
        )
    spreads = [stdev(gains) for name, gains in gains_by_name.items() if name != "default"]
    pooled_sd = math.sqrt(mean(s**2 for s in spreads)) if spreads else math.nan
    smallest_error = pooled_sd / math.sqrt(len(default_runs))
    cpus = (run["cpu"] for variant in variants.values() for run in variant["runs"].values())
    caption = (
        "Nats of -log p(x|y) gained over the default (+ is better) and nats reached, on the "
        f"validation images, K = {document['num_samples']}; label agreement of 10,000 samples. "
        f"Mean over {len(default_runs)} seeds, paired by seed: gain ± standard error, agreement ± "
        f"s.d. The gain of one seed has an s.d. of {pooled_sd:.2f} nats, pooled over the rows; "
        f"where the standard error of a row is smaller than {smallest_error:.2f}, use "
        f"{smallest_error:.2f}. "
        f"{', '.join(sorted(set(cpus)))}, one core per run.\n\n"
    )
    best_first = sorted(rows, key=lambda name: -mean(gains_by_name[name]))
    header = ("name", "nats gained", "nats", "label agreement, %", "change to the default")
    return caption + render_table(header, [rows[name] for name in best_first])


# by metric: quantity, scale, and the name of the value to compare with
_QUANTITIES = {
    "test/nll_k100": ("-log p(x\\|y), K = 100, nats", 1, ""),
    "test/bits_per_dim_k100": ("-log p(x\\|y), K = 100, bits per dimension", 1, ""),
    "grey/negative_elbo": ("-ELBO of grey pixels, nats", 1, ""),
    "samples/label_agreement": ("label agreement, %", 100, "real images"),
    "samples/angle_error": ("median error of the angle, degrees", 1, "real images"),
    "latent/angle_r2_mlp": ("R² of the angle from z", 1, "chance"),
    "latent/label_accuracy_mlp": ("probe accuracy, %", 100, "chance"),
    "latent/digit_hue_cos_r2_mlp": ("R² from z of the hue of the digit, cosine", 1, "chance"),
    "latent/digit_hue_sin_r2_mlp": ("R² from z of the hue of the digit, sine", 1, "chance"),
    "latent/background_hue_cos_r2_mlp": (
        "R² from z of the hue of the background, cosine",
        1,
        "chance",
    ),
    "latent/background_hue_sin_r2_mlp": (
        "R² from z of the hue of the background, sine",
        1,
        "chance",
    ),
}
_PYRO_NATS = {"quadrants_1": "71.8", "quadrants_2": "51.0", "quadrants_3": "24.2"}  # its tutorial


def render_experiments(document: dict[str, Any]) -> str:
    """Return the results of experiments on other data and conditions (make experiments)."""
    rows = []
    for name, row in document["experiments"].items():
        for i, (metric, statistic) in enumerate(row["metrics"].items()):
            quantity, scale, floor_name = _QUANTITIES[metric]
            compare_with = f"{floor_name}: {scale * statistic['floor']:.2f}" if floor_name else ""
            if metric == "grey/negative_elbo":
                compare_with = f"Pyro: {_PYRO_NATS[name]}"
            first = (f"**{name}**", f"{row['minutes']:g}") if i == 0 else ("", "")
            rows.append((first[0], quantity, format_mean(statistic, scale), compare_with, first[1]))
    header = ("experiment", "quantity", "measured", "compare with", "minutes")
    return render_table(header, rows)


def render_gpu(document: dict[str, Any]) -> str:
    """Return speed, checks and nats on a GPU (make gpu), or a note that none was measured."""
    if not document.get("gpu"):
        return "`make gpu` has not been run on a GPU yet, so there are no figures here.\n"
    versions = f"CUDA {document['cuda']}, torch {document['machine']['versions']['torch']}"
    minutes = sum(document["seconds"].values()) / 60
    caption = f"{document['gpu']}, {versions}; `make gpu`, {minutes:.0f} minutes, n = 1.\n\n"
    columns = ("images_per_second", "milliseconds_per_step", "peak_memory_mib")
    rates, measurements = [], []
    for section in ("rates", "checks", "nats", "evaluation"):
        for name, row in document.get(section, {}).items():
            if columns[0] in row:
                rates.append((name, *(f"{row[column]:,}" for column in columns)))
            else:
                measurements.append((name, row["shown"]))
    header = ("loop, precision, batch size", "images/s", "ms per step", "peak GPU memory, MiB")
    quantities = render_table(("quantity", "measured"), measurements)
    return caption + render_table(header, rates) + "\n" + quantities


TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {  # JSON file and function
    "ablations": ("ablations", render_ablations),
    "experiments": ("experiments", render_experiments),
    "faults": ("faults", render_faults),
    "gpu": ("gpu", render_gpu),
    "bench": ("bench", render_speed),
    "summary": ("bench", render_speed_goals),
    "parts": ("bench", render_step_parts),
    "precision": ("precision", render_precision),
    "recipes": ("recipes", render_recipes),
    "results": ("recipes", render_results),
    "seconds": ("bench", render_start_up),
}


def update_tables(text: str) -> str:
    """Return the text with every marked table updated from its file."""

    def render_match(match: re.Match[str]) -> str:
        if match[2] == "article":  # make article writes the whole table
            table = (MEASURED / "article_results.md").read_text(encoding="utf-8")
            return match[1] + table + match[3]
        name, render = TABLES[match[2]]
        path = MEASURED / f"{name}.json"
        is_missing = name == "gpu" and not path.exists()  # no GPU has been measured yet
        document = {} if is_missing else json.loads(path.read_text(encoding="utf-8"))
        return match[1] + render(document) + match[3]

    return TABLE.sub(render_match, text)


if __name__ == "__main__":
    for page in PAGES:
        text = update_tables(page.read_text(encoding="utf-8"))
        page.write_text(text, encoding="utf-8")
