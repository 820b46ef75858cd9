//! The shipped model under the float oracle: it loads as any Hugging Face directory, and reads digits that it was not
//! trained on.

use tercet_examples::digits;
use tercet_model::graph::{Input, Output};
use tercet_model::{Model, Oracle, OracleInput};

/// What the fixed-point formats leave room for, with a margin of two.
const LARGEST_VALUE: f32 = 100.0;

#[test]
fn oracle_reads_unseen_digits() {
    let dir = tempfile::tempdir().unwrap();
    digits::write_model(dir.path()).unwrap();
    let model = Model::load(dir.path()).unwrap();
    let Input::Patches { channels: 1, image_size: digits::SIDE, patch_size: 2, mean, std } = &model.graph.input else {
        panic!("not a model of digits: {:?}", model.graph.input);
    };
    assert!((mean[0] - 0.5).abs() < 1e-6 && (std[0] - 0.5).abs() < 1e-6);
    let Output::Logits { labels } = &model.graph.output else { panic!("no logits: {:?}", model.graph.output) };
    assert_eq!(*labels, ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]);

    let oracle = Oracle::new(&model).unwrap();
    let test = digits::test_split();
    let mut right = 0;
    for digit in &test {
        let patches = OracleInput::Patches(model.graph.input.patches(&digit.pixels).unwrap());
        let trace = oracle.run(&patches).unwrap();
        assert!(trace.stats.iter().all(|node| node.max_abs < LARGEST_VALUE));
        let logits = trace.output();
        let best = (0..10).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
        right += usize::from(best == usize::from(digit.label));
    }
    let accuracy = right as f64 / test.len() as f64;
    assert!(accuracy >= 0.98, "{right} of {} right", test.len());
}
