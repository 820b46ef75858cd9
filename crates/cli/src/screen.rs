//! Lines, tables, units and progress bars for people; JSON for programs. Nothing else in the
//! command writes to the standard output or the standard error output.
//!
//! Names, reasons, labels and texts come from nodes and models, which may be malicious, and a
//! terminal obeys escape sequences. So whatever is printed passes [`Clean`], which shows control
//! characters as `\u001b`: in JSON this is the same string. There is one exception: a generated
//! text whose reader is not a terminal but a file or a program gets it as it is.

use std::borrow::Cow;
use std::fmt::{self, Display, Write as _};
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

/// Prints a line. Where nobody reads any more, it is lost, and the command goes on to its end.
pub(crate) fn say(line: impl Display) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{}", Clean(line)).and_then(|()| out.flush());
}

/// Prints a line on the standard error output: notes and errors, so that results can be piped.
pub(crate) fn note(line: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{}", Clean(line));
}

/// Prints a piece of a generated text at once: clean on a terminal, as it is to a file or a
/// program.
pub(crate) fn say_piece(piece: &str) {
    let mut out = io::stdout().lock();
    let written = match out.is_terminal() {
        true => write!(out, "{}", Clean(piece)),
        false => out.write_all(piece.as_bytes()),
    };
    let _ = written.and_then(|()| out.flush());
}

/// A text as it may be shown: lines and tabs stay; other control characters, and those that turn
/// the direction of writing, become visible.
struct Clean<T>(T);

impl<T: Display> Display for Clean<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Cleaner(f), "{}", self.0)
    }
}

struct Cleaner<'a, 'b>(&'a mut fmt::Formatter<'b>);

impl fmt::Write for Cleaner<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some(at) = rest.find(is_dangerous) {
            let (plain, from) = rest.split_at(at);
            self.0.write_str(plain)?;
            let mut chars = from.chars();
            chars.next().map_or(Ok(()), |c| write!(self.0, "\\u{:04x}", u32::from(c)))?;
            rest = chars.as_str();
        }
        self.0.write_str(rest)
    }
}

/// Characters that a terminal obeys, or that show a text in another order than it has.
fn is_dangerous(c: char) -> bool {
    let turns = matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    (c.is_control() && !matches!(c, '\n' | '\t')) || turns
}

/// A text on one line.
fn one_line(text: &str) -> Cow<'_, str> {
    match text.contains(['\n', '\t']) {
        true => text.replace('\n', "\\n").replace('\t', "\\t").into(),
        false => text.into(),
    }
}

/// Prints one JSON document.
pub(crate) fn say_json(value: &impl Serialize) -> Result<()> {
    say(serde_json::to_string_pretty(value).context("the result has no JSON form")?);
    Ok(())
}

/// Prints rows under a head: numbers to the right, words and the first column to the left.
pub(crate) fn say_table(head: &[&str], rows: &[Vec<String>]) {
    let shown = |cell: &String| Clean(one_line(cell)).to_string();
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(shown).collect()).collect();
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
    for row in &rows {
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

/// A bar on the standard error output over some number of things or bytes; invisible where that is
/// not a terminal.
pub(crate) struct Bar(ProgressBar);

impl Bar {
    /// A bar that shows nothing.
    #[cfg(test)]
    pub(crate) fn hidden() -> Self {
        Self(ProgressBar::hidden())
    }

    /// Shows what is being done.
    pub(crate) fn show(&self, what: impl Display) {
        self.0.set_message(Clean(one_line(&what.to_string())).to_string());
    }

    /// Goes on by so many.
    pub(crate) fn inc(&self, count: u64) {
        self.0.inc(count);
    }

    /// Takes another length.
    pub(crate) fn set_length(&self, length: u64) {
        self.0.set_length(length);
    }

    /// Takes another place.
    pub(crate) fn set_position(&self, position: u64) {
        self.0.set_position(position);
    }

    /// Begins anew.
    pub(crate) fn reset(&self) {
        self.0.reset();
    }

    /// Takes the bar off the screen.
    pub(crate) fn clear(&self) {
        self.0.finish_and_clear();
    }
}

/// A bar over `length` things, or bytes.
pub(crate) fn bar(length: u64, what: &str, of_bytes: bool) -> Bar {
    let template = match of_bytes {
        true => "{prefix:>12} [{bar:30}] {bytes}/{total_bytes} {msg}",
        false => "{prefix:>12} [{bar:30}] {pos}/{len} {msg}",
    };
    let bar = ProgressBar::new(length).with_prefix(what.to_owned());
    Bar(match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style.progress_chars("━╸ ")),
        Err(_) => bar,
    })
}

