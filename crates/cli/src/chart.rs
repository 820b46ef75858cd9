//! Drawings for a [`crate::page::Page`]: stacked bars, lines and points over axes, and the shapes that they are made of.

use std::fmt::Write;

use crate::page::escape;

/// Width of every drawing, in its own units; a page scales it to its own width.
pub(crate) const WIDTH: f64 = 1100.0;

/// What one letter of the font takes, about.
const LETTER: f64 = 6.1;

/// A drawing in the making: shapes on a plane whose y grows downwards.
pub(crate) struct Drawing {
    height: f64,
    shapes: String,
}

impl Drawing {
    pub(crate) fn new(height: f64) -> Self {
        Self { height, shapes: String::new() }
    }

    /// A filled rectangle `[x, y, width, height]` in the colour of a series; `tip` is shown beside the pointer.
    pub(crate) fn cell(&mut self, [x, y, w, h]: [f64; 4], series: usize, tip: &str) {
        let (series, tip) = (series % 8, escape(tip));
        let _ = writeln!(
            self.shapes,
            "<rect class=\"cell s{series}\" x=\"{x:.2}\" y=\"{y:.2}\" width=\"{w:.2}\" height=\"{h:.2}\" data-tip=\"{tip}\"/>"
        );
    }

    /// A text whose `class` says where its anchor is (`end`, `middle`) and what it looks like (`quiet`, `inside`).
    pub(crate) fn text(&mut self, x: f64, y: f64, class: &str, text: &str) {
        let _ = writeln!(self.shapes, "<text class=\"{class}\" x=\"{x:.2}\" y=\"{y:.2}\">{}</text>", escape(text));
    }

    /// A text that is cut to this width, and left out where next to nothing of it would be left.
    pub(crate) fn fitted(&mut self, x: f64, y: f64, width: f64, class: &str, text: &str) {
        let room = (width / LETTER) as usize;
        match text.chars().count() {
            count if count <= room => self.text(x, y, class, text),
            _ if room < 4 => {}
            _ => self.text(x, y, class, &format!("{}…", text.chars().take(room - 1).collect::<String>())),
        }
    }

    /// A thin straight line.
    pub(crate) fn rule(&mut self, from: [f64; 2], to: [f64; 2]) {
        let ([x1, y1], [x2, y2]) = (from, to);
        let _ =
            writeln!(self.shapes, "<line class=\"rule\" x1=\"{x1:.2}\" y1=\"{y1:.2}\" x2=\"{x2:.2}\" y2=\"{y2:.2}\"/>");
    }

    fn polyline(&mut self, points: &[[f64; 2]], series: usize, dashed: bool) {
        let dashed = if dashed { " dashed" } else { "" };
        let points: Vec<String> = points.iter().map(|[x, y]| format!("{x:.2},{y:.2}")).collect();
        let _ = writeln!(self.shapes, "<polyline class=\"l{}{dashed}\" points=\"{}\"/>", series % 8, points.join(" "));
    }

    fn point(&mut self, [x, y]: [f64; 2], series: usize, tip: &str) {
        let (series, tip) = (series % 8, escape(tip));
        let _ = writeln!(
            self.shapes,
            "<circle class=\"s{series}\" cx=\"{x:.2}\" cy=\"{y:.2}\" r=\"4\" data-tip=\"{tip}\"/>"
        );
    }

    /// The drawing as it stands in a page.
    pub(crate) fn finish(self) -> String {
        let Self { height, shapes } = self;
        format!("<svg viewBox=\"0 0 {WIDTH} {height:.0}\" role=\"img\">\n{shapes}</svg>\n")
    }
}

/// The colours of series and their names, in a line.
pub(crate) fn legend(names: &[&str]) -> String {
    let mut drawing = Drawing::new(20.0);
    let mut x = 0.0;
    for (series, name) in names.iter().enumerate() {
        drawing.cell([x, 4.0, 12.0, 12.0], series, name);
        drawing.text(x + 17.0, 14.0, "", name);
        x += 40.0 + LETTER * name.chars().count() as f64;
    }
    drawing.finish()
}

/// A horizontal bar: its label, and one value for each series.
pub(crate) struct Bar {
    pub(crate) label: String,
    pub(crate) values: Vec<f64>,
}

impl Bar {
    /// All its values together.
    pub(crate) fn sum(&self) -> f64 {
        self.values.iter().sum()
    }
}

/// The largest sum of some bars: the width of a drawing that is compared to no other.
pub(crate) fn largest(bars: &[Bar]) -> f64 {
    bars.iter().map(Bar::sum).fold(0.0, f64::max)
}

