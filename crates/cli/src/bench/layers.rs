//! Profiles of several sessions, put together by the layers of the model.

use tercet_client::{PartyId, Work, WorkProfile};

use super::record::Layer;
use crate::plan::{By, group};

/// What is in no operation of the model: the beginning and the end of a session.
const AROUND: &str = "session";

/// The sum of several sessions' profiles.
#[derive(Debug, Default)]
pub(crate) struct Layers {
    sessions: usize,
    /// Nanoseconds by party and kind, in the order in which the layers first ran.
    sums: Vec<(String, [[u64; Work::COUNT]; 3])>,
}

impl Layers {
    /// Adds what P0, P1 and P2 say of one session.
    pub(crate) fn add(&mut self, profiles: &[WorkProfile; 3]) {
        self.sessions += 1;
        for party in PartyId::ALL {
            // The layer of each entry; one that stands in another is of its layer.
            let mut layers: Vec<usize> = Vec::new();
            for (index, entry) in profiles[party.index()].entries.iter().enumerate() {
                let layer = match (index, entry.parent) {
                    (0, _) => self.layer(AROUND.into()),
                    (_, 0) => self.layer(group(&entry.name, By::Layer)),
                    (_, parent) => layers.get(parent as usize).copied().unwrap_or_default(),
                };
                layers.push(layer);
                let sum = &mut self.sums[layer].1[party.index()];
                sum.iter_mut().zip(entry.wall_ns).for_each(|(sum, wall)| *sum += wall);
            }
        }
    }

    fn layer(&mut self, name: String) -> usize {
        self.sums.iter().position(|(known, _)| *known == name).unwrap_or_else(|| {
            self.sums.push((name, [[0; Work::COUNT]; 3]));
            self.sums.len() - 1
        })
    }

    /// Milliseconds of a session, on average.
    pub(crate) fn mean(&self) -> Vec<Layer> {
        let each = |ns: u64| ns as f64 / 1e6 / self.sessions.max(1) as f64;
        let layer = |(name, sum): &(String, [[u64; Work::COUNT]; 3])| Layer {
            name: name.clone(),
            work_ms: sum.map(|kinds| kinds.map(each).to_vec()),
        };
        self.sums.iter().map(layer).collect()
    }
}

#[cfg(test)]
mod tests {
    use tercet_client::WorkEntry;

    use super::*;

    #[test]
    fn entries_count_for_the_layer_that_they_are_in() {
        let entry = |name: &str, parent: u32, ns: u64| WorkEntry {
            name: name.into(),
            parent,
            wall_ns: [ns; Work::COUNT],
            ..WorkEntry::default()
        };
        let mut entries = vec![entry("", 0, 1_000_000), entry("layer0/ffn/up", 0, 2_000_000)];
        entries.extend([entry("product", 1, 3_000_000), entry("layer1/add", 0, 4_000_000)]);
        entries.extend([entry("layer0/add", 0, 5_000_000), entry("open", 2, 6_000_000)]);
        let profile = WorkProfile { entries, changes: 0 };
        let mut layers = Layers::default();
        layers.add(&[WorkProfile::default(), profile.clone(), profile.clone()]);
        layers.add(&[WorkProfile::default(), profile, WorkProfile::default()]);
        let found: Vec<(String, [f64; 3])> =
            layers.mean().into_iter().map(|layer| (layer.name, layer.work_ms.map(|kinds| kinds[0]))).collect();
        let wanted = [("session", [0.0, 1.0, 0.5]), ("layer0", [0.0, 16.0, 8.0]), ("layer1", [0.0, 4.0, 2.0])];
        assert_eq!(found, wanted.map(|(name, ms)| (name.to_owned(), ms)));
        assert!(Layers::default().mean().is_empty());
    }
}
