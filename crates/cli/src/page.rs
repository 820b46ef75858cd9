//! A page of HTML that stands alone: one file, nothing fetched from anywhere, readable by day and by night.
//!
//! Text is escaped on its way in, wherever it comes from: names in a report may have been chosen by a stranger.

use std::fmt::Write;

/// Characters with a meaning in HTML are written as references.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// A page in the making.
pub(crate) struct Page {
    title: String,
    body: String,
}

impl Page {
    /// A page with this heading.
    pub(crate) fn new(title: &str) -> Self {
        let title = escape(title);
        let body = format!("<h1>{title}</h1>\n");
        Self { title, body }
    }

    /// Begins a section.
    pub(crate) fn section(&mut self, heading: &str) {
        let _ = writeln!(self.body, "<h2>{}</h2>", escape(heading));
    }

    /// A heading within a section.
    pub(crate) fn part(&mut self, heading: &str) {
        let _ = writeln!(self.body, "<h3>{}</h3>", escape(heading));
    }

    /// A paragraph.
    pub(crate) fn paragraph(&mut self, text: &str) {
        let _ = writeln!(self.body, "<p>{}</p>", escape(text));
    }

    /// Numbered paragraphs, each with its first words in bold.
    pub(crate) fn numbered(&mut self, items: &[(String, String)]) {
        self.body.push_str("<ol>\n");
        for (bold, rest) in items {
            let _ = writeln!(self.body, "<li><b>{}</b> {}</li>", escape(bold), escape(rest));
        }
        self.body.push_str("</ol>\n");
    }

    /// Rows under a head; all columns but the first are numbers.
    pub(crate) fn table(&mut self, head: &[&str], rows: &[Vec<String>]) {
        let line = |tag: &str, cells: &mut dyn Iterator<Item = &str>| {
            let cells: String = cells.map(|cell| format!("<{tag}>{}</{tag}>", escape(cell))).collect();
            format!("<tr>{cells}</tr>\n")
        };
        let _ = write!(self.body, "<div class=\"wide\"><table>\n{}", line("th", &mut head.iter().copied()));
        for row in rows {
            self.body.push_str(&line("td", &mut row.iter().map(String::as_str)));
        }
        self.body.push_str("</table></div>\n");
    }

    /// A drawing of [`crate::chart`], which has escaped what it holds.
    pub(crate) fn drawing(&mut self, drawing: &str) {
        let _ = writeln!(self.body, "<figure>\n{drawing}</figure>");
    }

    /// The whole file.
    pub(crate) fn finish(self) -> String {
        let Self { title, body } = self;
        format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width\">\n<title>{title}</title>\n\
             <style>{STYLE}</style>\n</head>\n<body>\n{body}<div id=\"tip\"></div>\n\
             <script>{SCRIPT}</script>\n</body>\n</html>\n"
        )
    }
}

/// Colours of series `s0` to `s7`: strong ones first; 5 and 6 are muted, for time in which nothing happens.
const STYLE: &str = "
:root { color-scheme: light dark; --back: #fff; --fore: #1c1e21; --quiet: #667; --rule: #dde0e4;
  --s0: #4a86c5; --s1: #e0605e; --s2: #3f9d5f; --s3: #d9ab2b; --s4: #45b3c9; --s5: #b9a3cf; --s6: #c3c7cd; --s7: #9a5b2f }
@media (prefers-color-scheme: dark) { :root { --back: #16181c; --fore: #e4e6ea; --quiet: #9aa0aa; --rule: #34383f;
  --s0: #5b97d8; --s1: #e36f6c; --s2: #4fb273; --s3: #d8b04a; --s4: #54bdd2; --s5: #9a86b3; --s6: #838994; --s7: #b87a4c } }
body { margin: 2rem auto; max-width: 75rem; padding: 0 1rem; background: var(--back); color: var(--fore);
  font: 15px/1.45 system-ui, sans-serif }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem } h3 { font-size: 1rem; margin-bottom: .3rem }
p { max-width: 60rem } li { margin-bottom: .5rem; max-width: 60rem } figure { margin: .6rem 0 }
.wide { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
td, th { padding: .15rem .55rem .15rem 0; font-size: 14px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--rule) }
td:first-child, th:first-child { text-align: left } th { color: var(--quiet); font-weight: 600 }
svg { width: 100%; height: auto; display: block; font: 11px system-ui, sans-serif }
svg text { fill: var(--fore) } svg .quiet { fill: var(--quiet) } svg .inside { fill: #111; pointer-events: none }
svg .end { text-anchor: end } svg .middle { text-anchor: middle }
svg .rule { stroke: var(--rule); stroke-width: 1 } svg rect.cell { stroke: var(--back); stroke-width: .6 }
svg polyline { fill: none; stroke-width: 1.8 } svg .dashed { stroke-dasharray: 5 4 }
.s0 { fill: var(--s0) } .s1 { fill: var(--s1) } .s2 { fill: var(--s2) } .s3 { fill: var(--s3) }
.s4 { fill: var(--s4) } .s5 { fill: var(--s5) } .s6 { fill: var(--s6) } .s7 { fill: var(--s7) }
.l0 { stroke: var(--s0) } .l1 { stroke: var(--s1) } .l2 { stroke: var(--s2) } .l3 { stroke: var(--s3) }
.l4 { stroke: var(--s4) } .l5 { stroke: var(--s5) } .l6 { stroke: var(--s6) } .l7 { stroke: var(--s7) }
[data-tip]:hover { filter: brightness(1.12) }
#tip { position: fixed; display: none; white-space: pre; pointer-events: none; padding: .35rem .6rem; border-radius: 4px;
  background: var(--fore); color: var(--back); font-size: 13px; z-index: 1 }
";

/// Shows what an element says of itself beside the pointer.
const SCRIPT: &str = "
const tip = document.getElementById('tip');
addEventListener('mousemove', event => {
  const text = event.target.dataset && event.target.dataset.tip;
  tip.style.display = text ? 'block' : 'none';
  if (!text) return;
  tip.textContent = text;
  tip.style.left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8) + 'px';
  tip.style.top = Math.min(event.clientY + 16, innerHeight - tip.offsetHeight - 8) + 'px';
});
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_gets_in_unescaped_and_nothing_is_fetched() {
        let evil = "<script src=\"x\">'&";
        let mut page = Page::new(evil);
        page.section(evil);
        page.part(evil);
        page.paragraph(evil);
        page.numbered(&[(evil.into(), evil.into())]);
        page.table(&[evil], &[vec![evil.into()]]);
        let page = page.finish();
        assert_eq!(page.matches("&lt;script src=&quot;x&quot;&gt;&#39;&amp;").count(), 9);
        assert_eq!(page.matches("<script").count(), 1, "its own");
        for outside in ["http", "src=", "@import", "url(", "<link"] {
            assert_eq!(page.replace("src=&quot;", "").matches(outside).count(), 0, "{outside}");
        }
    }
}
