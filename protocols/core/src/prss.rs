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

    pub(crate) fn draw<E: Element>(&self, stream: u64, first: usize, second: usize) -> Drawn<E> {
        let fill = |prg: &Option<Prg>, len: usize| {
            let mut out = Vec::new();
            if let Some(prg) = prg {
                out.resize(len, E::ZERO);
                prg.fill(stream, 0, &mut out);
            }
            out
        };
        Drawn { first: fill(&self.first, first), second: fill(&self.second, second) }
    }
}
