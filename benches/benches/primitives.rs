//! Every primitive at every party alone, by record and replay: three parties run once, then each does its part again
//! with nobody else at work and every frame at hand. What is measured is local work, all of it; nothing waits.
//!
//! Beside it stands the larger of two limits: copying as many bytes as the party must touch (the planes that it reads
//! and leaves, at lane width, and the bytes that it sends and receives), and the multiply-adds of its products. The
//! ratio says how far the party is from doing nothing else.
//!
//! `cargo bench -p tercet-benches --bench primitives`, with `-- --quick` for less time and precision, with `-- compare`
//! for one.

use std::hint::black_box;

use criterion::Criterion;
use tercet_benches::limit::{Home, Limit};
use tercet_benches::{Ledger, criterion};
use tercet_core::spec::{ActivationSpec, AttentionSpec, ChoiceSpec, InverseSpec, LinearSpec, NormSpec, RouteSpec};
use tercet_core::{Result, Session};
use tercet_engine::{ModelNumerics, NodeSpec, Profile, choose};
use tercet_helper::attention::{Heads, attention};
use tercet_helper::bits::{MaskedBits, words};
use tercet_helper::exponential::{Scales, exp2_neg};
use tercet_helper::linear::{Prepared, elementwise, matrix_product};
use tercet_helper::lookup::{self, lookup};
use tercet_helper::noise::Noise;
use tercet_helper::reentry::{self, Table};
use tercet_helper::{Masked, activation, argmax, compare, extend, inverse, maximum, norm, route, select, truncate};
use tercet_model::graph::{Activation, Graph, Input, Node, Op, Output, TensorSpec};
use tercet_model::{AttentionStats, NodeStats, NormStats, Ranges, Span};
use tercet_net::PartyId;
use tercet_ring::{Element, Prg, Seed};
use tercet_testkit::World;
use tercet_testkit::lookup::Lookup;
use tercet_testkit::sharing::{share, share_lookups};

/// Elements of an elementwise primitive.
const ELEMENTS: usize = 1 << 17;
/// The layer whose numbers are used: 12 heads of 32, 128 rows.
const SHAPE: Heads = Heads { batch: 1, rows: 128, heads: 12, width: 32 };
const WIDTH: usize = 384;
const INNER: usize = 1536;
const VOCABULARY: usize = 30_522;

/// The numbers of the layer's operations in profile `fast`.
struct Layer {
    numerics: ModelNumerics,
    norm: NormSpec,
    attention: AttentionSpec,
    qkv: LinearSpec,
    up: LinearSpec,
    gelu: ActivationSpec,
}

impl Layer {
    /// Chosen as for any model, from ranges such as a small sentence model has.
    fn new() -> Layer {
        let graph = graph();
        let numerics = choose(&graph, &ranges(&graph), Profile::Fast, false).expect("ranges that fit");
        let at = |name: &str| graph.nodes.iter().position(|node| node.name == name).expect("a node of the graph");
        let spec = |name: &str| numerics.nodes[at(name)].clone();
        let (NodeSpec::Norm(norm), NodeSpec::Attention { max_value }) = (spec("norm"), spec("attention")) else {
            unreachable!("numbers of a kind with the nodes")
        };
        let NodeSpec::Activation(gelu) = spec("gelu") else { unreachable!("numbers of a kind with the nodes") };
        let (NodeSpec::Linear(qkv), NodeSpec::Linear(up)) = (spec("qkv"), spec("up")) else {
            unreachable!("numbers of a kind with the nodes")
        };
        Layer { norm, attention: numerics.attention(SHAPE.rows, max_value), qkv, up, gelu, numerics }
    }

    fn exponential(&self) -> Scales {
        let AttentionSpec { exp_top_bits, exp_frac, exp_ring, exp_guard, .. } = self.attention;
        let frac = self.numerics.formats.frac;
        Scales { frac, top_bits: exp_top_bits, frac_out: exp_frac, ring_out: exp_ring, guard: exp_guard }
    }
}

