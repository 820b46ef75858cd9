//! The choice of a token: the place of the largest, samples of the softmax, and the row of a table at a place that nobody sees.

use tercet_core::spec::ChoiceSpec;
use tercet_core::{Cost, Error, Suite};
use tercet_helper::noise::{Noise, hottest};
use tercet_helper::plane::Plane;
use tercet_helper::reentry::{self, Table};
use tercet_helper::{Masked, argmax, lookup};
use tercet_plain::Value;
use tercet_ring::{Element, Prg, Seed};
use tercet_testkit::sharing::{reveal, share};
use tercet_testkit::uniformity::assert_uniform;
use tercet_testkit::{Run, World};

use super::twin::twin;

/// Bits of a place among so many.
fn index_bits(width: usize) -> u32 {
    width.next_power_of_two().ilog2().max(1)
}

fn spec(width: usize, compare_frac: u32, compare_ring: u32) -> ChoiceSpec {
    ChoiceSpec { compare_frac, compare_ring, index_bits: index_bits(width) }
}

/// Places as they are, not as signed numbers.
fn places<E: Element>(run: &Run<Masked<E>>, bits: u32) -> Vec<usize> {
    reveal(&run.outputs).iter().map(|&place| (place as u64 & u64::mask(bits)) as usize).collect()
}

/// Rows that differ, rows of near ties, and rows of equals.
fn scores(rows: usize, width: usize) -> Vec<i64> {
    let score = |row: usize, col: usize| match row % 3 {
        0 => 7 + (col as i64 * 31) % 2,
        1 => ((row * 7919 + col * 104_729) % 20_011) as i64 - 10_000,
        _ => -3000,
    };
    (0..rows * width).map(|i| score(i / width, i % width)).collect()
}

#[test]
fn the_largest_is_found_at_every_width() {
    for width in [1, 2, 3, 4, 5, 8, 9, 15, 16, 17, 64, 257, 1000] {
        let rows = if width > 200 { 4 } else { 12 };
        let values = scores(rows, width);
        // Compared at their own scale, and five bits below.
        for (frac, compare_frac, compare_ring, ring) in [(10, 10, 16, 20), (10, 5, 15, 20), (16, 12, 27, 48)] {
            let spec = spec(width, compare_frac, compare_ring);
            let x = share::<u64>(&values, &[rows, width], ring, 21);
            let run = World::default().run(|s| argmax::choose(s, &x[s.party().index()], frac, &spec, &[]));
            // Coarsening may put one a unit low and another two units high.
            let tolerance = if frac == compare_frac { 0 } else { 3 << (frac - compare_frac) };
            for (place, row) in places(&run, spec.index_bits).iter().zip(values.chunks(width)) {
                let (found, largest) = (row[*place], row.iter().max().unwrap());
                assert!(found >= largest - tolerance, "{found} at {place} of {width}, not {largest}");
            }
            assert_eq!(run.outputs[1].shape(), [rows, 1]);
            assert_eq!(run.cost, argmax::cost(rows, width, &spec, false), "width {width}");
        }
    }
}

/// A whole vocabulary: the one place that is right, wherever it lies.
#[test]
fn a_vocabulary_costs_few_bytes_and_rounds() {
    let width = 50_257;
    for at in [0, 50_256, 31_337] {
        let mut values: Vec<i64> = (0..width).map(|i| (i as i64 * 7919) % 12_007 - 6000).collect();
        values[at] = 6200;
        let x = share::<u32>(&values, &[1, width], 20, 22);
        let spec = spec(width, 5, 15);
        let run = World::default().run(|s| argmax::choose(s, &x[s.party().index()], 10, &spec, &[]));
        assert_eq!(places(&run, 16), [at]);
        assert_eq!(run.cost, argmax::cost(1, width, &spec, false));
    }
    let fast = argmax::cost(1, width, &spec(width, 5, 15), false);
    let precise = argmax::cost(1, width, &spec(width, 12, 22), false);
    for (cost, dealt) in [(fast, 2_000_000), (precise, 3_500_000)] {
        println!("{} rounds, {} bytes dealt, {} each way", cost.rounds, cost.dealt_bytes(), cost.online_bytes());
        assert!(cost.rounds <= 24 && cost.dealt_bytes() < dealt);
    }
}

