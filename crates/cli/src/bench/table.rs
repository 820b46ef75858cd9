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
    let head =
        ["case", "median", "p95", "inputs/s", "rounds", "all bytes", "P1→P2", "P2→P1", "P0→P1", "P0→P2", "helper"];
    let rows = record.cases.iter().map(|case| {
        let cost = &case.cost;
        vec![
            case.key.to_string(),
            seconds(case.latency.median),
            seconds(case.latency.p95),
            format!("{:.2}", case.throughput),
            cost.rounds.to_string(),
            bytes(cost.total_bytes()),
            bytes(cost.bytes[1][2]),
            bytes(cost.bytes[2][1]),
            bytes(cost.bytes[0][1]),
            bytes(cost.bytes[0][2]),
            format!("{:.0} %", 100.0 * case.helper_share()),
        ]
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