/// Bars of stacked values, each with its sum behind it. `full` is the sum that takes the whole width: give drawings that are
/// to be compared the same. `show` writes a value.
pub(crate) fn stacked_bars(bars: &[Bar], series: &[&str], full: f64, show: impl Fn(f64) -> String) -> String {
    const ROW: f64 = 18.0;
    let longest = bars.iter().map(|bar| bar.label.chars().count()).max().unwrap_or(0);
    let left = (LETTER * longest as f64 + 12.0).min(WIDTH / 3.0);
    let room = WIDTH - left - 90.0;
    let mut drawing = Drawing::new(ROW * bars.len() as f64 + 4.0);
    for (row, bar) in bars.iter().enumerate() {
        let y = ROW * row as f64 + 2.0;
        drawing.fitted(0.0, y + 12.0, left, "", &bar.label);
        let mut x = left;
        for (number, (value, name)) in bar.values.iter().zip(series).enumerate() {
            let width = room * value / full.max(f64::MIN_POSITIVE);
            if width >= 0.05 {
                drawing.cell([x, y, width, ROW - 4.0], number, &format!("{}\n{name}: {}", bar.label, show(*value)));
                x += width;
            }
        }
        drawing.text(x + 6.0, y + 12.0, "quiet", &show(bar.sum()));
    }
    drawing.finish()
}

/// One direction of a plot.
pub(crate) struct Axis<'a> {
    pub(crate) label: &'a str,
    /// Equal ratios take equal space; values must be positive.
    pub(crate) logarithmic: bool,
    /// Writes a value.
    pub(crate) show: fn(f64) -> String,
}

/// How the points of a line are drawn.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stroke {
    /// Points joined by a line.
    Solid,
    /// The same, dashed: for what was predicted, or a limit.
    Dashed,
    /// Points alone.
    Points,
}

/// A series of a plot.
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) stroke: Stroke,
    pub(crate) points: Vec<[f64; 2]>,
}

/// Lines and points over two axes, and a legend above them. Values that an axis cannot show are left out.
pub(crate) fn plot(lines: &[Line], x: &Axis<'_>, y: &Axis<'_>) -> String {
    const HEIGHT: f64 = 360.0;
    const LEFT: f64 = 80.0;
    const BOTTOM: f64 = 44.0;
    let shown = |point: &&[f64; 2]| {
        let fits = |value: f64, axis: &Axis<'_>| value.is_finite() && (!axis.logarithmic || value > 0.0);
        fits(point[0], x) && fits(point[1], y)
    };
    let values = |at: usize| lines.iter().flat_map(|line| &line.points).filter(shown).map(move |point| point[at]);
    let (across, up) = (Scale::over(values(0), x.logarithmic), Scale::over(values(1), y.logarithmic));
    let place = |point: &[f64; 2]| {
        let right = LEFT + across.part(point[0]) * (WIDTH - LEFT - 20.0);
        [right, HEIGHT - BOTTOM - up.part(point[1]) * (HEIGHT - BOTTOM - 12.0)]
    };
    let mut drawing = Drawing::new(HEIGHT);
    for tick in across.ticks() {
        let at = place(&[tick, up.low])[0];
        drawing.rule([at, 12.0], [at, HEIGHT - BOTTOM]);
        drawing.text(at, HEIGHT - BOTTOM + 16.0, "quiet middle", &(x.show)(tick));
    }
    for tick in up.ticks() {
        let at = place(&[across.low, tick])[1];
        drawing.rule([LEFT, at], [WIDTH - 20.0, at]);
        drawing.text(LEFT - 8.0, at + 4.0, "quiet end", &(y.show)(tick));
    }
    drawing.text((LEFT + WIDTH) / 2.0, HEIGHT - 6.0, "middle", x.label);
    drawing.text(LEFT, 9.0, "quiet", y.label);
    for (series, line) in lines.iter().enumerate() {
        let points: Vec<[f64; 2]> = line.points.iter().filter(shown).copied().collect();
        let places: Vec<[f64; 2]> = points.iter().map(place).collect();
        if line.stroke != Stroke::Points {
            drawing.polyline(&places, series, line.stroke == Stroke::Dashed);
        }
        for (point, at) in points.iter().zip(places) {
            let tip =
                format!("{}\n{}: {}\n{}: {}", line.name, x.label, (x.show)(point[0]), y.label, (y.show)(point[1]));
            drawing.point(at, series, &tip);
        }
    }
    let names: Vec<&str> = lines.iter().map(|line| line.name.as_str()).collect();
    format!("{}{}", legend(&names), drawing.finish())
}

