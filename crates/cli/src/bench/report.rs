//! A record as a page: tables, and plots of where time and bytes go.

use std::time::Duration;

use tercet_core::Cost;
use tercet_net::LinkShape;

use super::record::{Case, Key, Layer, Record};
use super::table::{prediction, seconds};
use crate::chart::{Axis, Bar, Line, Stroke, largest, legend, plot, stacked_bars};
use crate::page::Page;
use crate::screen::bytes;

/// The links between the nodes that carry a session, in the order of the columns.
const LINKS: [(usize, usize); 4] = [(0, 1), (0, 2), (1, 2), (2, 1)];
const LINK_NAMES: [&str; 4] = ["P0 → P1", "P0 → P2", "P1 → P2", "P2 → P1"];
const PROCESSES: [&str; 4] = ["client", "P0", "P1", "P2"];

/// The page of a record: one file, complete in itself.
pub(crate) fn page(record: &Record) -> String {
    let mut page = Page::new("Tercet: whole models between three nodes");
    let machine = &record.machine;
    page.paragraph(&format!(
        "{}, {}, on {} ({} cores, {}, {}), {}. Three node processes and their client share this machine.",
        record.program,
        record.date,
        machine.processor,
        machine.cores,
        bytes(machine.memory_bytes),
        machine.instructions,
        machine.kernel
    ));
    let cases = &record.cases;
    latency(&mut page, cases);
    kinds(&mut page, cases);
    layers(&mut page, cases);
    planned(&mut page, cases);
    links(&mut page, cases);
    traffic(&mut page, cases);
    processes(&mut page, cases);
    page.finish()
}

fn bars(cases: &[Case], values: impl Fn(&Case) -> Vec<f64>) -> Vec<Bar> {
    cases.iter().map(|case| Bar { label: case.key.to_string(), values: values(case) }).collect()
}

/// Bars on one scale, the longest of which takes the whole width.
fn stacked(bars: &[Bar], series: &[&str], show: impl Fn(f64) -> String) -> String {
    stacked_bars(bars, series, largest(bars), show)
}

fn latency(page: &mut Page, cases: &[Case]) {
    page.section("Latency");
    page.paragraph(
        "From the client's call to the opened answer, one request after another on warm nodes; bars are medians.",
    );
    page.drawing(&stacked(&bars(cases, |case| vec![case.latency.median]), &["median"], seconds));
    let rows = cases.iter().map(|case| {
        let error = case.error.map_or([const { String::new() }; 3], |error| {
            [format!("{:.1e}", error.max), format!("{:.1e}", error.mean), format!("{:.7}", error.cosine)]
        });
        let mut cells = vec![case.key.to_string(), case.runs.to_string()];
        let spread = case.latency;
        cells.extend([spread.median, spread.p95, spread.min, spread.max, case.session.median].map(seconds));
        cells.push(format!("{:.2}", case.throughput));
        cells.extend(error);
        cells
    });
    let head = [
        "case",
        "runs",
        "median",
        "p95",
        "fastest",
        "slowest",
        "session",
        "inputs a second",
        "largest error",
        "mean error",
        "cosine",
    ];
    page.table(&head, &rows.collect::<Vec<_>>());
}

fn kinds(page: &mut Page, cases: &[Case]) {
    page.section("Time by kind of work");
    page.paragraph("Of the session's thread at each node, a run.");
    let Some(first) = cases.first() else { return };
    let names: Vec<&str> = first.kinds.iter().map(String::as_str).collect();
    let mut all = Vec::new();
    for case in cases.iter().filter(|case| case.kinds == first.kinds) {
        for (party, work) in case.work_ms.iter().enumerate() {
            all.push(Bar { label: format!("{} at P{party}", case.key), values: work.clone() });
        }
    }
    page.drawing(&legend(&names));
    page.drawing(&stacked(&all, &names, milliseconds));
}

fn layers(page: &mut Page, cases: &[Case]) {
    let mut begun = false;
    for case in cases.iter().filter(|case| !case.layers.is_empty()) {
        if !begun {
            page.section("Time by layer");
            page.paragraph("Of the session's thread at P1, who waits for both others.");
            begun = true;
        }
        page.part(&case.key.to_string());
        let names: Vec<&str> = case.kinds.iter().map(String::as_str).collect();
        let bar = |layer: &Layer| Bar { label: layer.name.clone(), values: layer.work_ms[1].clone() };
        let bars: Vec<Bar> = case.layers.iter().map(bar).collect();
        page.drawing(&legend(&names));
        page.drawing(&stacked(&bars, &names, milliseconds));
    }
}