/// Where log lines go, and from which level on: `TERCET_LOG`, in the form of `RUST_LOG`, overrides `level`.
pub(crate) fn start_log(level: &str) {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_env("TERCET_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    // Colours are escape sequences: a line cannot have them and be cleaned as a whole.
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(|| LogLine(io::stderr()));
    // Fails only where a subscriber is set already.
    let _ = log.try_init();
}

/// Writes each event, which the subscriber hands over in one piece, as one clean line.
struct LogLine<W>(W);

impl<W: Write> Write for LogLine<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let line = format!("{}\n", Clean(one_line(text.strip_suffix('\n').unwrap_or(&text))));
        self.0.write_all(line.as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever a terminal may obey, and what stays.
    const HOSTILE: &str = "a\u{1b}[31mb\u{7}\r\u{8}\u{7f}\u{9b}2J\u{202e}c\u{2066}\u{200f}\u{61c}\0";
    const SHOWN: &str = "a\\u001b[31mb\\u0007\\u000d\\u0008\\u007f\\u009b2J\\u202ec\\u2066\\u200f\\u061c\\u0000";

    #[test]
    fn what_a_terminal_obeys_is_shown() {
        assert_eq!(Clean(HOSTILE).to_string(), SHOWN);
        for plain in ["", "a line\n\tand another", "naïve 日本語 🙂 שלום", "\\u001b as letters"] {
            assert_eq!(Clean(plain).to_string(), plain);
        }
        assert_eq!(Clean(one_line("a\n\u{1b}\tb")).to_string(), "a\\n\\u001b\\tb");
    }

    #[test]
    fn json_stays_the_same_value() {
        let text = serde_json::to_string_pretty(&serde_json::json!({ HOSTILE: [HOSTILE, "\n\\"] })).unwrap();
        let shown = Clean(&text).to_string();
        assert!(!shown.contains(is_dangerous) && text.contains('\u{202e}'));
        let value = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        assert_eq!(value(&shown), value(&text));
    }

    #[test]
    fn an_event_is_one_clean_line_of_the_log() {
        #[derive(Clone, Default)]
        struct Written(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);
        impl Write for Written {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.lock().unwrap().write(bytes)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let written = Written::default();
        let out = written.clone();
        let log = tracing_subscriber::fmt().with_ansi(false).with_writer(move || LogLine(out.clone())).finish();
        let hostile = format!("{HOSTILE}\n2026 INFO forged");
        tracing::subscriber::with_default(log, || {
            tracing::info!(reason = hostile, shown = %hostile, debug = ?hostile, "said {hostile}");
            tracing::info!("second");
        });
        let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.matches("forged").count() == 4 && !text.contains(is_dangerous), "{text}");
    }

    #[test]
    fn units_suit_the_number() {
        let shown = [0, 999, 1000, 9994, 12_345, 999_499, 999_500, 254_000_000, 7_100_000_000].map(bytes);
        assert_eq!(shown, ["0 B", "999 B", "1.00 kB", "9.99 kB", "12.3 kB", "999 kB", "1.00 MB", "254 MB", "7.10 GB"]);
        assert_eq!(time(Duration::from_millis(42)), "42 ms");
        assert_eq!(time(Duration::from_millis(1234)), "1.23 s");
        assert_eq!(hex(&[0, 0xab]), "00ab");
    }
}
