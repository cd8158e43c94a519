//! `--freeze` and `--unfreeze` on the command line: what the report says of them.

mod cli_support;

use cli_support::runs::uninterrupted;
use serde_json::Value;

fn number(report: &Value, at: &str) -> f64 {
    report.pointer(at).and_then(Value::as_f64).unwrap()
}

#[test]
fn the_report_has_the_aggregated_share_of_what_trains() {
    // Two layers over 24 steps: of them ⌊2·k/24⌋ are (un)frozen in step k, half of them 12 times and both once.
    let [plain, input, output, from_input, from_output] = [
        &[][..],
        &["--freeze", "input"],
        &["--freeze", "output"],
        &["--freeze", "input", "--unfreeze"],
        &["--freeze", "output", "--unfreeze"],
    ]
    .map(|flags| uninterrupted(&[&["--method", "norms"], flags].concat()).1);
    let share = |report: &Value| number(report, "/trainable/aggregated_percent");
    let all = number(&plain, "/trainable/percent");
    assert_eq!(share(&plain), all);
    // Of 32 features: a layer has six biases (four of 32, 64, 32) and two norms of 64 parameters, the last norm 64.
    let (layer, last) = (4.0 * 32.0 + 64.0 + 32.0 + 2.0 * 64.0, 64.0);
    assert_eq!(number(&plain, "/trainable/count"), 2.0 * layer + last);
    let part = |layers: f64| all * (layers * layer + 24.0 * last) / (24.0 * (2.0 * layer + last));
    let close = |got: f64, want: f64| assert!((got / want - 1.0).abs() < 1e-12, "{got} {want}");
    // Freezing: 11 steps with both, 12 with one, one with none. Unfreezing: 11 with none, 12 with one, one with both.
    for report in [&input, &output] {
        close(share(report), part(22.0 + 12.0));
        assert_eq!(number(report, "/trainable/percent"), all);
    }
    for report in [&from_input, &from_output] {
        close(share(report), part(12.0 + 2.0));
    }
    let perplexities = [&plain, &input, &output, &from_input, &from_output].map(|r| number(r, "/perplexity/retrained"));
    for (at, one) in perplexities.iter().enumerate() {
        assert!(one < &number(&plain, "/perplexity/pruned"), "{perplexities:?}");
        assert!(!perplexities[..at].contains(one), "every way trains otherwise: {perplexities:?}");
    }
}
