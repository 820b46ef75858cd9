//! Rotary positions: by how much a position turns each pair of columns, whatever scaling the configuration asks for.

use std::f64::consts::TAU;

use serde_json::{Map, Value};

use crate::fields::Fields;

/// The keys under which configurations hold the options of rotary positions. The first wins where both are used, so they may
/// not differ.
const KEYS: [&str; 2] = ["rope_scaling", "rope_parameters"];

/// Radians per position for each pair of columns of a head of `width`: `theta^(-2i / width)`, scaled.
///
/// What is not supported is reported to `fields`, which are those of `config.json`; `theta` is the family's own default.
pub(crate) fn frequencies(fields: &mut Fields<'_>, width: usize, theta: f64) -> Vec<f64> {
    let mut theta = fields.above_zero("rope_theta", Some(theta));
    let mut scaling = Scaling::None;
    let empty = |value: &Value| value.as_object().is_some_and(Map::is_empty);
    let used = KEYS.map(|key| fields.get(key).filter(|value| !empty(value)).cloned());
    if let [Some(one), Some(other)] = &used
        && one != other
    {
        fields.bad(KEYS[0], format!("{one} is not what {} says: {other}", KEYS[1]));
    }
    match KEYS.into_iter().zip(used).find_map(|(key, value)| Some((key, value?))) {
        None => {}
        Some((key, Value::Object(options))) => {
            let mut inner = Fields { file: fields.file, map: &options, problems: fields.problems };
            theta = inner.above_zero("rope_theta", Some(theta));
            inner.only(&[("partial_rotary_factor", 1.into())]);
            scaling = Scaling::read(key, &options, &mut inner);
        }
        Some((key, other)) => fields.bad(key, format!("{other} is not an object")),
    }
    (0..width / 2).map(|i| rounded(scaling.apply(theta.powf(-2.0 * i as f64 / width as f64)))).collect()
}

/// Twelve digits, far beyond what a position of a model resolves: few enough that every reader of a graph in text finds the
/// same number again, and so the same digest.
pub(crate) fn rounded(value: f64) -> f64 {
    format!("{value:.11e}").parse().unwrap_or(value)
}

enum Scaling {
    None,
    /// All frequencies divided.
    Linear(f64),
    /// Low frequencies divided, high ones kept, those between interpolated.
    Llama3 {
        factor: f64,
        low: f64,
        high: f64,
        original: f64,
    },
}

impl Scaling {
    fn read(key: &str, options: &Map<String, Value>, fields: &mut Fields<'_>) -> Self {
        let kind = options.get("rope_type").or_else(|| options.get("type")).cloned();
        match kind.as_ref().map(|kind| kind.as_str()) {
            Some(Some("default")) => Self::None,
            None if options.keys().all(|key| ["rope_theta", "partial_rotary_factor"].contains(&key.as_str())) => {
                Self::None
            }
            Some(Some("linear")) => Self::Linear(fields.above_zero("factor", None)),
            Some(Some("llama3")) => {
                let factor = fields.above_zero("factor", None);
                let low = fields.above_zero("low_freq_factor", None);
                let high = fields.above_zero("high_freq_factor", None);
                let original = fields.above_zero("original_max_position_embeddings", None);
                if high <= low && (high, low) != (1.0, 1.0) {
                    fields.bad("high_freq_factor", format!("{high} is not above low_freq_factor {low}"));
                }
                Self::Llama3 { factor, low, high, original }
            }
            _ => {
                let value = kind.unwrap_or_else(|| Value::Object(options.clone()));
                fields.unsupported(key, &value, "default, linear, llama3, the same for all layers");
                Self::None
            }
        }
    }

