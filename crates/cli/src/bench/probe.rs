//! A short measurement of this machine: small models between three node processes, and the rates that fit their times.
//!
//! The shapes vary layers, width, rows, inputs and table, so that what one rate would explain no other can; two of them run over
//! slow links as well. Everything is measured twice, one pass after the other, and the mean of the medians counts: a
//! machine that was busy for a moment shows in both less.

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

/// The mean over the passes.
fn sample(key: Key, runs: &[(Plan, Case)]) -> Result<(Key, Sample)> {
    let of_key: Vec<&(Plan, Case)> = runs.iter().filter(|(_, case)| case.key == key).collect();
    let (plan, _) = of_key.first().with_context(|| format!("{key} was not measured"))?;
    let mean = |of: &dyn Fn(&Case) -> f64| of_key.iter().map(|(_, case)| of(case)).sum::<f64>() / of_key.len() as f64;
    let sample = Sample {
        plan: plan.clone(),
        link: link(&key.link)?,
        seconds: mean(&|case| case.latency.median),
        processor: std::array::from_fn(|party| mean(&|case| case.processes[1 + party].cpu_seconds)),
    };
    Ok((key, sample))
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

/// A time below a second in the unit that suits it.
fn small(seconds: f64) -> String {
    match seconds {
        s if s <= 0.0 => "0 s".into(),
        s if s < 1e-9 => format!("{:.2} ps", s * 1e12),
        s if s < 1e-6 => format!("{:.2} ns", s * 1e9),
        s if s < 1e-3 => format!("{:.2} µs", s * 1e6),
        s => format!("{:.2} ms", s * 1e3),
    }
}
