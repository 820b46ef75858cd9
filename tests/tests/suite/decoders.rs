//! Decoders step by step: scores against the float model at every position, whatever the steps; prices; neighbours; tokens that are
//! chosen inside and go back in.

use tercet_core::Cost;
use tercet_engine::{Choice, Profile, choose, plan_step};
use tercet_model::graph::Op;
use tercet_model::{Model, calibrate, calibration_inputs};
use tercet_testkit::World;
use tercet_testkit::decoder::{Decoder, Outputs, Plan, Read};
use tercet_testkit::uniformity::assert_uniform;

use super::models::{PUBLIC_GATE, load, scaled};

/// One of each family, as transformers wrote them.
const ALL: [&str; 7] = ["gpt2", "llama", "llama_biases_tied", "mistral_bf16_sharded", "qwen2", "mixtral", PUBLIC_GATE];

fn decoder(name: &str, profile: Profile) -> Decoder {
    decoder_of(load(name), profile)
}

fn decoder_of(model: Model, profile: Profile) -> Decoder {
    let ranges = calibrate(&model, &calibration_inputs(&model)).expect("inputs of this model");
    let numerics = choose(&model.graph, &ranges, profile, false).unwrap_or_else(|problems| panic!("{problems:?}"));
    Decoder::new(model, numerics).expect("a model that fits is shared")
}

fn ids(len: usize) -> Vec<u32> {
    ids_from(0, len)
}

fn ids_from(offset: usize, len: usize) -> Vec<u32> {
    (offset..offset + len).map(|i| ((i * i * 7 + i * 13 + 5) % 280) as u32).collect()
}

/// Tokens at which no two experts are as good as tied: there is no continuous answer where they are.
fn untied(decoder: &Decoder, len: usize) -> Vec<u32> {
    let candidates = (0..40).map(|offset| ids_from(17 * offset, len));
    let gaps = candidates.map(|ids| (decoder.routing_gap(&ids), ids));
    gaps.max_by(|a, b| a.0.total_cmp(&b.0)).expect("forty candidates").1
}

fn flat(outputs: &Outputs) -> Vec<f64> {
    outputs.iter().flatten().flatten().copied().collect()
}

/// Largest and mean difference.
fn errors(got: &[f64], exact: &[f32]) -> (f64, f64) {
    assert_eq!(got.len(), exact.len());
    let each = got.iter().zip(exact).map(|(got, exact)| (got - f64::from(*exact)).abs());
    let (largest, sum) = each.fold((0.0, 0.0), |(largest, sum), e| (f64::max(largest, e), sum + e));
    (largest, sum / got.len() as f64)
}

/// What `plan_step` says of all steps together.
fn price(decoder: &Decoder, plan: &Plan) -> Cost {
    let steps = plan.shapes().into_iter().map(|shape| plan_step(decoder.manifest(), &shape).expect("a step").total);
    steps.fold(Cost::NONE, Cost::then)
}

#[test]
fn scores_are_those_of_the_float_model_at_every_position() {
    for name in ALL {
        let decoder = decoder(name, Profile::Precise);
        for lengths in [&[1][..], &[2], &[31], &[40, 1, 1, 1], &[1, 1, 1, 62], &[150, 1, 149]] {
            let ids = untied(&decoder, lengths.iter().sum());
            let exact = decoder.exact(&ids);
            let plan = Plan::scores(&ids, lengths);
            let run = decoder.private(&World::default().unrecorded(), &plan);
            let (largest, mean) = errors(&flat(&run.outputs), &exact.data);
            let (of_twin, _) = errors(&flat(&decoder.plain(&plan).expect("the twin runs")), &exact.data);
            println!("{name} {lengths:?}: {largest:.4} at most, {mean:.5} in the mean; the twin {of_twin:.4}");
            assert!(largest < 0.02, "{name} {lengths:?}: {largest}");
            assert_eq!(run.cost, price(&decoder, &plan), "{name} {lengths:?}");
        }
    }
}

