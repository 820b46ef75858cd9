//! Causal attention over a cache of keys and values on shares: each row of a step meets the positions that it sees, those of
//! earlier steps among them.
//!
//! Scores lie in one flat tensor, sequence by sequence, head by head, row by row, each row as long as it sees positions
//! ([`crate::ragged`]). So nothing travels for what is masked, sequences of any length share every round, and rounds do not depend on
//! how long they are. Products are taken for blocks of rows with the pages of the positions that a block sees, of a head of
//! keys and all heads of queries that read it; what a row does not see is left out of the scores, and zero among the weights.
//!
//! | rounds | |
//! | --- | --- |
//! | 1 | queries, keys and values extended; rotary positions are local after it |
//! | 1 | `q k` truncated |
//! | 3 | a bound of each row's maximum ([`crate::bound`]), at whatever length |
//! | 3, and 1 where `exp_ring` is smaller than `value_ring` | `2^-(bound - score)` |
//! | 3, and 1 each for an inverse in a smaller ring | the inverse of the sums of weights, beside it weights times values |
//! | 1 | their product |
//!
//! *Error*: as [`crate::attention`], the exponent of the largest weight being at most two steps of the bound instead of one half: as many bits
//! fewer of `exp_frac` are its precision, and the range of exponents ends sooner. *Security*: built from other primitives; which
//! positions a row sees is public.

use std::ops::Range;

use tercet_core::spec::{CausalHeads, CausalSpec};
use tercet_core::{Cost, Error, Layout, Result, Session, Work};
use tercet_ring::{Element, Pool, Tensor};

use crate::attention::{normalized, normalized_cost, scales};
use crate::cache::{Cache, Hull, PAGE, key_ring, pieces};
use crate::linear::{self, Prepared, combine, left, multiply};
use crate::masked::{Additive, Masked};
use crate::ragged::Ragged;
use crate::{bound, exponential, extend, rotary, truncate};

/// Rows of a block: what its first row does not see and its last does is computed in vain.
const BLOCK: usize = 32;

/// The lengths of all rows of scores of a step.
fn ragged(layout: &Layout, heads: &CausalHeads) -> Ragged {
    let rows = layout.sequences.iter().flat_map(|extent| {
        let lengths = (extent.past..extent.past + extent.rows).map(|position| heads.visible_count(position));
        std::iter::repeat_n(lengths, heads.heads).flatten()
    });
    Ragged::new(rows.collect())
}

/// The ring that queries and keys are extended to.
fn turned_ring(heads: &CausalHeads, frac: u32, spec: &CausalSpec) -> u32 {
    key_ring(frac, spec) + if heads.rotary.is_some() { spec.rotary_frac } else { 0 }
}

/// The wire cost of a step with heads of `width`, for queries, keys and values that come in `ring` at scale `frac`.
pub fn cost(layout: &Layout, heads: &CausalHeads, width: usize, ring: u32, frac: u32, spec: &CausalSpec) -> Cost {
    let (rows, attention) = (ragged(layout, heads), &spec.attention);
    let (scores, own) = (rows.len(), layout.rows() * width);
    let queries_keys = (heads.heads + heads.kv_heads) * own;
    let lifts = extend::cost(queries_keys, ring, turned_ring(heads, frac, spec)).and(extend::cost(
        heads.kv_heads * own,
        ring,
        attention.value_ring,
    ));
    let products = linear::cost(scores, key_ring(frac, spec)).and(truncate::cost(scores, frac, attention.score_ring));
    lifts
        .then(products)
        .then(bound::cost(&rows, attention.score_ring, frac, &spec.bound))
        .then(exponential::cost(scores, scales(attention, frac)))
        .then(extend::cost(scores, attention.exp_ring, attention.value_ring))
        .then(normalized_cost(rows.rows(), width, attention))
}

