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
    /// From a bit for every row and expert, row-major: the first `top` experts of a row whose bit is set.
    ///
    /// Where scores of a row are so far apart that their differences leave the ring, another number of bits may be set. Such a row
    /// has lost its answer, and takes the first experts without a bit for those that it lacks, so that the others have theirs.
    pub fn of(bits: &[u64], [rows, experts]: [usize; 2], top: usize) -> Routing {
        let mut chosen = Vec::with_capacity(rows * top);
        for row in 0..rows {
            let is_set = |expert: &usize| bits::bit(bits, row * experts + expert) == 1;
            let (set, unset) = ((0..experts).filter(is_set), (0..experts).filter(|expert| !is_set(expert)));
            chosen.extend(set.chain(unset).take(top));
            chosen[row * top..].sort_unstable();
        }
        let mut order: Vec<usize> = (0..chosen.len()).collect();
        order.sort_by_key(|&at| chosen[at]);
        let mut slots = vec![0; chosen.len()];
        order.iter().enumerate().for_each(|(slot, &at)| slots[at] = slot);
        let mut counts = vec![0; experts];
        chosen.iter().for_each(|&expert| counts[expert] += 1);
        let rows = order.iter().map(|at| at / top).collect();
        Routing { experts, chosen, rows, slots, counts }
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
        let routing = Routing::of(&[0b1010_0011_1010], [3, 4], 2);
        assert_eq!(routing.counts(), [1, 3, 0, 2]);
        assert_eq!(routing.rows(), [1, 0, 1, 2, 0, 2]);
        assert_eq!(routing.slots(), [1, 4, 0, 2, 3, 5]);
        assert_eq!(routing.places(), [1, 3, 4, 5, 9, 11]);
        let nobody = Routing::of(&[], [0, 4], 2);
        assert!(nobody.rows().is_empty() && nobody.places().is_empty());
    }

    #[test]
    fn a_row_with_another_number_of_experts_has_as_many_as_the_others() {
        for (bits, row) in [(0b0111, [0, 1]), (0b1110, [1, 2]), (0b0100, [0, 2]), (0b0001, [0, 1]), (0, [0, 1])] {
            let routing = Routing::of(&[0b1010_0000 | bits], [2, 4], 2);
            assert_eq!(routing.places(), [row[0], row[1], 5, 7], "{bits:b}");
        }
    }
}
