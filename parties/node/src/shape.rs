//! What one session computes on, by its public sizes, and what may run together.

use serde::{Deserialize, Serialize};
use tercet_core::{Extent, Geometry, Layout};
use tercet_engine::{Choice, StepShape};

/// Lengths of sequences are rounded up to a multiple of this where memory is estimated, so that one estimate serves many
/// steps.
const ROUNDED_TO: usize = 64;

/// What a request asks for, or several together.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Shape {
    /// Inputs of equal rows, from their beginning to their output.
    Inputs(Geometry),
    /// One step of each of several generations.
    Step(StepShape),
}

impl Shape {
    /// The first step of one generation, which gets scores of its last row.
    pub(crate) fn prompt(rows: usize) -> StepShape {
        StepShape { layout: Layout::prefill(rows), choice: Choice::Scores, reentry: false, noisy: false }
    }

    /// Inputs, or generations.
    pub(crate) fn len(&self) -> usize {
        match self {
            Shape::Inputs(geometry) => geometry.batch,
            Shape::Step(step) => step.layout.sequences.len(),
        }
    }

    /// Whether these are generations that all get one row behind earlier ones: such run together whatever their positions.
    pub(crate) fn decodes(&self) -> bool {
        let Shape::Step(step) = self else { return false };
        step.layout.sequences.iter().all(|one| one.rows == 1 && one.past > 0)
    }

    /// Both together, this one first, if they may run so: inputs of equal rows; beginnings of generations, or further steps,
    /// of which the clients get the same.
    pub(crate) fn with(&self, more: &Shape) -> Option<Shape> {
        match (self, more) {
            (Shape::Inputs(a), Shape::Inputs(b)) if a.rows == b.rows => {
                Some(Shape::Inputs(Geometry { batch: a.batch.checked_add(b.batch)?, rows: a.rows }))
            }
            (Shape::Step(a), Shape::Step(b)) => {
                let mut sum = a.clone();
                sum.layout.sequences.extend(&b.layout.sequences);
                sum.noisy |= b.noisy;
                (alike(a, b) && self.decodes() == more.decodes()).then_some(Shape::Step(sum))
            }
            _ => None,
        }
    }

    /// Whether `one` may be the request at this place of the whole.
    pub(crate) fn has(&self, place: usize, one: &Shape) -> bool {
        match (self, one) {
            (Shape::Inputs(all), Shape::Inputs(one)) => all.rows == one.rows,
            (Shape::Step(all), Shape::Step(one)) => {
                let extent = all.layout.sequences.get(place);
                alike(all, one) && extent.is_some() && one.layout.sequences.first() == extent
            }
            _ => false,
        }
    }

    /// A shape that takes at least as much memory and stands for many: the steps of a batch all at the longest of their lengths,
    /// rounded up, as far as `context` allows.
    pub(crate) fn rounded(&self, context: usize) -> Shape {
        let Shape::Step(step) = self else { return self.clone() };
        if !self.decodes() {
            return self.clone();
        }
        let longest = step.layout.sequences.iter().map(|one| one.past).max().unwrap_or(0);
        let past = longest.next_multiple_of(ROUNDED_TO).min(context.saturating_sub(1)).max(longest);
        let sequences = vec![Extent { past, rows: 1 }; step.layout.sequences.len()];
        Shape::Step(StepShape { layout: Layout { sequences, ..step.layout }, ..*step })
    }
}

/// Whether the clients of two steps send and get the same.
fn alike(a: &StepShape, b: &StepShape) -> bool {
    (a.choice, a.reentry, a.layout.every_row) == (b.choice, b.reentry, b.layout.every_row)
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Shape::Inputs(Geometry { batch, rows }) => write!(f, "{batch} inputs of {rows} rows"),
            Shape::Step(step) => {
                let rows = step.layout.sequences.iter().fold(0usize, |sum, one| sum.saturating_add(one.rows));
                write!(f, "{rows} rows of {} generations", self.len())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(past: usize, rows: usize) -> Shape {
        let layout = Layout { sequences: vec![Extent { past, rows }], every_row: false };
        Shape::Step(StepShape { layout, ..Shape::prompt(rows) })
    }

    fn changed(shape: Shape, change: impl Fn(&mut StepShape)) -> Shape {
        let Shape::Step(mut step) = shape else { panic!() };
        change(&mut step);
        Shape::Step(step)
    }

    #[test]
    fn what_runs_together() {
        let inputs = |batch, rows| Shape::Inputs(Geometry { batch, rows });
        assert_eq!(inputs(2, 5).with(&inputs(3, 5)), Some(inputs(5, 5)));
        assert_eq!(inputs(2, 5).with(&inputs(3, 4)), None);
        assert_eq!(inputs(2, 5).with(&inputs(usize::MAX, 5)), None);
        assert_eq!(inputs(2, 5).with(&one(0, 5)), None);
        // Positions do not matter to decoding, lengths not to prompts; but the two are kept apart.
        let both = one(7, 1).with(&one(300, 1)).unwrap();
        assert_eq!((both.len(), both.decodes()), (2, true));
        assert!(!one(0, 3).with(&one(0, 9)).unwrap().decodes());
        assert_eq!(one(0, 1).with(&one(5, 1)), None);
        let token = changed(one(7, 1), |step| step.choice = Choice::Token);
        let reentry = changed(token.clone(), |step| step.reentry = true);
        assert_eq!((token.with(&one(7, 1)), token.with(&reentry)), (None, None));
        assert_eq!(changed(one(0, 3), |step| step.layout.every_row = true).with(&one(0, 3)), None);
        // Noise for one is noise for all.
        let noisy = changed(token.clone(), |step| step.noisy = true);
        assert_eq!(token.with(&noisy), noisy.with(&token));
        assert!(both.has(0, &one(7, 1)) && both.has(1, &one(300, 1)));
        assert!(!both.has(1, &one(7, 1)) && !both.has(2, &one(7, 1)) && !both.has(0, &token));
    }

    #[test]
    fn memory_is_estimated_from_above() {
        let both = one(65, 1).with(&one(3, 1)).unwrap();
        assert_eq!(both.rounded(1024), one(128, 1).with(&one(128, 1)).unwrap());
        assert_eq!(one(65, 1).rounded(100), one(99, 1));
        assert_eq!(one(0, 65).rounded(100), one(0, 65));
    }
}