#[test]
fn a_choice_shows_nothing() {
    // Equal rows and rows that differ, with noise and without.
    for (values, noisy) in [(vec![5i64; 64 * 100], false), (scores(64, 100), false), (vec![5; 64 * 100], true)] {
        let x = share::<u32>(&values, &[64, 100], 20, 23);
        let spec = spec(100, 5, 15);
        let noise = || -> Vec<_> { (0..64).map(|_| noisy.then_some(Noise { temperature: 1.0, seed: None })).collect() };
        let run = World::default().run(|s| argmax::choose(s, &x[s.party().index()], 10, &spec, &noise()));
        assert!(run.received[0].is_empty(), "the helper receives nothing");
        assert_uniform(&run.received[1], "choice at P1");
        assert_uniform(&run.received[2], "choice at P2");
        assert_eq!(run.cost, argmax::cost(64, 100, &spec, noisy));
    }
}

/// P0 alone has the seeds.
fn noise(party: usize, temperature: f64, seeds: &[u8], rows: usize) -> Vec<Option<Noise>> {
    let seed = |row: usize| {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&(row as u64).to_le_bytes());
        bytes[8..8 + seeds.len()].copy_from_slice(seeds);
        Seed::from_bytes(bytes)
    };
    (0..rows).map(|row| Some(Noise { temperature, seed: (party == 0).then(|| seed(row)) })).collect()
}

#[test]
fn sampled_places_follow_the_softmax() {
    let row = [0.0, 1.0, -1.5, 2.0, 0.5, 2.0, -4.0, 1.25];
    let (rows, width) = (4000, row.len());
    let values: Vec<i64> = row.map(|v: f64| (v * 1024.0) as i64).repeat(rows);
    let cases: [(f64, u32, u32, &[u8]); 3] = [(1.0, 5, 15, b"coarse"), (0.5, 10, 20, b"cold"), (2.0, 10, 20, b"hot")];
    for (temperature, compare_frac, compare_ring, seeds) in cases {
        let x = share::<u32>(&values, &[rows, width], 20, 24);
        let spec = spec(width, compare_frac, compare_ring);
        let run = World::default().run(|s| {
            let me = s.party().index();
            argmax::choose(s, &x[me], 10, &spec, &noise(me, temperature, seeds, rows))
        });
        let mut counts = [0f64; 8];
        places(&run, spec.index_bits).iter().for_each(|&place| counts[place] += 1.0);
        let weights = row.map(|v| (v / temperature).exp());
        let expected = weights.map(|w| w / weights.iter().sum::<f64>() * rows as f64);
        let statistic: f64 = counts.iter().zip(expected).map(|(c, e)| (c - e).powi(2) / e).sum();
        println!("temperature {temperature}: chi-square {statistic:.1} at 7 degrees of freedom");
        assert!(statistic < 24.3, "one in a thousand: {statistic}, {counts:?} for {expected:?}");
    }
}

/// The places that the noise asks for, worked out beside the shares from the same seeds with a library's logarithms.
#[test]
fn the_twin_samples_the_same_places() {
    let (rows, width, temperature) = (200, 90, 0.8);
    let values: Vec<i64> = scores(rows, width).iter().map(|v| v / 6).collect();
    let spec = spec(width, 10, 20);
    let x = share::<u64>(&values, &[rows, width], 48, 26);
    let run = World::default().run(|s| {
        let me = s.party().index();
        argmax::choose(s, &x[me], 10, &spec, &noise(me, temperature, b"twin", rows))
    });
    let mut plain = Vec::new();
    for noise in noise(0, temperature, b"twin", rows).into_iter().flatten() {
        let mut drawn = vec![0u64; width];
        Prg::new(&noise.seed.unwrap()).fill(0, 0, &mut drawn);
        plain.extend(drawn.iter().map(|&v| {
            let u = ((v >> 12) as f64 + 0.5) / (1u64 << 52) as f64;
            (-(-u.ln()).ln() * temperature * 1024.0).round_ties_even() as i64
        }));
    }
    let sampled = |noise| twin(10, noise, |suite| suite.choose(&Value::new(rows, width, 48, values.clone()), &spec));
    let got = reveal(&run.outputs);
    // Of equals the tree may take another than the first: there are a few.
    let same = sampled(Some(plain)).iter().zip(&got).filter(|(a, b)| a == b).count();
    assert!(same > rows - 4, "{same} of {rows}");
    assert!(sampled(None).iter().zip(&got).filter(|(a, b)| a == b).count() < rows / 2, "noise counts");
}

