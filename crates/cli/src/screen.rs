//! What people see: lines, tables, units, progress bars; and JSON for programs.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

/// Prints a line. Where nobody reads any more, it is lost, and the command goes on to its end.
pub(crate) fn say(line: impl Display) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// Prints a piece of a line at once.
pub(crate) fn say_piece(piece: &str) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(piece.as_bytes()).and_then(|()| out.flush());
}

/// Prints one JSON document.
pub(crate) fn say_json(value: &impl Serialize) -> Result<()> {
    say(serde_json::to_string_pretty(value).context("the result has no JSON form")?);
    Ok(())
}

/// Prints rows under a head: numbers to the right, words and the first column to the left.
pub(crate) fn say_table(head: &[&str], rows: &[Vec<String>]) {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([head[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let number =
        |cell: &String| cell.is_empty() || cell.starts_with(|c: char| matches!(c, '-' | '+') || c.is_ascii_digit());
    let right = |column: usize| column > 0 && rows.iter().filter_map(|row| row.get(column)).all(number);
    let right: Vec<bool> = (0..head.len()).map(right).collect();
    let line = |cells: Vec<&str>| {
        let padded = cells.iter().zip(&widths).zip(&right).map(|((cell, width), right)| match right {
            false => format!("{cell:<width$}"),
            true => format!("{cell:>width$}"),
        });
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    say(line(head.to_vec()));
    say(widths.iter().map(|width| "─".repeat(*width)).collect::<Vec<_>>().join("  "));
    for row in rows {
        say(line(row.iter().map(String::as_str).collect()));
    }
}

/// A number of bytes in decimal units.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    match unit {
        0 => format!("{count} B"),
        _ if value < 9.995 => format!("{value:.2} {}", UNITS[unit]),
        _ if value < 99.95 => format!("{value:.1} {}", UNITS[unit]),
        _ => format!("{value:.0} {}", UNITS[unit]),
    }
}

/// A duration in the unit that suits it.
pub(crate) fn time(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds < 1.0 { format!("{:.0} ms", seconds * 1e3) } else { format!("{seconds:.2} s") }
}

/// Hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A bar on the standard error output over `length` things, or bytes; invisible where that is no terminal.
pub(crate) fn bar(length: u64, what: &str, of_bytes: bool) -> ProgressBar {
    let template = match of_bytes {
        true => "{prefix:>12} [{bar:30}] {bytes}/{total_bytes} {msg}",
        false => "{prefix:>12} [{bar:30}] {pos}/{len} {msg}",
    };
    let bar = ProgressBar::new(length).with_prefix(what.to_owned());
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style.progress_chars("━╸ ")),
        Err(_) => bar,
    }
}

/// Where log lines go, and from which level on: `TERCET_LOG`, in the form of `RUST_LOG`, overrides `level`.
pub(crate) fn start_log(level: &str) {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_env("TERCET_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    // Fails only where a subscriber is set already.
    let _ = log.with_ansi(io::stderr().is_terminal()).try_init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_suit_the_number() {
        let shown = [0, 999, 1000, 9994, 12_345, 999_499, 999_500, 254_000_000, 7_100_000_000].map(bytes);
        assert_eq!(shown, ["0 B", "999 B", "1.00 kB", "9.99 kB", "12.3 kB", "999 kB", "1.00 MB", "254 MB", "7.10 GB"]);
        assert_eq!(time(Duration::from_millis(42)), "42 ms");
        assert_eq!(time(Duration::from_millis(1234)), "1.23 s");
        assert_eq!(hex(&[0, 0xab]), "00ab");
    }
}
