//! Changes of the numbers of manifests: field by field first, each by every value that is tried,
//! then at random.

use std::collections::BTreeMap;
use std::fmt;

use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::{Number, Value};
use tercet_engine::Manifest;

use crate::subject::Subject;

/// A step towards a value.
#[derive(Clone, Debug)]
enum Step {
    Key(String),
    Index(usize),
}

/// How a number is changed.
#[derive(Clone, Copy, Debug, PartialEq)]
enum To {
    Whole(i128),
    Plus(i128),
    Times(f64),
    Real(f64),
    Flipped,
}

const WAYS: [To; 26] = [
    To::Whole(0),
    To::Whole(1),
    To::Whole(2),
    To::Plus(1),
    To::Plus(-1),
    To::Whole(u32::MAX as i128),
    To::Whole(-1),
    To::Whole(i64::MAX as i128),
    To::Whole(i64::MIN as i128),
    To::Whole(u64::MAX as i128),
    To::Flipped,
    To::Real(0.0),
    To::Real(1e308),
    To::Real(-1e308),
    To::Real(1e-308),
    To::Times(-1.0),
    To::Times(1024.0),
    To::Whole(3),
    To::Whole(16),
    To::Whole(31),
    To::Whole(32),
    To::Whole(33),
    To::Whole(63),
    To::Whole(64),
    To::Plus(2),
    To::Plus(-2),
];

/// One change.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) subject: usize,
    path: Vec<Step>,
    to: To,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in &self.path {
            match step {
                Step::Key(key) => write!(f, "/{key}")?,
                Step::Index(at) => write!(f, "/{at}")?,
            }
        }
        write!(f, " {:?}", self.to)
    }
}

impl Change {
    /// The changed manifest; none where what is changed cannot be written down.
    pub(crate) fn bytes(&self, subjects: &[Subject]) -> Option<Vec<u8>> {
        let mut value = subjects[self.subject].value.clone();
        let leaf = self.path.iter().try_fold(&mut value, |value, step| match step {
            Step::Key(key) => value.get_mut(key),
            Step::Index(at) => value.get_mut(at),
        })?;
        *leaf = changed(leaf, self.to)?;
        serde_json::from_value::<Manifest>(value).ok()?.to_bytes().ok()
    }
}

fn changed(leaf: &Value, to: To) -> Option<Value> {
    let number = match leaf {
        Value::Bool(bit) => return (to == To::Flipped).then_some(Value::Bool(!bit)),
        Value::Number(number) => number,
        _ => return None,
    };
    let whole = number.as_i128();
    let real = whole.is_none().then(|| number.as_f64()).flatten();
    let of_real = |value: f64| Number::from_f64(value).map(Value::Number);
    let changed = match (to, whole, real) {
        (To::Whole(value), Some(_), _) => Number::from_i128(value).map(Value::Number),
        (To::Plus(by), Some(value), _) => Number::from_i128(value.checked_add(by)?).map(Value::Number),
        (To::Times(by), Some(value), _) => Number::from_i128(value.checked_mul(by as i128)?).map(Value::Number),
        (To::Whole(value), _, Some(_)) => of_real(value as f64),
        (To::Plus(by), _, Some(value)) => of_real(value + by as f64),
        (To::Times(by), _, Some(value)) => of_real(value * by),
        (To::Real(value), _, Some(_)) => of_real(value),
        _ => None,
    };
    changed.filter(|value| value != leaf)
}

/// Places of numbers, by field: the path without the numbers of list elements and the names of
/// tensors.
type Fields = BTreeMap<String, Vec<(usize, Vec<Step>)>>;

fn collect(subject: usize, value: &Value, path: &mut Vec<Step>, field: &str, fields: &mut Fields) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                path.push(Step::Key(key.clone()));
                let field = if field == "/numerics/tensors" { format!("{field}/*") } else { format!("{field}/{key}") };
                collect(subject, value, path, &field, fields);
                path.pop();
            }
        }
        Value::Array(list) => {
            for (at, value) in list.iter().enumerate() {
                path.push(Step::Index(at));
                collect(subject, value, path, &format!("{field}/*"), fields);
                path.pop();
            }
        }
        Value::Bool(_) | Value::Number(_) if !matches!(field, "/sharing_id/*" | "/tokenizer/*") => {
            fields.entry(field.to_owned()).or_default().push((subject, path.clone()));
        }
        _ => {}
    }
}

/// So many changes, the same at every run. Those that cannot be written down are passed over.
pub(crate) struct Changes<'a> {
    subjects: &'a [Subject],
    fields: Vec<Vec<(usize, Vec<Step>)>>,
    rng: StdRng,
    tried: usize,
    left: usize,
}

impl<'a> Changes<'a> {
    pub(crate) fn new(subjects: &'a [Subject], count: usize) -> Changes<'a> {
        let mut fields = Fields::new();
        for (at, subject) in subjects.iter().enumerate() {
            collect(at, &subject.value, &mut Vec::new(), "", &mut fields);
        }
        let rng = StdRng::seed_from_u64(6);
        Changes { subjects, fields: fields.into_values().collect(), rng, tried: 0, left: count }
    }
}

impl Iterator for Changes<'_> {
    type Item = Change;

    fn next(&mut self) -> Option<Change> {
        self.left = self.left.checked_sub(1)?;
        loop {
            let (field, way) = (self.tried % self.fields.len(), self.tried / self.fields.len());
            self.tried += 1;
            let places = &self.fields[field];
            let (subject, path) = places[self.rng.random_range(0..places.len())].clone();
            let to = match WAYS.get(way) {
                Some(way) => *way,
                None if self.rng.random_bool(0.3) => To::Whole(self.rng.random_range(0..70)),
                None => WAYS[self.rng.random_range(0..WAYS.len())],
            };
            let change = Change { subject, path, to };
            if change.bytes(self.subjects).is_some() {
                return Some(change);
            }
        }
    }
}
