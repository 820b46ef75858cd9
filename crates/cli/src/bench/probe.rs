//! A short measurement of this machine: small models between three node processes, and the rates that fit their times.
//!
//! The shapes vary layers, width, rows, inputs and table, so that what one rate would explain no other can; two of them run over
//! slow links as well. Everything is measured twice, one pass after the other, and the lower median counts: other work on a
//! machine makes runs slower, never faster.

use anyhow::{Context, Result};
use tercet_engine::{Plan, Profile, Rates, Sample, Term};

use super::measure::{Repeats, link};
use super::rates::Measured;
use super::record::{Case, Key};
use super::{measured, table};
use crate::screen::{say, say_table};

/// A model, a link, and the inputs and rows of its requests.
type Probe = (&'static str, &'static str, &'static [(usize, usize)]);

const PROBES: [Probe; 5] = [
    ("probe-narrow", "none", &[(1, 32), (1, 128), (4, 32), (4, 128)]),
    ("probe-narrow", "lan", &[(1, 32), (1, 128)]),
    ("probe-narrow", "metro", &[(1, 32)]),
    ("probe-wide", "none", &[(1, 32), (1, 128), (1, 196), (4, 64)]),
    ("probe-square", "none", &[(1, 16), (1, 64), (4, 128)]),
];
const PASSES: usize = 2;
const REPEATS: Repeats = Repeats { warmup: 1, runs: 3 };

/// Measures the rates of this machine in a profile, and says how well they fit.
///
/// # Errors
/// A node fails; the cache cannot be written.
pub(crate) fn probe(profile: Profile) -> Result<(Measured, Vec<(Key, Sample)>)> {
    let (busy, cores) = (busy_processes(), std::thread::available_parallelism().map_or(1, usize::from));
    if busy > 0.5 * cores as f64 {
        say(format_args!(
            "this machine is busy: {busy:.1} processes ran of late on {cores} cores; rates will be too slow\n"
        ));
    }
    let keys: Vec<Key> = PROBES.into_iter().flat_map(|probe| keys(probe, profile)).collect();
    let mut runs: Vec<(Plan, Case)> = Vec::new();
    for _ in 0..PASSES {
        measured(&keys, REPEATS, |plan, case| runs.push((plan.clone(), case)))?;
    }
    let samples = keys.into_iter().map(|key| sample(key, &runs)).collect::<Result<Vec<_>>>()?;
    let all: Vec<Sample> = samples.iter().map(|(_, sample)| sample.clone()).collect();
    let rates = Rates::fit(&all).context("no rates fit these measurements; measure again")?;
    let residual = all.iter().map(|sample| rates.off_by(sample).abs()).fold(0.0, f64::max);
    Ok((Measured::now(profile, rates, residual)?, samples))
}

fn keys((model, link, shapes): Probe, profile: Profile) -> impl Iterator<Item = Key> {
    shapes.iter().map(move |&(batch, rows)| Key {
        model: model.into(),
        profile: profile.to_string(),
        rows,
        batch,
        link: link.into(),
        threads: 0,
    })
}

/// How many processes ran or would have, on average over the last minute; none where the system does not say.
pub(crate) fn busy_processes() -> f64 {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split_whitespace().next().and_then(|text| text.parse().ok()).unwrap_or(0.0)
}

/// The faster of the passes.
fn sample(key: Key, runs: &[(Plan, Case)]) -> Result<(Key, Sample)> {
    let of_key = runs.iter().filter(|(_, case)| case.key == key);
    let fastest = of_key.min_by(|(_, a), (_, b)| a.latency.median.total_cmp(&b.latency.median));
    let (plan, case) = fastest.with_context(|| format!("{key} was not measured"))?;
    let processor = std::array::from_fn(|party| case.processes[1 + party].cpu_seconds);
    Ok((key.clone(), Sample { plan: plan.clone(), link: link(&key.link)?, seconds: case.latency.median, processor }))
}

/// What was measured, how far the fit is from it, and the rates.
pub(crate) fn say_fit(measured: &Measured, samples: &[(Key, Sample)]) {
    let rates = &measured.rates;
    let rows = samples.iter().map(|(key, sample)| {
        let times = [sample.seconds, rates.predict(&sample.plan, sample.link)].map(table::seconds);
        let off_by = format!("{:+.0} %", 100.0 * rates.off_by(sample));
        [key.to_string()].into_iter().chain(times).chain([off_by]).collect()
    });
    say_table(&["probe", "measured", "fitted", "off by"], &rows.collect::<Vec<_>>());
    say("");
    let mut rows: Vec<Vec<String>> = Vec::new();
    for (term, seconds) in Term::ALL.into_iter().zip(rates.seconds) {
        rows.push(vec![format!("a {}", term.name()), small(seconds)]);
    }
    rows.push(vec!["a round over a slow link, beyond its delay".into(), small(rates.late)]);
    say_table(&["on this machine", "takes"], &rows);
    let percent = |part: f64| format!("{:.0} %", 100.0 * part);
    say(format_args!(
        "\nthe helper takes {} of the processor time; waiting for links hides {} of that; the fit is within {}",
        percent(rates.helper),
        percent(rates.hidden),
        percent(measured.residual)
    ));
}

/// A time in the unit that suits it.
fn small(seconds: f64) -> String {
    match seconds {
        s if s <= 0.0 => "0 s".into(),
        s if s < 1e-9 => format!("{:.2} ps", s * 1e12),
        s if s < 1e-6 => format!("{:.2} ns", s * 1e9),
        s if s < 1e-3 => format!("{:.2} µs", s * 1e6),
        s => format!("{:.2} ms", s * 1e3),
    }
}

#[cfg(test)]
mod tests {
    use tercet_engine::Effort;
    use tercet_net::LinkShape;

    use super::*;
    use crate::bench::record::Spread;
    use crate::bench::record::tests::example;

    fn plan() -> Plan {
        let total = example().cases[0].planned;
        Plan {
            geometry: tercet_core::Geometry { batch: 1, rows: 32 },
            total,
            parts: vec![("all".into(), total)],
            weight_bytes: [0; 3],
            client_bytes: [[0; 3]; 2],
            working_bytes: 0,
            effort: Effort::request(),
        }
    }

    #[test]
    fn the_faster_pass_counts_and_what_is_missing_is_named() {
        let case = |seconds: f64| {
            let mut case = example().cases.remove(0);
            case.latency = Spread::of(&[seconds]);
            case.processes[1].cpu_seconds = seconds / 2.0;
            (plan(), case)
        };
        let runs = [case(3.0), case(2.0)];
        let key = runs[0].1.key.clone();
        let (_, found) = sample(key.clone(), &runs).unwrap();
        assert_eq!((found.seconds, found.processor, found.link), (2.0, [1.0, 0.1, 0.1], LinkShape::NONE));
        let other = Key { rows: 7, ..key };
        assert!(sample(other, &runs).unwrap_err().to_string().contains("1 x 7 was not measured"));
    }

    #[test]
    fn probes_are_shapes_of_the_catalogue_and_hidden_from_it() {
        use crate::bench::catalogue::{self, CATALOGUE};
        for (model, shape, _) in PROBES {
            assert!(catalogue::find(model).is_ok() && link(shape).is_ok(), "{model} over {shape}");
            assert!(CATALOGUE.iter().all(|entry| entry.name != model));
        }
        let fitted =
            PROBES.iter().filter(|(_, link, _)| *link == "none").map(|(_, _, shapes)| shapes.len()).sum::<usize>();
        assert!(fitted > Term::COUNT, "more runs than rates");
    }

    #[test]
    fn times_of_one_thing_have_a_unit() {
        assert_eq!([0.0, 2.5e-12, 3e-9, 4.5e-6, 0.02].map(small), ["0 s", "2.50 ps", "3.00 ns", "4.50 µs", "20.00 ms"]);
    }
}