/// The range of an axis.
struct Scale {
    low: f64,
    high: f64,
    logarithmic: bool,
}

impl Scale {
    /// From zero to a little above the largest value, or for logarithms from below the smallest.
    fn over(values: impl Iterator<Item = f64>, logarithmic: bool) -> Self {
        let (least, most) = values.fold((f64::INFINITY, 0f64), |(low, high), v| (low.min(v), high.max(v)));
        let (least, most) = if most > 0.0 && least.is_finite() { (least, most) } else { (1.0, 1.0) };
        match logarithmic {
            true => Self { low: least / 1.25, high: most * 1.25, logarithmic },
            false => Self { low: 0.0, high: most * 1.05, logarithmic },
        }
    }

    /// Where a value lies, from 0 to 1.
    fn part(&self, value: f64) -> f64 {
        let on = |v: f64| if self.logarithmic { v.ln() } else { v };
        (on(value) - on(self.low)) / (on(self.high) - on(self.low))
    }

    /// Round values within the range.
    fn ticks(&self) -> Vec<f64> {
        if self.logarithmic {
            let decades = self.low.log10().floor() as i32..=self.high.log10().ceil() as i32;
            let steps: &[f64] = if decades.clone().count() > 5 { &[1.0] } else { &[1.0, 2.0, 5.0] };
            let ticks = decades.flat_map(|decade| steps.iter().map(move |step| step * 10f64.powi(decade)));
            return ticks.filter(|tick| (self.low..=self.high).contains(tick)).collect();
        }
        let rough = self.high / 6.0;
        let decade = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|step| step * decade).into_iter().find(|step| *step >= rough);
        let step = step.unwrap_or(10.0 * decade);
        (0..).map(|n| f64::from(n) * step).take_while(|tick| *tick <= self.high).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_within_the_range() {
        let linear = Scale::over([0.2, 7.3].into_iter(), false);
        assert_eq!(linear.ticks(), [0.0, 2.0, 4.0, 6.0]);
        assert_eq!((linear.part(0.0), linear.part(linear.high)), (0.0, 1.0));
        let logarithmic = Scale::over([1.0, 90.0].into_iter(), true);
        assert_eq!(logarithmic.ticks(), [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0]);
        assert!((logarithmic.part(9.486) - 0.5).abs() < 1e-3);
        assert_eq!(Scale::over([].into_iter(), false).ticks().len(), 6, "of nothing");
    }

    #[test]
    fn bars_take_their_share_of_the_width() {
        let bar = |label: &str, values: [f64; 2]| Bar { label: label.into(), values: values.into() };
        let drawn =
            stacked_bars(&[bar("a", [1.0, 3.0]), bar("<b>", [2.0, 0.0])], &["x", "y"], 4.0, |v| format!("{v} s"));
        let widths: Vec<f64> =
            drawn.split(" width=\"").skip(1).map(|t| t.split('"').next().unwrap().parse().unwrap()).collect();
        assert_eq!(widths.len(), 3, "what is nothing is not drawn");
        assert!((widths[1] - 3.0 * widths[0]).abs() < 0.1 && (widths[2] - 2.0 * widths[0]).abs() < 0.1);
        assert!(drawn.contains("data-tip=\"a\ny: 3 s\"") && drawn.contains(">4 s<") && drawn.contains("&lt;b&gt;"));
    }

    #[test]
    fn a_plot_leaves_out_what_it_cannot_show() {
        let axis = |logarithmic| Axis { label: "rows", logarithmic, show: |v| format!("{v}") };
        let points = vec![[1.0, 2.0], [10.0, 20.0], [0.0, 3.0], [5.0, f64::NAN]];
        let line = |stroke| Line { name: "it".into(), stroke, points: points.clone() };
        let drawn = plot(&[line(Stroke::Solid), line(Stroke::Points)], &axis(true), &axis(false));
        assert_eq!((drawn.matches("<circle").count(), drawn.matches("<polyline").count()), (4, 1));
        assert!(!drawn.contains("NaN") && !drawn.contains("inf"));
        plot(&[], &axis(false), &axis(true));
    }

    #[test]
    fn texts_are_cut_to_their_room() {
        let mut drawing = Drawing::new(10.0);
        drawing.fitted(0.0, 0.0, 50.0, "", "attention");
        drawing.fitted(0.0, 0.0, 20.0, "", "attention");
        assert_eq!(drawing.shapes, "<text class=\"\" x=\"0.00\" y=\"0.00\">attenti…</text>\n");
    }
}
