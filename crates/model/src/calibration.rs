//! Inputs that drive a model to the ends of its ranges, and the ranges that come out.

use std::collections::BTreeMap;

use candle_core::DType;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::evaluation::{Evaluation, Tensors};
use crate::graph::{Input, Op};
use crate::model::Model;
use crate::oracle::{OracleError, OracleInput, free, input_tensor, last_uses, load, read};
use crate::stats::NodeStats;
use crate::tokenizer::Truncate;

/// Tokens of the longest input for a decoder.
const LONGEST_SEQUENCE: usize = 512;

/// Ranges by the name of the node, over all inputs of a calibration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Ranges {
    /// Inputs that were run.
    pub inputs: usize,
    /// What was seen at each node.
    pub nodes: BTreeMap<String, NodeStats>,
}

impl Ranges {
    /// Widens the ranges by another calibration of the same graph.
    pub fn merge(&mut self, other: &Self) {
        self.inputs += other.inputs;
        for (name, stats) in &other.nodes {
            self.nodes.entry(name.clone()).and_modify(|s| s.merge(stats)).or_insert_with(|| stats.clone());
        }
    }

    /// The ranges of a node.
    pub fn node(&self, name: &str) -> Option<&NodeStats> {
        self.nodes.get(name)
    }
}

/// Runs all inputs in f32 and gathers the ranges: node by node over all inputs, so that the tensors of one node are in memory at
/// a time, with the values of all inputs that later nodes still read. Decoders are run at every position.
///
/// # Errors
/// An input is not one that the model takes; the files of the model can no longer be read.
pub fn calibrate(model: &Model, inputs: &[OracleInput]) -> Result<Ranges, OracleError> {
    calibrate_with(model, inputs, |_| ())
}

/// The same; `progress` is told how many nodes are done.
///
/// # Errors
/// An input is not one that the model takes; the files of the model can no longer be read.
pub fn calibrate_with(
    model: &Model,
    inputs: &[OracleInput],
    mut progress: impl FnMut(usize),
) -> Result<Ranges, OracleError> {
    let graph = &model.graph;
    let last_use = last_uses(graph);
    let of_input = |input| Ok(vec![Some(input_tensor(graph, input, DType::F32)?)]);
    let mut values = inputs.iter().map(of_input).collect::<Result<Vec<_>, OracleError>>()?;
    let mut ranges = Ranges { inputs: inputs.len(), nodes: BTreeMap::new() };
    for (index, node) in graph.nodes.iter().enumerate() {
        let mut tensors = Tensors::new();
        for name in node.op.tensors() {
            tensors.insert(name.into(), load(model, name, DType::F32)?);
        }
        let mut all: Option<NodeStats> = None;
        for values in &mut values {
            let evaluation = Evaluation::new(node, &read(node, values)?, &tensors, true)?;
            let stats = evaluation.stats()?;
            match &mut all {
                Some(all) => all.merge(&stats),
                None => all = Some(stats),
            }
            // What nobody reads, the scores of a large vocabulary above all, is not kept.
            values.push((last_use[index + 1] != usize::MAX).then_some(evaluation.value));
            free(node, index, &last_use, values);
        }
        ranges.nodes.extend(all.map(|stats| (node.name.clone(), stats)));
        progress(index + 1);
    }
    Ok(ranges)
}

/// The built-in inputs, the same at every call: for texts, sentences of many kinds and random tokens at lengths from one
/// to the longest; for images noise, gradients, stripes and plain areas. Decoders, which are large, get fewer and no longer than
/// 512 tokens (1,024 where positions are learned), 4,000 in all: as each is run at every position, the short ones are
/// within the long ones. Put inputs of the model's own field beside them.
pub fn calibration_inputs(model: &Model) -> Vec<OracleInput> {
    match &model.graph.input {
        Input::Tokens { vocab, max_tokens } if model.graph.is_decoder() => sequences(model, *vocab, *max_tokens),
        Input::Tokens { vocab, max_tokens } => {
            let mut inputs = sentences(model, *max_tokens);
            inputs.extend(random_tokens(*vocab, *max_tokens));
            inputs
        }
        Input::Patches { channels, image_size, .. } => {
            let images = images(*channels, *image_size);
            images
                .iter()
                .filter_map(|pixels| model.graph.input.patches(pixels).ok())
                .map(OracleInput::Patches)
                .collect()
        }
    }
}

