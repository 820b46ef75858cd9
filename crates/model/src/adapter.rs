//! LoRA adapters: a PEFT directory, and the model that it makes of its base.
//!
//! An adapted linear layer `x W + b` becomes `(x W + b) + (x D) U`: `D` holds `A` of every layer that the graph has side by side
//! there, and `U` their `B`, each in its own columns, times `alpha / r` and what the weight itself is multiplied by. So the base
//! keeps its tensors as they are, and what an adapter brings is small and its own.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::error::{LoadError, Problem};
use crate::fields::{Fields, read_object};
use crate::graph::{Graph, Node, Op, TensorSpec, ValueId};
use crate::model::Model;
use crate::recipe::{Part, Recipe};
use crate::weights::{Entry, Weights};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
/// What stands before the names of the base's layers.
const PREFIX: &str = "base_model.model.";
const ENDINGS: [&str; 2] = [".lora_A.weight", ".lora_B.weight"];
/// Highest rank of one layer.
const MAX_RANK: usize = 1 << 12;

/// A low-rank change of some linear layers, as its owner has it.
pub struct Adapter {
    layers: BTreeMap<String, LowRank>,
    /// Endings of the names of the layers that it is said to change, if all of those of the base are meant.
    targets: Option<Vec<String>>,
}

/// `scale * B A`, to be added to a weight `[out, in]`.
struct LowRank {
    rank: usize,
    scale: f64,
    /// `[rank, in]`.
    a: Vec<f32>,
    /// `[out, rank]`.
    b: Vec<f32>,
}

impl LowRank {
    fn widths(&self) -> [usize; 2] {
        [self.a.len() / self.rank, self.b.len() / self.rank]
    }
}

impl Adapter {
    /// Loads an unmodified PEFT directory of type LoRA: `adapter_config.json` and `adapter_model.safetensors` in f32, f16 or
    /// bf16. `rank_pattern` and `alpha_pattern` may name layers, and no regular expressions; biases, whole modules and tables
    /// that were trained along, and variants that compute something else (DoRA) are refused.
    ///
    /// # Errors
    /// Everything that is wrong with the directory, at once.
    pub fn load(dir: &Path) -> Result<Self, LoadError> {
        let mut problems = Vec::new();
        let config = read_object(dir, CONFIG, Some("PEFT writes it beside the weights of an adapter"), &mut problems)
            .map(|map| Config::read(&mut Fields { file: CONFIG, map: &map, problems: &mut problems }));
        let mend = "the weights of an adapter must be there in safetensors form; model.save_pretrained(..) of PEFT writes them";
        let weights = Weights::open_file(dir, WEIGHTS, PREFIX, mend, &mut problems);
        let mut pairs = BTreeMap::<&str, [Option<&Entry>; 2]>::new();
        for (name, entry) in weights.entries() {
            let half = |(half, ending): (usize, &&str)| name.strip_suffix(*ending).map(|layer| (layer, half));
            match ENDINGS.iter().enumerate().find_map(half) {
                Some((layer, half)) => pairs.entry(layer).or_default()[half] = Some(entry),
                None => problems.push(Problem::Misfit {
                    name: entry.stored_name.clone(),
                    what: "it is neither lora_A nor lora_B of a linear layer, and nothing else is supported".into(),
                }),
            }
        }
        if pairs.is_empty() && weights.entries().next().is_none() && problems.is_empty() {
            problems.push(Problem::BrokenFile { file: WEIGHTS.into(), cause: "it holds no tensor".into() });
        }
        let mut layers = BTreeMap::new();
        for (name, pair) in pairs {
            let rank = config.as_ref().map(|config| config.rank_and_scale(name));
            match LowRank::read(&weights, name, pair, rank) {
                Ok(layer) => drop(layers.insert(name.to_owned(), layer)),
                Err(wrong) => problems.extend(wrong),
            }
        }
        if !problems.is_empty() {
            return Err(LoadError { problems });
        }
        Ok(Self { layers, targets: config.and_then(|config| config.targets) })
    }

    /// The layers that it changes, as the directory names them, with their ranks.
    pub fn layers(&self) -> impl Iterator<Item = (&str, usize)> {
        self.layers.iter().map(|(name, layer)| (name.as_str(), layer.rank))
    }
}

