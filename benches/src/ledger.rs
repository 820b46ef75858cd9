//! Every kernel beside its limit, and the table of ratios at the end of a run.

use std::time::Duration;

use criterion::{Criterion, Throughput};

use crate::limit::Limit;
use crate::{Clock, median};

/// Criterion as the benches use it: short, since what counts is the ratio to a limit measured alongside. `--quick` makes
/// it shorter still.
pub fn criterion() -> Criterion {
    let short = Criterion::default().sample_size(15);
    let short = short.warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_millis(800));
    short.configure_from_args()
}

/// The rows of the table so far.
#[derive(Default)]
pub struct Ledger {
    rows: Vec<Row>,
    elements: Option<usize>,
}

struct Row {
    name: String,
    limit: Limit,
    elements: Option<usize>,
    /// Seconds at the limit and seconds measured, medians.
    seconds: [f64; 2],
    /// The median of their ratios.
    ratio: f64,
}

impl Ledger {
    /// From here on the table gives the time an element, of which each turn has so many.
    pub fn elements(&mut self, count: usize) {
        self.elements = Some(count);
    }

    /// Measures the CPU time of `work` on the calling thread.
    pub fn bench(&mut self, c: &mut Criterion, group: &str, id: &str, limit: Limit, mut work: impl FnMut()) {
        self.bench_timed(c, group, id, limit, |count| {
            // Memory is there and in its place.
            work();
            let start = Clock::start();
            (0..count).for_each(|_| work());
            start.elapsed()
        });
    }

    /// As [`Ledger::bench`], for work that measures itself: `work(count)` is the time that so many turns took.
    ///
    /// The limit is measured after every measurement of the work, so that both meet the same machine.
    pub fn bench_timed(
        &mut self,
        c: &mut Criterion,
        group: &str,
        id: &str,
        limit: Limit,
        mut work: impl FnMut(u64) -> Duration,
    ) {
        let mut samples: Vec<[f64; 2]> = Vec::new();
        let mut criterion_group = c.benchmark_group(group);
        criterion_group.throughput(match limit {
            Limit::MultiplyAdds { count, .. } => Throughput::Elements(count as u64),
            _ => Throughput::Bytes(limit.amount() as u64),
        });
        criterion_group.bench_function(id, |bencher| {
            bencher.iter_custom(|count| {
                let took = work(count);
                samples.extend(limit.seconds().map(|floor| [floor, took.as_secs_f64() / count as f64]));
                took
            });
        });
        criterion_group.finish();
        // The first turns warm up.
        let samples = &samples[samples.len() / 4..];
        if samples.is_empty() {
            return;
        }
        let of = |value: &dyn Fn(&[f64; 2]) -> f64| median(samples.iter().map(value).collect());
        let seconds = [of(&|s| s[0]), of(&|s| s[1])];
        let (name, ratio) = (format!("{group}/{id}"), of(&|s| s[0] / s[1]));
        self.rows.push(Row { name, limit, elements: self.elements, seconds, ratio });
    }

    /// Prints the table: the rate at the limit, the rate measured, their ratio.
    pub fn print(&self) {
        if self.rows.is_empty() {
            return;
        }
        println!("{:36} {:>18}  {:>8} {:>8} {:7} {:>6}", "", "limit", "limit", "measured", "", "ratio");
        for Row { name, limit, elements, seconds, ratio } in &self.rows {
            let [most, rate] = seconds.map(|s| limit.amount() / s / 1e9);
            let each = elements.map(|n| format!("{:9.3} ns/element", seconds[1] * 1e9 / n as f64)).unwrap_or_default();
            println!("{name:36} {:>18}  {most:8.2} {rate:8.2} {:7} {ratio:6.3} {each}", limit.name(), limit.unit());
        }
    }
}