/// Ids of texts, each cut to the longest that the model takes; for decoders cut into sequences of at most 512 tokens. Texts
/// without tokens are left out.
pub fn text_inputs<T: AsRef<str>>(model: &Model, texts: &[T]) -> Vec<OracleInput> {
    let (Some(tokenizer), Input::Tokens { max_tokens, .. }) = (model.tokenizer(), &model.graph.input) else {
        return Vec::new();
    };
    if model.graph.is_decoder() {
        let longest = (*max_tokens).min(LONGEST_SEQUENCE);
        let ids = texts.iter().filter_map(|text| tokenizer.encode(text.as_ref(), usize::MAX, Truncate::No).ok());
        let cut = ids.flat_map(|ids| ids.chunks(longest).map(<[u32]>::to_vec).collect::<Vec<_>>());
        return cut.map(OracleInput::Tokens).collect();
    }
    let ids = texts.iter().filter_map(|text| tokenizer.encode(text.as_ref(), *max_tokens, Truncate::Yes).ok());
    ids.map(OracleInput::Tokens).collect()
}

fn sentences(model: &Model, max_tokens: usize) -> Vec<OracleInput> {
    let mut inputs = text_inputs(model, &SENTENCES);
    // Long texts of natural words behave otherwise than long random ones.
    let long = SENTENCES.join(" ");
    for limit in [64, 128, 256, max_tokens] {
        if let (Some(tokenizer), true) = (model.tokenizer(), limit <= max_tokens) {
            let text = long.repeat(1 + limit * 8 / long.len());
            inputs.extend(tokenizer.encode(&text, limit, Truncate::Yes).ok().map(OracleInput::Tokens));
        }
    }
    inputs
}

/// For decoders: a few long texts of all the sentences, and random tokens.
fn sequences(model: &Model, vocab: usize, max_tokens: usize) -> Vec<OracleInput> {
    let longest = max_tokens.min(LONGEST_SEQUENCE);
    // Learned positions are as large as each of them happens to be, so that more of them are looked at.
    let learned = model.graph.nodes.iter().any(|node| matches!(node.op, Op::AddPositions { .. }));
    let last = if learned { max_tokens.min(2 * LONGEST_SEQUENCE) } else { longest };
    let mut random = Random::new("sequences");
    let mut inputs: Vec<Vec<u32>> = Vec::new();
    if let Some(tokenizer) = model.tokenizer() {
        for texts in SENTENCES.chunks(9) {
            inputs.extend(tokenizer.encode(&texts.join(" "), longest.min(360), Truncate::Yes).ok());
        }
    }
    for n in [1, 3, 16, 64, 233, last] {
        inputs.push((0..n.min(last)).map(|_| random.below(vocab)).collect());
    }
    // One token again and again: the most uniform attention, and the largest sums.
    for n in [16, longest] {
        inputs.push(vec![random.below(vocab); n.min(longest)]);
    }
    inputs.into_iter().map(OracleInput::Tokens).collect()
}

fn random_tokens(vocab: usize, max_tokens: usize) -> Vec<OracleInput> {
    let mut random = Random::new("tokens");
    let mut lengths: Vec<usize> = vec![1, 1, 2, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, max_tokens];
    lengths.retain(|n| *n <= max_tokens);
    let mut inputs: Vec<Vec<u32>> = Vec::new();
    for n in lengths {
        inputs.push((0..n).map(|_| random.below(vocab)).collect());
    }
    // One token again and again: the most uniform attention, and the largest sums.
    for n in [2, 16, max_tokens] {
        inputs.push(vec![random.below(vocab); n.min(max_tokens)]);
    }
    inputs.into_iter().map(OracleInput::Tokens).collect()
}