impl LowRank {
    /// One layer, with the rank that it should have and its scale; of a broken configuration, its shapes alone are looked at.
    fn read(
        weights: &Weights,
        name: &str,
        [a, b]: [Option<&Entry>; 2],
        wanted: Option<Result<(usize, f64), String>>,
    ) -> Result<Self, Vec<Problem>> {
        let misfit = |name: &str, what: String| Problem::Misfit { name: name.into(), what };
        let (Some(a), Some(b)) = (a, b) else {
            let [there, missing] = if a.is_some() { ["lora_A", "lora_B"] } else { ["lora_B", "lora_A"] };
            return Err(vec![misfit(name, format!("it has {there} and no {missing}"))]);
        };
        let mut problems = Vec::new();
        for entry in [a, b] {
            let checked = weights.check_type(entry).and_then(|()| weights.check_finite(entry));
            problems.extend(checked.err());
        }
        let rank = match (a.shape.as_slice(), b.shape.as_slice()) {
            ([first, width], [out, second]) if first == second && first * width * out != 0 => *first,
            (a, b) => {
                problems.push(misfit(name, format!("lora_A {a:?} and lora_B {b:?} are not [r, in] and [out, r]")));
                return Err(problems);
            }
        };
        let scale = match wanted {
            Some(Ok((wanted, scale))) => {
                if wanted != rank {
                    problems.push(misfit(name, format!("its rank is {rank}, and {CONFIG} says {wanted}")));
                }
                scale
            }
            Some(Err(what)) => {
                problems.push(misfit(name, what));
                1.0
            }
            None => 1.0,
        };
        if !problems.is_empty() {
            return Err(problems);
        }
        let read = |entry: &Entry| {
            let mut values = vec![0.0; entry.shape.iter().product()];
            let read = weights.read_elements(entry, 0, &mut values);
            read.map(|()| values).map_err(|e| vec![Problem::BrokenFile { file: WEIGHTS.into(), cause: e.to_string() }])
        };
        Ok(Self { rank, scale, a: read(a)?, b: read(b)? })
    }
}

/// What `adapter_config.json` says.
struct Config {
    rank: usize,
    alpha: f64,
    /// Ranks and alphas of some layers.
    ranks: Vec<(String, f64)>,
    alphas: Vec<(String, f64)>,
    /// Whether `B A` is scaled by `alpha / sqrt(r)` rather than `alpha / r`.
    stabilized: bool,
    targets: Option<Vec<String>>,
}

impl Config {
    fn read(fields: &mut Fields<'_>) -> Self {
        match fields.get("peft_type").cloned() {
            Some(kind) if kind == "LORA" => {}
            Some(kind) => fields.unsupported("peft_type", &kind, "LORA"),
            None => fields.bad("peft_type", "it is missing; LORA is needed".into()),
        }
        let rank = fields.count("r", 1, MAX_RANK, Some(8));
        let alpha = fields.above_zero("lora_alpha", Some(8.0));
        let stabilized = fields.flag("use_rslora", false);
        fields.only(&[
            ("bias", json!("none")),
            ("use_dora", json!(false)),
            ("use_qalora", json!(false)),
            ("lora_bias", json!(false)),
        ]);
        // Whole modules, tables, or the order of layers would be left out in silence.
        let beside = [
            "modules_to_save",
            "trainable_token_indices",
            "target_parameters",
            "layer_replication",
            "alora_invocation_tokens",
            "arrow_config",
            "kasa_config",
            "monteclora_config",
            "use_bdlora",
            "velora_config",
        ];
        for key in beside {
            let empty =
                |v: &Value| v.as_array().is_some_and(Vec::is_empty) || v.as_object().is_some_and(|o| o.is_empty());
            if let Some(value) = fields.get(key).filter(|v| !empty(v)).cloned() {
                fields.unsupported(key, &value, "none");
            }
        }
        // Other ways to begin change the base as well.
        if let Some(begun) = fields.get("init_lora_weights").cloned()
            && !(begun.is_boolean() || ["gaussian", "orthogonal", "eva"].iter().any(|known| begun == *known))
        {
            fields.unsupported("init_lora_weights", &begun, "true, false, gaussian, orthogonal, eva");
        }
        let [ranks, alphas] = ["rank_pattern", "alpha_pattern"].map(|key| patterns(fields, key));
        // Where layers are left out on purpose, or chosen by a pattern, the weights tell which.
        let some = ["layers_to_transform", "exclude_modules"].iter().any(|key| fields.get(key).is_some());
        let targets = fields.get("target_modules").and_then(Value::as_array).filter(|_| !some);
        let targets = targets.map(|names| names.iter().filter_map(Value::as_str).map(str::to_owned).collect());
        Self { rank, alpha, ranks, alphas, stabilized, targets }
    }