/// Attention of a step over `qkv: [layout.rows(), (heads + 2 kv_heads) * width]` at scale `frac`: queries, scaled by
/// `log2(e) / sqrt(width)`, then keys, then values. Keys and values join layer `layer` of `caches`, one a sequence of the layout. The
/// result is `[layout.rows(), heads * width]` in `spec.attention.ring`.
///
/// # Errors
/// Shapes that do not fit each other, the layout or the caches.
#[allow(clippy::too_many_arguments, reason = "what is public of a step, and what is shared")]
pub fn attention<E: Element>(
    s: &mut Session,
    qkv: &Masked<E>,
    layout: &Layout,
    caches: &mut [&mut Cache],
    layer: usize,
    heads: &CausalHeads,
    frac: u32,
    spec: &CausalSpec,
) -> Result<Masked<E>> {
    let parts = heads.heads + 2 * heads.kv_heads;
    let columns = qkv.planes()[0].width();
    let fits = heads.kv_heads > 0 && heads.heads.is_multiple_of(heads.kv_heads) && columns.is_multiple_of(parts);
    let width = if fits { columns / parts } else { 0 };
    if width == 0 || heads.rotary.as_ref().is_some_and(|rates| 2 * rates.len() != width) {
        return Err(Error::Misuse(format!("{columns} columns for {} heads of {} keys", heads.heads, heads.kv_heads)));
    }
    if qkv.planes()[0].rows() != layout.rows() || caches.len() != layout.sequences.len() || layout.rows() == 0 {
        let (rows, held) = (qkv.planes()[0].rows(), caches.len());
        return Err(Error::Misuse(format!("{rows} rows and {held} caches for a layout of {}", layout.rows())));
    }
    let step = Step { layout, layer, heads, width, frac, spec };
    s.scope("attention", |s| match (key_ring(frac, spec) <= u32::BITS, spec.attention.value_ring <= u32::BITS) {
        (true, true) => step.attend::<E, u32, u32>(s, qkv, caches),
        (true, false) => step.attend::<E, u32, u64>(s, qkv, caches),
        (false, true) => step.attend::<E, u64, u32>(s, qkv, caches),
        (false, false) => step.attend::<E, u64, u64>(s, qkv, caches),
    })
}

/// What is public of one attention of a step.
struct Step<'a> {
    layout: &'a Layout,
    layer: usize,
    heads: &'a CausalHeads,
    width: usize,
    frac: u32,
    spec: &'a CausalSpec,
}

/// Some rows of a sequence, and the heads of queries that read one head of keys.
struct Block {
    sequence: usize,
    kv_head: usize,
    /// Rows of the step's tensor.
    rows: Range<usize>,
    /// Position of the first of them.
    position: usize,
    hull: Hull,
    /// For each head of queries, in the flat tensor of scores, where its first row begins.
    scores: Vec<usize>,
    /// For each head of queries the number of its first row among all rows of scores.
    outputs: Vec<usize>,
}

