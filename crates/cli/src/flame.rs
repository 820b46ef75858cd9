//! Where the time of requests went, as a page: flame-style frames, bars by layer and operation, tables by primitive.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use tercet_client::{PartyId, RequestUsage, Work, WorkEntry, WorkProfile};

use crate::chart::{Axis, Bar, Drawing, Line, Stroke, WIDTH, legend, plot, stacked_bars};
use crate::costs::largest;
use crate::page::Page;
use crate::plan::{By, group};
use crate::screen::bytes;

/// What a change of place or kind costs, its look at the clock included (`benches/benches/profile.rs`, Zen 4).
const CHANGE_NS: u64 = 55;
/// Height of a row of frames.
const ROW: f64 = 20.0;
/// What is left free between frames.
const GAP: f64 = 1.0;
/// Frames below this width are left out.
const NARROWEST: f64 = 0.1;
/// Frames below this width are drawn in the colour of what most of their time is, without a text.
const NARROW: f64 = 4.0;

/// Writes the page of these requests to a file.
pub(crate) fn write(path: &Path, model: &str, usage: &[RequestUsage]) -> Result<()> {
    std::fs::write(path, page(model, usage)).with_context(|| format!("cannot write {}", path.display()))
}

/// The page of requests that were asked for with their profiles.
pub(crate) fn page(model: &str, usage: &[RequestUsage]) -> String {
    let mut page = Page::new(&format!("Where the time went: {model}"));
    page.paragraph(
        "Each node's own account of one session. Widths are wall time of the session's thread; colours are kinds of work. \
         A frame takes its place beneath the one that it ran in; what is not covered below is the frame's own time. \
         Point at anything for its numbers.",
    );
    for used in usage {
        let Some(profiles) = &used.profiles else { continue };
        request(&mut page, used, profiles);
    }
    page.finish()
}

fn request(page: &mut Page, used: &RequestUsage, profiles: &[WorkProfile; 3]) {
    let session = profiles.iter().map(WorkProfile::wall_ns).max().unwrap_or(0);
    page.section(&format!(
        "{} x {} rows: a session of {}, {} rounds, {}",
        used.batch,
        used.rows,
        ns(session),
        used.rounds,
        bytes(used.total_bytes())
    ));
    let changes = profiles.iter().map(|profile| profile.changes).max().unwrap_or(0);
    page.paragraph(&format!(
        "Measured by {changes} looks at the clock at the busiest node, which at some {CHANGE_NS} ns each are {:.2} % of the session.",
        100.0 * changes.saturating_mul(CHANGE_NS) as f64 / session.max(1) as f64
    ));
    page.part("The three largest costs");
    page.numbered(&largest(profiles, 3).iter().map(|cost| (cost.what(), cost.mend())).collect::<Vec<_>>());
    let kinds = Work::ALL.map(Work::name);
    let title = |party: PartyId, profile: &WorkProfile| {
        let role = if party == PartyId::P0 { "the helper" } else { "an evaluator" };
        format!("{party}, {role}: {}", ns(profile.wall_ns()))
    };
    let parties = || PartyId::ALL.into_iter().zip(profiles);
    page.part("All layers together");
    page.drawing(&legend(&kinds));
    for (party, profile) in parties() {
        page.paragraph(&title(party, profile));
        page.drawing(&icicle(&Frame::tree(profile, |name| vec![group(name, By::Kind)]), session));
    }
    page.part("How far each node was");
    page.paragraph(
        "Each point is the beginning of an operation, from the beginning of that node's session on. The helper may be ahead of \
         the evaluators as far as the buffers of its links allow; where its line meets theirs, they wait for it.",
    );
    page.drawing(&progress(profiles));
    page.part("Layer by layer");
    page.drawing(&legend(&kinds));
    for (party, profile) in parties() {
        page.paragraph(&title(party, profile));
        page.drawing(&icicle(&Frame::tree(profile, by_layer), session));
    }
    for (heading, by) in [("Layers by kind of work", By::Layer), ("Operations by kind of work", By::Kind)] {
        page.part(heading);
        page.drawing(&legend(&kinds));
        let bars = profiles.each_ref().map(|profile| bars(profile, by));
        let full = bars.iter().flatten().map(Bar::sum).fold(0.0, f64::max);
        for ((party, profile), bars) in parties().zip(&bars) {
            page.paragraph(&title(party, profile));
            page.drawing(&stacked_bars(bars, &kinds, full, |value| ns(value as u64)));
        }
    }
    page.part("Primitives, each without those within it");
    let head: Vec<&str> =
        ["primitive", "times", "rounds", "exchanges", "sent", "time", "share"].into_iter().chain(kinds).collect();
    for (party, profile) in parties() {
        page.paragraph(&title(party, profile));
        page.table(&head, &table(profile));
    }
}

