//! The shipped GPT: a whole Hugging Face directory, small, consistent, and able to finish a sentence, as a second forward
//! pass says that shares no code with the one that trained it.

use std::collections::BTreeMap;

use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use tercet_examples::gpt::{self, MODEL, PROMPTS};
use tokenizers::Tokenizer;

/// What ships at most, all files together.
const MOST_BYTES: usize = 8_000_000;

/// From chapters that were held out of training: Pride and Prejudice 41, Persuasion 4.
const UNSEEN: [&str; 2] = [
    "The first week of their return was soon gone. The second began. It was the last of the regiment's stay in \
     Meryton, and all the young ladies in the neighbourhood were drooping apace. The dejection was almost \
     universal. The elder Miss Bennets alone were still able to eat, drink, and sleep, and pursue the usual \
     course of their employments. Very frequently were they reproached for this insensibility by Kitty and Lydia, \
     whose own misery was extreme, and who could not comprehend such hard-heartedness in any of the family.",
    "Such opposition, as these feelings produced, was more than Anne could combat. Young and gentle as she was, \
     it might yet have been possible to withstand her father's ill-will, though unsoftened by one kind word or \
     look on the part of her sister; but Lady Russell, whom she had always loved and relied on, could not, with \
     such steadiness of opinion, and such tenderness of manner, be continually advising her in vain. She was \
     persuaded to believe the engagement a wrong thing: indiscreet, improper, hardly capable of success, and not \
     deserving it.",
];

/// Nats per token of [`UNSEEN`]; uniform guessing has 7.6.
const LARGEST_LOSS: f64 = 4.2;

/// Values in the fixed-point formats may be this large.
const LARGEST_VALUE: f32 = 100.0;

fn file(name: &str) -> &'static [u8] {
    MODEL.iter().find(|(n, _)| *n == name).unwrap_or_else(|| panic!("no {name}")).1
}

fn json(name: &str) -> Value {
    serde_json::from_slice(file(name)).unwrap()
}

fn tokenizer() -> Tokenizer {
    Tokenizer::from_bytes(file("tokenizer.json")).unwrap()
}

fn encode(text: &str) -> Vec<u32> {
    tokenizer().encode(text, true).unwrap().get_ids().to_vec()
}

/// GPT-2 in plain loops, one token at a time, on a growing cache.
struct Gpt {
    weights: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    layers: usize,
    heads: usize,
    epsilon: f32,
    /// Keys and values of each layer, row after row.
    cache: Vec<(Vec<f32>, Vec<f32>)>,
    largest_value: f32,
}

