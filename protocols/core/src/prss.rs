//! Randomness that two parties share: nothing travels.
//!
//! The helper shares one seed with each evaluator. A step draws from the stream that its number names, and a number is
//! used once in a session, so no mask is ever drawn twice.

use tercet_net::PartyId;
use tercet_ring::{Element, Prg, Seed};

/// The seeds that one party shares with the helper, or the helper with each evaluator. They belong to one session.
pub struct PairSeeds {
    /// With (or as) `P1`; absent at `P2`.
    pub first: Option<Seed>,
    /// With (or as) `P2`; absent at `P1`.
    pub second: Option<Seed>,
}

/// Draws by one party from the streams that it shares.
pub(crate) struct Prss {
    first: Option<Prg>,
    second: Option<Prg>,
}

/// What one draw gave: the half shared by `P0` and `P1`, the half shared by `P0` and `P2`. A half that this party does not
/// know is empty.
#[derive(Default)]
pub struct Drawn<E> {
    /// Known to `P0` and `P1`.
    pub first: Vec<E>,
    /// Known to `P0` and `P2`.
    pub second: Vec<E>,
}

impl Prss {
    pub(crate) fn new(party: PartyId, seeds: &PairSeeds) -> Prss {
        let (knows_first, knows_second) = (party != PartyId::P2, party != PartyId::P1);
        let prg = |wanted: bool, seed: &Option<Seed>| seed.as_ref().filter(|_| wanted).map(Prg::new);
        Prss { first: prg(knows_first, &seeds.first), second: prg(knows_second, &seeds.second) }
    }

    /// Whether this party holds the seeds of its role.
    pub(crate) fn complete(&self, party: PartyId) -> bool {
        (party == PartyId::P2 || self.first.is_some()) && (party == PartyId::P1 || self.second.is_some())
    }

    /// Runs `work` on each generator that this party holds, and whether it is the one of `P0` and `P1`.
    pub(crate) fn each(&self, mut work: impl FnMut(&Prg, bool)) {
        for (prg, with_first) in [(&self.first, true), (&self.second, false)] {
            if let Some(prg) = prg {
                work(prg, with_first);
            }
        }
    }

    pub(crate) fn draw<E: Element>(&self, stream: u64, len: usize) -> Drawn<E> {
        self.drawn(len, |prg, masks| prg.fill(stream, 0, masks))
    }

    /// As [`Prss::draw`], and joins the one half that an evaluator draws to its `half`.
    pub(crate) fn draw_onto<E: Element>(
        &self,
        stream: u64,
        len: usize,
        half: &mut [E],
        add: impl Fn(E, E) -> E,
    ) -> Drawn<E> {
        if self.first.is_some() && self.second.is_some() {
            return self.draw(stream, len);
        }
        assert_eq!(half.len(), len, "a mask for an element");
        self.drawn(len, |prg, masks| prg.fill_and(stream, 0, masks, half, &add))
    }

    fn drawn<E: Element>(&self, len: usize, mut fill: impl FnMut(&Prg, &mut [E])) -> Drawn<E> {
        let mut drawn = Drawn { first: Vec::new(), second: Vec::new() };
        self.each(|prg, with_first| {
            let masks = if with_first { &mut drawn.first } else { &mut drawn.second };
            masks.resize(len, E::ZERO);
            fill(prg, masks);
        });
        drawn
    }
}
