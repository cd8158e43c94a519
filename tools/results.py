#!/usr/bin/env python3
"""The README's table: every method on a real model, each at the best learning rate of the paper's grid.

The rates are tried from the highest down until a lower one is worse on the first windows of the evaluation text; the
model of the best is then evaluated on all of it. Models and reports are kept in OUT, and what is there is not run again,
so an interrupted table goes on where it stopped. --all-rates tries every rate.

    cargo build --release
    tools/results.py MODEL OUT [--methods norms,perp] [--sparsity 0.5] [--steps 100]
"""
import argparse
import json
import pathlib
import subprocess

ROOT = pathlib.Path(__file__).resolve().parent.parent
NOVELS = ["emma", "mansfield_park", "northanger_abbey", "pride_and_prejudice", "sense_and_sensibility"]

p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("model", type=pathlib.Path)
p.add_argument("out", type=pathlib.Path)
p.add_argument("--methods", default="norms,probe,perp,full")
p.add_argument("--rates", default="5e-4,1e-4,5e-5,1e-5,5e-6", help="from the highest down")
p.add_argument("--all-rates", action="store_true", help="try them all, also below one that is worse than the one above")
p.add_argument("--sparsity", default="0.5")
p.add_argument("--steps", default="100")
p.add_argument("--seq-len", default="512")
p.add_argument("--choose-windows", default="16", help="windows that choose the learning rate")
a = p.parse_args()
a.out.mkdir(parents=True, exist_ok=True)


TEXT = ROOT / "data/austen"
EVAL = ["--eval", TEXT / "persuasion.txt", "--seq-len", a.seq_len]


def run(name, *arguments):
    """The report of one command, from OUT if it is there."""
    report = a.out / f"{name}.json"
    if not report.exists():
        subprocess.run([ROOT / "target/release/perp-engine", *arguments, "--report", report], check=True,
                       stdout=subprocess.DEVNULL)
    return json.loads(report.read_text())


def retrain(method, rate):
    """One retraining, measured on the first windows."""
    return run(
        f"{method}-{rate}", "retrain", "--model", a.model, "--method", method, "--lr", rate, *EVAL,
        "--train", *[TEXT / f"{name}.txt" for name in NOVELS], "--eval-windows", a.choose_windows,
        "--sparsity", a.sparsity, "--steps", a.steps, "--batch", "2", "--accumulate", "1",
        "--out", a.out / f"{method}-{rate}",
    )


def perplexity(name, model, *arguments):
    """Of a model folder, on all of the evaluation text."""
    return run(f"{name}-all", "eval", "--model", model, *arguments, *EVAL)["perplexity"]


def best_rate(method):
    """The best rate and its report."""
    best = None
    for rate in a.rates.split(","):
        report = retrain(method, rate)
        if best and report["perplexity"]["retrained"] >= best[1]["perplexity"]["retrained"]:
            if not a.all_rates:
                break
        else:
            best = rate, report
    return best


dense = perplexity("dense", a.model)
pruned = run("pruned", "prune", "--model", a.model, "--sparsity", a.sparsity, *EVAL)["perplexity"]["pruned"]
print(f"dense {dense:.2f}, pruned {pruned:.1f}", flush=True)
print("| method | learning rate | trainable | perplexity | peak memory of training |")
print("|---|---|---|---|---|")
for method in a.methods.split(","):
    rate, report = best_rate(method)
    folder = a.out / f"{method}-{rate}"
    adapter = ["--adapter", folder / "adapter"] if (folder / "adapter").exists() else []
    trained, peak = report["trainable"], report["peak_bytes"]["total"]
    print(f"| `{method}` | {rate} | {trained['count']:,} ({trained['percent']:.2f} %) "
          f"| {perplexity(f'{method}-{rate}', folder, *adapter):.2f} | {peak / 2**20:.0f} MiB |", flush=True)
