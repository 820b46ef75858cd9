//! What the operating system counts of a process, read from `/proc`.

use std::fs;

/// Ticks of a second in `/proc/PID/stat`: 100 for every program on Linux, whatever the kernel's own clock.
const TICKS_PER_SECOND: f64 = 100.0;

/// A process of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Process {
    /// This one.
    Own,
    /// Another one by its number.
    Other(u32),
}

/// Counters since the start of a process, of all its threads, ended ones too.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Counters {
    /// Processor time, in programs and in the kernel, to a hundredth of a second.
    pub(crate) cpu_seconds: f64,
    /// Pages that were mapped fresh, without reading a disk.
    pub(crate) minor_faults: u64,
}

impl Process {
    fn read(self, file: &str) -> Option<String> {
        fs::read_to_string(self.path(file)).ok()
    }

    fn path(self, file: &str) -> String {
        match self {
            Self::Own => format!("/proc/self/{file}"),
            Self::Other(number) => format!("/proc/{number}/{file}"),
        }
    }

    /// Its counters; zeros where the system does not say.
    pub(crate) fn counters(self) -> Counters {
        self.read("stat").and_then(|stat| counters(&stat)).unwrap_or_default()
    }

    /// Most bytes that were resident since [`Process::forget_peak`], mapped weights included; zero where the system does
    /// not say.
    pub(crate) fn peak_bytes(self) -> u64 {
        self.read("status").and_then(|status| kib(&status, "VmHWM:")).unwrap_or(0) * 1024
    }

    /// Begins to look for the peak anew. Where the system does not let us, the peak is that since the start.
    pub(crate) fn forget_peak(self) {
        let _ = fs::write(self.path("clear_refs"), "5");
    }
}

/// A number of KiB in the lines of a file of `/proc`.
pub(crate) fn kib(lines: &str, key: &str) -> Option<u64> {
    let line = lines.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

/// The fields behind the name, which is in brackets and may hold anything.
fn counters(stat: &str) -> Option<Counters> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok());
    let (minor_faults, user, system) = (number(7)?, number(11)?, number(12)?);
    Some(Counters { cpu_seconds: (user + system) as f64 / TICKS_PER_SECOND, minor_faults })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_stand_behind_the_name() {
        let stat = "42 (a) b) (c) S 1 2 3 4 5 6 777 8 9 10 250 50 13 14 20 0";
        assert_eq!(counters(stat), Some(Counters { cpu_seconds: 3.0, minor_faults: 777 }));
        for broken in ["", "42 (a", "42 (a) S 1 2", "42 (a) S 1 2 3 4 5 6 x 8 9 10 250 50"] {
            assert_eq!(counters(broken), None);
        }
    }

    #[test]
    fn this_process_is_counted() {
        let own = Process::Own;
        own.forget_peak();
        let before = own.counters();
        let pages = std::hint::black_box(vec![1u8; 64 << 20]);
        assert!(own.counters().minor_faults > before.minor_faults, "{} bytes", pages.len());
        assert!(own.peak_bytes() >= 64 << 20);
        assert_eq!(Process::Other(u32::MAX).counters(), Counters::default());
        assert_eq!(Process::Other(u32::MAX).peak_bytes(), 0);
    }
}