/// Where a gate's arguments stay far below its edges, no threshold wraps around the ring that they come in.
#[test]
fn gates_of_small_arguments_hold() {
    for name in ["llama", "gpt2", PUBLIC_GATE] {
        for factor in [0.05, 0.3] {
            for (profile, bound) in [(Profile::Fast, 0.3), (Profile::Precise, 0.02)] {
                let decoder = decoder_of(scaled(load(name), |tensor| tensor.contains("/up"), factor), profile);
                let ids = untied(&decoder, 20);
                let run = decoder.private(&World::default().unrecorded(), &Plan::scores(&ids, &[20]));
                let (largest, mean) = errors(&flat(&run.outputs), &decoder.exact(&ids).data);
                println!("{name} x {factor} in {profile}: {largest:.4} at most, {mean:.5} in the mean");
                assert!(largest < bound, "{name} x {factor} in {profile}: {largest}");
            }
        }
    }
}

#[test]
fn fast_scores_stay_close_and_their_price_is_exact() {
    for name in ALL {
        let decoder = decoder(name, Profile::Fast);
        let (ids, lengths) = (ids(64), [50, 1, 1, 12]);
        let plan = Plan::scores(&ids, &lengths);
        let run = decoder.private(&World::default().unrecorded(), &plan);
        let (largest, mean) = errors(&flat(&run.outputs), &decoder.exact(&ids).data);
        println!("{name} in fast: {largest:.3} at most, {mean:.4} in the mean");
        // Weights of deviation 0.3 make scores that are far from any trained model's; experts that tie may change places.
        assert!(mean < 0.03, "{name}: {mean}");
        assert_eq!(run.cost, price(&decoder, &plan), "{name}");
    }
}

/// The shipped GPT on the beginning of a novel, every token given: what comes next by shares and by the float model.
#[test]
fn the_shipped_gpt_says_what_the_float_model_says() {
    const TEXT: &str = "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in \
        want of a wife. However little known the feelings or views of such a man may be on his first entering a neighbourhood, this \
        truth is so well fixed in the minds of the surrounding families, that he is considered the rightful property of some one \
        or other of their daughters. \"My dear Mr. Bennet,\" said his lady to him one day, \"have you heard that Netherfield Park is \
        let at last?\" Mr. Bennet replied that he had not.";
    let dir = tempfile::tempdir().expect("a temporary directory");
    tercet_examples::gpt::write_model(dir.path()).expect("the model is written");
    for (profile, agreement, bound) in [(Profile::Fast, 0.95, 0.15), (Profile::Precise, 0.99, 0.01)] {
        let model = tercet_model::Model::load(dir.path()).expect("the model loads");
        let ids =
            model.tokenizer().expect("a tokenizer").encode(TEXT, 256, tercet_model::Truncate::No).expect("a text");
        let ranges = calibrate(&model, &calibration_inputs(&model)).expect("inputs of this model");
        let numerics = choose(&model.graph, &ranges, profile, false).expect("a model that fits");
        let decoder = Decoder::new(model, numerics).expect("a model that fits is shared");
        let exact = decoder.exact(&ids);
        let run = decoder.private(&World::default().unrecorded(), &Plan::scores(&ids, &[ids.len()]));
        let got = flat(&run.outputs);
        let (largest, mean) = errors(&got, &exact.data);
        let best = |row: &[f64]| (1..row.len()).fold(0, |best, at| if row[at] > row[best] { at } else { best });
        let rows = got.chunks_exact(exact.width).zip(exact.data.chunks_exact(exact.width));
        let same =
            rows.filter(|(got, exact)| best(got) == best(&exact.iter().map(|&v| v.into()).collect::<Vec<f64>>()));
        let share = same.count() as f64 / ids.len() as f64;
        println!("{profile}: {} tokens, {share:.3} agree, {largest:.4} at most, {mean:.5} in the mean", ids.len());
        assert!(share >= agreement && largest < bound, "{profile}: {share} agree, {largest} at most");
    }
}

