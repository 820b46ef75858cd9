//! A kernel beside its limit: both timed in turns in one run, so that whatever else the machine does weighs on both.

use std::time::{Duration, Instant};

/// Turns of either side.
const TURNS: usize = 41;
/// Least length of a turn, in which the work is repeated.
const TURN: Duration = Duration::from_millis(2);

/// Prints and returns how fast `work` is as a share of `limit`, both of which do the same amount: the quotient of their
/// median times over alternating turns. Where the command line names benchmarks, only those of that name run, and
/// nothing is returned for others.
pub fn beside(name: &str, limit_name: &str, mut limit: impl FnMut(), mut work: impl FnMut()) -> Option<f64> {
    let filter = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    if filter.is_some_and(|filter| !name.contains(&filter)) {
        return None;
    }
    let (limit_reps, work_reps) = (repetitions(&mut limit), repetitions(&mut work));
    let (mut limits, mut works) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        limits.push(turn(&mut limit, limit_reps));
        works.push(turn(&mut work, work_reps));
    }
    let ratio = median(limits) / median(works);
    println!("{name:<40} {ratio:.2} of {limit_name}");
    Some(ratio)
}

fn repetitions(work: &mut impl FnMut()) -> u32 {
    let mut reps = 1;
    while turn(work, reps) * f64::from(reps) < TURN.as_secs_f64() {
        reps *= 2;
    }
    reps
}

/// Seconds for one of `reps` repetitions.
fn turn(work: &mut impl FnMut(), reps: u32) -> f64 {
    let start = Instant::now();
    (0..reps).for_each(|_| work());
    start.elapsed().as_secs_f64() / f64::from(reps)
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
