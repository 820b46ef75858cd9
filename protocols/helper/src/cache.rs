//! The keys and values of a sequence on shares, from one step to the next: in pages of [`PAGE`] positions, allocated as the
//! sequence grows, so that growing copies nothing and dropping the cache frees all of it.
//!
//! A page holds what its party needs of a right operand ([`crate::linear::Operand`]): one plane at P1, two at P0 and P2. Keys lie
//! transposed, `[head, width, PAGE]`, values as they are, `[head, PAGE, width]`: each is the right operand of a product as it lies,
//! so that a step reads every page once and copies none. Pages that no later query sees, because they left the window, are
//! dropped.
//!
//! *Security*: shares of one session, each under masks that were drawn once. Which pages there are follows from how many positions
//! there are, which is public.

use std::ops::Range;

use tercet_core::spec::{CausalHeads, CausalSpec};
use tercet_core::{Error, Result};
use tercet_net::PartyId;
use tercet_ring::Element;

use crate::linear::{Operand, Prepared};
use crate::plane::Plane;

/// Positions of a page.
pub const PAGE: usize = 32;

/// The ring of queries and keys when they are multiplied, at scale `frac` each.
pub fn key_ring(frac: u32, spec: &CausalSpec) -> u32 {
    spec.attention.score_ring + frac
}

/// Planes of a right operand that a party holds.
fn planes(party: PartyId) -> usize {
    if party == PartyId::P1 { 1 } else { 2 }
}

/// Bytes that a position takes of the memory of `party` in one layer with heads of `width`, whole pages assumed.
pub fn bytes_per_position(party: PartyId, heads: &CausalHeads, width: usize, frac: u32, spec: &CausalSpec) -> usize {
    let lane = |ring: u32| if ring <= u32::BITS { size_of::<u32>() } else { size_of::<u64>() };
    planes(party) * heads.kv_heads * width * (lane(key_ring(frac, spec)) + lane(spec.attention.value_ring))
}

/// One party's cache of one sequence.
///
/// A step appends to every layer in turn. One that fails half way leaves layers of different lengths: such a cache is of no more
/// use, and the next step refuses it.
pub struct Cache {
    party: PartyId,
    layers: Vec<Layer>,
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Cache({} positions, {} bytes)", self.len(), self.bytes())
    }
}

/// What one layer holds.
#[derive(Default)]
struct Layer {
    len: usize,
    shape: Option<Shape>,
    /// None where no later query sees the page.
    pages: Vec<Option<Page>>,
}

/// What the pages of a layer have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    kv_heads: usize,
    width: usize,
    /// Bytes of a lane, of keys and of values.
    lanes: [usize; 2],
}

/// Plane by plane, head by head.
struct Page {
    keys: Box<[u64]>,
    values: Box<[u64]>,
}

/// Positions that a block of queries sees: two stretches, one behind the other.
pub(crate) type Hull = [Range<usize>; 2];

impl Cache {
    /// An empty cache for a model with so many attentions. It takes no memory yet.
    pub fn new(party: PartyId, layers: usize) -> Cache {
        Cache { party, layers: std::iter::repeat_with(Layer::default).take(layers).collect() }
    }

