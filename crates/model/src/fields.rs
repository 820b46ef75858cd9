//! A JSON file of a model directory, read field by field: what is wrong with one does not hide what is wrong with the next.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::Problem;
use crate::graph::Activation;

/// Reads a JSON object. A missing file is a problem only if there is something to say about it.
pub(crate) fn read_object(
    dir: &Path,
    file: &str,
    mend: Option<&str>,
    problems: &mut Vec<Problem>,
) -> Option<Map<String, Value>> {
    let broken = |cause: String| Problem::BrokenFile { file: file.into(), cause };
    match std::fs::read(dir.join(file)) {
        Ok(bytes) => match serde_json::from_slice(&bytes) {
            Ok(Value::Object(map)) => return Some(map),
            Ok(_) => problems.push(broken("it is not a JSON object".into())),
            Err(e) => problems.push(broken(e.to_string())),
        },
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            if let Some(mend) = mend {
                problems.push(Problem::MissingFile { file: file.into(), mend: mend.into() });
            }
        }
        Err(e) => problems.push(broken(e.to_string())),
    }
    None
}

/// A configuration file being read: every accessor reports what is wrong and returns something to go on with.
pub(crate) struct Fields<'a> {
    pub(crate) file: &'static str,
    pub(crate) map: &'a Map<String, Value>,
    pub(crate) problems: &'a mut Vec<Problem>,
}

impl Fields<'_> {
    pub(crate) fn bad(&mut self, key: &str, what: String) {
        self.problems.push(Problem::BadEntry { file: self.file.into(), key: key.into(), what });
    }

    pub(crate) fn unsupported(&mut self, key: &str, value: &Value, supported: &str) {
        let (file, key, value) = (self.file.into(), key.into(), value.to_string());
        self.problems.push(Problem::UnsupportedOption { file, key, value, supported: supported.into() });
    }

    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    /// A whole number in a range; 0 after a problem.
    pub(crate) fn count(&mut self, key: &str, least: usize, most: usize, default: Option<usize>) -> usize {
        let found = match (self.get(key), default) {
            (None, Some(default)) => return default,
            (None, None) => "it is missing".to_string(),
            (Some(value), _) => match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
                Some(n) if (least..=most).contains(&n) => return n,
                _ => value.to_string(),
            },
        };
        self.bad(key, format!("{found}; a whole number from {least} to {most} is needed"));
        0
    }

    pub(crate) fn positive(&mut self, key: &str, default: f64) -> f64 {
        match self.get(key).map(|v| (v.as_f64(), v.to_string())) {
            None => default,
            Some((Some(n), _)) if n > 0.0 && n < 1.0 => n,
            Some((_, text)) => {
                self.bad(key, format!("{text} is not a number between 0 and 1"));
                default
            }
        }
    }

    pub(crate) fn flag(&mut self, key: &str, default: bool) -> bool {
        match self.get(key).map(|v| (v.as_bool(), v.to_string())) {
            None => default,
            Some((Some(flag), _)) => flag,
            Some((None, text)) => {
                self.bad(key, format!("{text} is neither true nor false"));
                default
            }
        }
    }

    pub(crate) fn activation(&mut self, key: &str) -> Activation {
        match self.get(key).cloned().unwrap_or_else(|| "gelu".into()) {
            Value::String(name) if name == "gelu" || name == "gelu_python" => Activation::Gelu,
            Value::String(name)
                if ["gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_python_tanh", "gelu_accurate"]
                    .contains(&name.as_str()) =>
            {
                Activation::GeluTanh
            }
            Value::String(name) if name == "relu" => Activation::Relu,
            other => {
                let supported = "gelu, gelu_new, gelu_pytorch_tanh, gelu_fast, gelu_accurate, relu";
                self.unsupported(key, &other, supported);
                Activation::Gelu
            }
        }
    }

    /// A number above zero; 1 after a problem.
    pub(crate) fn above_zero(&mut self, key: &str, default: Option<f64>) -> f64 {
        match (self.get(key).map(|v| (v.as_f64(), v.to_string())), default) {
            (None, Some(default)) => return default,
            (None, None) => self.bad(key, "it is missing; a number above zero is needed".into()),
            (Some((Some(n), _)), _) if n > 0.0 && n.is_finite() => return n,
            (Some((_, text)), _) => self.bad(key, format!("{text} is not a number above zero")),
        }
        1.0
    }

    /// Holds options to the one value that is supported, which is also the one that is meant where they are missing.
    pub(crate) fn only(&mut self, options: &[(&str, Value)]) {
        for (key, supported) in options {
            if let Some(value) = self.get(key).cloned()
                && value != *supported
                && value.as_f64().is_none_or(|n| Some(n) != supported.as_f64())
            {
                self.unsupported(key, &value, &supported.to_string());
            }
        }
    }

    /// Options of every family that change the computation.
    pub(crate) fn unsupported_options(&mut self) {
        for key in ["add_cross_attention", "is_encoder_decoder"] {
            if self.flag(key, false) {
                self.unsupported(key, &Value::Bool(true), "false");
            }
        }
        if let Some(value) = self.get("pruned_heads").cloned()
            && value.as_object().is_none_or(|heads| !heads.is_empty())
        {
            self.unsupported("pruned_heads", &value, "none");
        }
        if let Some(value) = self.get("quantization_config").cloned() {
            self.unsupported("quantization_config", &value, "none: f32, f16 and bf16 weights");
        }
    }
}
