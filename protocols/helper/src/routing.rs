//! Which rows go to which experts, where a public gate has opened it.

use crate::bits;

/// The experts of every row. Public.
///
/// A row has a *slot* for each of its experts. Slots are in the order of the experts, and of the rows within one.
pub struct Routing {
    experts: usize,
    /// For every row its experts, ascending: `[rows, top]`.
    chosen: Vec<usize>,
    /// The row of every slot.
    rows: Vec<usize>,
    /// The slot of every element of `chosen`.
    slots: Vec<usize>,
    /// Slots of every expert.
    counts: Vec<usize>,
}

impl Routing {
    /// From a bit for every row and expert, row-major; none where a row has not `top` of them.
    pub fn of(bits: &[u64], [rows, experts]: [usize; 2], top: usize) -> Option<Routing> {
        let mut chosen = Vec::with_capacity(rows * top);
        for row in 0..rows {
            chosen.extend((0..experts).filter(|expert| bits::bit(bits, row * experts + expert) == 1));
            if chosen.len() != (row + 1) * top {
                return None;
            }
        }
        let mut order: Vec<usize> = (0..chosen.len()).collect();
        order.sort_by_key(|&at| chosen[at]);
        let mut slots = vec![0; chosen.len()];
        order.iter().enumerate().for_each(|(slot, &at)| slots[at] = slot);
        let mut counts = vec![0; experts];
        chosen.iter().for_each(|&expert| counts[expert] += 1);
        let rows = order.iter().map(|at| at / top).collect();
        Some(Routing { experts, chosen, rows, slots, counts })
    }

    /// Where the scores of a row's experts are among those of all, row-major: `[rows, top]`.
    pub fn places(&self) -> Vec<usize> {
        let top = self.chosen.len() / self.row_count().max(1);
        self.chosen.iter().enumerate().map(|(at, expert)| at / top.max(1) * self.experts + expert).collect()
    }

    /// The row of every slot.
    pub fn rows(&self) -> &[usize] {
        &self.rows
    }

    /// The slots of every row, in the order of its experts: `[rows, top]`.
    pub fn slots(&self) -> &[usize] {
        &self.slots
    }

    /// How many slots every expert has, in their order.
    pub fn counts(&self) -> &[usize] {
        &self.counts
    }

    fn row_count(&self) -> usize {
        self.rows.iter().max().map_or(0, |last| last + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_in_the_order_of_the_experts() {
        // Rows with experts 1 and 3, 0 and 1, 1 and 3.
        let routing = Routing::of(&[0b1010_0011_1010], [3, 4], 2).unwrap();
        assert_eq!(routing.counts(), [1, 3, 0, 2]);
        assert_eq!(routing.rows(), [1, 0, 1, 2, 0, 2]);
        assert_eq!(routing.slots(), [1, 4, 0, 2, 3, 5]);
        assert_eq!(routing.places(), [1, 3, 4, 5, 9, 11]);
        let nobody = Routing::of(&[], [0, 4], 2).unwrap();
        assert!(nobody.rows().is_empty() && nobody.places().is_empty());
    }

    #[test]
    fn rows_with_another_number_of_experts_are_none() {
        for bits in [0b0011_0001, 0b0111_0001, 0b0111_0011, 0] {
            assert!(Routing::of(&[bits], [2, 4], 2).is_none(), "{bits:b}");
        }
    }
}