/// A bar for each group of operations.
fn bars(profile: &WorkProfile, by: By) -> Vec<Bar> {
    let frames = Frame::tree(profile, |name| vec![group(name, by)]);
    let bar = |frame: &Frame| Bar { label: frame.name.clone(), values: frame.all.map(|ns| ns as f64).into() };
    frames.iter().skip(1).filter(|frame| frame.parent == 0).map(bar).collect()
}

/// When each node began each operation of the model.
fn progress(profiles: &[WorkProfile; 3]) -> String {
    let line = |(party, profile): (PartyId, &WorkProfile)| {
        let operations = profile.entries.iter().skip(1).filter(|entry| entry.parent == 0).enumerate();
        let points = operations.map(|(number, entry)| [entry.first_ns as f64 / 1e9, number as f64 + 1.0]).collect();
        let stroke = if party == PartyId::P0 { Stroke::Dashed } else { Stroke::Solid };
        Line { name: party.to_string(), stroke, points }
    };
    let lines: Vec<Line> = PartyId::ALL.into_iter().zip(profiles).map(line).collect();
    let x = Axis { label: "seconds", logarithmic: false, show: |value| format!("{value:.3}") };
    let y = Axis { label: "operation", logarithmic: false, show: |value| format!("{value:.0}") };
    plot(&lines, &x, &y)
}

/// A layer, and the operation within it.
fn by_layer(name: &str) -> Vec<String> {
    let layer = group(name, By::Layer);
    let rest = name.strip_prefix(&layer).map_or("", |rest| rest.trim_start_matches('/'));
    let rest = (!rest.is_empty()).then(|| rest.to_owned());
    [layer].into_iter().chain(rest).collect()
}

/// A span of time as people read it.
pub(crate) fn ns(count: u64) -> String {
    match count {
        0..10_000 => format!("{:.1} µs", count as f64 / 1e3),
        10_000..10_000_000 => format!("{:.2} ms", count as f64 / 1e6),
        _ => crate::screen::time(Duration::from_nanos(count)),
    }
}

/// A frame: entries of the profile that the page takes together.
struct Frame {
    name: String,
    parent: usize,
    /// Wall time by kind, all that ran within it included.
    all: [u64; Work::COUNT],
    visits: u64,
    rounds: u64,
    sent: u64,
}

impl Frame {
    /// The frames of a profile, parents first. `place` says beneath which frames an operation of the model stands, itself
    /// the last.
    fn tree(profile: &WorkProfile, place: impl Fn(&str) -> Vec<String>) -> Vec<Frame> {
        let mut frames: Vec<Frame> = Vec::new();
        let mut known: BTreeMap<(usize, String), usize> = BTreeMap::new();
        let mut frame_of: Vec<usize> = Vec::with_capacity(profile.entries.len());
        for (index, entry) in profile.entries.iter().enumerate() {
            let path = match (index, entry.parent) {
                (0, _) => vec!["session".to_owned()],
                (_, 0) => place(&entry.name),
                _ => vec![entry.name.clone()],
            };
            let mut at = frame_of.get(entry.parent as usize).copied().unwrap_or(0);
            for name in path {
                at = *known.entry((at, name.clone())).or_insert_with(|| {
                    let empty = Frame { name, parent: at, all: [0; Work::COUNT], visits: 0, rounds: 0, sent: 0 };
                    frames.push(empty);
                    frames.len() - 1
                });
            }
            let frame = &mut frames[at];
            add(&mut frame.all, &entry.wall_ns);
            frame.visits += entry.visits;
            frame.rounds += entry.rounds;
            frame.sent += entry.sent.iter().sum::<u64>();
            frame_of.push(at);
        }
        for index in (1..frames.len()).rev() {
            let Frame { parent, all, rounds, sent, .. } = frames[index];
            add(&mut frames[parent].all, &all);
            frames[parent].rounds += rounds;
            frames[parent].sent += sent;
        }
        frames
    }

    fn total(&self) -> u64 {
        self.all.iter().sum()
    }