/// At the largest temperature, among scores as far apart as they may be, the largest of score and
/// noise is what is chosen; one step above is refused.
#[test]
fn the_largest_temperature_leaves_room_for_scores() {
    let (rows, width) = (400, 40);
    for (compare_frac, compare_ring) in [(8, 18), (10, 24), (10, 20)] {
        let edge = (1i64 << (compare_ring - 3)) - 1;
        let values: Vec<i64> =
            (0..rows * width).map(|i| [edge, -edge, edge - 7, 0, -edge][(i * i + i / 11) % 5]).collect();
        let x = share::<u64>(&values, &[rows, width], compare_ring, 31);
        let spec = spec(width, compare_frac, compare_ring);
        let hottest = hottest(compare_ring, compare_frac);
        let chosen = |temperature: f64| {
            World::default().run(|s| {
                let me = s.party().index();
                match argmax::choose(s, &x[me], compare_frac, &spec, &noise(me, temperature, b"hot", rows)) {
                    Ok(places) => Ok(Some(places)),
                    Err(Error::Misuse(reason)) if reason.contains("a temperature of") => Ok(None),
                    Err(other) => Err(other),
                }
            })
        };
        let run = chosen(hottest.next_down());
        let outputs = run.outputs.map(|places| places.expect("below the largest"));
        let places = reveal(&outputs);
        let noise = noise(0, hottest.next_down(), b"hot", rows).into_iter().flatten();
        for ((place, row), noise) in places.iter().zip(values.chunks(width)).zip(noise) {
            let mut drawn = vec![0u64; width];
            Prg::new(&noise.seed.unwrap()).fill(0, 0, &mut drawn);
            let summed = row.iter().zip(&drawn).map(|(score, v)| {
                let u = ((v >> 12) as f64 + 0.5) / (1u64 << 52) as f64;
                let gumbel = (-(-u.ln()).ln()).min(tercet_helper::noise::MOST);
                score + (gumbel * noise.temperature * f64::from(compare_frac).exp2()).round_ties_even() as i64
            });
            let summed: Vec<i64> = summed.collect();
            let found = summed[(*place as u64 & u64::mask(spec.index_bits)) as usize];
            assert_eq!(Some(&found), summed.iter().max(), "in {compare_ring} bits");
        }
        assert!(chosen(hottest).outputs.iter().all(Option::is_none), "{hottest} is refused");
    }
}

/// A row's place depends on its own seed and temperature, and greedy rows among sampled ones are greedy.
#[test]
fn noise_belongs_to_its_row() {
    let (rows, width) = (300, 40);
    let x = share::<u32>(&scores(rows, width).iter().map(|v| v / 8).collect::<Vec<_>>(), &[rows, width], 20, 25);
    let spec = spec(width, 10, 20);
    let chosen = |seeds: &'static [u8], greedy: bool| {
        let run = World::default().run(|s| {
            let me = s.party().index();
            let mut noise = noise(me, 1.5, seeds, rows);
            if greedy {
                noise.iter_mut().skip(1).step_by(2).for_each(|noise| *noise = None);
            }
            argmax::choose(s, &x[me], 10, &spec, &noise)
        });
        assert_eq!(run.cost, argmax::cost(rows, width, &spec, true));
        places(&run, spec.index_bits)
    };
    let (first, again, other, mixed) =
        (chosen(b"a", false), chosen(b"a", false), chosen(b"b", false), chosen(b"a", true));
    assert_eq!(first, again, "one seed, one place");
    assert!(first.iter().zip(&other).filter(|(a, b)| a != b).count() > rows / 3);
    let greedy = World::default().run(|s| argmax::choose(s, &x[s.party().index()], 10, &spec, &[]));
    for (row, greedy) in places(&greedy, spec.index_bits).into_iter().enumerate() {
        assert_eq!(mixed[row], if row % 2 == 0 { first[row] } else { greedy }, "row {row}");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let x = share::<u32>(&[1; 10], &[2, 5], 20, 26);
    let refused = |spec: ChoiceSpec, noise: fn() -> Vec<Option<Noise>>, what: &str| {
        World::default().run(|s| {
            match argmax::choose(s, &x[s.party().index()], 10, &spec, &noise()) {
                Err(Error::Misuse(reason)) => assert!(reason.contains(what), "{reason}"),
                other => panic!("{what}: {other:?}"),
            }
            Ok(())
        });
    };
    let fits = ChoiceSpec { compare_frac: 5, compare_ring: 15, index_bits: 3 };
    refused(ChoiceSpec { index_bits: 2, ..fits }, Vec::new, "a place among 5 in 2 bits");
    refused(ChoiceSpec { compare_ring: 16, ..fits }, Vec::new, "scores of 20 bits");
    refused(fits, || vec![None], "noise for 1 rows of 2");
    for temperature in [0.0, -1.0, f64::NAN, f64::INFINITY, 50.0] {
        let reason = "a temperature of";
        match temperature {
            0.0 => refused(fits, || vec![None, Some(Noise { temperature: 0.0, seed: None })], reason),
            -1.0 => refused(fits, || vec![None, Some(Noise { temperature: -1.0, seed: None })], reason),
            50.0 => refused(fits, || vec![None, Some(Noise { temperature: 50.0, seed: None })], reason),
            t if t.is_nan() => refused(fits, || vec![None, Some(Noise { temperature: f64::NAN, seed: None })], reason),
            _ => refused(fits, || vec![None, Some(Noise { temperature: f64::INFINITY, seed: None })], reason),
        }
    }
}