fn planned(page: &mut Page, cases: &[Case]) {
    page.section("Predicted and measured");
    let agree = cases.iter().filter(|case| case.as_planned()).count();
    page.paragraph(&format!(
        "Rounds, frames and bytes are known before a run: {agree} of {} cases cost exactly what was planned.",
        cases.len()
    ));
    let timed = cases.iter().any(|case| case.predicted_seconds.is_some());
    let rows = cases.iter().map(|case| {
        let (planned, cost) = (&case.planned, &case.cost);
        let frames = |cost: &Cost| cost.frames.iter().flatten().sum::<u64>();
        let pairs = [
            (planned.rounds, cost.rounds),
            (frames(planned), frames(cost)),
            (planned.total_bytes(), cost.total_bytes()),
        ];
        let mut cells = vec![case.key.to_string()];
        cells.extend(pairs.into_iter().flat_map(|(planned, cost)| [planned.to_string(), cost.to_string()]));
        cells.push(if case.as_planned() { "yes" } else { "NO" }.into());
        if timed {
            cells.extend(prediction(case));
        }
        cells
    });
    let mut head = vec!["case", "rounds planned", "measured", "frames planned", "measured"];
    head.extend(["bytes planned", "measured", "equal"]);
    if timed {
        head.extend(["time predicted", "off by"]);
    }
    page.table(&head, &rows.collect::<Vec<_>>());
    let pair = |case: &Case| {
        let bar = |what: &str, time: f64| Bar { label: format!("{}, {what}", case.key), values: vec![time] };
        Some([bar("predicted", case.predicted_seconds?), bar("measured", case.latency.median)])
    };
    let pairs: Vec<Bar> = cases.iter().filter_map(pair).flatten().collect();
    if timed {
        page.drawing(&stacked(&pairs, &["time"], seconds));
    }
}

/// What a link alone makes of a session: rounds one after another, and the bytes of the busiest direction.
fn on_the_link(case: &Case) -> Option<(LinkShape, f64, f64)> {
    let shape: LinkShape = case.key.link.parse().ok()?;
    let busiest = case.cost.bytes.iter().flatten().copied().max().unwrap_or(0);
    let busy = shape.busy(usize::try_from(busiest).ok()?).as_secs_f64();
    Some((shape, case.cost.rounds as f64 * shape.delay.as_secs_f64(), busy))
}

/// Cases that differ in their link alone, where there are several links.
fn families(cases: &[Case]) -> Vec<Vec<&Case>> {
    let of = |key: &Key| Key { link: String::new(), ..key.clone() };
    let mut families: Vec<Vec<&Case>> = Vec::new();
    for case in cases {
        match families.iter_mut().find(|family| of(&family[0].key) == of(&case.key)) {
            Some(family) => family.push(case),
            None => families.push(vec![case]),
        }
    }
    families.retain(|family| family.len() > 1);
    families
}

fn links(page: &mut Page, cases: &[Case]) {
    let families = families(cases);
    if families.is_empty() {
        return;
    }
    page.section("Latency against delay and bandwidth");
    page.paragraph(
        "Of each median: rounds times the one-way delay, the bytes of the busiest direction over its bandwidth, and the rest, \
         which is computation and what does not overlap.",
    );
    let parts = ["rounds x delay", "bytes / bandwidth", "the rest"];
    page.drawing(&legend(&parts));
    for family in families {
        page.part(&Key { link: "none".into(), ..family[0].key.clone() }.to_string());
        let bar = |case: &&Case| {
            let (_, delay, busy) = on_the_link(case)?;
            let label = if case.key.link == "none" { "loopback".into() } else { case.key.link.clone() };
            Some(Bar { label, values: vec![delay, busy, (case.latency.median - delay - busy).max(0.0)] })
        };
        let bars: Vec<Bar> = family.iter().filter_map(bar).collect();
        page.drawing(&stacked(&bars, &parts, seconds));
        let delay = |at: f64| format!("{at} ms");
        let across = Axis { label: "one-way delay", logarithmic: false, show: delay };
        against(page, &family, |shape| Some(shape.delay.as_secs_f64() * 1e3), &across);
        let rate = |bits: f64| bytes(bits as u64).replace('B', "bit/s");
        let across = Axis { label: "bandwidth each way", logarithmic: true, show: rate };
        against(page, &family, |shape| shape.bandwidth.map(|bits| bits as f64), &across);
    }
}

/// The latencies of a family over one property of its links, where that has several values.
fn against(page: &mut Page, family: &[&Case], of: impl Fn(&LinkShape) -> Option<f64>, across: &Axis<'_>) {
    let point = |case: &&Case| {
        let (shape, delay, busy) = on_the_link(case)?;
        Some([of(&shape)?, case.latency.median, delay + busy])
    };
    let mut points: Vec<[f64; 3]> = family.iter().filter_map(point).collect();
    points.sort_by(|a, b| a[0].total_cmp(&b[0]));
    if points.first().map(|point| point[0]) == points.last().map(|point| point[0]) {
        return;
    }
    let column = |column: usize| points.iter().map(|point| [point[0], point[column]]).collect();
    let measured = Line { name: "measured".into(), stroke: Stroke::Solid, points: column(1) };
    let floor = Line { name: "what the link alone takes".into(), stroke: Stroke::Dashed, points: column(2) };
    let time = Axis { label: "median latency", logarithmic: false, show: seconds };
    page.drawing(&plot(&[measured, floor], across, &time));
}

