//! Flags.

use crate::case::{Case, EVAL, INSPECT, PRETRAIN, PROFILE, PRUNE, RETRAIN, flags};
use crate::folder::Spoil;

/// Every flag that takes a number, with what is none, and what is out of its range.
pub fn numbers() -> Vec<Case> {
    const COUNT: &str = "expected a whole number of at least 1, and at most 4294967295";
    const SMALL: &str = "expected a whole number of at least 1, and at most 65536";
    const NOT_NEGATIVE: &str = "expected a number of at least 0";
    const SHARE: &str = "expected a number in [0, 1]";
    // A flag, what goes with it, what is said of each of the values.
    let table: [(&str, &str, &str, &[&str]); 18] = [
        ("--eval-every", "", COUNT, &["0", "-1", "18446744073709551616"]),
        ("--steps", "", COUNT, &["0", "-1", "1.5", "x", "''", "nan", "0x10", "4294967296", "99999999999999999999"]),
        ("--batch", "", COUNT, &["0", "-1", "1.5", "18446744073709551615"]),
        ("--accumulate", "", SMALL, &["0", "-1", "65537", "18446744073709551615"]),
        ("--rank", "", SMALL, &["0", "-1", "65537", "9223372036854775808"]),
        ("--threads", "", "at least 1, and at most 4096", &["0", "-1", "1000000", "18446744073709551615"]),
        ("--seq-len", "", "expected a whole number of at least 2", &["0", "1", "-1", "x"]),
        ("--keep", "--checkpoints c", COUNT, &["0", "-1", "x"]),
        ("--save-every", "--checkpoints c", COUNT, &["0", "-1", "1e3"]),
        (
            "--calibration-samples",
            "--criterion wanda --calibrate train.txt",
            SMALL,
            &["0", "-1", "65537", "18446744073709551615"],
        ),
        ("--eval-windows", "", "invalid value", &["-1", "x", "1.5", "18446744073709551616"]),
        ("--seed", "", "invalid value", &["-1", "x", "18446744073709551616"]),
        ("--cycles", "", "is not in 1..=1000", &["0", "-1", "1001"]),
        ("--lr", "", NOT_NEGATIVE, &["-1", "nan", "inf", "1e400", "1e39", "fast", "''"]),
        ("--weight-decay", "", NOT_NEGATIVE, &["-0.1", "nan", "inf"]),
        ("--clip", "", NOT_NEGATIVE, &["-1", "nan", "1e39"]),
        ("--warmup", "", SHARE, &["-0.1", "1.1", "nan", "2"]),
        ("--alpha", "", "expected a number above 0", &["0", "-32", "nan", "1e39"]),
    ];
    let mut cases = Vec::new();
    for (flag, others, says, values) in table {
        for value in values {
            let flags = format!("{flag} {value} {others}");
            cases.push(Case::new(RETRAIN, "out of range", Vec::new(), says, 2).with(flags.trim_end()));
        }
    }
    cases.extend(flags(
        RETRAIN,
        2,
        vec![
            ("--sparsity 1.0", "invalid value '1.0' for '--sparsity <SHARE>': expected a number in [0, 1)"),
            ("--sparsity -0.5", "invalid value '-0.5' for '--sparsity <SHARE>'"),
            ("--sparsity nan", "invalid value 'nan' for '--sparsity <SHARE>'"),
            ("--memory-budget 0", "expected a number of bytes, such as 8GiB or 500MB"),
            ("--memory-budget -1", "expected a number of bytes"),
            ("--memory-budget 1TB", "expected a number of bytes"),
            ("--memory-budget nanGiB", "expected a number of bytes"),
            ("--unfreeze", "--freeze"),
            ("--freeze top", "[possible values: input, output]"),
            ("--seq-len 33", "--seq-len 33 is longer than the model's context of 32 tokens"),
            ("--offload -1", "expected off, auto, or a number of layers"),
            ("--offload 1", "--offload keeps weights in the host's memory for a GPU; on the CPU they are there"),
            ("--cuda-graphs yes", "[possible values: auto, on, off]"),
            ("--cuda-graphs on", "--cuda-graphs on is for steps on a GPU, and this is for the processor"),
            ("--device gpu", "expected auto, cpu, cuda, or cuda:N"),
            ("--device cuda:-1", "expected auto, cpu, cuda, or cuda:N"),
            ("--device cpu:0", "expected auto, cpu, cuda, or cuda:N"),
            ("--pattern 0:0", "'0:0' is no pattern: write n:m"),
            ("--pattern 4:4", "'4:4' is no pattern: write n:m"),
            ("--pattern 5:4", "'5:4' is no pattern: write n:m"),
            ("--pattern 2:4:6", "'2:4:6' is no pattern"),
            ("--pattern x:4", "'x:4' is no pattern"),
            ("--pattern 1:18446744073709551615", "is no pattern: write n:m"),
            ("--pattern ''", "is no pattern: write n:m"),
        ],
    ));
    // Numbers in range of steps that have no room.
    cases.extend(flags(
        RETRAIN,
        1,
        vec![
            ("--memory-budget 64KiB", "64.00 KiB are available"),
            ("--memory-budget 3300KiB --batch 16 --checkpointing off", "it fits with --checkpointing on ("),
            ("--batch 4294967295", "the plan does not fit: the hidden states alone of 4×4294967295×32 tokens take"),
            ("--batch 10000", "the plan does not fit: a step needs"),
            (
                "--batch 2000 --accumulate 65536",
                "the plan does not fit: the token ids alone of 65536×2000×32 tokens take",
            ),
            ("--rank 65536", "the plan does not fit: a step needs"),
            ("--freeze input --parts head", "inside the decoder layers"),
            ("--lr 1e30 --warmup 0 --steps 4", "A smaller learning rate, or --clip, usually helps"),
        ],
    ));
    cases.extend(flags(
        PROFILE,
        2,
        vec![
            ("--batch 0", COUNT),
            ("--rank 18446744073709551615", SMALL),
            ("--threads 18446744073709551615", "at most 4096"),
            ("--gpu a200", "expected one of"),
        ],
    ));
    cases.extend(flags(
        PROFILE,
        1,
        vec![("--batch 4294967295", "the hidden states alone of 1×4294967295×32 tokens take")],
    ));
    cases.extend(flags(
        EVAL,
        2,
        vec![("--batch 18446744073709551615", COUNT), ("--seq-len 33", "context of 32 tokens")],
    ));
    cases.extend(flags(
        PRETRAIN,
        2,
        vec![
            ("--vocab-size 0", "at least 1, and at most 2097152"),
            ("--vocab-size 18446744073709551615", "at least 1, and at most 2097152"),
        ],
    ));
    cases
}