    /// All of it, in lines.
    fn tip(&self, session: u64) -> String {
        let share = 100.0 * self.total() as f64 / session.max(1) as f64;
        let mut tip = format!("{}\n{} ({share:.1} %)", self.name, ns(self.total()));
        if self.visits > 1 {
            tip += &format!(", {} times", self.visits);
        }
        if self.rounds > 0 {
            tip += &format!("\n{} rounds", self.rounds);
        }
        if self.sent > 0 {
            tip += &format!("\n{} sent", bytes(self.sent));
        }
        for (kind, time) in Work::ALL.iter().zip(self.all).filter(|(_, time)| *time > 0) {
            tip += &format!("\n{}: {}", kind.name(), ns(time));
        }
        tip
    }
}

fn add(sum: &mut [u64; Work::COUNT], more: &[u64; Work::COUNT]) {
    sum.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
}

/// Frames beneath one another, on a scale on which `session` takes the whole width.
fn icicle(frames: &[Frame], session: u64) -> String {
    // Where each frame begins, how deep it stands, and where its next child begins.
    let mut places: Vec<(f64, usize, f64)> = Vec::with_capacity(frames.len());
    let unit = WIDTH / session.max(1) as f64;
    for (index, frame) in frames.iter().enumerate() {
        let (x, depth) = match places.get_mut(frame.parent) {
            Some((_, depth, next)) if index > 0 => {
                let x = *next;
                *next += frame.total() as f64 * unit;
                (x, *depth + 1)
            }
            _ => (0.0, 0),
        };
        places.push((x, depth, x));
    }
    let wide = |frame: &Frame| frame.total() as f64 * unit >= NARROWEST;
    let seen = || frames.iter().zip(&places).filter(|(frame, _)| wide(frame));
    let deepest = seen().map(|(_, (_, depth, _))| *depth).max().unwrap_or(0);
    let mut drawing = Drawing::new(ROW * (deepest + 1) as f64);
    for (frame, (x, depth, _)) in seen() {
        let (width, y, tip) = (frame.total() as f64 * unit, ROW * *depth as f64, frame.tip(session));
        if width < NARROW {
            let most = (0..Work::COUNT).max_by_key(|kind| frame.all[*kind]).unwrap_or(0);
            drawing.cell([*x, y, width, ROW - GAP], most, &tip);
            continue;
        }
        let mut from = *x;
        for (kind, time) in frame.all.iter().enumerate() {
            let part = (width - GAP) * *time as f64 / frame.total() as f64;
            if part >= NARROWEST {
                drawing.cell([from, y, part, ROW - GAP], kind, &tip);
            }
            from += part;
        }
        drawing.fitted(x + 4.0, y + 14.0, width - 6.0, "inside", &frame.name);
    }
    drawing.finish()
}

/// One row a primitive: what happened in scopes of its name alone, wherever they stood; the largest first.
fn table(profile: &WorkProfile) -> Vec<Vec<String>> {
    let all = profile.wall_ns().max(1) as f64;
    let mut rows = primitives(profile);
    rows.sort_by_key(|(_, sum)| std::cmp::Reverse(sum.own_ns()));
    let cells = |(name, sum): (&str, WorkEntry)| {
        let share = format!("{:.1} %", 100.0 * sum.own_ns() as f64 / all);
        let sent = bytes(sum.sent.iter().sum());
        let numbers = [sum.visits, sum.rounds, sum.exchanges].map(|count| count.to_string());
        let head = [name.to_owned()].into_iter().chain(numbers).chain([sent, ns(sum.own_ns()), share]);
        head.chain(sum.wall_ns.map(|time| if time == 0 { "–".into() } else { ns(time) })).collect()
    };
    rows.into_iter().map(cells).collect()
}

/// The primitive that an entry counts to: the name of its scope; what an operation does outside of any is its own.
pub(crate) fn primitive(index: usize, entry: &WorkEntry) -> &str {
    match (index, entry.parent) {
        (0, _) => "before and after the model",
        (_, 0) => "the operations themselves",
        _ => &entry.name,
    }
}