    /// Of a layer; an error where the patterns contradict each other.
    fn rank_and_scale(&self, layer: &str) -> Result<(usize, f64), String> {
        let of = |patterns: &[(String, f64)], key: &str, otherwise: f64| {
            let mut found = patterns.iter().filter(|(name, _)| ends_in(layer, name)).map(|(_, value)| *value);
            let first = found.next().unwrap_or(otherwise);
            match found.all(|value| value == first) {
                true => Ok(first),
                false => Err(format!("{CONFIG}: {key} names it twice, with different values")),
            }
        };
        let rank = of(&self.ranks, "rank_pattern", self.rank as f64)?;
        let alpha = of(&self.alphas, "alpha_pattern", self.alpha)?;
        Ok((rank as usize, alpha / if self.stabilized { rank.sqrt() } else { rank }))
    }
}

/// Numbers by the name, or the end of the name, of a layer.
fn patterns(fields: &mut Fields<'_>, key: &str) -> Vec<(String, f64)> {
    let Some(found) = fields.get(key).cloned() else { return Vec::new() };
    let plain = |name: &str| name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
    let number = |(name, value): (&String, &Value)| {
        let value = value.as_f64().filter(|v| *v > 0.0 && v.is_finite() && plain(name))?;
        Some((name.clone(), value))
    };
    let read = found.as_object().and_then(|map| map.iter().map(number).collect::<Option<Vec<_>>>());
    if read.is_none() {
        fields.unsupported(key, &found, "numbers above zero by plain names of layers");
    }
    read.unwrap_or_default()
}

