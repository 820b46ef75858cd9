//! Putting the three shares of an answer together: the one place where an output becomes readable.

use tercet_model::Interface;
use tercet_model::graph::Output;
use tercet_net::{OutputShare, PartyId, WorkEntry, WorkProfile, codec};
use tercet_ring::{fixed, pack, sharing};
use zeroize::Zeroizing;

use crate::drive::decoder;
use crate::{Error, ModelFace};

/// Bytes that an answer has beside its planes and its profile, at most: costs, or the reason of a
/// refusal.
const ENVELOPE_BYTES: usize = 16 << 10;

/// The longest message that a node can have reason to answer with, in bytes: two planes of so many
/// values, and its profile.
pub(crate) fn limit_bytes(values: usize, ring: u32, profile: bool) -> usize {
    let planes = 2 * pack::packed_len(values, ring);
    // An entry has about thirty numbers beside its name.
    let entries = if profile { WorkProfile::MOST_ENTRIES * (WorkEntry::LONGEST_NAME_BYTES + 256) } else { 0 };
    (planes + entries + ENVELOPE_BYTES).min(codec::LARGEST_BYTES)
}

/// Opens an answer to one vector for each input. `counts` are the rows of each that are not padding.
pub(crate) fn open(interface: &Interface, counts: &[usize], shares: &[OutputShare; 3]) -> Result<Vec<Vec<f32>>, Error> {
    let len = counts.len() * interface.output_width;
    let values = joined(len, interface.output_ring, shares)?;
    let values = Zeroizing::new(fixed::decode(&values, interface.output_frac, interface.output_ring));
    let normalize = matches!(interface.output, Output::Embedding { normalize: true, .. });
    Ok(values
        .chunks_exact(interface.output_width)
        .zip(counts)
        .map(|(row, &count)| {
            let divisor = if interface.output_is_sum { count.max(1) as f64 } else { 1.0 };
            let length = row.iter().map(|v| v * v).sum::<f64>().sqrt();
            // The direction of a vector is that of its sum.
            let divisor = if normalize && length > 0.0 { length } else { divisor };
            row.iter().map(|v| (v / divisor) as f32).collect()
        })
        .collect())
}

/// Opens the scores of so many rows, one for each token, row-major.
pub(crate) fn open_scores(
    interface: &Interface,
    rows: usize,
    shares: &[OutputShare; 3],
) -> Result<Zeroizing<Vec<f32>>, Error> {
    let values = joined(rows * interface.output_width, interface.output_ring, shares)?;
    let values = Zeroizing::new(fixed::decode(&values, interface.output_frac, interface.output_ring));
    Ok(Zeroizing::new(values.iter().map(|&value| value as f32).collect()))
}

/// Opens the number of a token that the nodes have chosen.
pub(crate) fn open_token(face: &ModelFace, shares: &[OutputShare; 3]) -> Result<u32, Error> {
    let index_bits = decoder(face)?.index_bits;
    let index = joined(1, index_bits, shares)?[0];
    if index < face.interface().output_width as u64 {
        return Ok(index as u32);
    }
    // Both copies of everything are the same, so nobody can be named.
    Err(Error::Unusable { model: face.name().into(), what: "a token that there is none of".into() })
}

/// What three shares of `len` elements of a ring are together, in `[0, 2^ring)`.
///
/// `m` comes from P1 and P2, `l1` from P0 and P1, `l2` from P0 and P2; where two copies differ nothing is opened.
fn joined(len: usize, ring: u32, shares: &[OutputShare; 3]) -> Result<Zeroizing<Vec<u64>>, Error> {
    let plane = |party: PartyId, which: usize| -> Result<Zeroizing<Vec<u64>>, Error> {
        let mut out = Zeroizing::new(vec![0; len]);
        let unpacked = pack::unpack(&shares[party.index()].planes[which], ring, &mut out);
        unpacked.map_err(|error| Error::unexpected(party, &format!("an output of {error}")))?;
        Ok(out)
    };
    let [first, second] = [plane(PartyId::P0, 0)?, plane(PartyId::P0, 1)?];
    let [m, own_first] = [plane(PartyId::P1, 0)?, plane(PartyId::P1, 1)?];
    let [other_m, own_second] = [plane(PartyId::P2, 0)?, plane(PartyId::P2, 1)?];
    let copies = [
        (&m, &other_m, [PartyId::P1, PartyId::P2], "the masked output"),
        (&first, &own_first, [PartyId::P0, PartyId::P1], "the first mask of the output"),
        (&second, &own_second, [PartyId::P0, PartyId::P2], "the second mask of the output"),
    ];
    for (one, other, parties, what) in copies {
        if one != other {
            return Err(Error::Disagreement { parties, what: what.into() });
        }
    }
    Ok(Zeroizing::new(sharing::join(&m, &first, &second, ring)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;
    use tercet_ring::Seed;

    fn shares(values: &[i64], ring: u32) -> [OutputShare; 3] {
        let lanes: Vec<u64> = values.iter().map(|&v| v as u64).collect();
        let (first, second) = (Seed::random(), Seed::random());
        let m = sharing::split(&lanes, &first, &second, 0);
        let [l1, l2] = [&first, &second].map(|seed| sharing::mask::<u64>(seed, 0, lanes.len()));
        let planes = [[&l1, &l2], [&m, &l1], [&m, &l2]];
        planes.map(|planes| OutputShare {
            planes: planes.map(|plane| {
                let mut out = Vec::new();
                pack::pack(plane, ring, &mut out);
                out
            }),
        })
    }

    #[test]
    fn sums_are_divided_by_the_rows_that_count() {
        let interface = fixture::words(32);
        let shares = shares(&[1024, -2048, 512, 4096, 0, -1024], 32);
        let opened = open(&interface, &[1, 2], &shares).unwrap();
        assert_eq!(opened, [vec![1.0, -2.0, 0.5], vec![2.0, 0.0, -0.5]]);
    }

    #[test]
    fn vectors_are_scaled_where_the_model_says_so() {
        let mut interface = fixture::words(64);
        interface.output = Output::Embedding { width: 3, normalize: true };
        let opened = open(&interface, &[5, 1], &shares(&[3 << 10, 0, -(4 << 10), 0, 0, 0], 64)).unwrap();
        assert_eq!(opened, [vec![0.6, 0.0, -0.8], vec![0.0; 3]]);
    }

    #[test]
    fn copies_that_differ_are_refused_by_their_holders() {
        let interface = fixture::images();
        for (party, plane, parties) in [
            (0, 0, [PartyId::P0, PartyId::P1]),
            (0, 1, [PartyId::P0, PartyId::P2]),
            (1, 0, [PartyId::P1, PartyId::P2]),
            (1, 1, [PartyId::P0, PartyId::P1]),
            (2, 0, [PartyId::P1, PartyId::P2]),
            (2, 1, [PartyId::P0, PartyId::P2]),
        ] {
            let mut shares = shares(&[5, -6], 20);
            assert!(open(&interface, &[4], &shares).is_ok());
            shares[party].planes[plane][2] ^= 1;
            match open(&interface, &[4], &shares) {
                Err(Error::Disagreement { parties: named, .. }) => assert_eq!(named, parties),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn an_output_of_another_length_is_its_nodes_fault() {
        let mut shares = shares(&[5, -6], 20);
        shares[2].planes[1].push(0);
        let error = open(&fixture::images(), &[4], &shares).unwrap_err();
        assert!(matches!(error, Error::Node { party: PartyId::P2, .. }), "{error}");
    }
}
