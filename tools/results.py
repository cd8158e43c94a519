#!/usr/bin/env python3
"""The README's table: every method on a real model, each at the best learning rate of the paper's grid.

For each method, one run of `perp-engine retrain` at each learning rate, measured on the first windows of the evaluation
text, chooses the rate; one more run at that rate is measured on all of it. Reports are kept in OUT; runs whose report is
there are not run again, so an interrupted table goes on where it stopped.

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
p.add_argument("--rates", default="5e-6,1e-5,5e-5,1e-4,5e-4")
p.add_argument("--sparsity", default="0.5")
p.add_argument("--steps", default="100")
p.add_argument("--seq-len", default="512")
p.add_argument("--choose-windows", default="16", help="windows that choose the learning rate")
p.add_argument("--final-windows", default="0", help="windows of the table; 0: all")
a = p.parse_args()
a.out.mkdir(parents=True, exist_ok=True)


def run(method, rate, windows):
    """The report of one run, from OUT if it is there."""
    report = a.out / f"{method}-{rate}-{windows}.json"
    if not report.exists():
        text = ROOT / "data/austen"
        subprocess.run([
            ROOT / "target/release/perp-engine", "retrain", "--model", a.model, "--method", method, "--lr", rate,
            "--train", *[text / f"{name}.txt" for name in NOVELS], "--eval", text / "persuasion.txt",
            "--eval-windows", windows, "--sparsity", a.sparsity, "--steps", a.steps, "--batch", "2", "--accumulate", "1",
            "--seq-len", a.seq_len, "--report", report,
        ], check=True)
    return json.loads(report.read_text())


print("| method | learning rate | trainable | dense | pruned | retrained | tok/s | peak memory of training |")
print("|---|---|---|---|---|---|---|---|")
for method in a.methods.split(","):
    rates = a.rates.split(",")
    best = min(rates, key=lambda rate: run(method, rate, a.choose_windows)["perplexity"]["retrained"])
    r = run(method, best, a.final_windows)
    ppl, trained = r["perplexity"], r["trainable"]
    print(f"| `{method}` | {best} | {trained['count']:,} ({trained['percent']:.2f} %) | {ppl['dense']:.2f} "
          f"| {ppl['pruned']:.1f} | {ppl['retrained']:.2f} | {r['tokens_per_second']:.0f} "
          f"| {r['peak_bytes']['total'] / 2**20:.0f} MiB |", flush=True)