pub fn others() -> Vec<Case> {
    let mut cases = flags(
        RETRAIN,
        2,
        vec![
            ("--no-such-flag", "unexpected argument '--no-such-flag' found"),
            ("--stepz 3", "unexpected argument '--stepz' found; tip: a similar argument exists: '--steps'"),
            ("stray", "unexpected argument 'stray' found"),
            ("--seed 1 --seed 2", "'--seed <N>' cannot be used multiple times"),
            ("--config", "a value is required for '--config <FILE>' but none was supplied"),
            ("--config ''", "--config : cannot be read: No such file"),
            ("--sparsity 0.5 --pattern 2:4", "'--sparsity <SHARE>' cannot be used with '--pattern <N:M>'"),
            ("--token-cache ''", "expected a folder, or off"),
            ("--packing loose", "expected pack (documents end to end) or pad (a document a sequence)"),
            ("--method lora", "biases, norms, probe, perp, mask-lora, scale-lora, lora-prune, full"),
            ("--criterion wanda2", "magnitude, random, wanda, sparsegpt"),
            ("--criterion wanda", "--criterion wanda needs calibration text: name text with --calibrate"),
            ("--criterion sparsegpt", "--criterion sparsegpt needs calibration text"),
            (
                "--calibrate text.txt",
                "--calibrate goes with --criterion wanda or sparsegpt, or with --allocation owl: magnitude looks at the weights alone",
            ),
            ("--parts lora,everything", "invalid value 'everything' for '--parts <PART,…>'"),
            ("--checkpointing sometimes", "[possible values: auto, on, off]"),
            ("--cycles 2 --pattern 2:4", "--cycles above 1 goes with --sparsity"),
            ("--resume", "--checkpoints <DIR>"),
            ("--keep 3", "--checkpoints <DIR>"),
            (
                "--checkpoints run",
                "--checkpoints run: holds checkpoints of a run already; --resume goes on with it, or name a new folder",
            ),
            ("--report model", "--report model: is a folder; name a file"),
            ("--report no/such/run.json", "--report no/such/run.json: there is no folder no/such"),
        ],
    );
    cases.extend(flags(
        RETRAIN,
        1,
        vec![
            ("--model no-such-model", "no-such-model: no such folder; name a model folder"),
            (
                "--model model/config.json",
                "model/config.json: no weights: looked for model.safetensors and model.safetensors.index.json",
            ),
            ("--train no-such.txt", "cannot read no-such.txt: No such file"),
            ("--eval no-such.jsonl", "cannot read no-such.jsonl: No such file"),
            ("--criterion wanda --calibrate no-such.txt", "cannot read no-such.txt: No such file"),
            (
                "--pattern 3:5",
                "model.decoder.layers.0.self_attn.q_proj.weight: its 32 input features cannot be cut into groups of 5 for 3:5",
            ),
            (
                "--targets q_proj,gate_proj",
                "no layer is called 'gate_proj': the LoRA targets of this model are all-linear, q_proj",
            ),
            ("--out model", "model: holds a model already, and models are never written over; name a new folder"),
            ("--out run", "run: exists and is not empty; name a new folder, or empty this one"),
            ("--out train.txt", "train.txt: exists and is not a folder; name a new folder"),
            ("--out train.txt/below", "cannot open train.txt/below: Not a directory"),
            ("--out /", "/: is not the name of a folder; name a new folder"),
            ("--out ..", "..: is not the name of a folder; name a new folder"),
            ("--out /proc/self/out", "cannot create /proc/self/out"),
            ("--out /proc/self/new/out", "cannot create /proc/self/new/out"),
            ("--report /proc/self/run.json", "cannot create /proc/self/run.json"),
            // Where there is a driver it sees no GPU, and elsewhere there is none.
            ("--device cuda", ", or use the CPU"),
        ],
    ));
    cases.extend(flags(PRUNE, 1, vec![("--out model", "models are never written over")]));
    cases.push(Case::new(PRETRAIN, "written over", Vec::new(), "models are never written over", 1).with("--out model"));
    cases.push(Case::new(INSPECT, "no such folder", vec![Spoil::Gone("model")], "model: no such folder", 1));
    cases.push(Case::new(&["prune", "--model", "model"], "nothing to do", Vec::new(), "nothing to do: name --out", 2));
    cases.push(Case::new(
        &["eval", "--model", "model"],
        "no text",
        Vec::new(),
        "--eval is missing: name text to evaluate on",
        2,
    ));
    cases.push(Case::new(
        &["eval"],
        "no model",
        Vec::new(),
        "the following required arguments were not provided: --model <DIR|ID>",
        2,
    ));
    cases.push(Case::new(
        &["retrai"],
        "no such command",
        Vec::new(),
        "unrecognized subcommand 'retrai'; tip: some similar subcommands exist: 'pretrain', 'retrain'",
        2,
    ));
    cases
}