fn graph() -> Graph {
    let mut tensors = Vec::new();
    let mut tensor = |name: &str, rows: usize, cols: usize| {
        tensors.push(TensorSpec { name: name.to_owned(), rows, cols });
        name.to_owned()
    };
    let table = tensor("table", VOCABULARY, WIDTH);
    let (gain, bias) = (tensor("gain", 1, WIDTH), tensor("shift", 1, WIDTH));
    let mut linear = |name: &str, rows: usize, cols: usize| Op::Linear {
        weight: tensor(&format!("{name}/weight"), rows, cols),
        bias: Some(tensor(&format!("{name}/bias"), 1, cols)),
    };
    let ops = [
        ("table", Op::Lookup { table }),
        ("norm", Op::LayerNorm { gain, bias, eps: 1e-12 }),
        ("qkv", linear("qkv", WIDTH, 3 * WIDTH)),
        ("attention", Op::Attention { heads: SHAPE.heads }),
        ("up", linear("up", WIDTH, INNER)),
        ("gelu", Op::Activation(Activation::Gelu)),
        ("down", linear("down", INNER, WIDTH)),
        ("mean", Op::MeanRows),
    ];
    let nodes = ops.into_iter().enumerate();
    let nodes = nodes.map(|(i, (name, op))| Node { name: name.to_owned(), op, inputs: vec![i] }).collect();
    Graph {
        family: "bert".to_owned(),
        input: Input::Tokens { vocab: VOCABULARY, max_tokens: SHAPE.rows },
        nodes,
        output: Output::Embedding { width: WIDTH, normalize: true },
        tensors,
    }
}

fn ranges(graph: &Graph) -> Ranges {
    let span = |min: f32, max: f32| Span { min, max };
    let stats = |op: &Op| NodeStats {
        max_abs: if matches!(op, Op::Linear { .. }) { 16.0 } else { 8.0 },
        activation: matches!(op, Op::Activation(_)).then(|| span(-16.0, 16.0)),
        norm: matches!(op, Op::LayerNorm { .. }).then(|| NormStats {
            variance: span(0.003, 1.0),
            max_centred: 8.0,
            max_scaled: 8.0,
        }),
        attention: matches!(op, Op::Attention { .. }).then(|| AttentionStats {
            max_query: 8.0,
            max_key: 8.0,
            max_value: 4.0,
            max_score: 30.0,
            max_spread: 40.0,
            row_max: span(-10.0, 30.0),
            row_sum: span(1.0, 128.0),
            max_unnormalised: 100.0,
            max_output: 4.0,
        }),
        ..NodeStats::default()
    };
    Ranges { inputs: 1, nodes: graph.nodes.iter().map(|node| (node.name.clone(), stats(&node.op))).collect() }
}

/// What one party must do at least.
#[derive(Clone, Copy, Default)]
struct Least {
    /// Bytes of the planes that it reads and leaves.
    planes: usize,
    /// Lane of the products, and multiply-adds of one of them: P1 computes one, the others two.
    products: (u32, usize),
}

impl Least {
    /// Two planes of so many elements read, two of so many left.
    fn planes<E, F>(read: usize, left: usize) -> Least {
        Least { planes: 2 * (read * size_of::<E>() + left * size_of::<F>()), ..Least::default() }
    }

    fn products<E: Element>(self, count: usize) -> Least {
        Least { products: (E::BITS, count), ..self }
    }
}

struct Bench<'a> {
    c: &'a mut Criterion,
    ledger: &'a mut Ledger,
}

