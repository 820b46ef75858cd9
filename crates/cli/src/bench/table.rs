//! Records and comparisons as lines for people.

use super::compare::{Change, Comparison};
use super::record::{Case, Record};
use crate::screen::{bytes, say, say_table, time};

/// Every case in a few lines.
pub(crate) fn say_record(record: &Record) {
    let machine = &record.machine;
    say(format_args!(
        "{} on {} ({} cores, {}, {})",
        record.program,
        machine.processor,
        machine.cores,
        bytes(machine.memory_bytes),
        machine.instructions
    ));
    say("");
    let foretold = record.cases.iter().any(|case| case.predicted_seconds.is_some());
    let mut head = vec!["case", "median", "p95"];
    head.extend(if foretold { &["predicted", "off by"][..] } else { &[] });
    head.extend(["inputs/s", "rounds", "all bytes", "P1→P2", "P2→P1", "P0→P1", "P0→P2", "helper"]);
    let rows = record.cases.iter().map(|case| {
        let cost = &case.cost;
        let mut cells = vec![case.key.to_string(), seconds(case.latency.median), seconds(case.latency.p95)];
        if foretold {
            cells.extend(prediction(case));
        }
        cells.extend([format!("{:.2}", case.throughput), cost.rounds.to_string(), bytes(cost.total_bytes())]);
        cells.extend([(1, 2), (2, 1), (0, 1), (0, 2)].map(|(from, to)| bytes(cost.bytes[from][to])));
        cells.push(format!("{:.0} %", 100.0 * case.helper_share()));
        cells
    });
    say_table(&head, &rows.collect::<Vec<_>>());
    say("");
    let head = ["case", "CPU client", "P0", "P1", "P2", "peak client", "P0", "P1", "P2", "max error", "mean", "cosine"];
    let rows = record.cases.iter().map(|case| {
        let mut cells = vec![case.key.to_string()];
        cells.extend(case.processes.iter().map(|process| format!("{:.2} s", process.cpu_seconds)));
        cells.extend(case.processes.iter().map(|process| bytes(process.peak_bytes)));
        cells.extend(case.error.map_or([const { String::new() }; 3], |error| {
            [format!("{:.1e}", error.max), format!("{:.1e}", error.mean), format!("{:.7}", error.cosine)]
        }));
        cells
    });
    say_table(&head, &rows.collect::<Vec<_>>());
    for case in record.cases.iter().filter(|case| !case.as_planned()) {
        say(format_args!("\nNOT AS PLANNED: {}", unplanned(case)));
    }
}

/// The time that was foretold, and how far it was from the median.
pub(crate) fn prediction(case: &Case) -> [String; 2] {
    let off_by = |predicted: f64| format!("{:+.0} %", 100.0 * (predicted / case.latency.median - 1.0));
    case.predicted_seconds.map_or([const { String::new() }; 2], |predicted| [seconds(predicted), off_by(predicted)])
}

fn unplanned(case: &Case) -> String {
    let (cost, planned) = (&case.cost, &case.planned);
    let (is, was) = (cost.total_bytes(), planned.total_bytes());
    format!("{} took {} rounds and {is} bytes, planned were {} and {was}", case.key, cost.rounds, planned.rounds)
}

/// Seconds in the unit that suits them.
pub(crate) fn seconds(count: f64) -> String {
    time(std::time::Duration::from_secs_f64(count.max(0.0)))
}

/// What a comparison found.
pub(crate) fn say_comparison(found: &Comparison) {
    let list = |title: &str, changes: &[Change]| {
        for change in changes {
            say(format_args!("{title:<12} {change}"));
        }
    };
    list("REGRESSION", &found.regressions);
    list("improvement", &found.improvements);
    list("warning", &found.warnings);
    for case in &found.missing {
        say(format_args!("{:<12} {case}: the run lacks it", "missing"));
    }
    let plural = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    say(format_args!(
        "{} compared: {}, {}, {}",
        plural(found.compared.len(), "case"),
        plural(found.regressions.len(), "regression"),
        plural(found.improvements.len(), "improvement"),
        plural(found.warnings.len(), "warning")
    ));
}
