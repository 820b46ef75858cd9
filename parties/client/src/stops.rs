//! Texts that end a generation: nothing of one is given out, and what may become one is held back until it is sure.

use zeroize::Zeroizing;

/// Watches a text as it comes for the first of several others.
pub(crate) struct Stops {
    stops: Vec<String>,
    held: Zeroizing<String>,
}

/// What can be given out.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Cut {
    pub(crate) text: String,
    /// One of the texts has come: nothing follows.
    pub(crate) stopped: bool,
}

impl Stops {
    /// Stops at any of these, none of which is empty.
    pub(crate) fn new(stops: Vec<String>) -> Stops {
        Stops { stops, held: Zeroizing::default() }
    }

    /// More of the text.
    pub(crate) fn push(&mut self, text: &str) -> Cut {
        self.held.push_str(text);
        if let Some(at) = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            let text = self.held[..at].to_owned();
            self.held = Zeroizing::default();
            return Cut { text, stopped: true };
        }
        let begins = |at: &usize| self.stops.iter().any(|stop| stop.starts_with(&self.held[*at..]));
        let sure = self.held.char_indices().map(|(at, _)| at).find(begins).unwrap_or(self.held.len());
        let rest = Zeroizing::new(self.held[sure..].to_owned());
        let mut whole = std::mem::replace(&mut self.held, rest);
        whole.truncate(sure);
        Cut { text: std::mem::take(&mut *whole), stopped: false }
    }

    /// The text has ended: what was held back has become nothing.
    pub(crate) fn flush(&mut self) -> String {
        std::mem::take(&mut *self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let mut watch = Stops::new(stops.iter().map(|stop| (*stop).to_owned()).collect());
        let mut out = Vec::new();
        for piece in pieces {
            let Cut { text, stopped } = watch.push(piece);
            out.push(text);
            if stopped {
                return (out, true);
            }
        }
        out.push(watch.flush());
        (out, false)
    }

    #[test]
    fn nothing_of_a_stop_is_given_out() {
        assert_eq!(run(&["END"], &["one E", "N", "D two"]), (vec!["one ".into(), "".into(), "".into()], true));
        assert_eq!(
            run(&["END"], &["one E", "N", "O", "E"]),
            (vec!["one ".into(), "".into(), "ENO".into(), "".into(), "E".into()], false)
        );
        assert_eq!(run(&["END"], &["END"]), (vec!["".into()], true));
        assert_eq!(run(&[], &["a", "b"]), (vec!["a".into(), "b".into(), "".into()], false));
    }

    #[test]
    fn the_first_of_several_counts() {
        assert_eq!(run(&["b", "ab"], &["xab"]), (vec!["x".into()], true));
        // A stop that overlaps with its own beginning.
        assert_eq!(run(&["aab"], &["aa", "ab", "c"]), (vec!["".into(), "a".into()], true));
        assert_eq!(run(&["aXb", "X"], &["aX"]), (vec!["a".into()], true), "the one that is complete");
    }

    #[test]
    fn characters_stay_whole() {
        assert_eq!(run(&["é!"], &["caf", "é", "?"]), (vec!["caf".into(), "".into(), "é?".into(), "".into()], false));
        assert_eq!(run(&["→→"], &["a→", "→b"]), (vec!["a".into(), "".into()], true));
    }

    /// However a text is cut into pieces, the same of it comes out.
    #[test]
    fn pieces_do_not_matter() {
        let text = "abababcabcdabcabcde";
        for stop in ["abcd", "cab", "e", "abc", "zz", "ababc"] {
            let expected = text.find(stop).map_or(text, |at| &text[..at]);
            for size in 1..text.len() {
                let pieces: Vec<&str> =
                    (0..text.len()).step_by(size).map(|at| &text[at..(at + size).min(text.len())]).collect();
                let (out, stopped) = run(&[stop], &pieces);
                assert_eq!(
                    (out.concat(), stopped),
                    (expected.to_owned(), expected.len() < text.len()),
                    "{stop} by {size}"
                );
            }
        }
    }
}