fn images(channels: usize, side: usize) -> Vec<Vec<f32>> {
    let mut random = Random::new("images");
    let image = |pixel: &mut dyn FnMut(usize, usize, usize) -> f32| -> Vec<f32> {
        let at = (0..channels).flat_map(|c| (0..side).flat_map(move |y| (0..side).map(move |x| (c, y, x))));
        at.map(|(c, y, x)| pixel(c, y, x).clamp(0.0, 1.0)).collect()
    };
    let last = (side.max(2) - 1) as f32;
    let mut images = vec![
        image(&mut |_, _, _| 0.0),
        image(&mut |_, _, _| 0.5),
        image(&mut |_, _, _| 1.0),
        image(&mut |_, y, _| y as f32 / last),
        image(&mut |_, _, x| 1.0 - x as f32 / last),
        image(&mut |_, y, x| (x + y) as f32 / (2.0 * last)),
        image(&mut |_, y, x| ((x + y) % 2) as f32),
    ];
    for channel in 0..channels.min(3) {
        images.push(image(&mut |c, _, _| f32::from(u8::from(c == channel))));
    }
    for period in [2, 3, 5, 8] {
        images.push(image(&mut |_, _, x| (x / period % 2) as f32));
        images.push(image(&mut |_, y, _| (y / period % 2) as f32));
    }
    for _ in 0..8 {
        images.push(image(&mut |_, _, _| random.unit()));
        images.push(image(&mut |_, _, _| random.unit().round()));
        // Bright blobs on black, as drawings and digits have them.
        let blobs: Vec<[f32; 3]> = (0..4).map(|_| [random.unit(), random.unit(), 0.05 + 0.2 * random.unit()]).collect();
        images.push(image(&mut |_, y, x| {
            let near = |b: &[f32; 3]| (b[2] - (x as f32 / last - b[0]).hypot(y as f32 / last - b[1])) / b[2];
            blobs.iter().map(near).fold(0.0, f32::max)
        }));
    }
    images
}

/// Numbers that look random and are the same everywhere: SHA-256 of a counter.
struct Random {
    label: &'static str,
    counter: u64,
}

impl Random {
    fn new(label: &'static str) -> Self {
        Self { label, counter: 0 }
    }

    fn next(&mut self) -> u64 {
        let mut hash = Sha256::new();
        hash.update(self.label);
        hash.update(self.counter.to_le_bytes());
        self.counter += 1;
        let digest: [u8; 32] = hash.finalize().into();
        digest.iter().take(8).fold(0, |n, b| n << 8 | u64::from(*b))
    }

    fn below(&mut self, bound: usize) -> u32 {
        (self.next() % bound as u64) as u32
    }

    fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1_u64 << 24) as f32
    }
}