impl Bench<'_> {
    /// Records `program` and measures it at each party. `elements` are those of its result or input, whichever are more.
    fn primitive<R: Send>(
        &mut self,
        name: &str,
        elements: usize,
        least: Least,
        program: impl Fn(&mut Session) -> Result<R> + Sync,
    ) {
        let (_, parties) = World::default().record(|s| program(s).map(|_| ()));
        self.ledger.elements(elements);
        for recorded in parties {
            let party = recorded.party();
            let bytes = Limit::Copy { bytes: least.planes as f64 + recorded.bytes() as f64, home: Home::Last };
            let (bits, count) = least.products;
            let count = count * if party == PartyId::P1 { 1 } else { 2 };
            let limit = if count == 0 { bytes } else { bytes.or(Limit::MultiplyAdds { bits, count: count as f64 }) };
            self.ledger.bench(self.c, name, &party.to_string(), limit, || {
                black_box(recorded.replay(&program).expect("the recorded program"));
            });
        }
    }

    fn products<E: Element>(&mut self, ring: u32) {
        let [rows, inner, cols] = [SHAPE.rows, WIDTH, INNER];
        let (x, y) = (ramp::<E>(&[rows, inner], ring, 1), ramp::<E>(&[inner, cols], ring, 2));
        let y = y.map(|y| Prepared::new(&y));
        let least = Least::planes::<E, E>(rows * inner + inner * cols, rows * cols).products::<E>(rows * inner * cols);
        self.primitive(&format!("matmul u{ring} {rows}x{inner}x{cols}"), rows * cols, least, |s| {
            let me = s.party().index();
            matrix_product(s, &x[me], y[me].operand(), [1, rows, inner, cols], ring)
        });
        let (x, y) = (ramp::<E>(&[ELEMENTS], ring, 3), ramp::<E>(&[ELEMENTS], ring, 4));
        self.primitive(&format!("product u{ring}"), ELEMENTS, Least::planes::<E, E>(2 * ELEMENTS, ELEMENTS / 2), |s| {
            let me = s.party().index();
            elementwise(s, &x[me], &y[me], ring)
        });
    }

    fn arithmetic(&mut self, layer: &Layer) {
        let LinearSpec { truncate: by, ring, .. } = layer.up;
        let wide = layer.numerics.formats.wide;
        let x = ramp::<u32>(&[ELEMENTS], ring + by, 5);
        self.primitive("truncate", ELEMENTS, Least::planes::<u32, u32>(ELEMENTS, ELEMENTS), |s| {
            truncate::truncate::<u32, u32>(s, x[s.party().index()].to_additive(), by, ring)
        });
        let x = ramp::<u32>(&[ELEMENTS], ring, 6);
        self.primitive("extend", ELEMENTS, Least::planes::<u32, u32>(ELEMENTS, ELEMENTS), |s| {
            extend::extend::<u32, u32>(s, &x[s.party().index()], wide)
        });
        self.primitive("compare", ELEMENTS, Least::planes::<u32, u32>(ELEMENTS, ELEMENTS / 32), |s| {
            compare::at_least(s, &x[s.party().index()], 1, &[0])
        });
        let flags = masked_bits(ELEMENTS);
        let read = ELEMENTS + ELEMENTS / 32;
        self.primitive("select", ELEMENTS, Least::planes::<u32, u32>(read, ELEMENTS / 2), |s| {
            let me = s.party().index();
            select::select(s, &flags[me], &x[me])
        });
    }

    fn functions(&mut self, layer: &Layer) {
        let frac = layer.numerics.formats.frac;
        let x = ramp::<u32>(&[ELEMENTS], layer.up.ring, 7);
        self.primitive("gelu", ELEMENTS, Least::planes::<u32, u32>(ELEMENTS, ELEMENTS), |s| {
            activation::activation(s, &x[s.party().index()], frac, &layer.gelu)
        });
        let scales = layer.exponential();
        let t = ramp::<u32>(&[ELEMENTS], scales.ring_in(), 8);
        self.primitive("exponential", ELEMENTS, Least::planes::<u32, u32>(ELEMENTS, ELEMENTS), |s| {
            exp2_neg::<u32>(s, &t[s.party().index()], scales)
        });
        let scores = ramp::<u32>(&[ELEMENTS / SHAPE.rows, SHAPE.rows], layer.attention.score_ring, 9);
        let left = ELEMENTS / SHAPE.rows;
        self.primitive("maximum of 128", ELEMENTS, Least::planes::<u32, u32>(ELEMENTS, left), |s| {
            maximum::maximum(s, &scores[s.party().index()], frac)
        });
        let spec = &layer.attention.inverse;
        let rows = SHAPE.rows * SHAPE.heads;
        let sums = share::<u64>(&vec![1 << spec.low; rows], &[rows], spec.ring, 10);
        self.primitive("inverse", rows, Least::planes::<u64, u64>(rows, rows), |s| {
            let v = &sums[s.party().index()];
            inverse::post(s, v, spec)?.next(s)?.next(s, v, spec)?.finish::<u64>(s)
        });
    }

    fn rows(&mut self, layer: &Layer) {
        let (rows, wide, frac) = (SHAPE.rows, layer.numerics.formats.wide, layer.numerics.formats.frac);
        let x = ramp::<u32>(&[rows, WIDTH], wide, 11);
        let (gain, bias) = (ramp::<u64>(&[1, WIDTH], 64, 12), ramp::<u64>(&[1, WIDTH], 64, 13));
        self.primitive("layer norm", rows * WIDTH, Least::planes::<u32, u32>(rows * WIDTH, rows * WIDTH), |s| {
            let me = s.party().index();
            norm::layer_norm(s, &x[me], &gain[me], &bias[me], &layer.norm)
        });
        let qkv = ramp::<u32>(&[rows, 3 * WIDTH], layer.qkv.ring, 14);
        let key_bias = share::<u32>(&vec![0; rows], &[1, rows], layer.attention.score_ring, 15);
        // Scores and weighted sums; lanes of the scores.
        let least = Least::planes::<u32, u32>(3 * rows * WIDTH, rows * WIDTH).products::<u32>(2 * rows * rows * WIDTH);
        self.primitive("attention 12x128x128", SHAPE.heads * rows * rows, least, |s| {
            let me = s.party().index();
            attention(s, &qkv[me], &key_bias[me], SHAPE, frac, &layer.attention)
        });
    }

    fn lookup(&mut self, layer: &Layer) {
        const COUNT: usize = 8;
        let (domain_bits, ring) = (VOCABULARY.next_power_of_two().trailing_zeros(), layer.numerics.formats.wide);
        let table = ramp::<u32>(&[VOCABULARY, WIDTH], ring, 16);
        let indices: Vec<Lookup> = (0..COUNT).map(|i| Lookup::new(domain_bits, i * 3001)).collect();
        let keys = share_lookups::<u32>(&indices, &[COUNT], 17);
        let least = Least::planes::<u32, u32>(VOCABULARY * WIDTH, COUNT * WIDTH);
        self.primitive("lookup of 8 in 30522x384", COUNT * WIDTH, least, |s| {
            let me = s.party().index();
            lookup(s, lookup::planes(&table[me]), [VOCABULARY, WIDTH], &keys[me], ring)
        });
    }

    /// A token is chosen and goes back in; experts are weighed.
    fn choice(&mut self, layer: &Layer) {
        let (frac, ring) = (layer.numerics.formats.frac, layer.numerics.formats.wide);
        let index_bits = VOCABULARY.next_power_of_two().trailing_zeros();
        let spec = ChoiceSpec { compare_frac: 5, compare_ring: 15, index_bits };
        let scores = ramp::<u32>(&[1, VOCABULARY], frac + 10, 18);
        let least = Least::planes::<u32, u32>(VOCABULARY, 1);
        for (name, noisy) in [("argmax of 30522", false), ("sample of 30522", true)] {
            self.primitive(name, VOCABULARY, least, |s| {
                let noise = noisy.then(|| Some(Noise { temperature: 1.0, seed: Some(Seed::from_bytes([19; 32])) }));
                argmax::choose(s, &scores[s.party().index()], frac, &spec, &noise.into_iter().collect::<Vec<_>>())
            });
        }
        let table = ramp::<u32>(&[VOCABULARY, WIDTH], ring, 20);
        let place = share::<u32>(&[30_001], &[1, 1], index_bits, 21);
        let products = VOCABULARY * WIDTH;
        let least = Least::planes::<u32, u32>(VOCABULARY * WIDTH, WIDTH).products::<u32>(products);
        self.primitive("reentry in 30522x384", WIDTH, least, |s| {
            let me = s.party().index();
            let table = Table::Secret(lookup::planes(&table[me]));
            reentry::rows_at(s, &place[me], table, [VOCABULARY, WIDTH], ring)
        });
        let softmax = AttentionSpec {
            inverse: InverseSpec::new(1.0, layer.attention.exp_frac - 1, layer.attention.exp_frac + 2, 10, 64, 24, 32),
            ring: 22,
            ..layer.attention.clone()
        };
        let (rows, experts) = (SHAPE.rows, 8);
        let scores = ramp::<u32>(&[rows, experts], layer.attention.score_ring, 22);
        let spec = RouteSpec { top: 2, softmax };
        self.primitive(
            "route 2 of 8",
            rows * experts,
            Least::planes::<u32, u32>(rows * experts, rows * experts),
            |s| route::route(s, &scores[s.party().index()], frac, &spec),
        );
    }
}