/// The greedy token of each position of texts that the model has not seen, in runs of the same: two
/// runs differ where the best two scores are closer than the errors of both. `REPEATS=20` takes
/// more runs.
#[test]
fn two_runs_choose_the_same_tokens_but_where_two_are_as_good_as_tied() {
    const UNSEEN: &str = "The first week of their return was soon gone. The second began. It was the last of the regiment's stay \
        in Meryton, and all the young ladies in the neighbourhood were drooping apace. The dejection was almost universal. The \
        elder Miss Bennets alone were still able to eat, drink, and sleep, and pursue the usual course of their employments.";
    let repeats = std::env::var("REPEATS").ok().and_then(|text| text.parse().ok()).unwrap_or(3usize);
    let dir = tempfile::tempdir().expect("a temporary directory");
    tercet_examples::gpt::write_model(dir.path()).expect("the model is written");
    for (profile, most) in [(Profile::Fast, 0.05), (Profile::Precise, 0.0)] {
        let model = tercet_model::Model::load(dir.path()).expect("the model loads");
        let tokenizer = model.tokenizer().expect("a tokenizer");
        let ids = tokenizer.encode(UNSEEN, 256, tercet_model::Truncate::No).expect("a text");
        let decoder = decoder_of(model, profile);
        let plan = Plan::scores(&ids, &[ids.len()]);
        let runs: Vec<Vec<f64>> =
            (0..repeats).map(|_| flat(&decoder.private(&World::default().unrecorded(), &plan).outputs)).collect();
        let width = runs[0].len() / ids.len();
        let best = |row: &[f64]| (1..row.len()).fold(0, |best, at| if row[at] > row[best] { at } else { best });
        let (mut differ, mut widest) = (0, 0.0f64);
        for pair in runs.windows(2) {
            for (a, b) in pair[0].chunks_exact(width).zip(pair[1].chunks_exact(width)) {
                let (first, second) = (best(a), best(b));
                if first != second {
                    differ += 1;
                    widest = widest.max(a[first] - a[second]);
                }
            }
        }
        let pairs = (repeats - 1) * ids.len();
        let share = differ as f64 / pairs as f64;
        println!(
            "{profile}: of {pairs} positions {differ} differ ({share:.4}), where at most {widest:.4} lay between the two"
        );
        assert!(share <= most, "{profile}: {share} of the positions differ");
    }
}

#[test]
fn rounds_do_not_depend_on_context_or_neighbours() {
    let decoder = decoder("llama", Profile::Fast);
    let rounds = |pasts: &[usize]| {
        let layout = tercet_core::Layout::decode(pasts);
        let shape = tercet_engine::StepShape { layout, choice: Choice::Scores, reentry: false, noisy: false };
        plan_step(decoder.manifest(), &shape).expect("a step").total.rounds
    };
    let one = rounds(&[3]);
    assert_eq!([rounds(&[300]), rounds(&[3, 77, 310]), rounds(&[1; 40])], [one; 3]);
    let layers = decoder.manifest().graph.attentions() as u64;
    assert!(one <= 40 * layers + 12, "{one} rounds in {layers} layers");
}