impl Step<'_> {
    /// With queries and keys in lanes `K`, exponentials and values in lanes `V`.
    fn attend<E: Element, K: Element, V: Element>(
        &self,
        s: &mut Session,
        qkv: &Masked<E>,
        caches: &mut [&mut Cache],
    ) -> Result<Masked<E>> {
        let CausalSpec { attention: spec, bound, .. } = self.spec;
        let (queries, keys, values) = self.extended::<E, K, V>(s, qkv)?;
        let (keys, values) = (Prepared::new(&keys), Prepared::new(&values));
        let mut first = 0;
        for (cache, extent) in caches.iter_mut().zip(&self.layout.sequences) {
            let shape = [self.heads.kv_heads, self.width];
            cache.append(self.layer, extent.past, shape, (&keys, &values), first..first + extent.rows)?;
            first += extent.rows;
        }
        let (rows, blocks) = (ragged(self.layout, self.heads), self.blocks());
        let scores = self.scores(s, &queries, caches, &blocks, rows.len())?;
        let scores: Masked<u32> = truncate::truncate(s, scores, self.frac, spec.score_ring)?;

        let above = bound::above(s, &scores, &rows, self.frac, bound)?;
        let exp_scales = scales(spec, self.frac);
        let exponent = rows.below(&above, scores).into_low(exp_scales.ring_in());
        let weights: Masked<V> = exponential::exp2_neg(s, &exponent, exp_scales)?;
        let weights: Masked<V> = extend::extend(s, &weights, spec.value_ring)?;

        let sums = rows.sums(&weights);
        let out: Masked<E> =
            normalized(s, &sums, self.width, spec, |s| self.weighted(s, &weights, caches, &blocks, rows.rows()))?;
        caches.iter_mut().for_each(|cache| cache.forget(self.layer, self.heads));
        Ok(out.each(spec.ring, |plane| self.merged(plane)))
    }

    /// Queries, keys and values in the rings of their products, after rotation where there is one. One round.
    #[allow(clippy::type_complexity)]
    fn extended<E: Element, K: Element, V: Element>(
        &self,
        s: &mut Session,
        qkv: &Masked<E>,
    ) -> Result<(Masked<K>, Masked<K>, Masked<V>)> {
        let CausalHeads { heads, kv_heads, rotary, .. } = self.heads;
        let (queries, keys) = (heads * self.width, kv_heads * self.width);
        let ring = turned_ring(self.heads, self.frac, self.spec);
        let values = qkv.columns(queries + keys, queries + 2 * keys);
        let both = qkv.columns(0, queries + keys);
        let value_ring = self.spec.attention.value_ring;
        let (both, values) = match rotary {
            None => {
                let both = extend::post::<E, K>(s, &both, ring)?;
                let values = extend::post::<E, V>(s, &values, value_ring)?;
                (both.finish(s)?, values.finish(s)?)
            }
            Some(rates) => {
                let both = extend::post::<E, u64>(s, &both, ring)?;
                let values = extend::post::<E, V>(s, &values, value_ring)?;
                let both = both.finish(s)?;
                (rotary::turn(&both, self.layout.positions(), rates, self.spec.rotary_frac), values.finish(s)?)
            }
        };
        Ok((both.columns(0, queries), both.columns(queries, queries + keys), values))
    }

    fn blocks(&self) -> Vec<Block> {
        let CausalHeads { heads, kv_heads, .. } = *self.heads;
        let group = heads / kv_heads;
        let mut blocks = Vec::new();
        let (mut row, mut score, mut output) = (0, 0, 0);
        for (sequence, extent) in self.layout.sequences.iter().enumerate() {
            let visible = |from: usize, to: usize| -> usize {
                (extent.past + from..extent.past + to).map(|position| self.heads.visible_count(position)).sum()
            };
            let each = visible(0, extent.rows);
            for from in (0..extent.rows).step_by(BLOCK) {
                let (to, before) = (extent.rows.min(from + BLOCK), visible(0, from));
                let hull = self.hull(extent.past + from, extent.past + to - 1);
                blocks.extend((0..kv_heads).map(|kv_head| {
                    let heads = kv_head * group..(kv_head + 1) * group;
                    Block {
                        sequence,
                        kv_head,
                        rows: row + from..row + to,
                        position: extent.past + from,
                        hull: hull.clone(),
                        scores: heads.clone().map(|head| score + head * each + before).collect(),
                        outputs: heads.map(|head| output + head * extent.rows + from).collect(),
                    }
                }));
            }
            row += extent.rows;
            score += heads * each;
            output += heads * extent.rows;
        }
        blocks
    }

    /// What the queries from position `first` to `last` see: the global positions and the windows of all of them, or all from the
    /// beginning where these meet.
    fn hull(&self, first: usize, last: usize) -> Hull {
        let [_, window] = self.heads.visible(first);
        if self.heads.global < window.start {
            [0..self.heads.global, window.start..last + 1]
        } else {
            [0..0, 0..last + 1]
        }
    }

    /// `q k` of what is seen, flat.
    fn scores<K: Element>(
        &self,
        s: &mut Session,
        queries: &Masked<K>,
        caches: &[&mut Cache],
        blocks: &[Block],
        len: usize,
    ) -> Result<Additive<K>> {
        let party = s.party();
        s.scope("product", |s| {
            let products = each_block(s, blocks, |block| {
                let (rows, seen) = (block.scores.len() * block.rows.len(), block.seen());
                let left = left(party, queries.planes().each_ref().map(|plane| self.stacked(plane, block)));
                let (mut page, mut out) = (vec![K::ZERO; rows * PAGE], vec![K::ZERO; rows * seen]);
                for piece in pieces(&block.hull) {
                    let keys = caches[block.sequence].keys(self.layer, piece.page, block.kv_head);
                    page.fill(K::ZERO);
                    multiply(&Pool::default(), slices(&left), keys, [1, rows, self.width, PAGE], &mut page);
                    for (out, page) in out.chunks_exact_mut(seen).zip(page.chunks_exact(PAGE)) {
                        out[piece.column..][..piece.at.len()].copy_from_slice(&page[piece.at.clone()]);
                    }
                }
                out
            });
            let mut flat = vec![K::ZERO; len];
            for (block, out) in blocks.iter().zip(&products) {
                block.each_run(self.heads, |matrix, at| flat[at].copy_from_slice(&out[matrix]));
            }
            combine(s, Tensor::new([len], flat), key_ring(self.frac, self.spec))
        })
    }

    /// Rows of queries of every head of a block, head by head.
    fn stacked<K: Element>(&self, plane: &Tensor<K>, block: &Block) -> Vec<K> {
        let (columns, group) = (plane.width(), block.scores.len());
        let mut out = Vec::with_capacity(group * block.rows.len() * self.width);
        for head in block.kv_head * group..(block.kv_head + 1) * group {
            for row in block.rows.clone() {
                out.extend_from_slice(&plane.data()[row * columns + head * self.width..][..self.width]);
            }
        }
        out
    }

    /// Weights times values: a row of `width` for each row of scores.
    fn weighted<V: Element>(
        &self,
        s: &mut Session,
        weights: &Masked<V>,
        caches: &[&mut Cache],
        blocks: &[Block],
        outputs: usize,
    ) -> Result<Additive<V>> {
        let party = s.party();
        s.scope("product", |s| {
            let products = each_block(s, blocks, |block| {
                let (rows, seen) = (block.outputs.len() * block.rows.len(), block.seen());
                // Zero, shared as three zeros, where a row does not see what its block does.
                let left = left(
                    party,
                    weights.planes().each_ref().map(|plane| {
                        let mut out = vec![V::ZERO; rows * seen];
                        block.each_run(self.heads, |matrix, at| out[matrix].copy_from_slice(&plane.data()[at]));
                        out
                    }),
                );
                let mut out = vec![V::ZERO; rows * self.width];
                for piece in pieces(&block.hull) {
                    let values = caches[block.sequence].values(self.layer, piece.page, block.kv_head);
                    let page = left.each_ref().map(|plane| {
                        let mut page = vec![V::ZERO; if plane.is_empty() { 0 } else { rows * PAGE }];
                        for (page, left) in page.chunks_exact_mut(PAGE).zip(plane.chunks_exact(seen)) {
                            page[piece.at.clone()].copy_from_slice(&left[piece.column..][..piece.at.len()]);
                        }
                        page
                    });
                    multiply(&Pool::default(), slices(&page), values, [1, rows, PAGE, self.width], &mut out);
                }
                out
            });
            let mut flat = vec![V::ZERO; outputs * self.width];
            for (block, out) in blocks.iter().zip(&products) {
                let heads = out.chunks_exact(block.rows.len() * self.width);
                for (&at, out) in block.outputs.iter().zip(heads) {
                    flat[at * self.width..][..out.len()].copy_from_slice(out);
                }
            }
            combine(s, Tensor::new([outputs, self.width], flat), self.spec.attention.value_ring)
        })
    }

    /// Rows as they come out, `[sequence, head, row]`, as rows of all heads.
    fn merged<E: Element>(&self, plane: &Tensor<E>) -> Tensor<E> {
        let (heads, width) = (self.heads.heads, self.width);
        let mut data = Vec::with_capacity(plane.len());
        let mut rest = plane.data();
        for extent in &self.layout.sequences {
            let own = rest.split_off(..extent.rows * heads * width).unwrap_or_default();
            for row in 0..extent.rows {
                for head in own.chunks_exact((extent.rows * width).max(1)) {
                    data.extend_from_slice(&head[row * width..][..width]);
                }
            }
        }
        Tensor::new([self.layout.rows(), heads * width], data)
    }
}