/// Whether a layer is the one that is named, or ends in it.
fn ends_in(layer: &str, named: &str) -> bool {
    layer.strip_suffix(named).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

impl Model {
    /// This model with an adapter: the same graph with three nodes after each adapted linear layer `X`, named `X/lora/down`,
    /// `X/lora/up` and `X/lora/sum`, whose result takes the place of that of `X`. The weights of the base are neither read nor
    /// copied.
    ///
    /// # Errors
    /// Everything by which it is an adapter of another base: layers that this one does not have or that have other widths there,
    /// layers that it should change and does not; and layers that take no part in what this model answers (a pooler). Layers that
    /// give the scores of tokens cannot be adapted, nor can experts behind a public gate.
    pub fn with_adapter(&self, adapter: &Adapter) -> Result<Model, LoadError> {
        let mut problems = Vec::new();
        let mut places = BTreeMap::<&str, Vec<(usize, Part<'_>)>>::new();
        for (index, node) in self.graph.nodes.iter().enumerate() {
            let Op::Linear { weight, .. } = &node.op else { continue };
            for part in self.recipes.get(weight).into_iter().flat_map(Recipe::parts) {
                places.entry(part.module).or_default().push((index, part));
            }
        }
        let experts = self.graph.nodes.iter().filter(|node| matches!(node.op, Op::Experts { .. }));
        let matrices = experts.flat_map(|node| node.op.tensors()).filter_map(|name| self.recipes.get(name));
        let behind_gate: BTreeSet<&str> = matrices.flat_map(Recipe::parts).map(|part| part.module).collect();
        let scores = if self.graph.is_decoder() { self.graph.nodes.len() - 1 } else { usize::MAX };
        let canonical = |name: &str| name.strip_prefix(self.prefix).unwrap_or(name).to_owned();
        let layers: BTreeMap<String, &LowRank> = adapter.layers.iter().map(|(n, l)| (canonical(n), l)).collect();
        let mut changes = BTreeMap::<usize, Vec<Change<'_>>>::new();
        for (name, layer) in &layers {
            let mut misfit = |what: String| problems.push(Problem::Misfit { name: name.clone(), what });
            let Some(places) = places.get(name.as_str()) else {
                misfit(if behind_gate.contains(name.as_str()) {
                    "experts behind a public gate cannot be adapted; share the base with a secret one".into()
                } else if self.is_idle(name) {
                    "that layer takes no part in what this model answers; train the adapter without it".into()
                } else {
                    "the base has no linear layer of this name: it is an adapter of another base".into()
                });
                continue;
            };
            let (widths, wanted) = (layer.widths(), places[0].1.widths);
            if places.iter().any(|(index, _)| *index == scores) {
                misfit("it gives the scores of tokens, which no adapter may change here".into());
            } else if widths != wanted {
                let ([a, b], [c, d]) = (widths, wanted);
                misfit(format!(
                    "it takes {a} values to {b}, and in the base {c} to {d}: it is an adapter of another base"
                ));
            } else {
                for (index, part) in places {
                    let changes = changes.entry(*index).or_default();
                    match changes.last_mut().filter(|change| change.name == name) {
                        Some(change) => change.parts.push(part),
                        None => changes.push(Change { name, layer, parts: vec![part] }),
                    }
                }
            }
        }
        for name in places.iter().filter(|(_, places)| places[0].0 != scores).map(|(name, _)| *name) {
            let full = format!("{}{name}", self.prefix);
            let target = adapter.targets.iter().flatten().find(|target| ends_in(&full, target));
            if let (Some(target), false) = (target, layers.contains_key(name)) {
                let what = format!("the adapter targets {target} and leaves it out: it is an adapter of another base");
                problems.push(Problem::Misfit { name: name.into(), what });
            }
        }
        if !problems.is_empty() {
            return Err(LoadError { problems });
        }
        let adapted = self.changed(&changes);
        adapted.graph.validate().map_err(|error| LoadError { problems: vec![Problem::Graph(error)] })?;
        Ok(adapted)
    }

    /// Whether a layer is in the checkpoint, or a usual part of it, and in no tensor of the graph.
    fn is_idle(&self, layer: &str) -> bool {
        let usual = ["pooler.", "cls."].iter().any(|part| layer.starts_with(part));
        let stored = || self.weights.entry(&format!("{layer}.weight")).is_some();
        (usual || stored()) && !self.recipes.values().flat_map(Recipe::parts).any(|part| part.module == layer)
    }

    /// The graph with these changes, by node.
    fn changed(&self, changes: &BTreeMap<usize, Vec<Change<'_>>>) -> Model {
        let mut graph = Graph { nodes: Vec::new(), ..self.graph.clone() };
        let mut recipes = self.recipes.clone();
        // Where the values of the base are now.
        let mut now: Vec<ValueId> = vec![0];
        for (index, node) in self.graph.nodes.iter().enumerate() {
            let inputs: Vec<ValueId> = node.inputs.iter().map(|input| now[*input]).collect();
            graph.nodes.push(Node { inputs: inputs.clone(), ..node.clone() });
            let whole = graph.nodes.len();
            if let (Some(changes), Op::Linear { weight, .. }) = (changes.get(&index), &node.op) {
                let [width_in, width_out] =
                    self.graph.tensor_spec(weight).map_or([0; 2], |spec| [spec.rows, spec.cols]);
                let rank = changes.iter().map(|change| change.layer.rank).sum();
                let down = (width_in, rank, down(changes, width_in, rank));
                let up = (rank, width_out, up(changes, rank, width_out));
                for (role, (rows, cols, values), inputs) in [("down", down, inputs), ("up", up, vec![whole + 1])] {
                    let name = format!("{}/lora/{role}", node.name);
                    let weight = format!("{name}/weight");
                    graph.tensors.push(TensorSpec { name: weight.clone(), rows, cols });
                    recipes.insert(weight.clone(), Recipe::Given(values.into()));
                    graph.nodes.push(Node { name, op: Op::Linear { weight, bias: None }, inputs });
                }
                let name = format!("{}/lora/sum", node.name);
                graph.nodes.push(Node { name, op: Op::Add, inputs: vec![whole, whole + 2] });
            }
            now.push(graph.nodes.len());
        }
        Model {
            graph,
            notes: self.notes.clone(),
            generation: self.generation.clone(),
            tokenizer: self.tokenizer.clone(),
            prefix: self.prefix,
            weights: Arc::clone(&self.weights),
            recipes,
        }
    }
}

/// What happens to one stored layer, and where it lies in the weight of a node.
struct Change<'a> {
    name: &'a str,
    layer: &'a LowRank,
    parts: Vec<&'a Part<'a>>,
}

/// `A` of all layers side by side: `[width, rank]`.
fn down(changes: &[Change<'_>], width: usize, rank: usize) -> Vec<f32> {
    let mut values = vec![0.0; width * rank];
    let mut first = 0;
    for Change { layer, parts, .. } in changes {
        let [width_in, _] = layer.widths();
        for part in parts {
            for (i, row) in part.rows.clone().enumerate() {
                for c in 0..layer.rank {
                    values[row * rank + first + c] = layer.a[c * width_in + part.first_in + i];
                }
            }
        }
        first += layer.rank;
    }
    values
}

/// `B` of all layers, each in its own rows and columns: `[rank, width]`.
fn up(changes: &[Change<'_>], rank: usize, width: usize) -> Vec<f32> {
    let mut values = vec![0.0; rank * width];
    let mut first = 0;
    for Change { layer, parts, .. } in changes {
        for part in parts {
            for (j, col) in part.cols.clone().enumerate() {
                for c in 0..layer.rank {
                    let b = f64::from(layer.b[(part.first_out + j) * layer.rank + c]);
                    values[(first + c) * width + col] = (b * layer.scale * part.scale) as f32;
                }
            }
        }
        first += layer.rank;
    }
    values
}