    /// Positions that every layer holds (or held, where its window passed on).
    pub fn len(&self) -> usize {
        self.layers.iter().map(|layer| layer.len).min().unwrap_or(0)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of all pages that are held.
    pub fn bytes(&self) -> usize {
        let pages = self.layers.iter().flat_map(|layer| layer.pages.iter().flatten());
        pages.map(|page| size_of_val(&*page.keys) + size_of_val(&*page.values)).sum()
    }

    /// Appends rows `rows` of keys and values `[.., kv_heads * width]` to a layer that holds `past` positions.
    ///
    /// # Errors
    /// The layer is not there, holds another number of positions, or other heads.
    pub(crate) fn append<K: Element, V: Element>(
        &mut self,
        layer: usize,
        past: usize,
        [kv_heads, width]: [usize; 2],
        (keys, values): (&Prepared<K>, &Prepared<V>),
        rows: Range<usize>,
    ) -> Result<()> {
        let count = planes(self.party);
        let Some(layer) = self.layers.get_mut(layer) else {
            return Err(Error::Misuse(format!("a cache of {} layers has no layer {layer}", self.layers.len())));
        };
        let shape = Shape { kv_heads, width, lanes: [size_of::<K>(), size_of::<V>()] };
        if layer.len != past || layer.shape.is_some_and(|own| own != shape) {
            let what = format!("a cache of {} positions of {:?} meets {past} of {shape:?}", layer.len, layer.shape);
            return Err(Error::Misuse(what));
        }
        layer.shape = Some(shape);
        let model = kv_heads * width;
        for row in rows {
            let at = layer.len % PAGE;
            if at == 0 {
                layer.pages.push(Some(Page::new(count, shape)));
            }
            let Some(Some(page)) = layer.pages.last_mut() else {
                return Err(Error::Misuse("the page of the last position was dropped".into()));
            };
            let Page { keys: key_page, values: value_page } = page;
            let (key_page, value_page): (&mut [K], &mut [V]) =
                (bytemuck::cast_slice_mut(key_page), bytemuck::cast_slice_mut(value_page));
            let halves = key_page.chunks_exact_mut(model * PAGE).zip(value_page.chunks_exact_mut(model * PAGE));
            for ((key_page, value_page), (keys, values)) in halves.zip(keys.planes().iter().zip(values.planes())) {
                let (keys, values) = (&keys[row * model..][..model], &values[row * model..][..model]);
                key_page.chunks_exact_mut(PAGE).zip(keys).for_each(|(column, &key)| column[at] = key);
                let heads = value_page.chunks_exact_mut(PAGE * width).zip(values.chunks_exact(width));
                heads.for_each(|(page, values)| page[at * width..][..width].copy_from_slice(values));
            }
            layer.len += 1;
        }
        Ok(())
    }

    /// Drops the pages of a layer that no query after its last position sees.
    pub(crate) fn forget(&mut self, layer: usize, heads: &CausalHeads) {
        let Some(layer) = self.layers.get_mut(layer) else { return };
        let [global, window] = heads.visible(layer.len);
        let pages = layer.pages.iter_mut().enumerate();
        for (_, page) in pages.filter(|(i, _)| i * PAGE >= global.end && (i + 1) * PAGE <= window.start) {
            *page = None;
        }
    }

    /// The keys of a head in a page that is held: `[width, PAGE]`.
    pub(crate) fn keys<K: Element>(&self, layer: usize, page: usize, head: usize) -> Operand<'_, K> {
        self.operand(layer, page, head, |page| &page.keys)
    }

    /// The values of a head in a page that is held: `[PAGE, width]`.
    pub(crate) fn values<V: Element>(&self, layer: usize, page: usize, head: usize) -> Operand<'_, V> {
        self.operand(layer, page, head, |page| &page.values)
    }

    fn operand<E: Element>(
        &self,
        layer: usize,
        page: usize,
        head: usize,
        lanes: impl Fn(&Page) -> &[u64],
    ) -> Operand<'_, E> {
        let layer = &self.layers[layer];
        let shape = layer.shape.expect("a layer that was appended to has a shape");
        let page = layer.pages[page].as_ref().expect("a page in sight is held");
        let (lanes, each) = (bytemuck::cast_slice::<u64, E>(lanes(page)), shape.width * PAGE);
        let plane = |at: usize| {
            let from = (at * shape.kv_heads + head) * each;
            if at < planes(self.party) { &lanes[from..from + each] } else { &[] }
        };
        Operand { planes: [Plane::Held(plane(0)), Plane::Held(plane(1))] }
    }
}

/// Part of a hull that lies in one page.
pub(crate) struct Piece {
    /// Number of the page.
    pub page: usize,
    /// Where in it.
    pub at: Range<usize>,
    /// Position in the hull at which it begins.
    pub column: usize,
}

/// The pieces of a hull, in order.
pub(crate) fn pieces(hull: &Hull) -> impl Iterator<Item = Piece> {
    hull.iter()
        .scan(0, |columns, range| {
            let first = *columns;
            *columns += range.len();
            let pages =
                range.start / PAGE..if range.is_empty() { range.start / PAGE } else { (range.end - 1) / PAGE + 1 };
            Some(pages.map(move |page| {
                let (from, to) = (range.start.max(page * PAGE), range.end.min((page + 1) * PAGE));
                Piece { page, at: from - page * PAGE..to - page * PAGE, column: first + from - range.start }
            }))
        })
        .flatten()
}

impl Page {
    fn new(planes: usize, Shape { kv_heads, width, lanes }: Shape) -> Page {
        let [keys, values] = lanes.map(|lane| {
            let bytes = planes * kv_heads * width * PAGE * lane;
            vec![0u64; bytes / size_of::<u64>()].into_boxed_slice()
        });
        Page { keys, values }
    }
}

#[cfg(test)]
mod tests {
    use tercet_ring::Tensor;

    use super::*;