fn reenter<E: Element>(entries: usize, width: usize, wanted: &[i64], ring: u32, public: bool) -> Run<Masked<E>> {
    let values: Vec<i64> = (0..entries * width).map(|i| (i as i64 * 7919) % 4001 - 2000).collect();
    let clear: Vec<E> = values.iter().map(|&v| E::from_i64(v)).collect();
    let table = share::<E>(&values, &[entries, width], ring, 27);
    let bits = index_bits(entries);
    let at = share::<E>(wanted, &[wanted.len(), 1], bits, 28);
    let run = World::with_threads(2).run(|s| {
        let me = s.party().index();
        let table = if public { Table::Public(Plane::Held(&clear)) } else { Table::Secret(lookup::planes(&table[me])) };
        reentry::rows_at(s, &at[me], table, [entries, width], ring)
    });
    let row = |&i: &i64| match i as usize {
        i if i < entries => values[i * width..(i + 1) * width].to_vec(),
        _ => vec![0; width],
    };
    assert_eq!(reveal(&run.outputs), wanted.iter().flat_map(row).collect::<Vec<_>>(), "{wanted:?} of {entries}");
    assert_eq!(run.cost, reentry::cost::<E>(wanted.len(), [entries, width], bits, ring, public));
    run
}

#[test]
fn a_place_finds_its_row() {
    for entries in [1, 2, 3, 5, 64, 257, 1000] {
        let last = entries as i64 - 1;
        for public in [false, true] {
            let run = reenter::<u32>(entries, 24, &[0, last, last / 2, last, last / 3], 32, public);
            assert_eq!(run.cost.rounds, if public { 1 } else { 2 });
            reenter::<u64>(entries, 7, &[last, 0], 48, public);
            // Beyond the table, where its places leave room: nothing.
            let beyond = (1 << index_bits(entries)) - 1;
            reenter::<u64>(entries, 3, &[beyond], 64, public);
        }
    }
}

#[test]
fn what_reentry_sends_is_uniform() {
    for public in [false, true] {
        let run = reenter::<u32>(70, 48, &[69; 256], 32, public);
        assert!(run.received[0].is_empty(), "the helper receives nothing");
        assert_uniform(&run.received[1], "reentry at P1");
        assert_uniform(&run.received[2], "reentry at P2");
    }
}

/// From scores to the row of the token that they choose, and nobody sees which.
#[test]
fn a_chosen_token_goes_back_in() {
    let (rows, entries, width) = (3, 300, 16);
    let values: Vec<i64> = (0..rows * entries).map(|i| (i as i64 * 7919) % 9973 - 5000).collect();
    let embedding: Vec<i64> = (0..entries * width).map(|i| (i as i64 * 31) % 997 - 500).collect();
    let (x, table) =
        (share::<u64>(&values, &[rows, entries], 48, 29), share::<u64>(&embedding, &[entries, width], 64, 30));
    let spec = spec(entries, 16, 22);
    let run = World::default().run(|s| {
        let me = s.party().index();
        let place = argmax::choose(s, &x[me], 16, &spec, &[])?;
        reentry::rows_at(s, &place, Table::Secret(lookup::planes(&table[me])), [entries, width], 64)
    });
    let expected = values.chunks(entries).flat_map(|row| {
        let best = (0..entries).max_by_key(|&i| row[i]).unwrap();
        embedding[best * width..(best + 1) * width].to_vec()
    });
    assert_eq!(reveal(&run.outputs), expected.collect::<Vec<_>>());
    let parts: Cost = argmax::cost(rows, entries, &spec, false);
    assert_eq!(run.cost, parts.then(reentry::cost::<u64>(rows, [entries, width], 9, 64, false)));
}