/// Shares of values that run through the middle of a ring. What they are does not matter: no primitive's time depends
/// on it.
fn ramp<E: Element>(shape: &[usize], ring: u32, seed: u64) -> [Masked<E>; 3] {
    let reach = 1i64 << (ring - 3).min(32);
    let values: Vec<i64> =
        (0..shape.iter().product::<usize>() as i64).map(|i| (i * 7919) % reach - reach / 2).collect();
    share(&values, shape, ring, seed)
}

/// Sharings of arbitrary bits.
fn masked_bits(len: usize) -> [MaskedBits; 3] {
    let mut planes = vec![0u64; 3 * words(len)];
    Prg::new(&Seed::from_bytes([3; 32])).fill(0, 0, &mut planes);
    let plane = |i: usize| planes[i * words(len)..(i + 1) * words(len)].to_vec();
    let (beta, first, second) = (plane(0), plane(1), plane(2));
    [
        MaskedBits::new(PartyId::P0, len, [first.clone(), second.clone()]),
        MaskedBits::new(PartyId::P1, len, [beta.clone(), first]),
        MaskedBits::new(PartyId::P2, len, [beta, second]),
    ]
}

fn main() {
    let (mut c, mut ledger) = (criterion(), Ledger::default());
    let layer = Layer::new();
    let mut bench = Bench { c: &mut c, ledger: &mut ledger };
    bench.products::<u32>(32);
    bench.products::<u64>(64);
    bench.arithmetic(&layer);
    bench.functions(&layer);
    bench.rows(&layer);
    bench.lookup(&layer);
    bench.choice(&layer);
    c.final_summary();
    ledger.print();
}
