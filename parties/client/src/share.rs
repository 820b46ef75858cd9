//! Splitting the inputs of a request into three shares.
//!
//! Two seeds are drawn for each request: `l1` grows from the first (P0, P1), `l2` from the second (P0, P2); only
//! `m = x + l1 + l2` travels in full, to P1 and P2. A token that is looked up in a secret table becomes two pairs of
//! distributed-point-function keys, one into the table's masked values and one into its masks, and their two signs, which are
//! shared like any other value, a bit each.

use tercet_model::RowInput;
use tercet_net::{InputShare, Stream};
use tercet_ring::{Element, Seed, dpf, fixed, pack, sharing};
use zeroize::{Zeroize, Zeroizing};

use crate::face::Table;
use crate::input::{Batch, Encoded};
use crate::{Error, ModelFace};

/// The token of padded rows. Any would do: a bias keeps attention from them, a weight of zero the mean.
const PADDING_TOKEN: u32 = 0;

/// The ring in which the signs of lookup keys are shared: a bit, so that they cannot be anything
/// else.
const SIGN_RING: u32 = 1;

/// A lane that can be wiped.
trait Lane: Element + Zeroize {}
impl<E: Element + Zeroize> Lane for E {}

/// The three parties' parts of a request. `table` is the public table, where the model has one.
pub(crate) fn split(face: &ModelFace, batch: &Batch, table: Option<&Table<'_>>) -> Result<[InputShare; 3], Error> {
    match face.interface().wide {
        32 => split_in::<u32>(face, batch, table),
        _ => split_in::<u64>(face, batch, table),
    }
}

/// The three parties' parts of rows that go into a generation: of the tensors of an input there are the rows alone.
pub(crate) fn rows(
    face: &ModelFace,
    ids: Zeroizing<Vec<u32>>,
    table: Option<&Table<'_>>,
) -> Result<[InputShare; 3], Error> {
    let rows = ids.len();
    let batch = Batch { places: vec![0], inputs: vec![Encoded::Tokens(ids)], rows };
    match face.interface().wide {
        32 => rows_in::<u32>(face, &batch, table),
        _ => rows_in::<u64>(face, &batch, table),
    }
}

fn split_in<E: Lane>(face: &ModelFace, batch: &Batch, table: Option<&Table<'_>>) -> Result<[InputShare; 3], Error> {
    let interface = face.interface();
    let seeds = [Seed::random(), Seed::random()];
    let counts = batch.real_rows();
    let bias = by_row::<u32>(&counts, batch.rows, 0, interface.padding_bias);
    let weight = by_row::<E>(&counts, batch.rows, 1, 0);
    let (rows, keys) = masked_rows::<E>(face, batch, table, &seeds)?;
    let masked = vec![
        mask(&bias, &seeds, Stream::KeyBias, interface.score_ring),
        mask(&weight, &seeds, Stream::RowWeight, interface.wide),
        rows,
    ];
    Ok(between(batch, &seeds, masked, keys))
}

fn rows_in<E: Lane>(face: &ModelFace, batch: &Batch, table: Option<&Table<'_>>) -> Result<[InputShare; 3], Error> {
    let seeds = [Seed::random(), Seed::random()];
    let (rows, keys) = masked_rows::<E>(face, batch, table, &seeds)?;
    Ok(between(batch, &seeds, vec![rows], keys))
}

/// The tensor of the rows, and the keys where they are looked up.
fn masked_rows<E: Lane>(
    face: &ModelFace,
    batch: &Batch,
    table: Option<&Table<'_>>,
    seeds: &[Seed; 2],
) -> Result<(Vec<u8>, Keys), Error> {
    let (rows, keys, ring) = match face.interface().rows {
        RowInput::Matrix { .. } => (matrix::<E>(face, batch, table)?, Keys::default(), face.interface().wide),
        RowInput::Lookup { domain_bits, .. } => {
            let (signs, keys) = lookup_keys::<E>(batch, domain_bits)?;
            (signs, keys, SIGN_RING)
        }
    };
    Ok((mask(&rows, seeds, Stream::Rows, ring), keys))
}

/// What each party gets of masked tensors and keys.
fn between(batch: &Batch, [first, second]: &[Seed; 2], masked: Vec<Vec<u8>>, keys: Keys) -> [InputShare; 3] {
    let share = |first_seed: Option<&Seed>, second_seed: Option<&Seed>, masked, keys| InputShare {
        batch: batch.inputs.len() as u32,
        rows: batch.rows as u32,
        first_seed: first_seed.map(|seed| *seed.as_bytes()),
        second_seed: second_seed.map(|seed| *seed.as_bytes()),
        masked,
        keys,
    };
    let [keys0, keys1, keys2] = keys;
    [
        share(Some(first), Some(second), Vec::new(), keys0),
        share(Some(first), None, masked.clone(), keys1),
        share(None, Some(second), masked, keys2),
    ]
}

