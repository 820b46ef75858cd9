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
    /// The step of one generation.
    pub(crate) fn step(extent: Extent, every_row: bool, choice: Choice) -> Shape {
        Shape::Step(StepShape { layout: Layout { sequences: vec![extent], every_row }, choice })
    }

    /// Inputs, or generations.
    pub(crate) fn len(&self) -> usize {
        match self {
            Shape::Inputs(geometry) => geometry.batch,
            Shape::Step(step) => step.layout.sequences.len(),
        }
    }

    /// The choice of generations that all get one row behind earlier ones: such run together whatever their positions.
    pub(crate) fn decodes(&self) -> Option<&Choice> {
        match self {
            Shape::Step(step) if step.layout.sequences.iter().all(|one| one.rows == 1 && one.past > 0) => {
                Some(&step.choice)
            }
            _ => None,
        }
    }

    /// Both together, this one first, if they may run so: inputs of equal rows; beginnings of generations, or further steps,
    /// of which the clients get the same.
    pub(crate) fn with(&self, more: &Shape) -> Option<Shape> {
        match (self, more) {
            (Shape::Inputs(a), Shape::Inputs(b)) if a.rows == b.rows => {
                Some(Shape::Inputs(Geometry { batch: a.batch.checked_add(b.batch)?, rows: a.rows }))
            }
            (Shape::Step(a), Shape::Step(b)) => {
                let alike = a.choice == b.choice && a.layout.every_row == b.layout.every_row;
                let (a_decodes, b_decodes) = (self.decodes().is_some(), more.decodes().is_some());
                let mut sum = a.clone();
                sum.layout.sequences.extend(&b.layout.sequences);
                (alike && a_decodes == b_decodes).then_some(Shape::Step(sum))
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
                let alike = all.choice == one.choice && all.layout.every_row == one.layout.every_row;
                alike && extent.is_some() && one.layout.sequences.first() == extent
            }
            _ => false,
        }
    }

    /// A shape that takes at least as much memory and stands for many: the steps of a batch all at the longest of their lengths,
    /// rounded up, as far as `context` allows.
    pub(crate) fn rounded(&self, context: usize) -> Shape {
        let Shape::Step(step) = self else { return self.clone() };
        if self.decodes().is_none() {
            return self.clone();
        }
        let longest = step.layout.sequences.iter().map(|one| one.past).max().unwrap_or(0);
        let past = longest.next_multiple_of(ROUNDED_TO).min(context.saturating_sub(1)).max(longest);
        let sequences = vec![Extent { past, rows: 1 }; step.layout.sequences.len()];
        Shape::Step(StepShape { layout: Layout { sequences, ..step.layout }, choice: step.choice.clone() })
    }

    /// Why no sequence of a model with this context can be so.
    pub(crate) fn exceeds(&self, context: usize) -> Option<String> {
        let Shape::Step(step) = self else { return None };
        if step.layout.sequences.is_empty() {
            return Some("a step of no generation".into());
        }
        let one =
            step.layout.sequences.iter().find(|one| {
                one.rows == 0 || one.past.checked_add(one.rows).is_none_or(|positions| positions > context)
            })?;
        Some(format!("{} rows after {} where {context} positions are possible", one.rows, one.past))
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Shape::Inputs(Geometry { batch, rows }) => write!(f, "{batch} inputs of {rows} rows"),
            Shape::Step(step) => {
                write!(
                    f,
                    "{} rows of {} generations",
                    step.layout.sequences.iter().fold(0, |sum: usize, one| sum.saturating_add(one.rows)),
                    self.len()
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(past: usize, rows: usize) -> Shape {
        Shape::step(Extent { past, rows }, false, Choice::Scores)
    }

    #[test]
    fn what_runs_together() {
        let inputs = |batch, rows| Shape::Inputs(Geometry { batch, rows });
        assert_eq!(inputs(2, 5).with(&inputs(3, 5)), Some(inputs(5, 5)));
        assert_eq!(inputs(2, 5).with(&inputs(3, 4)), None);
        assert_eq!(inputs(2, 5).with(&one(0, 5)), None);
        // Positions do not matter to decoding, lengths not to prompts; but the two are kept apart.
        let both = one(7, 1).with(&one(300, 1)).unwrap();
        assert_eq!((both.len(), both.decodes()), (2, Some(&Choice::Scores)));
        assert_eq!(one(0, 3).with(&one(0, 9)).unwrap().decodes(), None);
        assert_eq!(one(0, 1).with(&one(5, 1)), None);
        let token = Shape::step(Extent { past: 7, rows: 1 }, false, Choice::Token);
        assert_eq!(token.with(&one(7, 1)), None);
        let every = Shape::step(Extent { past: 0, rows: 3 }, true, Choice::Scores);
        assert_eq!(every.with(&one(0, 3)), None);
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

    #[test]
    fn lengths_beyond_the_context_are_seen() {
        assert_eq!(one(9, 1).exceeds(10), None);
        for past in [10, usize::MAX] {
            assert!(one(past, 1).exceeds(10).is_some());
        }
        assert!(one(0, 0).exceeds(10).is_some());
        let nobody = Shape::Step(StepShape {
            layout: Layout { sequences: Vec::new(), every_row: false },
            choice: Choice::Scores,
        });
        assert!(nobody.exceeds(10).is_some());
    }
}