/// Two sequences that join and leave, beside each of them alone.
#[test]
fn what_a_sequence_gets_does_not_depend_on_its_neighbours() {
    let decoder = decoder("mistral_bf16_sharded", Profile::Precise);
    let (a, b) = (ids(45), ids(70).split_off(25));
    let tokens = |ids: &[u32]| Read::Tokens(ids.to_vec());
    let steps = vec![
        vec![(0, tokens(&a[..40]))],
        vec![(0, tokens(&a[40..41])), (1, tokens(&b[..1]))],
        vec![(1, tokens(&b[1..2])), (0, tokens(&a[41..42]))],
        vec![(1, tokens(&b[2..45]))],
        vec![(0, tokens(&a[42..43])), (1, tokens(&b[45 - 1..45]))],
    ];
    let both = Plan { steps, choice: Choice::Scores, every_row: false, temperature: None };
    let alone = |of: usize| {
        let only =
            |step: &Vec<(usize, Read)>| step.iter().filter(|(n, _)| *n == of).map(|(_, r)| (0, r.clone())).collect();
        let steps: Vec<Vec<(usize, Read)>> = both.steps.iter().map(only).collect();
        Plan { steps: steps.into_iter().filter(|step| !step.is_empty()).collect(), ..both.clone() }
    };
    let of = |outputs: &Outputs, of: usize| -> Outputs {
        let members = both.steps.iter().zip(outputs);
        let own = members.map(|(step, outputs)| {
            let own = step.iter().zip(outputs).filter(|((number, _), _)| *number == of);
            own.map(|(_, output)| output.clone()).collect::<Vec<_>>()
        });
        own.filter(|outputs| !outputs.is_empty()).collect()
    };
    let together = decoder.plain(&both).expect("the twin runs");
    let run = decoder.private(&World::default().unrecorded(), &both);
    assert_eq!(run.cost, price(&decoder, &both));
    for sequence in 0..2 {
        let apart = decoder.plain(&alone(sequence)).expect("the twin runs");
        assert_eq!(of(&together, sequence), apart, "the twin of sequence {sequence}");
        let exact: Vec<f32> = flat(&apart).into_iter().map(|v| v as f32).collect();
        let (largest, _) = errors(&flat(&of(&run.outputs, sequence)), &exact);
        assert!(largest < 0.02, "sequence {sequence}: {largest}");
    }
}

/// A prompt, and `count` tokens more, each chosen inside and read without having left.
fn inside(prompt: &[u32], count: usize, temperature: Option<f64>) -> Plan {
    let mut steps = vec![vec![(0, Read::Tokens(prompt.to_vec()))]];
    steps.extend((0..count).map(|_| vec![(0, Read::Chosen)]));
    Plan { steps, choice: Choice::Token, every_row: false, temperature }
}

#[test]
fn tokens_chosen_inside_are_the_likeliest_and_go_back_in() {
    for (name, profile) in [("gpt2", Profile::Precise), ("llama", Profile::Precise), ("qwen2", Profile::Fast)] {
        let decoder = decoder(name, profile);
        let plan = inside(&ids(9), 6, None);
        let run = decoder.private(&World::default().unrecorded(), &plan);
        assert_eq!(run.cost, price(&decoder, &plan), "{name}");
        let mut text = ids(9);
        for token in flat(&run.outputs) {
            let exact = decoder.exact(&text);
            let scores = &exact.data[exact.data.len() - exact.width..];
            let best = scores.iter().copied().fold(f32::MIN, f32::max);
            let slack = if profile == Profile::Precise { 0.03 } else { 0.3 };
            let chosen = scores[token as usize];
            assert!(chosen > best - slack, "{name}: token {token} has {chosen} and the likeliest {best}");
            text.push(token as u32);
        }
    }
}

#[test]
fn noise_makes_a_choice_a_sample() {
    let decoder = decoder("gpt2", Profile::Fast);
    let runs =
        (0..4).map(|_| flat(&decoder.private(&World::default().unrecorded(), &inside(&ids(9), 8, Some(2.0))).outputs));
    let runs: Vec<Vec<f64>> = runs.collect();
    assert!(runs.iter().any(|run| *run != runs[0]), "four samples of nine tokens are the same: {:?}", runs[0]);
    assert!(runs.iter().flatten().all(|token| *token < 288.0), "a token beyond the vocabulary");
    let plan = inside(&ids(9), 2, Some(0.7));
    assert_eq!(decoder.private(&World::default().unrecorded(), &plan).cost, price(&decoder, &plan));
}