/// Sums by primitive.
fn primitives(profile: &WorkProfile) -> Vec<(&str, WorkEntry)> {
    let mut sums: BTreeMap<&str, WorkEntry> = BTreeMap::new();
    for (index, entry) in profile.entries.iter().enumerate() {
        let sum = sums.entry(primitive(index, entry)).or_default();
        add(&mut sum.wall_ns, &entry.wall_ns);
        sum.visits += entry.visits;
        sum.rounds += entry.rounds;
        sum.exchanges += entry.exchanges;
        sum.sent.iter_mut().zip(entry.sent).for_each(|(sum, more)| *sum += more);
    }
    sums.into_iter().collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Two layers of two operations, with scopes in one of them.
    pub(crate) fn profile() -> WorkProfile {
        let entry = |name: &str, parent, wall_ns| WorkEntry {
            name: name.into(),
            parent,
            wall_ns,
            visits: 1,
            rounds: 1,
            exchanges: 2,
            sent: [0, 10, 20],
            ..WorkEntry::default()
        };
        WorkProfile {
            changes: 100,
            entries: vec![
                entry("", 0, [1000, 0, 0, 0, 0, 0, 0]),
                entry("layer0/up", 0, [0, 2_000_000, 0, 0, 0, 0, 0]),
                entry("layer0/act", 0, [3_000_000, 0, 0, 0, 0, 0, 0]),
                entry("compare", 2, [0, 0, 4_000_000, 0, 0, 0, 0]),
                entry("and", 3, [0, 0, 0, 0, 0, 5_000_000, 0]),
                entry("layer1/up", 0, [0, 7_000_000, 0, 0, 0, 0, 0]),
                entry("layer1/act", 0, [0; 7]),
                entry("compare", 6, [0, 0, 0, 0, 0, 0, 8_000_000]),
            ],
        }
    }

    #[test]
    fn frames_add_up_however_they_are_grouped() {
        let profile = profile();
        let kinds = Frame::tree(&profile, |name| vec![group(name, By::Kind)]);
        let shown: Vec<(&str, usize, u64)> = kinds.iter().map(|f| (f.name.as_str(), f.parent, f.total())).collect();
        let expected = [
            ("session", 0, 29_001_000),
            ("layer/up", 0, 9_000_000),
            ("layer/act", 0, 20_000_000),
            ("compare", 2, 17_000_000),
            ("and", 3, 5_000_000),
        ];
        assert_eq!(shown, expected);
        assert_eq!((kinds[0].rounds, kinds[0].sent, kinds[3].visits), (8, 240, 2));
        let layers = Frame::tree(&profile, by_layer);
        let shown: Vec<(&str, usize)> = layers.iter().map(|f| (f.name.as_str(), f.parent)).collect();
        assert_eq!(shown[..4], [("session", 0), ("layer0", 0), ("up", 1), ("act", 1)]);
        assert_eq!(layers[0].all, kinds[0].all);
        assert_eq!(by_layer("pool"), ["pool"]);
    }

    #[test]
    fn tables_name_each_primitive_once() {
        let profile = profile();
        let rows = table(&profile);
        let names: Vec<&str> = rows.iter().map(|row| row[0].as_str()).collect();
        assert_eq!(names[..2], ["compare", "the operations themselves"]);
        assert_eq!(rows[0][1..7], ["2", "2", "4", "60 B", "12 ms", "41.4 %"]);
        assert_eq!(primitives(&profile).iter().map(|(_, sum)| sum.own_ns()).sum::<u64>(), profile.wall_ns());
    }

    #[test]
    fn a_page_has_everything_and_trusts_no_name() {
        let mut profile = profile();
        profile.entries[4].name = "<script>".into();
        let profiles = Some([profile.clone(), profile.clone(), profile]);
        let used = RequestUsage { batch: 1, rows: 32, rounds: 280, profiles, ..RequestUsage::default() };
        let page = page("sentences", &[used.clone(), RequestUsage { profiles: None, ..used }]);
        assert_eq!(page.matches("<h2>").count(), 1, "the second has no profile");
        assert_eq!(page.matches("<script>").count(), 1);
        for words in ["The three largest costs", "All layers together", "Primitives", "280 rounds", "P2, an evaluator"]
        {
            assert!(page.contains(words), "{words}");
        }
        assert_eq!(page.matches("<li>").count(), 3);
    }

    #[test]
    fn a_frame_lies_within_the_one_above_it() {
        let drawn = icicle(&Frame::tree(&profile(), by_layer), 29_001_000);
        let number = |cell: &str, name: &str| -> f64 {
            let from = cell.find(&format!(" {name}=\"")).unwrap() + name.len() + 3;
            cell[from..].split('"').next().unwrap().parse().unwrap()
        };
        let ends = drawn.lines().filter(|line| line.starts_with("<rect")).map(|c| number(c, "x") + number(c, "width"));
        assert!(ends.fold(0.0, f64::max) <= WIDTH + 0.02);
        assert!(drawn.contains("viewBox=\"0 0 1100 100\""), "session, layer, operation and two scopes");
    }
}