impl Gpt {
    fn load() -> Self {
        let config = json("config.json");
        let number = |name: &str| config[name].as_f64().unwrap_or_else(|| panic!("{name} is no number"));
        let tensors = SafeTensors::deserialize(file("model.safetensors")).unwrap();
        let read = |(name, view): (String, safetensors::tensor::TensorView)| {
            assert_eq!(view.dtype(), Dtype::F16, "{name}");
            let halves = view.data().chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32());
            (name.strip_prefix("transformer.").unwrap().to_owned(), (view.shape().to_vec(), halves.collect()))
        };
        let (layers, heads) = (number("n_layer") as usize, number("n_head") as usize);
        Self {
            weights: tensors.tensors().into_iter().map(read).collect(),
            layers,
            heads,
            epsilon: number("layer_norm_epsilon") as f32,
            cache: vec![Default::default(); layers],
            largest_value: 0.0,
        }
    }

    fn tensor(&self, name: &str) -> &[f32] {
        &self.weights[name].1
    }

    fn norm(&self, at: &str, x: &[f32]) -> Vec<f32> {
        let n = x.len() as f32;
        let mean = x.iter().sum::<f32>() / n;
        let variance = x.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / n;
        let (gain, bias) = (self.tensor(&format!("{at}.weight")), self.tensor(&format!("{at}.bias")));
        let deviation = (variance + self.epsilon).sqrt();
        x.iter().zip(gain).zip(bias).map(|((v, g), b)| (v - mean) / deviation * g + b).collect()
    }

    /// Weights are `[inputs, outputs]`.
    fn linear(&self, at: &str, x: &[f32]) -> Vec<f32> {
        let mut y = self.tensor(&format!("{at}.bias")).to_vec();
        for (row, v) in self.tensor(&format!("{at}.weight")).chunks_exact(y.len()).zip(x) {
            y.iter_mut().zip(row).for_each(|(y, w)| *y += v * w);
        }
        y
    }

    fn attend(&mut self, layer: usize, x: &[f32]) -> Vec<f32> {
        let width = x.len();
        let mixed = self.linear(&format!("h.{layer}.attn.c_attn"), x);
        let (query, rest) = mixed.split_at(width);
        let (keys, values) = &mut self.cache[layer];
        keys.extend_from_slice(&rest[..width]);
        values.extend_from_slice(&rest[width..]);
        let mut out = vec![0.0; width];
        let head_width = width / self.heads;
        for head in 0..self.heads {
            let columns = head * head_width..(head + 1) * head_width;
            let score = |key: &[f32]| {
                let product: f32 = query[columns.clone()].iter().zip(&key[columns.clone()]).map(|(q, k)| q * k).sum();
                product / (head_width as f32).sqrt()
            };
            let scores: Vec<f32> = keys.chunks_exact(width).map(score).collect();
            let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let total: f32 = scores.iter().map(|s| (s - largest).exp()).sum();
            for (score, value) in scores.iter().zip(values.chunks_exact(width)) {
                let share = (score - largest).exp() / total;
                out[columns.clone()].iter_mut().zip(&value[columns.clone()]).for_each(|(o, v)| *o += share * v);
            }
        }
        self.linear(&format!("h.{layer}.attn.c_proj"), &out)
    }

    /// Takes the next token; logits of the one after it.
    fn step(&mut self, id: u32) -> Vec<f32> {
        let width = self.tensor("ln_f.bias").len();
        let position = self.cache[0].0.len() / width;
        let row = |table: &str, at: usize| self.tensor(table)[at * width..][..width].to_vec();
        let mut x = row("wte.weight", id as usize);
        x.iter_mut().zip(row("wpe.weight", position)).for_each(|(x, p)| *x += p);
        for layer in 0..self.layers {
            let normed = self.norm(&format!("h.{layer}.ln_1"), &x);
            let mixed = self.attend(layer, &normed);
            x.iter_mut().zip(mixed).for_each(|(x, y)| *x += y);
            let mut up = self.linear(&format!("h.{layer}.mlp.c_fc"), &self.norm(&format!("h.{layer}.ln_2"), &x));
            for u in &mut up {
                *u *= 0.5 * (1.0 + ((2.0 / std::f32::consts::PI).sqrt() * (*u + 0.044715 * u.powi(3))).tanh());
            }
            x.iter_mut().zip(self.linear(&format!("h.{layer}.mlp.c_proj"), &up)).for_each(|(x, y)| *x += y);
            self.largest_value = x.iter().fold(self.largest_value, |most, v| most.max(v.abs()));
        }
        let x = self.norm("ln_f", &x);
        let table = self.tensor("wte.weight").chunks_exact(width);
        table.map(|row| row.iter().zip(&x).map(|(w, x)| w * x).sum()).collect()
    }
}

#[test]
fn directory_is_whole_and_small() {
    let dir = tempfile::tempdir().unwrap();
    gpt::write_model(dir.path()).unwrap();
    let mut total = 0;
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let entry = entry.unwrap();
        let bytes = std::fs::read(entry.path()).unwrap();
        assert_eq!(bytes, file(entry.file_name().to_str().unwrap()));
        total += bytes.len();
    }
    assert_eq!(total, MODEL.iter().map(|(_, bytes)| bytes.len()).sum::<usize>());
    assert!(total < MOST_BYTES, "{total} bytes");
}