#[test]
fn steps_show_nothing() {
    for (name, plan) in [("llama", inside(&ids(24), 3, Some(1.0))), ("mixtral", Plan::scores(&[7; 30], &[28, 1, 1]))] {
        let run = decoder(name, Profile::Fast).private(&World::default(), &plan);
        assert!(run.received[0].is_empty(), "the helper receives nothing");
        assert_uniform(&run.received[1], &format!("{name} at P1"));
        assert_uniform(&run.received[2], &format!("{name} at P2"));
    }
}

/// A public gate opens which experts each row goes to, and nothing more: that is all that the helper receives, and it is what the
/// float model's routers choose. It spares what the other experts cost.
#[test]
fn a_public_gate_opens_the_experts_of_each_row_and_nothing_else() {
    let [open, secret] = [PUBLIC_GATE, "mixtral"].map(|name| decoder(name, Profile::Precise));
    let ids = untied(&open, 40);
    let plan = Plan::scores(&ids, &[37, 1, 2]);
    let run = open.private(&World::default(), &plan);
    let trace = open.trace(&ids);
    let mut expected: Vec<Vec<bool>> = Vec::new();
    for node in &open.manifest().graph.nodes {
        let Op::Experts { top, experts, .. } = &node.op else { continue };
        let scores = trace.value(node.inputs[1]).expect("the scores of a router");
        let chosen = scores.data.chunks_exact(scores.width).flat_map(|row| {
            let ahead = |at: usize| row.iter().filter(|&&other| other > row[at]).count();
            (0..experts.len()).map(move |at| ahead(at) < *top).collect::<Vec<_>>()
        });
        expected.push(chosen.collect());
    }
    let width = expected[0].len() / ids.len();
    let mut told = Vec::new();
    for (from, rows) in [(0, 37), (37, 1), (38, 2)] {
        for layer in &expected {
            let bits = &layer[from * width..(from + rows) * width];
            told.extend(bits.chunks(8).map(|byte| byte.iter().rev().fold(0u8, |sum, &bit| sum << 1 | u8::from(bit))));
        }
    }
    assert_eq!(run.received[0], told, "what the helper is told");
    for party in [1, 2] {
        assert_uniform(&run.received[party], &format!("P{party} behind a public gate"));
    }
    let [cheap, dear] = [&open, &secret].map(|decoder| price(decoder, &plan));
    assert_eq!(run.cost, cheap);
    assert!(cheap.total_bytes() < dear.total_bytes() && cheap.rounds < dear.rounds, "{cheap:?} and {dear:?}");
}

#[test]
fn steps_that_the_model_does_not_take_are_refused() {
    let decoder = decoder("gpt2", Profile::Fast);
    let refused = |extents: &[(usize, usize)], choice, reentry, every_row| {
        let sequences = extents.iter().map(|&(past, rows)| tercet_core::Extent { past, rows }).collect();
        let layout = tercet_core::Layout { sequences, every_row };
        let shape = tercet_engine::StepShape { layout, choice, reentry, noisy: false };
        plan_step(decoder.manifest(), &shape).err().map(|error| error.to_string()).unwrap_or_default()
    };
    assert_eq!(refused(&[(319, 1)], Choice::Scores, false, false), "");
    assert!(refused(&[(320, 1)], Choice::Scores, false, false).contains("321 tokens; the context of model is 320"));
    assert!(refused(&[(usize::MAX, 2)], Choice::Scores, false, false).contains("context"));
    assert!(refused(&[], Choice::Scores, false, false).contains("nothing"));
    assert!(refused(&[(3, 0)], Choice::Scores, false, false).contains("nothing"));
    assert!(refused(&[(0, 1)], Choice::Token, true, false).contains("after others"));
    assert!(refused(&[(0, 4)], Choice::Token, false, true).contains("last row"));
    assert!(refused(&vec![(0, 320); 400], Choice::Scores, false, false).contains("at once"));
}