fn traffic(page: &mut Page, cases: &[Case]) {
    page.section("Bytes on the links");
    page.paragraph("Of a session between the nodes, frame headers included; on the wire come TLS, QUIC and UDP.");
    let values = |case: &Case| LINKS.map(|(from, to)| case.cost.bytes[from][to] as f64).to_vec();
    let show = |count: f64| bytes(count as u64);
    page.drawing(&legend(&LINK_NAMES));
    page.drawing(&stacked(&bars(cases, values), &LINK_NAMES, show));
    let rows = cases.iter().map(|case| {
        let mut cells = vec![case.key.to_string()];
        cells.extend(LINKS.map(|(from, to)| bytes(case.cost.bytes[from][to])));
        cells.push(bytes(case.cost.total_bytes()));
        cells.push(format!("{:.0} %", 100.0 * case.helper_share()));
        cells.push(bytes(case.wire_bytes.iter().flatten().sum()));
        cells.extend([case.client_sent, case.client_received].map(|all| bytes(all.iter().sum())));
        cells
    });
    let head = ["case"].into_iter().chain(LINK_NAMES);
    let head = head.chain(["in all", "from the helper", "on the wire", "from the client", "to the client"]);
    page.table(&head.collect::<Vec<_>>(), &rows.collect::<Vec<_>>());
}

fn processes(page: &mut Page, cases: &[Case]) {
    page.section("Processor time and memory");
    page.paragraph("Processor seconds of all threads, a run.");
    let cpu = bars(cases, |case| case.processes.iter().map(|process| process.cpu_seconds).collect());
    page.drawing(&legend(&PROCESSES));
    page.drawing(&stacked(&cpu, &PROCESSES, seconds));
    page.paragraph(
        "The most memory that was resident at once, mapped weights included, and fresh pages mapped, a run.",
    );
    let rows = cases.iter().map(|case| {
        let mut cells = vec![case.key.to_string()];
        cells.extend(case.processes.iter().map(|process| bytes(process.peak_bytes)));
        cells.extend(case.processes[1..].iter().map(|process| format!("{:.0}", process.page_faults)));
        cells
    });
    let head = ["case", "peak client", "P0", "P1", "P2", "fresh pages P0", "P1", "P2"];
    page.table(&head, &rows.collect::<Vec<_>>());
}

fn milliseconds(count: f64) -> String {
    match count {
        count if count < 9.95 => format!("{count:.1} ms"),
        count => crate::screen::time(Duration::from_secs_f64(count / 1e3)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::record::tests::example;

    /// The example over several links.
    fn several() -> Record {
        let mut record = example();
        for (link, median) in [("lan", 0.5), ("wan", 9.0), ("30ms,1gbit", 11.0)] {
            let mut case = record.cases[0].clone();
            case.key.link = link.into();
            case.latency.median = median;
            record.cases.push(case);
        }
        record
    }

    #[test]
    fn a_page_has_every_case_and_no_plot_of_nothing() {
        let one = page(&example());
        for section in
            ["Latency", "Time by kind of work", "Time by layer", "Predicted and measured", "Bytes on the links"]
        {
            assert!(one.contains(&format!("<h2>{section}</h2>")), "{section}");
        }
        assert!(!one.contains("against delay"), "there is one link only");
        assert!(one.contains("1 of 1 cases cost exactly what was planned") && !one.contains("NaN"));
        let several = page(&several());
        assert!(
            several.contains("against delay")
                && several.contains("minilm 1 x 32 over wan")
                && several.matches("<polyline").count() == 4
        );
        let nothing = page(&Record { cases: Vec::new(), ..example() });
        assert!(nothing.contains("0 of 0"));
    }

    #[test]
    fn a_cost_that_was_not_planned_shows() {
        let mut record = example();
        record.cases[0].cost.rounds += 1;
        assert!(page(&record).contains("<td>NO</td>"));
        record.cases[0].predicted_seconds = Some(0.33);
        assert!(page(&record).contains("+10 %"));
    }

    #[test]
    fn the_link_alone_takes_its_rounds_and_its_bytes() {
        let record = several();
        let (_, delay, busy) = on_the_link(&record.cases[2]).unwrap();
        assert!((delay - 280.0 * 0.02).abs() < 1e-9);
        assert!((busy - 30e6 * 8.0 / 200e6).abs() < 1e-9, "the busiest direction carries 30 MB");
        assert_eq!(families(&record.cases).len(), 1);
        assert!(families(&example().cases).is_empty());
    }
}