    fn lanes_of<E>(plane: Plane<'_, E>) -> &[E] {
        match plane {
            Plane::Held(plane) => plane,
            Plane::Drawn(_) => panic!("a page is held"),
        }
    }
    use crate::masked::Masked;

    fn heads(window: Option<usize>, global: usize) -> CausalHeads {
        CausalHeads { heads: 2, kv_heads: 2, rotary: None, window, global }
    }

    /// Positions `from..` as rows of two heads of three columns: `100 position + column`, and ten thousand more for values.
    fn rows(party: PartyId, from: usize, count: usize) -> (Prepared<u32>, Prepared<u64>) {
        let row = |i: usize| ((from + i / 6) * 100 + i % 6) as u64;
        let plane = |more: u64| -> Vec<u64> { (0..count * 6).map(|i| row(i) + more).collect() };
        let narrow = |plane: Vec<u64>| Tensor::new([count, 6], plane.into_iter().map(|v| v as u32).collect::<Vec<_>>());
        let wide = |plane: Vec<u64>| Tensor::new([count, 6], plane);
        // P1 keeps the first less the second, P2 the second and the first.
        let keys = Masked::new(party, 32, [narrow(plane(7)), narrow(vec![7; count * 6])]);
        let values = Masked::new(party, 40, [wide(plane(10_007)), wide(vec![7; count * 6])]);
        (Prepared::new(&keys), Prepared::new(&values))
    }

    #[test]
    fn pages_give_back_what_was_appended() {
        for (party, held) in [(PartyId::P1, 1), (PartyId::P2, 2)] {
            let mut cache = Cache::new(party, 1);
            assert!(cache.is_empty() && cache.bytes() == 0);
            let mut len = 0;
            for count in [5, 1, 27, 33, 1, 40] {
                let (keys, values) = rows(party, len, count);
                cache.append(0, len, [2, 3], (&keys, &values), 0..count).unwrap();
                len += count;
                assert_eq!(cache.len(), len);
                assert_eq!(cache.bytes(), len.div_ceil(PAGE) * PAGE * held * 6 * (4 + 8));
            }
            let plane = held - 1;
            let of = if party == PartyId::P1 { 0 } else { 7 };
            let mut columns = Vec::new();
            for Piece { page, at, column } in pieces(&[1..40, 63..len]) {
                assert_eq!(column, columns.len());
                let (keys, values) = (cache.keys::<u32>(0, page, 1), cache.values::<u64>(0, page, 0));
                for position in at {
                    for c in 0..3 {
                        let expected = (page * PAGE + position) * 100 + c + of;
                        assert_eq!(lanes_of(keys.planes[plane])[c * PAGE + position] as usize, expected + 3);
                        assert_eq!(lanes_of(values.planes[plane])[position * 3 + c] as usize, expected + 10_000);
                    }
                    columns.push(page * PAGE + position);
                }
                assert_eq!(lanes_of(values.planes[1]).is_empty(), party == PartyId::P1);
            }
            assert_eq!(columns, (1..40).chain(63..len).collect::<Vec<_>>());
        }
    }

    #[test]
    fn pages_behind_the_window_are_dropped() {
        let mut cache = Cache::new(PartyId::P1, 1);
        let heads = heads(Some(40), 3);
        assert_eq!(pieces(&[0..0, 5..5]).count(), 0);
        for position in 0..300 {
            let (keys, values) = rows(PartyId::P1, position, 1);
            cache.append(0, position, [2, 3], (&keys, &values), 0..1).unwrap();
            cache.forget(0, &heads);
            let held = cache.layers[0].pages.iter().flatten().count();
            assert!(held <= 1 + 40 / PAGE + 2, "{held} pages at {position}");
            // What the next query sees is held.
            let [global, window] = heads.visible(position + 1);
            for Piece { page, .. } in pieces(&[global, window.start..position + 1]) {
                assert_eq!(lanes_of(cache.keys::<u32>(0, page, 1).planes[0]).len(), 3 * PAGE);
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut cache = Cache::new(PartyId::P2, 1);
        let (keys, values) = rows(PartyId::P2, 0, 2);
        assert!(cache.append(1, 0, [2, 3], (&keys, &values), 0..2).is_err(), "no such layer");
        assert!(cache.append(0, 1, [2, 3], (&keys, &values), 0..2).is_err(), "nothing is there yet");
        cache.append(0, 0, [2, 3], (&keys, &values), 0..2).unwrap();
        assert!(cache.append(0, 2, [3, 2], (&keys, &values), 0..2).is_err(), "other heads");
        assert!(cache.append(0, 2, [2, 3], (&keys, &keys), 0..2).is_err(), "other lanes");
    }
}