#[test]
fn weights_have_the_shapes_that_the_config_says() {
    let config = json("config.json");
    let number = |name: &str| config[name].as_u64().unwrap_or_else(|| panic!("{name} is no number")) as usize;
    let (vocabulary, rows, width) = (number("vocab_size"), number("n_positions"), number("n_embd"));
    assert_eq!((&config["model_type"], &config["architectures"][0]), (&"gpt2".into(), &"GPT2LMHeadModel".into()));
    assert_eq!((&config["activation_function"], &config["tie_word_embeddings"]), (&"gelu_new".into(), &true.into()));
    assert_eq!((number("n_ctx"), width % number("n_head")), (rows, 0));
    assert_eq!(json("generation_config.json")["eos_token_id"], config["eos_token_id"]);

    let mut expected = BTreeMap::from([
        ("wte.weight".to_owned(), vec![vocabulary, width]),
        ("wpe.weight".to_owned(), vec![rows, width]),
    ]);
    let mut norms = vec!["ln_f".to_owned()];
    for layer in 0..number("n_layer") {
        norms.extend([format!("h.{layer}.ln_1"), format!("h.{layer}.ln_2")]);
        for (at, inputs, outputs) in [
            ("attn.c_attn", width, 3 * width),
            ("attn.c_proj", width, width),
            ("mlp.c_fc", width, 4 * width),
            ("mlp.c_proj", 4 * width, width),
        ] {
            expected.insert(format!("h.{layer}.{at}.weight"), vec![inputs, outputs]);
            expected.insert(format!("h.{layer}.{at}.bias"), vec![outputs]);
        }
    }
    for at in norms {
        expected.extend(["weight", "bias"].map(|name| (format!("{at}.{name}"), vec![width])));
    }
    let model = Gpt::load();
    let found: BTreeMap<String, Vec<usize>> =
        model.weights.iter().map(|(n, (shape, _))| (n.clone(), shape.clone())).collect();
    assert_eq!(found, expected);
    assert!(model.weights.values().all(|(_, values)| values.iter().all(|v| v.is_finite())));
}

#[test]
fn tokenizer_gives_back_every_text_in_ids_that_the_model_knows() {
    let (tokenizer, config) = (tokenizer(), json("config.json"));
    let vocabulary = config["vocab_size"].as_u64().unwrap();
    assert_eq!(tokenizer.get_vocab_size(true) as u64, vocabulary);
    assert!(tokenizer.get_vocab(true).values().all(|&id| u64::from(id) < vocabulary));
    let end = tokenizer.token_to_id("<|endoftext|>").unwrap();
    assert_eq!(config["eos_token_id"], end);
    for text in [UNSEEN[0], PROMPTS[0], "It cost £5, naïvely: 中 🙂\n\tindeed  so.", " a leading space", "x"] {
        let ids = encode(text);
        assert!(!ids.contains(&end));
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
    }
    // English words of the corpus are few tokens; bytes would be many more.
    assert!(encode(UNSEEN[0]).len() * 3 < UNSEEN[0].len());
}

#[test]
fn unseen_chapters_are_predicted() {
    let (mut total, mut count) = (0.0, 0);
    for text in UNSEEN {
        let (mut model, ids) = (Gpt::load(), encode(text));
        for pair in ids.windows(2) {
            let logits = model.step(pair[0]);
            let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = logits.iter().map(|&l| f64::from(l - largest).exp()).sum();
            total += sum.ln() - f64::from(logits[pair[1] as usize] - largest);
            count += 1;
        }
        assert!(model.largest_value < LARGEST_VALUE, "{}", model.largest_value);
    }
    let loss = total / f64::from(count);
    assert!(loss < LARGEST_LOSS, "{loss} nats per token");
}

/// The README shows what the model says, not what it once said.
#[test]
fn prompts_are_continued_as_the_readme_shows() {
    const README: &str = include_str!("../gpt/README.md");
    const TOKENS: usize = 32;
    let continued = PROMPTS.map(|prompt| {
        let (mut model, mut ids) = (Gpt::load(), encode(prompt));
        let mut logits = ids.iter().map(|&id| model.step(id)).last().unwrap();
        for _ in 0..TOKENS {
            let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as u32;
            ids.push(best);
            logits = model.step(best);
        }
        tokenizer().decode(&ids, false).unwrap()
    });
    let shown = format!("```text\n{}\n```", continued.join("\n\n"));
    assert!(README.contains(&shown), "the README should show\n{shown}");
}
