//! What a client sends for a lookup: uniform at each party, and refused by name where it is not what it should be.

use tercet_engine::{Profile, parse};
use tercet_model::Interface;
use tercet_net::{InputShare, PartyId};
use tercet_ring::dpf;
use tercet_testkit::encoder::Encoder;
use tercet_testkit::uniformity::assert_uniform;

use super::models::{encoder, request};

fn shared(encoder: &Encoder, batch: usize, rows: usize) -> ([InputShare; 3], Interface) {
    let interface = encoder.manifest().interface().expect("an interface");
    (encoder.input_shares(&request(encoder.model(), batch, rows)), interface)
}

#[test]
fn lookups_that_do_not_fit_are_refused_with_the_cause() {
    type Spoil = fn(&mut InputShare);
    let spoiled: [(PartyId, &str, Spoil); 13] = [
        (PartyId::P0, "lookup keys", |s| s.keys[0] = vec![0; 3]),
        (PartyId::P0, "lookup keys", |s| s.keys[1].clear()),
        (PartyId::P1, "lookup keys", |s| s.keys[0].clear()),
        (PartyId::P1, "lookup keys", |s| s.keys[1].truncate(7)),
        (PartyId::P2, "lookup keys", |s| s.keys[1].push(0)),
        (PartyId::P0, "other lookup key", |s| s.keys[1][0] ^= 1),
        (PartyId::P1, "other lookup key", |s| s.keys.swap(0, 1)),
        (PartyId::P2, "other lookup key", |s| s.keys[0][0] ^= 1),
        (PartyId::P1, "masked tensors", |s| s.masked.truncate(2)),
        (PartyId::P0, "masked tensors", |s| s.masked.push(Vec::new())),
        (PartyId::P2, "Rows", |s| s.masked[2].truncate(2)),
        // As many as signs in the ring of the table would take.
        (PartyId::P1, "Rows", |s| s.masked[2].resize(80, 0)),
        (PartyId::P0, "second seed", |s| s.second_seed = None),
    ];
    for profile in [Profile::Fast, Profile::Precise] {
        let encoder = encoder("bert_encoder", profile);
        let (shares, interface) = shared(&encoder, 2, 5);
        for party in PartyId::ALL {
            parse(party, encoder.manifest(), &interface, &shares[party.index()]).expect("what its client made");
        }
        for (number, (party, words, spoil)) in spoiled.iter().enumerate() {
            let mut share = shares[party.index()].clone();
            spoil(&mut share);
            let error = parse(*party, encoder.manifest(), &interface, &share).err();
            let error = error.unwrap_or_else(|| panic!("{number}: accepted at {party}")).to_string();
            assert!(error.contains(words) && error.contains("input share"), "{number}: {error}");
        }
    }
}

/// All tokens alike, so that nothing but the keys' own randomness can make them look random.
#[test]
fn lookup_keys_and_signs_are_uniform() {
    let encoder = encoder("bert_encoder", Profile::Fast);
    let inputs = [tercet_model::OracleInput::Tokens(vec![1; 32]), tercet_model::OracleInput::Tokens(vec![1; 32])];
    let request = tercet_testkit::encoder::Request::new(&encoder.model().graph, &inputs);
    let interface = encoder.manifest().interface().expect("an interface");
    let tercet_model::RowInput::Lookup { domain_bits, .. } = interface.rows else { panic!("a secret table") };
    let len = dpf::key_len(domain_bits);
    let (mut keys, mut signs): ([[Vec<u8>; 2]; 3], Vec<u8>) = Default::default();
    while signs.len() < 16_384 || keys[0][1].len() < 32_768 {
        let shares = encoder.input_shares(&request);
        for (all, share) in keys.iter_mut().zip(&shares) {
            for (all, part) in all.iter_mut().zip(&share.keys) {
                // The first byte names the side, and the last of each level is a control bit; whole blocks lie between.
                let whole = |key: &[u8]| -> Vec<u8> {
                    let (root, rest) = key.split_at(16);
                    let (levels, last) = rest.split_at(rest.len() - 16);
                    root[1..]
                        .iter()
                        .chain(levels.chunks(17).flat_map(|level| &level[..16]))
                        .chain(last)
                        .copied()
                        .collect()
                };
                all.extend(part.chunks(len).flat_map(whole));
            }
        }
        signs.extend(&shares[1].masked[2]);
    }
    assert!(keys[0][0].is_empty(), "the helper has no key into masked values");
    for (party, keys) in PartyId::ALL.iter().zip(&keys) {
        keys.iter().filter(|keys| !keys.is_empty()).for_each(|keys| assert_uniform(keys, &format!("keys at {party}")));
    }
    assert_uniform(&signs, "masked signs");
}