const SENTENCES: [&str; 44] = [
    "Yes.",
    "no",
    "Hello!",
    "?",
    "...",
    "42",
    "Pneumonoultramicroscopicsilicovolcanoconiosis",
    "The cat sat on the mat.",
    "A man is playing a guitar on the street.",
    "Two dogs run through the snow while a child watches from the window.",
    "What is the capital of Australia, and why is it not Sydney?",
    "I am so happy with this purchase, it works better than I had hoped!!!",
    "Terrible service; the food was cold, the waiter rude, and they charged us twice.",
    "The patient presents with acute chest pain radiating to the left arm, BP 150/95, and a history of hypertension.",
    "Notwithstanding any other provision of this agreement, the licensee shall indemnify and hold harmless the licensor.",
    "Shares fell 3.7% to $41.25 on Tuesday after the company cut its forecast for the 2nd quarter of 2023.",
    "To be, or not to be, that is the question: whether 'tis nobler in the mind to suffer.",
    "lol idk tbh 😂😂 c u l8r",
    "HTTP/1.1 404 Not Found",
    "def add(a, b):\n    return a + b  # the sum",
    "for (int i = 0; i < n; ++i) { sum += x[i] * y[i]; }",
    "SELECT name, COUNT(*) FROM users WHERE age > 30 GROUP BY name ORDER BY 2 DESC;",
    "https://www.example.org/path/to/page?query=1&lang=en#section-2",
    "e^{i\\pi} + 1 = 0, and \\sum_{n=1}^{\\infty} 1/n^2 = \\pi^2/6",
    "1234567890 9876543210 3.14159265358979 -2.718281828 1e-9 0xDEADBEEF",
    "the the the the the the the the the the the the the the the the",
    "!!!! ???? ,,,, ;;;; :::: ---- ____ **** //// \\\\\\\\ (((( )))) [[[[ ]]]]",
    "Der schnelle braune Fuchs springt über den faulen Hund.",
    "Il n'y a pas de fumée sans feu, comme on dit chez nous à la campagne.",
    "El veloz murciélago hindú comía feliz cardillo y kiwi.",
    "Съешь же ещё этих мягких французских булок, да выпей чаю.",
    "私は毎朝コーヒーを飲みながら新聞を読みます。",
    "今天天气很好,我们一起去公园散步吧。",
    "الحياة جميلة عندما نشاركها مع من نحب.",
    "आज मौसम बहुत अच्छा है और हम बाहर घूमने जा रहे हैं।",
    "오늘 저녁에는 친구들과 함께 영화를 보러 갈 거예요.",
    "Η θάλασσα ήταν ήρεμη και ο ουρανός γεμάτος αστέρια.",
    "Photosynthesis converts carbon dioxide and water into glucose and oxygen, using the energy of sunlight that is \
     absorbed by chlorophyll in the chloroplasts of plant cells.",
    "In 1969, Apollo 11 landed on the Moon; Neil Armstrong and Buzz Aldrin walked on its surface for about two and a half \
     hours, while Michael Collins remained in orbit aboard the command module Columbia.",
    "Preheat the oven to 180 °C. Mix 250 g flour, 125 g sugar and a pinch of salt, rub in 125 g cold butter, add one egg, \
     knead quickly, chill for thirty minutes, roll out, cut, and bake for twelve minutes until golden.",
    "Dear Ms. Okonkwo, thank you for your letter of 14 March. We regret to inform you that the item you ordered (no. \
     A-7731/B) is no longer in stock, and we have refunded the full amount to your card. Kind regards, the support team.",
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness, it was \
     the epoch of belief, it was the epoch of incredulity, it was the season of light, it was the season of darkness.",
    "Transformers compute attention between all pairs of tokens, so that the cost grows with the square of the length of \
     the text, whereas recurrent networks read one token after another and keep a state of fixed size between them, which \
     makes them cheap to run but hard to train on long texts, because gradients vanish or explode on the way back.",
    "She opened the door slowly, listening. Nothing. Only the clock in the hall, the rain against the glass, and somewhere \
     far below the soft hum of the old refrigerator that nobody had ever had the heart to replace. 'Is anyone there?' she \
     asked, and felt foolish at once, for who would answer? Then, from the top of the stairs, a voice that she had not \
     heard for eleven years said her name, quite calmly, as if it had been waiting for just this question all the time.",
];

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn model(fixture: &str) -> Model {
        Model::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(fixture)).unwrap()
    }

    #[test]
    fn texts_reach_from_one_token_to_the_longest() {
        let model = model("bert_encoder");
        let inputs = calibration_inputs(&model);
        let lengths = inputs.iter().map(|input| match input {
            OracleInput::Tokens(ids) => {
                assert!(ids.iter().all(|id| *id < 64));
                ids.len()
            }
            OracleInput::Patches(_) => panic!("the model takes texts"),
        });
        let lengths: Vec<usize> = lengths.collect();
        assert_eq!((lengths.iter().min(), lengths.iter().max()), (Some(&1), Some(&40)));
        assert!(inputs.len() > 50);
        assert_eq!(inputs, calibration_inputs(&model));
    }

    #[test]
    fn decoders_get_few_and_long_texts() {
        for fixture in ["gpt2", "llama", "mixtral"] {
            let model = model(fixture);
            let inputs = calibration_inputs(&model);
            let lengths: Vec<usize> = inputs
                .iter()
                .map(|input| match input {
                    OracleInput::Tokens(ids) => {
                        assert!(ids.iter().all(|id| (*id as usize) < model.graph.width(0)));
                        ids.len()
                    }
                    OracleInput::Patches(_) => panic!("the model takes texts"),
                })
                .collect();
            assert_eq!((lengths.iter().min(), lengths.iter().max()), (Some(&1), Some(&320)), "{fixture}");
            assert!((2000..4000).contains(&lengths.iter().sum::<usize>()), "{lengths:?}");
            let longer = "the fox and the dog ".repeat(400);
            let texts = text_inputs(&model, &["", "the fox", longer.as_str()]);
            let lengths = texts.iter().map(|input| match input {
                OracleInput::Tokens(ids) => ids.len(),
                OracleInput::Patches(_) => 0,
            });
            let lengths: Vec<usize> = lengths.collect();
            assert!(lengths.len() > 3 && lengths[0] < 10 && lengths[1] == 320, "{lengths:?}");
            let ranges = calibrate(&model, &inputs).unwrap();
            assert_eq!(ranges.nodes.len(), model.graph.nodes.len());
            let attention = ranges.node("layer1/attention").unwrap().attention.unwrap();
            assert!(attention.row_sum.min >= 1.0 && attention.row_sum.max > 2.0);
            assert!(attention.row_max.min < attention.row_max.max);
            let json = serde_json::to_string(&ranges).unwrap();
            assert_eq!(serde_json::from_str::<Ranges>(&json).unwrap(), ranges);
        }
    }

    #[test]
    fn images_reach_from_black_to_white() {
        let model = model("vit_classifier");
        let inputs = calibration_inputs(&model);
        assert!(inputs.len() > 30);
        let black = OracleInput::Patches(model.graph.input.patches(&[0.0; 3 * 144]).unwrap());
        let white = OracleInput::Patches(model.graph.input.patches(&[1.0; 3 * 144]).unwrap());
        assert!(inputs.contains(&black) && inputs.contains(&white));
        let distinct = inputs.iter().enumerate().all(|(i, a)| inputs[..i].iter().all(|b| a != b));
        assert!(distinct);
    }

    #[test]
    fn ranges_hold_every_run_and_come_back_from_json() {
        let model = model("bert_classifier_f16");
        let inputs = calibration_inputs(&model);
        let whole = calibrate(&model, &inputs).unwrap();
        assert_eq!(whole.inputs, inputs.len());
        assert_eq!(whole.nodes.len(), model.graph.nodes.len());
        let (first, rest) = inputs.split_at(20);
        let mut merged = calibrate(&model, first).unwrap();
        let alone = merged.node("layer1/attention").unwrap().attention.unwrap();
        merged.merge(&calibrate(&model, rest).unwrap());
        assert_eq!(merged, whole);
        let both = merged.node("layer1/attention").unwrap().attention.unwrap();
        assert!(both.max_score >= alone.max_score && both.row_sum.max >= alone.row_sum.max);
        let json = serde_json::to_string(&whole).unwrap();
        assert_eq!(serde_json::from_str::<Ranges>(&json).unwrap(), whole);
    }
}
