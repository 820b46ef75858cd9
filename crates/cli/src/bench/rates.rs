//! The rates of this machine, kept in the cache: `$TERCET_CACHE/bench/rates/PROFILE.json`.
//!
//! They hold for the program and the machine that they were measured with, and are refused for any other: a time that was
//! foretold from the rates of another build would be wrong without a sign of it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tercet_engine::{Plan, Profile, Rates};

use super::machine::{Machine, now};
use super::measure::link;
use super::record::{self, Key};
use crate::fetch;
use crate::screen::{hex, say};

/// What a file of rates says it is.
const KIND: &str = "tercet rates";
/// Changes with every change of meaning.
const SCHEMA: u32 = 1;
/// How rates are had, for every message about their absence.
pub(crate) const HOW: &str = "run `tercet plan --measure`";

/// Rates, and what they are the rates of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Measured {
    kind: String,
    schema: u32,
    /// When they were measured, in UTC.
    pub(crate) date: String,
    /// Which program: its name and version, and a digest of its file.
    program: String,
    build: String,
    machine: Machine,
    /// `fast` or `precise`.
    pub(crate) profile: String,
    /// The farthest that a prediction is from a run that the rates were fitted to, as a part of its time.
    pub(crate) residual: f64,
    pub(crate) rates: Rates,
}

impl Measured {
    /// Rates that this program measured on this machine just now.
    ///
    /// # Errors
    /// This program's file cannot be read.
    pub(crate) fn now(profile: Profile, rates: Rates, residual: f64) -> Result<Self> {
        let (kind, profile) = (KIND.into(), profile.to_string());
        let machine = Machine::this();
        Ok(Self {
            kind,
            schema: SCHEMA,
            date: now(),
            program: program(),
            build: build()?,
            machine,
            profile,
            residual,
            rates,
        })
    }

    /// The rates of a profile; `None` where none were measured.
    ///
    /// # Errors
    /// They are those of another program or another machine, or the file is damaged: the message says which, and the mend.
    pub(crate) fn read(profile: Profile) -> Result<Option<Self>> {
        let path = path(profile)?;
        match fs::read(&path) {
            Ok(text) => Self::parse(&text, &build()?, &Machine::this()).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    fn parse(text: &[u8], build: &str, machine: &Machine) -> Result<Self> {
        let bare: serde_json::Value = serde_json::from_slice(text).unwrap_or_default();
        let is = |key: &str, value: serde_json::Value| bare.get(key) == Some(&value);
        if !is("kind", KIND.into()) || !is("schema", SCHEMA.into()) {
            bail!("the rates of this machine are of another form; {HOW} again");
        }
        let Ok(measured) = serde_json::from_value::<Self>(bare) else {
            bail!("the rates of this machine are damaged; {HOW} again");
        };
        if measured.program != program() || measured.build != build {
            bail!("the rates were measured with another build of this program ({}); {HOW} again", measured.date);
        }
        let on = |of: &Machine| format!("{}, {} cores, {}", of.processor, of.cores, of.instructions);
        if on(&measured.machine) != on(machine) {
            let (was, is) = (on(&measured.machine), on(machine));
            bail!("the rates were measured on another machine ({was}; this is {is}); {HOW} again");
        }
        Ok(measured)
    }

    /// Keeps them for the next commands.
    ///
    /// # Errors
    /// The file system's own.
    pub(crate) fn keep(&self, profile: Profile) -> Result<()> {
        let text = serde_json::to_string_pretty(self).context("the rates have no JSON form")?;
        record::write(&path(profile)?, &(text + "\n"))
    }
}

fn path(profile: Profile) -> Result<PathBuf> {
    Ok(fetch::cache()?.join(format!("bench/rates/{profile}.json")))
}

fn program() -> String {
    concat!("tercet/", env!("CARGO_PKG_VERSION")).into()
}

/// A digest of the file of this program.
fn build() -> Result<String> {
    let path = std::env::current_exe().context("cannot find this program")?;
    digest(&path).with_context(|| format!("cannot read {}", path.display()))
}

fn digest(path: &Path) -> io::Result<String> {
    const CHUNK_BYTES: usize = 1 << 16;
    let mut file = BufReader::with_capacity(CHUNK_BYTES, File::open(path)?);
    let mut hash = Sha256::new();
    loop {
        let read = file.fill_buf()?;
        if read.is_empty() {
            return Ok(hex(&hash.finalize()[..8]));
        }
        hash.update(read);
        let count = read.len();
        file.consume(count);
    }
}

/// What can be foretold of some cases.
pub(crate) struct Forecasts(BTreeMap<String, Rates>);

impl Forecasts {
    /// With the rates of this machine in the profiles of the cases. Rates that do not hold any more are named once.
    pub(crate) fn of(keys: &[Key]) -> Self {
        let mut known = BTreeMap::new();
        let mut profiles: Vec<&str> = keys.iter().map(|key| key.profile.as_str()).collect();
        profiles.dedup();
        for profile in profiles.into_iter().filter_map(|text| text.parse::<Profile>().ok()) {
            match Measured::read(profile) {
                Ok(Some(measured)) => drop(known.insert(profile.to_string(), measured.rates)),
                Ok(None) => {}
                Err(error) => say(format_args!("no time is foretold: {error:#}\n")),
            }
        }
        Self(known)
    }

    /// Seconds of a run: nothing where there are no rates, or not for so many threads.
    pub(crate) fn seconds(&self, plan: &Plan, key: &Key) -> Option<f64> {
        let rates = self.0.get(&key.profile).filter(|_| key.threads == 0)?;
        Some(rates.predict(plan, link(&key.link).ok()?))
    }
}

#[cfg(test)]
mod tests {
    use tercet_engine::Term;

    use super::*;

    fn example() -> Measured {
        let rates = Rates { seconds: [1.25e-9; Term::COUNT], helper: 0.3, hidden: 0.5, late: 1e-5 };
        Measured::now(Profile::Fast, rates, 0.07).unwrap()
    }

    #[test]
    fn rates_come_back_as_they_were_written() {
        let measured = example();
        let text = serde_json::to_vec(&measured).unwrap();
        assert_eq!(Measured::parse(&text, &build().unwrap(), &Machine::this()).unwrap(), measured);
    }

    #[test]
    fn rates_of_another_machine_or_program_are_refused() {
        let refused = |measured: &Measured, said: &str| {
            let text = serde_json::to_vec(measured).unwrap();
            let error = Measured::parse(&text, &build().unwrap(), &Machine::this()).unwrap_err().to_string();
            assert!(error.contains(said) && error.contains(HOW), "{error}");
        };
        refused(&Measured { build: "0123456789abcdef".into(), ..example() }, "another build");
        refused(&Measured { program: "tercet/0.0.0".into(), ..example() }, "another build");
        refused(&Measured { schema: 7, ..example() }, "another form");
        let mut other = example();
        other.machine.cores += 1;
        refused(&other, "another machine");
        let mut other = example();
        other.machine.processor = "Analytical Engine".into();
        refused(&other, "Analytical Engine");
        // A new kernel is no new machine.
        let mut same = example();
        same.machine.kernel = "linux 99".into();
        assert!(Measured::parse(&serde_json::to_vec(&same).unwrap(), &build().unwrap(), &Machine::this()).is_ok());
    }

    #[test]
    fn what_is_no_rates_is_refused() {
        let refused = |text: &[u8], said: &str| {
            let error = Measured::parse(text, "", &Machine::this()).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        };
        refused(b"", "another form");
        refused(b"[]", "another form");
        refused(br#"{"kind": "tercet rates", "schema": 1}"#, "damaged");
    }
}
