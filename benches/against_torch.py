#!/usr/bin/env python3
"""perp-engine beside torch + transformers + peft, in turn, on this machine: speed and memory of a training step.

Every round runs both sides of every row once, one process each, so that whatever else the machine does meets both alike.
Prints the tables of benches/README.md: medians over rounds, and the range of the ratio.

    cargo build --release
    python -m venv peers && peers/bin/pip install -r benches/peers/requirements.txt
    benches/against_torch.py --python peers/bin/python [--rounds 5]
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
ENGINE = HERE.parent / "target/release/perp-engine"
ROWS = [
    ("PERP, 50 %", ["--method", "perp", "--sparsity", "0.5"]),
    ("PERP, 70 %", ["--method", "perp", "--sparsity", "0.7"]),
    ("PERP, 2:4", ["--method", "perp", "--pattern", "2:4"]),
    ("biases, 50 %", ["--method", "biases", "--sparsity", "0.5"]),
    ("norms, 50 %", ["--method", "norms", "--sparsity", "0.5"]),
    ("full, 50 %", ["--method", "full", "--sparsity", "0.5"]),
]

p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("--python", default=sys.executable, help="an interpreter that has the peer's packages")
p.add_argument("--model", default="opt-125m", help="opt-125m (random weights) or a model folder")
p.add_argument("--rounds", type=int, default=5)
p.add_argument("--steps", type=int, default=3, help="timed steps of a process")
p.add_argument("--threads", type=int, default=os.cpu_count())
p.add_argument("--rows", default="", help="only rows whose name holds this text")
p.add_argument("--products", action="store_true", help="compare the dense and pruned products of OPT-125M instead")
p.add_argument("--json", type=pathlib.Path, help="write every measurement to this file")
a = p.parse_args()


def ours(arguments):
    with tempfile.TemporaryDirectory() as folder:
        report = pathlib.Path(folder) / "report.json"
        subprocess.run([ENGINE, "bench", *arguments, "--threads", str(a.threads), "--report", report, "--quiet"],
                       check=True, stdout=subprocess.DEVNULL)
        return json.loads(report.read_text())


def peer(script, arguments):
    out = subprocess.run([a.python, HERE / "peers" / script, *arguments, "--threads", str(a.threads)],
                         check=True, capture_output=True, text=True).stdout
    return json.loads(out.strip().splitlines()[-1])


def spread(values, digits=2):
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def steps():
    rows = [row for row in ROWS if a.rows in row[0]]
    if a.model != "opt-125m":
        rows = [row for row in rows if not row[0].startswith("biases")]
    measured = {name: [] for name, _ in rows}
    for _ in range(a.rounds):
        for name, arguments in rows:
            arguments = ["--model", a.model, "--steps", str(a.steps), *arguments]
            measured[name].append((ours(arguments), peer("torch_step.py", arguments)))
            print(name, *(f"{side['tokens_per_second']:.0f}" for side in measured[name][-1]), file=sys.stderr)
    if a.json:
        a.json.write_text(json.dumps(measured))
    print("| | tok/s | peer's | ratio | peak RSS, MiB | peer's | ratio |\n|---|---|---|---|---|---|---|")
    for name, pairs in measured.items():
        of = lambda key, scale=1: [[side[key] / scale for side in pair] for pair in pairs]
        speed, memory = of("tokens_per_second"), of("peak_resident_bytes", 2**20)
        middle = lambda pairs, side: f"{statistics.median(pair[side] for pair in pairs):.0f}"
        ratio = lambda pairs: spread([mine / theirs for mine, theirs in pairs])
        print(f"| {name} | {middle(speed, 0)} | {middle(speed, 1)} | {ratio(speed)} "
              f"| {middle(memory, 0)} | {middle(memory, 1)} | {ratio(memory)} |")


def products():
    mine, theirs = {}, {}
    for _ in range(a.rounds):
        for product in ours(["--products", "--steps", str(a.steps)])["products"]:
            key = (product["rows"], product["cols"], product["direction"], product["pattern"])
            mine.setdefault(key, []).append(statistics.median(product["milliseconds"]))
        shapes = sorted({key[:2] for key in mine})
        out = peer("torch_products.py", ["--steps", str(a.steps), *(f"{rows}x{cols}" for rows, cols in shapes)])
        for rows, cols in shapes:
            for direction in ["forward", "backward"]:
                times = out[f"{rows}x{cols}"][direction]
                theirs.setdefault((rows, cols, direction), []).append(1e3 * statistics.median(times))
    print("| matrix | direction | pattern | ms | torch, dense | times as fast |\n|---|---|---|---|---|---|")
    for (rows, cols, direction, pattern), times in sorted(mine.items(), key=lambda item: (item[0][:3], item[0][3] != "dense", item[0][3])):
        dense = theirs[rows, cols, direction]
        print(f"| {rows}×{cols} | {direction} | {pattern} | {statistics.median(times):.2f} "
              f"| {statistics.median(dense):.2f} | {spread([d / t for t, d in zip(times, dense)])} |")


products() if a.products else steps()