/// `[batch, rows]`: one value for the rows that count, another for padding.
fn by_row<E: Lane>(counts: &[usize], rows: usize, real: i64, padding: i64) -> Zeroizing<Vec<E>> {
    let row = |count: usize| (0..rows).map(move |row| E::from_i64(if row < count { real } else { padding }));
    Zeroizing::new(counts.iter().flat_map(|&count| row(count)).collect())
}

/// `m`, packed.
fn mask<E: Element>(values: &[E], seeds: &[Seed; 2], stream: Stream, ring: u32) -> Vec<u8> {
    let masked = sharing::split(values, &seeds[0], &seeds[1], stream as u64);
    let mut out = Vec::with_capacity(pack::packed_len(values.len(), ring));
    pack::pack(&masked, ring, &mut out);
    out
}

/// `[batch * rows, width]`: patches, or rows of the public table.
fn matrix<E: Lane>(face: &ModelFace, batch: &Batch, table: Option<&Table<'_>>) -> Result<Zeroizing<Vec<E>>, Error> {
    let RowInput::Matrix { frac, width } = face.interface().rows else {
        return Err(Error::Misuse("the rows of this model are looked up".into()));
    };
    // Of the full length from the start: a vector that grows leaves copies behind.
    let mut out = Zeroizing::new(Vec::with_capacity(batch.inputs.len() * batch.rows * width));
    for (input, &place) in batch.inputs.iter().zip(&batch.places) {
        match input {
            Encoded::Patches(values) => {
                let encoded = fixed::encode::<E>("image", values, frac, face.interface().wide);
                out.extend(Zeroizing::new(encoded.map_err(|error| Error::input(place, error))?).iter());
            }
            Encoded::Tokens(ids) => {
                let table = table.ok_or_else(|| Error::Misuse("the public table was not fetched".into()))?;
                padded(ids, batch.rows).for_each(|id| out.extend(table.row::<E>(id as usize)));
            }
        }
    }
    Ok(out)
}

/// By party, the keys of every row into masked values and into masks, end to end.
type Keys = [[Vec<u8>; 2]; 3];

/// The signs of the keys of every row, `[batch * rows, 2]`, 1 where one is negative, and the keys:
/// of the pair into the masked values the first to P1 and the second to P2, of the pair into the
/// masks the first to P0 and the second to both P1 and P2. A row is a masked value less its mask,
/// so the second sign is negated.
fn lookup_keys<E: Lane>(batch: &Batch, domain_bits: u32) -> Result<(Zeroizing<Vec<E>>, Keys), Error> {
    let count = batch.inputs.len() * batch.rows;
    // Of the full length from the start: a vector that grows leaves copies behind.
    let keys_of = |held: bool| Vec::with_capacity(if held { count * dpf::key_len(domain_bits) } else { 0 });
    let mut keys: Keys = [[false, true], [true, true], [true, true]].map(|of_party| of_party.map(keys_of));
    let mut signs = Zeroizing::new(Vec::with_capacity(2 * count));
    for input in &batch.inputs {
        let Encoded::Tokens(ids) = input else {
            return Err(Error::Misuse("an image for a model of texts".into()));
        };
        for id in padded(ids, batch.rows) {
            let [value, mask] = [(); 2].map(|()| dpf::generate(&Seed::random(), domain_bits, id as usize));
            signs.extend([value.sign, -mask.sign].map(|sign| E::from_u64(u64::from(sign < 0))));
            let written = |key: &dpf::Key| Zeroizing::new(key.to_bytes());
            keys[1][0].extend_from_slice(&written(&value.first));
            keys[2][0].extend_from_slice(&written(&value.second));
            keys[0][1].extend_from_slice(&written(&mask.first));
            let shared = written(&mask.second);
            keys[1][1].extend_from_slice(&shared);
            keys[2][1].extend_from_slice(&shared);
        }
    }
    Ok((signs, keys))
}

fn padded(ids: &[u32], rows: usize) -> impl Iterator<Item = u32> + '_ {
    ids.iter().copied().chain(std::iter::repeat(PADDING_TOKEN)).take(rows)
}

#[cfg(test)]
mod tests {
    use tercet_ring::dpf::Side;

    use super::*;
    use crate::{Inputs, Options, fixture, input};

    /// What the three parties hold together of one stream, as nodes read it.
    fn revealed<E: Element>(shares: &[InputShare; 3], stream: Stream, len: usize, ring: u32) -> Vec<i64> {
        let [p0, p1, p2] = shares;
        let number = stream as usize;
        assert_eq!(p1.masked[number], p2.masked[number]);
        assert_eq!((p0.first_seed, p0.second_seed), (p1.first_seed, p2.second_seed));
        assert_eq!((p1.second_seed, p2.first_seed), (None, None));
        let mask = |seed: Option<[u8; 32]>| sharing::mask::<E>(&Seed::from_bytes(seed.unwrap()), number as u64, len);
        let mut m = vec![E::ZERO; len];
        pack::unpack(&p1.masked[number], ring, &mut m).unwrap();
        let joined = sharing::join(&m, &mask(p0.first_seed), &mask(p0.second_seed), ring);
        joined.iter().map(|v| v.signed(ring)).collect()
    }

