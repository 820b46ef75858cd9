//! p
use super::record::Record;
pub(crate) fn page(_r: &Record) -> String { String::new() }