    fn apply(&self, frequency: f64) -> f64 {
        match *self {
            Self::None => frequency,
            Self::Linear(factor) => frequency / factor,
            Self::Llama3 { factor, low, high, original } => {
                // How often a pair of columns turns over the length on which the model was first trained.
                let turns = original * frequency / TAU;
                let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                if kept.is_nan() { frequency } else { frequency * (kept + (1.0 - kept) / factor) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(config: Value) -> (Vec<f64>, usize) {
        let (map, mut problems) = (config.as_object().unwrap().clone(), Vec::new());
        let mut fields = Fields { file: "config.json", map: &map, problems: &mut problems };
        (frequencies(&mut fields, 8, 1e4), problems.len())
    }

    #[test]
    fn plain_and_linear() {
        assert_eq!(of(json!({})), (vec![1.0, 0.1, 0.01, 0.001], 0));
        assert_eq!(of(json!({"rope_theta": 16.0})), (vec![1.0, 0.5, 0.25, 0.125], 0));
        let linear = json!({"rope_theta": 16.0, "rope_scaling": {"type": "linear", "factor": 4.0}});
        assert_eq!(of(linear), (vec![0.25, 0.125, 0.0625, 0.03125], 0));
        let newer = json!({"rope_parameters": {"rope_type": "default", "rope_theta": 16}});
        assert_eq!(of(newer), (vec![1.0, 0.5, 0.25, 0.125], 0));
    }

    #[test]
    fn options_under_both_names_must_be_the_same() {
        let linear = json!({"rope_type": "linear", "factor": 4.0, "rope_theta": 16.0});
        let plain = json!({"rope_type": "default", "rope_theta": 16.0});
        let scaled = vec![0.25, 0.125, 0.0625, 0.03125];
        for unused in [json!({}), Value::Null, linear.clone()] {
            assert_eq!(of(json!({"rope_scaling": linear, "rope_parameters": unused})), (scaled.clone(), 0));
            assert_eq!(of(json!({"rope_scaling": unused, "rope_parameters": linear})), (scaled.clone(), 0));
        }
        assert_eq!(of(json!({"rope_scaling": linear, "rope_parameters": plain})).1, 1);
        assert_eq!(of(json!({"rope_scaling": plain, "rope_parameters": linear})).1, 1);
    }

    #[test]
    fn llama3_keeps_high_frequencies_and_divides_low_ones() {
        // Turns over 2 pi * 100 positions: 100, 10, 1, 0.1.
        let options = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 2.0, "high_freq_factor": 18.0,
            "original_max_position_embeddings": 100.0 * TAU});
        let (found, problems) = of(json!({"rope_scaling": options}));
        assert_eq!(problems, 0);
        let expected = [1.0, 0.1 * (0.5 + 0.5 / 8.0), 0.01 / 8.0, 0.001 / 8.0];
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12 * b), "{found:?}");
    }

    #[test]
    fn other_scalings_are_refused() {
        for options in [
            json!({"rope_type": "yarn", "factor": 2.0}),
            json!({"type": "dynamic", "factor": 2.0}),
            json!({"rope_type": "linear"}),
            json!({"rope_type": "linear", "factor": -1}),
            json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0,
                "original_max_position_embeddings": 64}),
            json!({"full_attention": {"rope_type": "default"}}),
            json!({"factor": 2.0}),
            json!({"rope_type": "default", "partial_rotary_factor": 0.5}),
            json!({"rope_theta": 16, "partial_rotary_factor": 0.5}),
            json!([1]),
        ] {
            assert_eq!(of(json!({"rope_scaling": options})).1, 1, "{options}");
            assert_eq!(of(json!({"rope_parameters": options})).1, 1, "{options}");
        }
        assert_eq!(of(json!({"rope_theta": 0})).1, 1);
    }

    #[test]
    fn frequencies_survive_text() {
        let (map, mut problems) = (json!({"rope_theta": 5e5}).as_object().unwrap().clone(), Vec::new());
        let mut fields = Fields { file: "config.json", map: &map, problems: &mut problems };
        for value in frequencies(&mut fields, 128, 1e4) {
            assert_eq!(serde_json::from_str::<f64>(&serde_json::to_string(&value).unwrap()).unwrap(), value);
        }
    }
}