    fn only(face: &ModelFace, inputs: Inputs<'_>) -> Batch {
        input::batches(face, inputs, &Options::default()).unwrap().pop().unwrap()
    }

    fn texts_become_keys<E: Element>() {
        let face = fixture::face(&fixture::words(E::BITS)).unwrap();
        let batch = only(&face, Inputs::Texts(&["three one", "four two one"]));
        let shares = split(&face, &batch, None).unwrap();
        let bias = -(100 << 10);
        assert_eq!(revealed::<u32>(&shares, Stream::KeyBias, 6, 20), [0, 0, bias, 0, 0, 0]);
        assert_eq!(revealed::<E>(&shares, Stream::RowWeight, 6, E::BITS), [1, 1, 0, 1, 1, 1]);
        assert!(shares[0].masked.is_empty() && shares[1].masked.len() == 3);
        assert!(shares.iter().all(|share| (share.batch, share.rows) == (2, 3)));
        assert!(shares[0].keys[0].is_empty(), "the helper has no key into masked values");
        assert_eq!(shares[1].keys[1], shares[2].keys[1], "the evaluators share the key into the masks");
        let signs = revealed::<E>(&shares, Stream::Rows, 12, SIGN_RING);
        let pairs = [([(1, Side::First), (2, Side::Second)], 1), ([(0, Side::First), (1, Side::Second)], -1)];
        for (pair, (holders, negated)) in pairs.into_iter().enumerate() {
            let [first, second] = holders.map(|(party, side)| -> Vec<u64> {
                let keys = shares[party].keys[pair].chunks(dpf::key_len(3));
                keys.map(|bytes| {
                    let mut word = [0];
                    dpf::Key::from_bytes(bytes, 3, side).unwrap().expand(5, &mut word);
                    word[0]
                })
                .collect()
            });
            assert_eq!(first.len(), 6);
            for (row, token) in [3, 1, 0, 4, 2, 1].into_iter().enumerate() {
                assert_eq!(first[row] ^ second[row], 1 << token, "row {row}");
                let sign = if first[row] >> token & 1 == 1 { 1 } else { -1 };
                assert_eq!(signs[2 * row + pair] != 0, negated * sign < 0, "row {row}");
            }
        }
    }

    #[test]
    fn texts_become_keys_of_their_tokens() {
        texts_become_keys::<u32>();
        texts_become_keys::<u64>();
    }

    #[test]
    fn images_are_shared_as_patches() {
        let face = fixture::face(&fixture::images()).unwrap();
        let pixels: Vec<f32> = (0..16).map(|at| at as f32 / 16.0).collect();
        let batch = only(&face, Inputs::Images(&[&pixels, &pixels]));
        let shares = split(&face, &batch, None).unwrap();
        let rows = revealed::<u32>(&shares, Stream::Rows, 32, 32);
        assert_eq!(rows[..16], rows[16..]);
        let first = [0, 1, 4, 5].map(|at| ((at as f64 / 16.0 - 0.5) / 0.5 * 1024.0) as i64);
        assert_eq!(rows[..4], first);
        assert!(shares.iter().all(|share| share.keys.iter().all(Vec::is_empty)));
        let again = split(&face, &batch, None).unwrap();
        assert_ne!(again[1].masked, shares[1].masked, "masks are drawn anew");
    }

    #[test]
    fn a_public_table_is_looked_up_here() {
        let face = fixture::face(&fixture::public_words(64)).unwrap();
        let lanes: Vec<u8> = (0..10i64).flat_map(|v| (v - 5).to_le_bytes()).collect();
        let table = Table::new(&face, &lanes).unwrap();
        let batch = only(&face, Inputs::Texts(&["two zero", "four"]));
        assert_eq!(batch.places, [1, 0], "the shorter first");
        let shares = split(&face, &batch, Some(&table)).unwrap();
        assert_eq!(revealed::<u64>(&shares, Stream::Rows, 8, 64), [3, 4, -5, -4, -1, 0, -5, -4]);
        assert!(matches!(Table::new(&face, &lanes[1..]), Err(Error::Unusable { .. })));
    }

    #[test]
    fn a_pixel_that_does_not_fit_is_named_by_its_input() {
        let mut interface = fixture::images();
        interface.rows = RowInput::Matrix { width: 4, frac: 32 };
        let face = fixture::face(&interface).unwrap();
        let batch = only(&face, Inputs::Images(&[&[1.0; 16]]));
        assert!(matches!(split(&face, &batch, None), Err(Error::Input { index: 0, .. })));
    }
}