/// `work` on every block, on the workers of the session.
fn each_block<E: Element>(
    s: &mut Session,
    blocks: &[Block],
    work: impl Fn(&Block) -> Vec<E> + Send + Sync,
) -> Vec<Vec<E>> {
    let mut out = vec![Vec::new(); blocks.len()];
    s.timed(Work::Matmul, |s| s.pool().chunks(&mut out, 1, |at, out| out[0] = work(&blocks[at])));
    out
}

fn slices<E>(planes: &[Vec<E>; 2]) -> [&[E]; 2] {
    planes.each_ref().map(|plane| &plane[..])
}

impl Block {
    /// Positions of the hull.
    fn seen(&self) -> usize {
        self.hull.iter().map(Range::len).sum()
    }

    /// Calls `each(place in the block's matrix, place among all scores)` for every run of positions that a row sees.
    fn each_run(&self, heads: &CausalHeads, mut each: impl FnMut(Range<usize>, Range<usize>)) {
        let (seen, [first, second]) = (self.seen(), &self.hull);
        for (head, &start) in self.scores.iter().enumerate() {
            let mut to = start;
            for row in 0..self.rows.len() {
                let line = (head * self.rows.len() + row) * seen;
                for run in heads.visible(self.position + row).into_iter().filter(|run| !run.is_empty()) {
                    let behind = run.start >= first.end;
                    let column = if behind { first.len() + run.start - second.start } else { run.start };
                    each(line + column..line + column + run.len(), to..to + run.len());
                    to += run.len();
                }
            }
        }
    }
}
